"""What kdlab must know about each supported architecture. No torch here: `kdlab plan` reads this table too.

`ARCHITECTURES` are the encoders whose layers can be distilled. Module paths are those of the stock classes of
transformers 5, relative to the base model or to one layer. What generates text is not limited to a table: `DECODERS`
only says how many parameters the usual ones have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdlab.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Where the parts are, and the sizes that a config.json may leave out."""

    embeddings: tuple[str, ...] = ("embeddings",)  # the first that exists gives the complete embedding output
    layers: str = "encoder.layer"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    fused: bool = False  # query, key and value come out of one linear map, in this order
    after_first: str | None = None  # if there, this module makes hidden state 1 of the first layer's output
    after_last: str | None = None  # this module makes the last hidden state of the last layer's output
    attention: bool = True  # the raw scores are q k^T / sqrt(d), plus a bias from `bias_of`
    bias_of: str | None = None  # the module of a layer whose third argument is the position bias [B,h,L,L]
    own_mask: str | None = None  # the embedding module's argument for the padding mask
    segments: bool = True  # takes token_type_ids
    sdpa: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    extras: frozenset[str] = frozenset()  # config keys that work but are no fields of the config class


_BERT: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}

ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(defaults=_BERT),
    "roberta": Architecture(defaults=_BERT | {"vocab_size": 50265}),
    "xlm-roberta": Architecture(defaults=_BERT),
    "electra": Architecture(
        embeddings=("embeddings_project", "embeddings"),
        defaults=_BERT
        | {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
    "distilbert": Architecture(
        layers="transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        segments=False,
        defaults=_BERT | {"num_hidden_layers": 6, "type_vocab_size": 0},
    ),
    "mpnet": Architecture(
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        bias_of="attention.attn",
        segments=False,
        sdpa=False,
        defaults=_BERT | {"vocab_size": 30527, "type_vocab_size": 0, "relative_attention_num_buckets": 32},
    ),
    "deberta-v2": Architecture(
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        after_first="encoder.conv",
        attention=False,
        own_mask="mask",
        sdpa=False,
        defaults={
            "vocab_size": 128100,
            "hidden_size": 1536,
            "num_hidden_layers": 24,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "max_position_embeddings": 512,
            "type_vocab_size": 0,
            "relative_attention": False,
            "max_relative_positions": -1,
            "position_buckets": -1,
            "position_biased_input": True,
            "pos_att_type": (),
            "share_att_key": False,
            "norm_rel_ebd": "none",
            "conv_kernel_size": 0,
            "conv_groups": 1,
        },
        extras=frozenset(
            {
                "attention_head_size",
                "cls_dropout",
                "conv_act",
                "conv_groups",
                "conv_kernel_size",
                "embedding_size",
                "norm_rel_ebd",
                "pooler_hidden_size",
                "position_buckets",
                "share_att_key",
            }
        ),
    ),
    "modernbert": Architecture(
        layers="layers",
        query="attn.Wqkv",
        key="attn.Wqkv",
        value="attn.Wqkv",
        fused=True,
        after_last="final_norm",
        attention=False,
        segments=False,
        defaults={
            "vocab_size": 50368,
            "hidden_size": 768,
            "num_hidden_layers": 22,
            "num_attention_heads": 12,
            "intermediate_size": 1152,
            "norm_bias": False,
            "attention_bias": False,
            "mlp_bias": False,
            "classifier_bias": False,
        },
        extras=frozenset({"global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"}),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What a model that writes text has besides gated layers without biases, as llama has them."""

    norms: int = 2  # normalisations of a layer, one vector each
    head_norms: bool = False  # queries and keys of a head are normalised
    biases: bool = False  # of the maps to query, key and value
    tied: bool = False  # the head shares its weights with the embeddings, unless the config says otherwise
    defaults: Mapping[str, Any] = field(default_factory=dict)


DECODERS: dict[str, Decoder] = {
    "gpt2": Decoder(
        tied=True,
        defaults={
            "vocab_size": 50257,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 1024,
        },
    ),
    "llama": Decoder(),
    "mistral": Decoder(),
    "smollm3": Decoder(tied=True),
    "qwen2": Decoder(biases=True),
    "qwen3": Decoder(head_norms=True),
    "gemma": Decoder(tied=True),
    "gemma2": Decoder(norms=4, tied=True),
    "gemma3_text": Decoder(norms=4, head_norms=True, tied=True, defaults={"head_dim": 256}),
}

T5_KINDS = ("t5", "mt5")
_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "head_dim": 64,
    "intermediate_size": 2048,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "relu",
}

ENCODER_DECODERS = frozenset(
    {
        *(*T5_KINDS, "umt5", "longt5", "switch_transformers", "t5gemma", "encoder-decoder"),
        *("bart", "mbart", "plbart", "mvp", "led", "pegasus", "pegasus_x", "bigbird_pegasus", "prophetnet"),
        *("blenderbot", "blenderbot-small", "fsmt", "marian", "m2m_100", "nllb-moe"),
    }
)
_NO_POSITIONS = frozenset({*T5_KINDS, "umt5", "longt5", "switch_transformers", "bloom", "mpt", "mamba", "mamba2"})
_READERS = frozenset(  # trained to fill in words of a text, not to go on with it
    {
        *("albert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "ernie", "flaubert", "fnet"),
        *("funnel", "ibert", "layoutlm", "longformer", "luke", "megatron-bert", "mobilebert", "mra", "nomic_bert"),
        *("nystromformer", "rembert", "roberta-prelayernorm", "roc_bert", "roformer", "squeezebert", "xlm"),
        *("xlm-roberta-xl", "xmod", "yoso"),
    }
)

_OTHER_NAMES = {  # distilbert's own words for the common keys
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}


def architecture(model_type: str | None) -> Architecture:
    """The row of `model_type`; ModelError for any other than the eight."""
    found = ARCHITECTURES.get(model_type or "")
    if found is None:
        raise ModelError(
            f"architecture {model_type!r} is not supported" if model_type else "the config has no model_type",
            fix=f"use a model of one of these types: {', '.join(ARCHITECTURES)}",
        )
    return found


def available(model_type: str) -> frozenset[str]:
    """Names of the tensors that `kdlab.models.taps` can read.

    deberta-v2 adds terms of relative position to its scores and modernbert rotates queries and keys after the
    projection: their raw scores are no output of any module, so "attention" is missing there.
    """
    names = frozenset({"hidden", "query", "key", "value"})
    return names | {"attention"} if architecture(model_type).attention else names


def num_layers(config: Mapping[str, Any]) -> int:
    """Number of Transformer layers of a config.json."""
    return _count(config, "num_hidden_layers")


def hidden_size(config: Mapping[str, Any]) -> int:
    """Width D of the hidden states of a config.json."""
    return _count(config, "hidden_size")


def num_heads(config: Mapping[str, Any]) -> int:
    """Number of attention heads of a config.json."""
    return _count(config, "num_attention_heads")


def longest_input(config: Mapping[str, Any]) -> int | None:
    """Most tokens that the position embeddings reach, of a decoder prompt and completion together; None: no bound.

    roberta, xlm-roberta and mpnet number positions from the padding id + 1 on. Rotary positions reach further than
    what the model was trained on, which is the bound here.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        if kind in _NO_POSITIONS:
            return None
        reach = _size(config.get("text_config") or config, "max_position_embeddings", 0)
        return reach if reach > 0 else None
    if kind == "modernbert" or not _value(config, "position_biased_input", True):
        return None
    padding = {"roberta": config.get("pad_token_id", 1), "xlm-roberta": config.get("pad_token_id", 1), "mpnet": 1}
    skipped = int(padding[kind]) + 1 if kind in padding else 0
    return int(_value(config, "max_position_embeddings")) - skipped


def estimate_parameters(config: Mapping[str, Any]) -> int:
    """Number of parameters of the stock model that a config.json describes.

    Encoders, with a head for classification: the number of classes is that of `num_labels` or `id2label`, else 2. Exact
    for all of `ARCHITECTURES`, `DECODERS`, t5 and mt5. Of any other generator an estimate from its sizes: gated layers
    without biases, and for an encoder-decoder as in t5; experts of a mixture are not counted.
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES and generator_problem(config) is None:
        config = config.get("text_config") or config
        return _encoder_decoder(config) if is_encoder_decoder(config) else _decoder(config)
    architecture(model_type)
    layers, width, inner = num_layers(config), hidden_size(config), int(_value(config, "intermediate_size"))
    classes = int(config.get("num_labels") or len(config.get("id2label") or ()) or 2)
    if model_type == "modernbert":
        return _modernbert(config, layers, width, inner, classes)

    square = width * width + width
    layer = 4 * square + (2 * width * inner + inner + width) + 4 * width
    head = square + width * classes + classes
    rows = int(_value(config, "vocab_size")) + int(_value(config, "type_vocab_size"))
    if _value(config, "position_biased_input", True):
        rows += int(_value(config, "max_position_embeddings"))
    narrow = int(_value(config, "embedding_size", width))
    total = rows * narrow + layers * layer + head
    if model_type == "deberta-v2":
        total += 2 * width + (narrow * width if narrow != width else 0)
        return total + _relative(config, layers, width)
    total += 2 * narrow + (narrow * width + width if narrow != width else 0)
    if model_type == "mpnet":
        total += int(_value(config, "relative_attention_num_buckets")) * num_heads(config)
    return total


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model that reads with an encoder and writes with a decoder (T5, BART)."""
    return bool(config.get("is_encoder_decoder", config.get("model_type") in ENCODER_DECODERS))


def generator_problem(config: Mapping[str, Any]) -> str | None:
    """Why the model of a config.json can't write text; None: nothing that can be told without loading it."""
    kind = config.get("model_type")
    if not kind:
        return "the config has no model_type"
    if is_encoder_decoder(config) or config.get("is_decoder"):
        return None
    if kind in ARCHITECTURES or kind in _READERS:
        return f"{kind} reads texts and writes none; use a decoder (gpt2, gemma, qwen, ...) or an encoder-decoder (t5)"
    return None


_SIZES = {  # other words for the common keys of generators
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers", "encoder_layers"),
    "num_attention_heads": ("n_head", "num_heads", "n_heads", "encoder_attention_heads"),
    "intermediate_size": ("n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len"),
    "head_dim": ("d_kv",),
}


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A size of a generator by its common name; ModelError if config.json has none and the architecture no default."""
    kind = config.get("model_type")
    stock = _T5 if kind in T5_KINDS else DECODERS[kind].defaults if kind in DECODERS else {}
    for known in (name, *_SIZES.get(name, ())):
        if config.get(known) is not None:
            if not isinstance(config[known], int):
                raise ModelError(f"the model's config has {known}={config[known]!r}, which is no whole number")
            return int(config[known]) if default is not None else _positive(known, config[known])
    found = stock.get(name, default)
    if found is None:
        raise ModelError(f"the model's config has no {name}", fix="check config.json; kdlab knows no default for it")
    return int(found)


def _decoder(config: Mapping[str, Any]) -> int:
    kind = Decoder() if config.get("model_type") not in DECODERS else DECODERS[config["model_type"]]
    layers, width = _size(config, "num_hidden_layers"), _size(config, "hidden_size")
    words = _size(config, "vocab_size") * width
    head = 0 if config.get("tie_word_embeddings", kind.tied) else words
    inner = _size(config, "intermediate_size", 4 * width)
    if config.get("model_type") == "gpt2":
        layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
        return words + head + _size(config, "max_position_embeddings") * width + layers * layer + 2 * width
    heads = _size(config, "num_attention_heads")
    own = _size(config, "head_dim", width // heads)  # width of one head
    pairs = _size(config, "num_key_value_heads", heads)
    across = (heads + 2 * pairs) * own  # of queries, keys and values
    layer = width * across + heads * own * width + 3 * width * inner + kind.norms * width
    if kind.head_norms:
        layer += 2 * own
    if kind.biases or config.get("attention_bias"):
        layer += across
    if config.get("attention_bias"):
        layer += width
    if config.get("mlp_bias"):
        layer += 2 * inner + width
    return words + head + layers * layer + width


def _encoder_decoder(config: Mapping[str, Any]) -> int:
    """T5: relative positions in the first layer of each side; no biases."""
    width, inner = _size(config, "hidden_size"), _size(config, "intermediate_size")
    heads = _size(config, "num_attention_heads")
    attention = 4 * width * heads * _size(config, "head_dim", width // heads)
    known = config.get("model_type") in T5_KINDS
    stock = "gated-gelu" if config.get("model_type") == "mt5" else "relu"
    gated = str(config.get("feed_forward_proj", stock)).startswith("gated")
    mlp = (3 if gated else 2) * width * inner
    readers = _size(config, "num_hidden_layers")
    writers = _size(config, "num_decoder_layers", _size(config, "decoder_layers", readers))
    positions = 2 * heads * _size(config, "relative_attention_num_buckets") if known else 0
    words = _size(config, "vocab_size") * width
    total = words + positions + 2 * width
    total += readers * (attention + mlp + 2 * width) + writers * (2 * attention + mlp + 3 * width)
    return total + (0 if config.get("tie_word_embeddings", True) else words)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ModelError(f"the model's config has {name}={value}, which must be 1 or more", fix="check config.json")
    return value


def _count(config: Mapping[str, Any], name: str) -> int:
    return _positive(name, int(_value(config, name)))


def _value(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A key of config.json by its common name, else the default of its architecture."""
    stock = architecture(config.get("model_type")).defaults.get(name, default)
    for known in (name, _OTHER_NAMES.get(name, name)):
        if config.get(known) is not None:
            if isinstance(stock, int) and not isinstance(config[known], int):
                raise ModelError(f"the model's config has {known}={config[known]!r}, which is no whole number")
            return config[known]
    return stock


def _relative(config: Mapping[str, Any], layers: int, width: int) -> int:
    """deberta-v2: relative positions, the convolution, and heads that are not D / h wide."""
    heads = num_heads(config)
    across = heads * int(_value(config, "attention_head_size", width // heads))
    total = layers * 3 * (across - width) * (width + 1)
    if _value(config, "relative_attention"):
        reach = int(_value(config, "position_buckets"))
        if reach < 1:
            reach = int(_value(config, "max_relative_positions"))
        if reach < 1:
            reach = int(_value(config, "max_position_embeddings"))
        total += 2 * reach * width
        kinds = _value(config, "pos_att_type")
        if not _value(config, "share_att_key"):
            total += layers * ("c2p" in kinds) * (width + 1) * across
            total += layers * ("p2c" in kinds) * (width + 1) * across
    if "layer_norm" in str(_value(config, "norm_rel_ebd")):
        total += 2 * width
    kernel = int(_value(config, "conv_kernel_size"))
    if kernel > 0:
        total += width * width * kernel // int(_value(config, "conv_groups")) + 3 * width
    return total


def _modernbert(config: Mapping[str, Any], layers: int, width: int, inner: int, classes: int) -> int:
    norm = width * (2 if _value(config, "norm_bias") else 1)
    attention = 4 * width * width + (4 * width if _value(config, "attention_bias") else 0)
    mlp = 3 * width * inner + (2 * inner + width if _value(config, "mlp_bias") else 0)
    head = width * width + (width if _value(config, "classifier_bias") else 0) + norm
    words = int(_value(config, "vocab_size")) * width + norm
    # the first layer has no norm of its own before the attention; the final norm makes up for it in the count
    return words + layers * (attention + mlp + 2 * norm) + head + width * classes + classes
