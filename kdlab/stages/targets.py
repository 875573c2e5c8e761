"""From questions and rationales to the token ids that a student is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kdlab.artifacts import write_json
from kdlab.context import Context
from kdlab.data.prompts import Style, prompt, target
from kdlab.data.sequences import Sequences, padded_tokens
from kdlab.errors import DataError, ModelError
from kdlab.models.generator import prompt_ids, target_ids
from kdlab.stages.completions import Row, read_rows
from kdlab.stages.prepare import write_table
from kdlab.stages.tokenise import load_tokenizer

PAPER_BATCH = 8  # rows, for the count of padding
PAD, EOS = "<pad>", "<eos>"


def encode_targets(
    ctx: Context,
    *,
    data: Path,
    tokenizer: Mapping[str, Any] | None,
    style: Mapping[str, Any],
    max_prompt: int,
    max_target: int,
    reader: Path | None = None,
) -> None:
    """Write `train.arrow` (id int64, prompt_ids, target_ids list<int32>), and the tokenizer as a folder `tokenizer/`.

    Prompt and target are tokenised apart and put one behind the other, as in the official code; see `prompt_ids` and
    `target_ids` for what stands before and behind them and how they are cut.

    data: curated rationales, or questions, whose own rationale is the target where the template has one.
    tokenizer: {"id", "revision"} on the Hub, {"path"} a folder, or {"kind": "pieces", "vocabulary"}, learnt on the
    training texts; None: that of `reader`, another artifact of this stage. style: the fields of `data.prompts.Style`.

    Facts, also in facts.json: rows; tokens and longest (prompt, target, all); cut (rows, of prompt and target);
    vocabulary; max_prompt, max_target; padded (tokens of an epoch: see `padded_tokens`, batches of 8).
    """
    shape = Style(**style)
    rows = read_rows(data, "train")
    if not rows:
        raise DataError("There is nothing to train on: no row is left.", where=str(data))
    prompts = [prompt(row["question"], shape) for row in rows]
    targets = [target(row["answer"], _rationale(row, shape, data), shape) for row in rows]
    if reader is not None:
        tokenizer = {"path": str(reader / "tokenizer")}
    assert tokenizer is not None, "one of tokenizer and reader"
    if tokenizer.get("kind") == "pieces":
        fast = pieces([*prompts, *targets], int(tokenizer["vocabulary"]))
    else:
        fast = writing_tokenizer(tokenizer)
    seq2seq = shape.model_type == "encoder_decoder"
    whole = {
        "prompt": prompt_ids(fast, prompts, encoder_decoder=seq2seq),
        "target": target_ids(fast, targets, encoder_decoder=seq2seq),
    }
    kept = {
        "prompt": prompt_ids(fast, prompts, encoder_decoder=seq2seq, limit=max_prompt),
        "target": target_ids(fast, targets, encoder_decoder=seq2seq, limit=max_target),
    }
    cut = {name: sum(len(ids) > limit for ids in whole[name]) for name, limit in _limits(max_prompt, max_target)}
    for name, limit in _limits(max_prompt, max_target):
        if cut[name]:
            ctx.warn(f"{cut[name]} of {len(rows)} {name}s have more than {limit} tokens and are cut")
    table = pa.table(
        {
            "id": pa.array([row["id"] for row in rows], pa.int64()),
            "prompt_ids": pa.array(kept["prompt"], pa.list_(pa.int32())),
            "target_ids": pa.array(kept["target"], pa.list_(pa.int32())),
        }
    )
    write_table(ctx, "train", table)
    fast.save_pretrained(ctx.out / "tokenizer")
    encoded = Sequences(table, encoder_decoder=seq2seq)
    parts = {"prompt": encoded.prompts.lengths, "target": encoded.targets.lengths, "all": encoded.lengths}
    facts = {
        "rows": {"train": len(rows)},
        "tokens": {name: int(lengths.sum()) for name, lengths in parts.items()},
        "longest": {name: int(lengths.max()) for name, lengths in parts.items()},
        "cut": cut,
        "vocabulary": len(fast),
        "max_prompt": max_prompt,
        "max_target": max_target,
        "padded": padded_tokens(encoded, batch_size=PAPER_BATCH),
    }
    write_json(ctx.out / "facts.json", facts)
    ctx.facts.update(facts)


def _limits(max_prompt: int, max_target: int) -> Iterable[tuple[str, int]]:
    return (("prompt", max_prompt), ("target", max_target))


def _rationale(row: Row, style: Style, data: Path) -> str | None:
    if style.template == "ft_token":
        return None
    if not row.get("rationale"):
        raise DataError(
            f"Question {row['id']} has no rationale, and the template {style.template} trains on one.",
            where=str(data),
            fix="Let a teacher write them (method=ft_cot), or train on answers only (method=ft_answer).",
        )
    return str(row["rationale"])


def writing_tokenizer(tokenizer: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """A pre-trained tokenizer that can say where a text ends. One without a padding token pads with that, as GPT-2 does
    in the official code: padding is told by the mask alone.
    """
    fast = load_tokenizer(tokenizer)
    if fast.eos_token_id is None:
        raise ModelError(
            "The tokenizer has no end-of-text token, so its model could never stop.",
            where=str(tokenizer.get("path") or tokenizer["id"]),
            fix="Use a decoder or an encoder-decoder: gpt2, llama, qwen3, gemma3_text, t5, ...",
        )
    if fast.pad_token_id is None:
        fast.pad_token = fast.eos_token
    return fast


def pieces(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Byte-level BPE of at most `vocabulary` tokens learnt on `texts`; every digit is a token of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + 2
    if vocabulary < least:
        raise ModelError(
            f"A vocabulary of {vocabulary} can't hold the 256 bytes, padding and end-of-text.",
            where="model.vocabulary",
            fix=f"Give {least} or more.",
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer, length=len(texts))
    build: Callable[..., PreTrainedTokenizerBase] = PreTrainedTokenizerFast
    return build(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
