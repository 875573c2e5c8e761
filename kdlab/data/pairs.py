"""Pairs of a text and its translation, and the optimiser steps of several languages. Shapes: B pairs, L tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from kdlab.data.batches import Batches, EncodedSplit
from kdlab.errors import DataError


class PairRows:
    """The rows that are in both of two tables, told by their `id`: a text, its translation, and their one label."""

    def __init__(self, source: EncodedSplit, target: EncodedSplit) -> None:
        """source, target: the same rows in the source and in the target language; either may lack some."""
        ids, self._source, self._target = np.intersect1d(source.ids, target.ids, return_indices=True)
        if not len(ids):
            raise DataError("The texts and their translations have no row in common.")
        self._tables = source, target
        self.lengths: np.ndarray[Any, Any] = np.maximum(
            source.lengths[self._source], target.lengths[self._target]
        )  # [rows] tokens of the longer of the two

    def __len__(self) -> int:
        return len(self.lengths)

    def collate(self, rows: np.ndarray[Any, Any], *, pad_token_id: int, width: int) -> dict[str, Any]:
        """input_ids, attention_mask, [token_type_ids] [2B, L]: first the B texts, then their B translations.

        labels, index [B]: of the pairs. All on the CPU.
        """
        first, second = (
            table.collate(numbers[rows], pad_token_id=pad_token_id, width=width)
            for table, numbers in zip(self._tables, (self._source, self._target), strict=True)
        )
        tokens = [name for name in first if name not in ("labels", "index")]
        batch: dict[str, Any] = {name: torch.cat([first[name], second[name]]) for name in tokens}
        batch["labels"] = first["labels"]
        batch["index"] = torch.from_numpy(rows.astype(np.int64))
        return batch


class LanguageBatches:
    """One batch of each language an optimiser step, in the languages' order.

    An epoch is that of the language with most batches; a language that has run out is left out of the rest of it.
    Each micro-batch has "languages_share": its "share", times the languages trained over those that are in the step.
    Summed over a step this is the number of languages, so the mean over languages keeps its divisor when one is out.
    Source: MUSC baseline_trainer.py:90-97, 232-251.
    """

    def __init__(self, languages: Mapping[str, Batches]) -> None:
        assert languages
        self.languages = dict(languages)

    def __len__(self) -> int:
        return max(len(batches) for batches in self.languages.values())

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[dict[str, Any]]]:
        """The optimiser steps of an epoch from step `start` on, each a list of micro-batches."""
        running = [batches.epoch(epoch, start) for batches in self.languages.values()]
        for _ in range(start, len(self)):
            present = [batch for batch in (next(steps, None) for steps in running) if batch is not None]
            for batch in (micro for batches in present for micro in batches):
                batch["languages_share"] = batch["share"] * len(running) / len(present)
            yield [micro for batches in present for micro in batches]
