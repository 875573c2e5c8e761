"""Which rows a step sees, in which order, and how much of it is padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from kdlab.data.batches import Batches, EncodedSplit, open_encoded
from kdlab.errors import DataError

PAD = 9


def split_of(lengths: Any, labels: pa.Array | None = None, *, types: bool = True) -> EncodedSplit:
    """Row r holds the token r+10 as often as its length says."""
    lengths = np.asarray(lengths)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    tokens = np.repeat(np.arange(len(lengths), dtype=np.int32) + 10, lengths)
    columns: dict[str, Any] = {
        "id": pa.array(np.arange(len(lengths)) * 2),
        "input_ids": pa.ListArray.from_arrays(offsets, tokens),
    }
    if types:
        columns["token_type_ids"] = pa.ListArray.from_arrays(offsets, np.ones(len(tokens), dtype=np.int8))
    columns["label"] = pa.array(np.arange(len(lengths)) % 3) if labels is None else labels
    return EncodedSplit(pa.table(columns))


def skewed(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.clip(np.random.default_rng(seed).lognormal(3.2, 0.7, count), 3, 128).astype(int)


def batches(rows: EncodedSplit, **changes: Any) -> Batches:
    settings: dict[str, Any] = {"batch_size": 8, "seed": 1, "shuffle": True, "pad_token_id": PAD} | changes
    return Batches(rows, **settings)


def real_rows(step: list[dict[str, Any]]) -> list[int]:
    return [row for part in step if part["real"] for row in part["index"].tolist()]


def test_contents_and_padding() -> None:
    labels = pa.array([0, None, 2])
    rows = split_of([3, 1, 2], labels)
    [[part]] = list(batches(rows, shuffle=False).epoch(0))
    assert part["index"].tolist() == [0, 2, 1]
    assert part["input_ids"].tolist() == [[10, 10, 10], [12, 12, PAD], [11, PAD, PAD]]
    assert part["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert part["token_type_ids"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert part["labels"].tolist() == [0, 2, -100]
    assert part["real"] is True
    assert part["share"] == 1.0
    assert {part[name].dtype for name in part if name not in ("real", "share")} == {torch.int64}
    assert not rows.labelled and rows.ids.tolist() == [0, 2, 4] and len(rows) == 3


def test_regression_labels_and_no_token_types() -> None:
    rows = split_of([1, 2], pa.array([0.5, None], pa.float64()), types=False)
    [[part]] = list(batches(rows, shuffle=False, pad_to=4).epoch(0))
    assert part["input_ids"].shape == (2, 4) and "token_type_ids" not in part
    assert part["labels"].dtype == torch.float32
    assert torch.isnan(part["labels"][0]) and part["labels"][1] == 0.5


def test_order_is_pure_in_seed_and_epoch() -> None:
    rows = split_of(skewed(101))

    def order(seed: int, epoch: int) -> list[int]:
        return [row for step in batches(rows, seed=seed).epoch(epoch) for row in real_rows(step)]

    reused = batches(rows)
    list(reused.epoch(5))
    assert order(1, 2) == order(1, 2) == [row for step in reused.epoch(2) for row in real_rows(step)]
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_batches_are_dealt_anew_each_epoch() -> None:
    """Of the pairs of rows that share a batch, few share one again; with a single pool it would be half."""

    def shared(loader: Batches) -> float:
        member = [np.empty(len(loader.rows), dtype=int) for _ in range(2)]
        for epoch in range(2):
            for number, batch in enumerate(loader.order(epoch)):
                member[epoch][batch] = number
        same = [numbers[:, None] == numbers for numbers in member]
        return (same[0] & same[1]).sum() / same[0].sum()

    assert shared(batches(split_of(skewed(2500)), batch_size=32)) < 0.3


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("micro_batch", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_row_once_an_epoch(world: int, micro_batch: int, drop_last: bool) -> None:
    rows = split_of(skewed(101))
    ranks = [
        batches(rows, world=world, rank=rank, micro_batch=micro_batch, drop_last=drop_last) for rank in range(world)
    ]
    epochs = [list(rank.epoch(3)) for rank in ranks]
    assert {len(epoch) for epoch in epochs} == {len(ranks[0])} == {12 if drop_last else 13}
    whole = [sorted(batch.tolist()) for batch in batches(rows, drop_last=drop_last).order(3)]
    for number, steps in enumerate(zip(*epochs, strict=True)):
        assert len({len(step) for step in steps}) == 1, "processes must run equally many micro-batches"
        assert sorted(row for step in steps for row in real_rows(step)) == whole[number]
        assert all(0 < len(part["index"]) <= (micro_batch or 8) for step in steps for part in step)
    seen = [row for batch in whole for row in batch]
    assert len(set(seen)) == len(seen) == (96 if drop_last else 101)


def test_phantoms() -> None:
    rows = split_of([4, 4, 4, 4])
    steps = [next(batches(rows, world=3, rank=rank, micro_batch=1, batch_size=4).epoch(0)) for rank in range(3)]
    assert [[part["real"] for part in step] for step in steps] == [[True, True], [True, False], [True, False]]
    phantom = steps[2][1]
    assert phantom["index"].tolist() == steps[0][0]["index"].tolist()
    lonely = next(batches(split_of([4, 4]), world=3, rank=2, batch_size=4).epoch(0))
    assert [part["real"] for part in lonely] == [False]


def test_drop_last_skips_other_rows_each_epoch() -> None:
    rows = split_of(np.arange(1, 20))
    loader = batches(rows, drop_last=True)
    skipped = [set(range(19)) - {row for batch in loader.order(epoch) for row in batch} for epoch in range(60)]
    assert {len(rest) for rest in skipped} == {3}
    assert set().union(*skipped) == set(range(19)), "the longest rows must not be skipped always"
    with pytest.raises(DataError, match="drop_last"):
        batches(split_of([1, 2]), drop_last=True)


def waste(loader: Batches) -> float:
    masks = [part["attention_mask"] for step in loader.epoch(0) for part in step]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


@pytest.mark.parametrize("count", [2500, 8000])
def test_little_padding_on_skewed_lengths(count: int) -> None:
    rows = split_of(skewed(count))
    unsorted = waste(batches(rows, batch_size=32, bucket=1))
    assert unsorted > 0.4
    assert waste(batches(rows, batch_size=32)) < 0.1
    assert waste(batches(rows, batch_size=32, shuffle=False)) < 0.04


def test_mixing_partner_is_uniform_in_the_batch() -> None:
    """The shortest row of a batch meets each rank of length equally often (chi square)."""
    loader = batches(split_of(np.random.default_rng(3).permutation(320) + 1), bucket=5)
    counts = np.zeros(7)
    for epoch in range(60):
        for batch in loader.order(epoch):
            partner = batch[::-1][np.argmin(loader.rows.lengths[batch])]
            counts[np.sum(loader.rows.lengths[batch] < loader.rows.lengths[partner]) - 1] += 1
    expected = counts.sum() / 7
    assert counts.sum() == 60 * 40
    assert ((counts - expected) ** 2 / expected).sum() < 22.46  # 6 degrees of freedom, p = 0.001


def test_mixing_partner_is_uniform_among_rows_of_equal_length() -> None:
    loader = batches(split_of(np.full(24, 5)), batch_size=4)
    counts = np.zeros(24)
    for epoch in range(1500):
        for batch in loader.order(epoch):
            counts[batch[::-1][batch == 0]] += 1
    assert counts[0] == 0 and counts.sum() == 1500
    expected = 1500 / 23
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 48.27  # 22 degrees of freedom, p = 0.001


def test_resuming_inside_an_epoch() -> None:
    loader = batches(split_of(skewed(70)), micro_batch=3)
    whole = list(loader.epoch(4))
    for start in (0, 1, 5, len(loader)):
        rest = list(loader.epoch(4, start=start))
        assert len(rest) == len(whole) - start
        for ours, theirs in zip(rest, whole[start:], strict=True):
            for left, right in zip(ours, theirs, strict=True):
                assert all(torch.equal(left[name], right[name]) for name in left if name not in ("real", "share"))


def test_open_encoded_names_what_is_there(tmp_path: Path) -> None:
    table = pa.table({"id": [0], "input_ids": pa.array([[1, 2]], pa.list_(pa.int32())), "label": [1]})
    with (
        pa.OSFile(str(tmp_path / "train.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    assert open_encoded(tmp_path, "train").lengths.tolist() == [2]
    with pytest.raises(DataError, match=r"no encoded split 'dev'. There are: train"):
        open_encoded(tmp_path, "dev")
