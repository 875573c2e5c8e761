"""Tiny models that write, and a tokenizer of single words for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kdlab.data.sequences import Sequences
from kdlab.models.generator import load_generator

WORDS = 60
PAD, EOS, BOS = 0, 1, 2
FIRST = 3  # the id of the word w0
_ROPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "initializer_range": 0.3,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {"model_type": "llama", **_ROPE},
    "gemma3_text": {
        "model_type": "gemma3_text",
        **_ROPE,
        "num_hidden_layers": 3,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": False,
    },
    "t5": {
        "model_type": "t5",
        "d_model": 32,
        "num_layers": 2,
        "num_heads": 4,
        "d_kv": 8,
        "d_ff": 64,
        "dropout_rate": 0.0,
        "initializer_factor": 4.0,
    },
    "bart": {
        "model_type": "bart",
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
        "init_std": 0.6,
        "dropout": 0.0,
    },
}


def writer(name: str, *, seed: int = 1, attention: str = "eager", **changes: Any) -> PreTrainedModel:
    """A random model with weights large enough that what it reads matters."""
    spec = {"init": "random", "config": {**CONFIGS[name], **changes}}
    return load_generator(spec, attention=attention, seed=seed, vocabulary=WORDS, pad_token_id=PAD, eos_token_id=EOS)


def words(*, bos: bool = False, eos: bool = False, pad: bool = True) -> PreTrainedTokenizerBase:
    """A token for each of w0, w1, ...; bos, eos: put around a text, as the tokenizers of gemma and of T5 do."""
    names = {"<pad>": PAD, "<eos>": EOS, "<bos>": BOS} | {f"w{n}": FIRST + n for n in range(WORDS - FIRST)}
    backend = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = ("<bos> " if bos else "") + "$A" + (" <eos>" if eos else "")
    backend.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    more = {"pad_token": "<pad>"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", bos_token="<bos>", **more)


def text(ids: Sequence[int]) -> str:
    return " ".join(f"w{token - FIRST}" for token in ids)


def random_ids(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(FIRST, WORDS, length).tolist() for length in lengths]


def table(prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> pa.Table:
    """What `encode_targets` writes."""
    return pa.table(
        {
            "id": pa.array(range(len(prompts)), pa.int64()),
            "prompt_ids": pa.array(prompts, pa.list_(pa.int32())),
            "target_ids": pa.array(targets, pa.list_(pa.int32())),
        }
    )


def sequences(count: int = 11, *, encoder_decoder: bool, seed: int = 0) -> Sequences:
    """Rows of unequal lengths: prompts of 1 to 12 tokens, targets of 1 to 8 with end-of-text."""
    rng = np.random.default_rng(seed)
    prompts = random_ids(rng.integers(1, 13, count).tolist(), seed)
    targets = [[*ids, EOS] for ids in random_ids(rng.integers(0, 8, count).tolist(), seed + 1)]
    return Sequences(table(prompts, targets), encoder_decoder=encoder_decoder)
