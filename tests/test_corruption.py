"""Few examples, long tails and wrong labels, counted by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from kdlab.data.corruption import few, imbalance, noise
from kdlab.errors import DataError

SIZES = (60, 30, 6, 4)  # of the classes 0 to 3
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), SIZES))


def chosen(examples: int, *, balanced: bool = True, seed: int = 1) -> np.ndarray[Any, Any]:
    return few(LABELS, examples=examples, balanced=balanced, regression=False, seed=seed)


def counts(rows: np.ndarray[Any, Any]) -> list[int]:
    found = Counter(LABELS[rows].tolist())
    return [found[number] for number in range(4)]


# few


@pytest.mark.parametrize("balanced", [False, True])
def test_few_rows_are_distinct_sorted_and_pure_in_the_seed(balanced: bool) -> None:
    rows = chosen(20, balanced=balanced)
    assert len(rows) == len(set(rows.tolist())) == 20 and (np.diff(rows) > 0).all()
    assert np.array_equal(rows, chosen(20, balanced=balanced))
    assert not np.array_equal(rows, chosen(20, balanced=balanced, seed=2))


@pytest.mark.parametrize("balanced", [False, True])
def test_few_of_more_than_there_are_is_all(balanced: bool) -> None:
    for examples in (100, 101, 5000):
        assert np.array_equal(chosen(examples, balanced=balanced), np.arange(100))


def test_every_row_is_equally_likely() -> None:
    times = np.bincount(np.concatenate([chosen(25, balanced=False, seed=seed) for seed in range(400)]), minlength=100)
    assert abs(times - 100).max() < 4.5 * np.sqrt(400 * 0.25 * 0.75), "each row 100 times of 400, within 4.5 sigma"


@pytest.mark.parametrize(
    ("examples", "wanted"),
    [
        (4, [1, 1, 1, 1]),
        (16, [4, 4, 4, 4]),
        (20, [6, 6, 4, 4]),  # 5 each; class 3 has 4, and classes 0 to 2 get its one
        (40, [15, 15, 6, 4]),  # 10 each; 4 + 6 are missing, 5 more each of classes 0 and 1
        (80, [40, 30, 6, 4]),
        (99, [59, 30, 6, 4]),
    ],
)
def test_balanced_counts(examples: int, wanted: list[int]) -> None:
    for seed in range(5):
        found = counts(chosen(examples, seed=seed))
        if examples == 20:  # who gets the one that is left is drawn
            assert sorted(found) == [4, 5, 5, 6] and found[3] == 4
        else:
            assert found == wanted


def test_the_remainder_goes_to_classes_drawn_at_random() -> None:
    found = {tuple(counts(chosen(6, seed=seed))) for seed in range(60)}
    assert all(sorted(one) == [1, 1, 2, 2] for one in found)
    assert len(found) == 6, "every two of the four classes"


def test_classes_with_any_ids() -> None:
    labels = np.array([7, 7, 7, 2, 2, 9])
    rows = few(labels, examples=3, balanced=True, regression=False, seed=0)
    assert sorted(labels[rows]) == [2, 7, 9]


def test_few_of_a_regression() -> None:
    targets = np.linspace(0, 5, 50)
    assert len(few(targets, examples=10, balanced=False, regression=True, seed=0)) == 10
    with pytest.raises(DataError, match="no classes to balance") as caught:
        few(targets, examples=10, balanced=True, regression=True, seed=0)
    assert "task.few.balanced=false" in str(caught.value)


def test_fewer_examples_than_classes() -> None:
    with pytest.raises(DataError, match="3 examples can't hold one of each of the 4 classes") as caught:
        chosen(3)
    assert "Give 4 or more" in str(caught.value)
    assert len(chosen(3, balanced=False)) == 3


# imbalance


def kept(labels: list[int], ratio: float, seed: int = 0) -> dict[int, int]:
    values = np.array(labels)
    rows = imbalance(values, ratio=ratio, seed=seed)
    assert (np.diff(rows) > 0).all()
    return dict(sorted(Counter(values[rows].tolist()).items()))


def test_long_tail() -> None:
    """100 * 100^(-k/2): 100, 10, 1."""
    assert kept([0] * 100 + [1] * 100 + [2] * 100, 100) == {0: 100, 1: 10, 2: 1}
    assert kept([0] * 64 + [1] * 64 + [2] * 64 + [3] * 64, 8) == {0: 64, 1: 32, 2: 16, 3: 8}
    assert kept([0] * 300 + [1] * 300, 10) == {0: 300, 1: 30}
    assert kept([0] * 7 + [1] * 7, 3) == {0: 7, 1: 2}, "7 / 3, rounded down"


def test_classes_in_order_of_frequency() -> None:
    assert kept([0] * 20 + [1] * 40 + [2] * 30, 4) == {0: 10, 1: 40, 2: 20}
    assert kept([5] * 20 + [3] * 20, 2) == {3: 20, 5: 10}, "of equal ones the lower id counts as more frequent"


def test_no_class_gets_more_than_it_has_nor_less_than_one() -> None:
    assert kept([0] * 100 + [1] * 5 + [2] * 3, 2) == {0: 100, 1: 5, 2: 3}
    assert kept([0] * 10 + [1] * 10, 1000) == {0: 10, 1: 1}
    assert kept([0] * 10 + [1] * 10, 1) == {0: 10, 1: 10}
    assert kept([4] * 10, 10) == {4: 10}


def test_which_rows_stay_is_drawn() -> None:
    labels = np.repeat([0, 1], 50)
    first = imbalance(labels, ratio=10, seed=0)
    assert np.array_equal(first, imbalance(labels, ratio=10, seed=0))
    assert not np.array_equal(first, imbalance(labels, ratio=10, seed=1))
    assert np.array_equal(first[:50], np.arange(50)), "all of the most frequent class"


def test_no_imbalance_of_a_regression() -> None:
    with pytest.raises(DataError, match="no classes"):
        imbalance(np.linspace(0, 1, 10), ratio=10, seed=0)


# noise


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("classes", [2, 3])
def test_symmetric_noise(rate: float, classes: int) -> None:
    labels = np.random.default_rng(3).integers(0, classes, 3000)
    noisy, changed = noise(labels, rate=rate, classes=classes, seed=0)
    assert np.array_equal(changed, noisy != labels) and noisy.dtype == labels.dtype
    assert set(noisy.tolist()) == set(range(classes))
    assert abs(changed.sum() - 3000 * rate) < 3 * np.sqrt(3000 * rate * (1 - rate)), "the rate, within 3 sigma"
    again, _ = noise(labels, rate=rate, classes=classes, seed=0)
    assert np.array_equal(noisy, again)
    assert not np.array_equal(noisy, noise(labels, rate=rate, classes=classes, seed=1)[0])


def test_each_other_class_is_equally_likely() -> None:
    labels = np.full(8000, 2)
    found = np.bincount(noise(labels, rate=1.0, classes=5, seed=0)[0], minlength=5)
    assert found[2] == 0, "never the own class"
    assert abs(found[[0, 1, 3, 4]] - 2000).max() < 4 * np.sqrt(8000 * 0.25 * 0.75)


def test_a_higher_rate_keeps_what_a_lower_one_changed() -> None:
    labels = np.random.default_rng(3).integers(0, 4, 500)
    low, changed = noise(labels, rate=0.2, classes=4, seed=7)
    high, more = noise(labels, rate=0.5, classes=4, seed=7)
    assert np.array_equal(high[changed], low[changed]) and more.sum() > changed.sum()
    assert np.array_equal(noise(labels, rate=0.0, classes=4, seed=7)[0], labels)


def test_noise_of_a_regression_takes_targets_of_other_rows() -> None:
    targets = np.arange(2000) / 8
    noisy, changed = noise(targets, rate=0.3, classes=None, seed=0)
    assert abs(changed.sum() - 600) < 3 * np.sqrt(2000 * 0.3 * 0.7)
    assert set(noisy.tolist()) <= set(targets.tolist()) and np.array_equal(noisy[~changed], targets[~changed])
    everything, changed = noise(targets, rate=1.0, classes=None, seed=0)
    assert changed.all(), "with distinct targets another row's is another one"
    distance = (everything - targets) * 8 % 2000
    assert distance.min() < 40 and distance.max() > 1960 and abs(distance.mean() - 1000) < 4 * 577 / np.sqrt(2000)
