"""Pairs of texts and translations, and the batches of several languages."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from kdlab.data.batches import Batches, EncodedSplit
from kdlab.data.languages import View
from kdlab.data.pairs import LanguageBatches, PairRows
from kdlab.errors import DataError


def encoded(rows: dict[int, list[int]], labels: dict[int, int]) -> EncodedSplit:
    """rows: token ids by row number."""
    return EncodedSplit(
        pa.table(
            {
                "id": pa.array(list(rows), pa.int64()),
                "input_ids": pa.array(list(rows.values()), pa.list_(pa.int32())),
                "label": pa.array([labels[row] for row in rows], pa.int64()),
            }
        )
    )


LABELS = {0: 1, 1: 0, 2: 1, 5: 0}
SOURCE = encoded({0: [2, 3], 1: [4], 2: [5, 6, 7], 5: [8]}, LABELS)
TARGET = encoded({5: [18, 19], 0: [12, 13, 14, 15], 2: [15]}, LABELS)  # row 1 has no translation, and the order differs


def batches(rows: PairRows | EncodedSplit, size: int, *, micro_batch: int = 0) -> Batches:
    return Batches(rows, batch_size=size, seed=1, shuffle=True, pad_token_id=0, micro_batch=micro_batch)


def test_pairs_are_the_rows_of_both_tables_told_by_their_id() -> None:
    pairs = PairRows(SOURCE, TARGET)
    assert len(pairs) == 3
    assert pairs.lengths.tolist() == [4, 3, 2]  # the longer of the two, of rows 0, 2 and 5


def test_the_texts_come_first_then_their_translations_and_the_label_once() -> None:
    pairs = PairRows(SOURCE, TARGET)
    import numpy as np

    batch = pairs.collate(np.array([2, 0]), pad_token_id=0, width=4)
    assert batch["input_ids"].tolist() == [[8, 0, 0, 0], [2, 3, 0, 0], [18, 19, 0, 0], [12, 13, 14, 15]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["index"].tolist() == [2, 0]


def test_tables_without_a_common_row_are_refused() -> None:
    with pytest.raises(DataError, match="no row in common"):
        PairRows(encoded({1: [4]}, LABELS), TARGET)


def test_an_epoch_is_that_of_the_longest_language_and_keeps_the_divisor() -> None:
    long = encoded({row: [row + 1] for row in range(7)}, dict.fromkeys(range(7), 0))
    steps = LanguageBatches({"es": batches(PairRows(SOURCE, TARGET), 2), "fr": batches(long, 2)})
    assert len(steps) == 4  # es has 2 batches, fr 4
    shares = [[micro["languages_share"] for micro in step] for step in steps.epoch(0)]
    assert shares == [[1.0, 1.0], [1.0, 1.0], [2.0], [2.0]]  # each step sums to the two languages


def test_micro_batches_share_their_language() -> None:
    steps = LanguageBatches({"en": batches(encoded({0: [1], 1: [2], 2: [3]}, LABELS | {1: 0}), 3, micro_batch=2)})
    (micros,) = list(steps.epoch(0))
    assert [micro["languages_share"] for micro in micros] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_an_epoch_goes_on_where_it_was_left() -> None:
    steps = LanguageBatches({"en": batches(SOURCE, 1), "es": batches(PairRows(SOURCE, TARGET), 1)})
    whole, rest = list(steps.epoch(3)), list(steps.epoch(3, start=2))
    assert len(rest) == len(whole) - 2
    for ours, theirs in zip(rest, whole[2:], strict=True):
        assert [micro["index"].tolist() for micro in ours] == [micro["index"].tolist() for micro in theirs]
        assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(ours, theirs, strict=True))


def test_names_of_views_are_read_back() -> None:
    assert str(View("train", "en", "es")) == "train.en.es"
    assert View.of("test.es.back") == View("test", "es", "back")
    assert str(View("dev", "fr")) == "dev.fr.original"
    with pytest.raises(ValueError):
        View.of("train")
