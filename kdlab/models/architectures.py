"""What kdlab must know about each supported architecture. No torch here: `kdlab plan` reads this table too.

Module paths are those of the stock classes of transformers 5, relative to the base model or to one layer.
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
    return int(_value(config, "num_hidden_layers"))


def hidden_size(config: Mapping[str, Any]) -> int:
    """Width D of the hidden states of a config.json."""
    return int(_value(config, "hidden_size"))


def num_heads(config: Mapping[str, Any]) -> int:
    """Number of attention heads of a config.json."""
    return int(_value(config, "num_attention_heads"))


def longest_input(config: Mapping[str, Any]) -> int | None:
    """Most tokens that the position embeddings reach; None: there are none.

    roberta, xlm-roberta and mpnet number positions from the padding id + 1 on.
    """
    kind = config.get("model_type")
    if kind == "modernbert" or not _value(config, "position_biased_input", True):
        return None
    padding = {"roberta": config.get("pad_token_id", 1), "xlm-roberta": config.get("pad_token_id", 1), "mpnet": 1}
    skipped = int(padding[kind]) + 1 if kind in padding else 0
    return int(_value(config, "max_position_embeddings")) - skipped


def estimate_parameters(config: Mapping[str, Any]) -> int:
    """Number of parameters of the stock ...ForSequenceClassification that a config.json describes.

    The number of classes is that of `num_labels` or `id2label`, else 2.
    """
    model_type = config.get("model_type")
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
