"""Encoded rows and their batches: shuffled, bucketed by length, padded as little as needed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from kdlab.errors import DataError

IGNORED = -100  # the class id of a row without a label; its regression target is nan
POOLS = 4  # at least so many pools an epoch, as long as each has
POOL_BATCHES = 20  # at least so many batches


class EncodedSplit:
    """The rows of one split, mapped into memory: what `stages.tokenise` wrote."""

    def __init__(self, table: pa.Table) -> None:
        table = table.combine_chunks()
        ids = table["input_ids"].chunk(0)
        self.ids: np.ndarray[Any, Any] = table["id"].to_numpy()  # [rows] row numbers in the source's split
        self._offsets = ids.offsets.to_numpy().astype(np.int64)
        self._tokens = {"input_ids": ids.values.to_numpy()}
        if "token_type_ids" in table.column_names:
            self._tokens["token_type_ids"] = table["token_type_ids"].chunk(0).values.to_numpy()
        self.lengths: np.ndarray[Any, Any] = np.diff(self._offsets)  # [rows] tokens
        label = table["label"]
        self.labelled: bool = label.null_count == 0
        self.regression: bool = pa.types.is_floating(label.type)
        missing = float("nan") if self.regression else IGNORED
        self.labels: np.ndarray[Any, Any] = label.fill_null(missing).to_numpy()  # [rows] int64 or float64
        self.extra: dict[str, np.ndarray[Any, Any]] = {}  # [rows, ...] what else a batch holds of each row, by name

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def highest_token(self) -> int:
        return int(self._tokens["input_ids"].max(initial=0))

    def collate(self, rows: np.ndarray[Any, Any], *, pad_token_id: int, width: int) -> dict[str, Any]:
        """input_ids, attention_mask, [token_type_ids] [B, width]; labels, index [B]: `rows` themselves; and what is in
        `extra`. All on the CPU.

        Labels are int64 (-100: none) or float32 (nan: none).
        """
        lengths = self.lengths[rows]
        mask = np.arange(width) < lengths[:, None]  # [B, width]
        batch: dict[str, Any] = {}
        for name, values in self._tokens.items():
            padded = np.full(mask.shape, pad_token_id if name == "input_ids" else 0, dtype=np.int64)
            starts = self._offsets[rows]
            padded[mask] = np.concatenate(
                [values[start : start + length] for start, length in zip(starts, lengths, strict=True)]
            )
            batch[name] = torch.from_numpy(padded)
        batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        labels = torch.from_numpy(self.labels[rows])
        batch["labels"] = labels.float() if self.regression else labels
        batch["index"] = torch.from_numpy(rows.astype(np.int64))
        return batch | {name: torch.from_numpy(values[rows]) for name, values in self.extra.items()}


def open_encoded(folder: Path, split: str) -> EncodedSplit:
    """Map `folder/<split>.arrow` into memory. Raises DataError if it is not there."""
    path = folder / f"{split}.arrow"
    if not path.is_file():
        there = sorted(child.stem for child in folder.glob("*.arrow"))
        raise DataError(
            f"There is no encoded split {split!r}. There are: {', '.join(there) or 'none'}.",
            where=str(folder),
        )
    return EncodedSplit(pa.ipc.open_file(pa.memory_map(str(path))).read_all())


class Rows(Protocol):
    """What batches are made of."""

    lengths: np.ndarray[Any, Any]  # [rows] tokens, by which rows of like length are put together

    def __len__(self) -> int: ...

    def collate(self, rows: np.ndarray[Any, Any], *, pad_token_id: int, width: int) -> dict[str, Any]:
        """The tensors of these rows, on the CPU; attention_mask [B, width] among them."""
        ...


class Batches:
    """The optimiser steps of each epoch as lists of micro-batches, in an order that is pure in (seed, epoch).

    Shuffled: all rows are permuted; the rows left over by whole batches, thus random ones, are the short
    batch; the others are cut into pools of equal size (by one batch), of at most `bucket` batches: fewer in
    small data, which get up to four pools of 20 batches or more, so that they too are dealt anew each epoch.
    Each pool is sorted by length and cut into batches; then the batches and the rows in each are permuted. So
    which row of its batch a row is mixed with (row i with row B-1-i) is uniform among the batch, and a batch
    holds rows of about equal length. (With less than 40 batches there is one pool: rows of like length then
    share a batch in most epochs.)

    Not shuffled: all rows in order of their length, longest first; `index` tells which row is which.

    Process `rank` of `world` takes the rows rank, rank + world, ... of each batch, and runs at most
    `micro_batch` of them at once (0: all). All processes get equally many micro-batches a step; where one has
    no rows left, it gets a phantom, a copy of the batch's first row with "real" False, which must count
    nothing.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool = False,
        bucket: int = 50,
        pad_token_id: int,
        pad_to: int | None = None,
        rank: int = 0,
        world: int = 1,
        micro_batch: int = 0,
    ) -> None:
        """pad_to: pad every batch to so many tokens; None: to the longest row of the micro-batch."""
        assert batch_size > 0 and bucket > 0 and micro_batch >= 0 and 0 <= rank < world
        assert pad_to is None or not len(rows) or int(rows.lengths.max()) <= pad_to, "rows longer than pad_to"
        if not len(rows):
            raise DataError("There are no rows to make batches of.")
        if drop_last and len(rows) < batch_size:
            raise DataError(
                f"{len(rows)} rows make no whole batch of {batch_size}, and drop_last skips short ones.",
                fix="Use a smaller batch_size, or drop_last=false.",
            )
        self.rows, self.batch_size, self.seed, self.shuffle = rows, batch_size, seed, shuffle
        self.drop_last, self.bucket, self.pad_token_id, self.pad_to = drop_last, bucket, pad_token_id, pad_to
        self.rank, self.world, self.micro_batch = rank, world, micro_batch

    def __len__(self) -> int:
        whole, left = divmod(len(self.rows), self.batch_size)
        return whole + (1 if left and not self.drop_last else 0)

    def order(self, epoch: int) -> list[np.ndarray[Any, Any]]:
        """The row numbers of each global batch of an epoch."""
        size = self.batch_size
        if not self.shuffle:
            ordered = self._by_length
            return [ordered[start : start + size] for start in range(0, len(self) * size, size)]
        rng = np.random.default_rng([self.seed, epoch])
        shuffled = rng.permutation(len(self.rows))
        whole = len(shuffled) // size
        pools = max(-(-whole // self.bucket), min(POOLS, whole // POOL_BATCHES), 1)
        batches: list[np.ndarray[Any, Any]] = []
        for rows in np.array_split(shuffled[: whole * size].reshape(whole, size), pools):  # [batches, size]
            flat = rows.ravel()
            batches.extend(flat[np.argsort(self.rows.lengths[flat], kind="stable")].reshape(-1, size))
        if len(batches) < len(self):
            batches.append(shuffled[whole * size :])
        return [rng.permutation(batches[position]) for position in rng.permutation(len(batches))]

    @cached_property
    def _by_length(self) -> np.ndarray[Any, Any]:
        return np.argsort(-self.rows.lengths, kind="stable")

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[dict[str, Any]]]:
        """The optimiser steps of an epoch from step `start` on.

        Each is a list of micro-batches: the tensors of the rows' `collate`, "real" (bool), and "share": its rows over
        those of the whole batch in all processes.
        """
        for batch in self.order(epoch)[start:]:
            yield [self._collate(rows, real, len(batch)) for rows, real in self._parts(batch)]

    def _parts(self, batch: np.ndarray[Any, Any]) -> list[tuple[np.ndarray[Any, Any], bool]]:
        most = -(-len(batch) // self.world)  # rows of the first process, which has the most
        size = self.micro_batch or most
        mine = batch[self.rank :: self.world]
        parts = [(mine[start : start + size], True) for start in range(0, len(mine), size)]
        phantoms = -(-most // size) - len(parts)
        return parts + [(batch[:1], False)] * phantoms

    def _collate(self, rows: np.ndarray[Any, Any], real: bool, whole: int) -> dict[str, Any]:
        width = self.pad_to or int(self.rows.lengths[rows].max())
        batch = self.rows.collate(rows, pad_token_id=self.pad_token_id, width=width)
        batch["real"] = real
        batch["share"] = len(rows) / whole
        return batch
