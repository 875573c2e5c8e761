"""Rows of a prompt and its completion, as a decoder and as an encoder-decoder are trained on them.

Source: reasoning-teacher src/custom/data_module.py. It pads to the longest row of the whole split, and decoders on the
left; here rows are padded on the right to the longest of their batch, so that positions count from the first token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from kdlab.data.batches import IGNORED, Batches
from kdlab.errors import DataError


class Sequences:
    """Pairs of prompt and target, mapped into memory: what `stages.targets.encode_targets` wrote."""

    def __init__(self, table: pa.Table, *, encoder_decoder: bool) -> None:
        table = table.combine_chunks()
        self.encoder_decoder = encoder_decoder
        self.ids: np.ndarray[Any, Any] = table["id"].to_numpy()  # [rows] of the questions
        self.prompts = _Ragged(table["prompt_ids"])
        self.targets = _Ragged(table["target_ids"])
        self.lengths: np.ndarray[Any, Any] = self.prompts.lengths + self.targets.lengths  # [rows] tokens

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def highest_token(self) -> int:
        return int(max(self.prompts.values.max(initial=0), self.targets.values.max(initial=0)))

    def collate(self, rows: np.ndarray[Any, Any], *, pad_token_id: int, width: int) -> dict[str, Any]:
        """The tensors of these rows, int64, padded on the right, on the CPU; labels are -100 where none is asked for.

        Decoder: input_ids, attention_mask, labels [B, width] of prompt and target one behind the other.
        Encoder-decoder: input_ids, attention_mask [B, P] of the prompts, labels, decoder_attention_mask [B, T] of the
        targets, each padded to its own longest (`width` is not used). Both: index [B], `rows` themselves.
        """
        prompts = [self.prompts[row] for row in rows]
        targets = [self.targets[row] for row in rows]
        if self.encoder_decoder:
            batch = {
                "input_ids": _padded(prompts, pad_token_id),
                "attention_mask": _mask(prompts),
                "labels": _padded(targets, IGNORED),
                "decoder_attention_mask": _mask(targets),
            }
        else:
            both = [np.concatenate(pair) for pair in zip(prompts, targets, strict=True)]
            asked = [np.concatenate([np.full(len(p), IGNORED), t]) for p, t in zip(prompts, targets, strict=True)]
            batch = {
                "input_ids": _padded(both, pad_token_id, width),
                "attention_mask": _mask(both, width),
                "labels": _padded(asked, IGNORED, width),
            }
        batch["index"] = rows.astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in batch.items()}


def open_sequences(folder: Path, split: str = "train", *, encoder_decoder: bool) -> Sequences:
    """Map `folder/<split>.arrow` into memory. Raises DataError if it is not there."""
    path = folder / f"{split}.arrow"
    if not path.is_file():
        raise DataError(f"There are no encoded rows of {split!r}.", where=str(folder))
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return Sequences(table, encoder_decoder=encoder_decoder)


def padded_tokens(rows: Sequences, *, batch_size: int) -> dict[str, int]:
    """Tokens that an epoch's forward passes see, padding included: "whole_split" if every row were padded to the
    longest prompt and target of all, as the official code does (F11), and "buckets", those of `Batches`.
    """
    batches = Batches(rows, batch_size=batch_size, seed=0, shuffle=True, pad_token_id=0)
    parts = [rows.prompts.lengths, rows.targets.lengths] if rows.encoder_decoder else [rows.lengths]
    return {
        "whole_split": int(sum(part.max() for part in parts)) * len(rows),
        "buckets": int(sum(part[batch].max() * len(batch) for batch in batches.order(0) for part in parts)),
    }


class _Ragged:
    """Lists of tokens in one array."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        lists = column.chunk(0)
        self.offsets = lists.offsets.to_numpy().astype(np.int64)
        self.values: np.ndarray[Any, Any] = lists.values.to_numpy()
        self.lengths: np.ndarray[Any, Any] = np.diff(self.offsets)

    def __getitem__(self, row: int) -> np.ndarray[Any, Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


def _padded(rows: list[np.ndarray[Any, Any]], value: int, width: int | None = None) -> np.ndarray[Any, Any]:
    """[B, width]; width: that of the longest row, if none is given."""
    padded = np.full((len(rows), width or max(map(len, rows))), value, dtype=np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded


def _mask(rows: list[np.ndarray[Any, Any]], width: int | None = None) -> np.ndarray[Any, Any]:
    """1 where there is a token, else 0: [B, width]."""
    lengths = np.array([len(row) for row in rows])
    return (np.arange(width or lengths.max()) < lengths[:, None]).astype(np.int64)
