"""Fewer, rarer and wrong labels: the conditions under which methods are compared.

Each function is pure in its arguments; `labels` [N] are class ids (int64), or targets (float64) of a regression.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdlab.errors import DataError

Array = np.ndarray[Any, Any]
_FEW, _IMBALANCE, _NOISE = 1, 2, 3  # with a seed, the streams of numbers: equal seeds draw independently


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])


def few(labels: Array, *, examples: int, balanced: bool, regression: bool, seed: int) -> Array:
    """Sorted numbers of `examples` rows, or of all rows if there are no more.

    balanced: each of the C classes found gives examples // C rows; the remainder comes from classes drawn at random,
    one each. A class with too few rows gives all of them, and the others fill up alike.

    Raises:
        DataError: balanced for a regression, or with fewer examples than classes.

    Source: CR-ILD, dataloaders/glue_1k.py at 97ec677 (rows shuffled with the run's seed, the first 1,000 kept, not
    balanced).
    """
    rng = _generator(seed, _FEW)
    if balanced and regression:
        raise DataError(
            "A regression has no classes to balance.", where="task.few.balanced", fix="Set task.few.balanced=false."
        )
    if not balanced:
        return np.sort(rng.permutation(len(labels))[:examples])
    classes, sizes = np.unique(labels, return_counts=True)
    if examples < len(classes):
        raise DataError(
            f"{examples} examples can't hold one of each of the {len(classes)} classes.",
            where="task.few.examples",
            fix=f"Give {len(classes)} or more, or set task.few.balanced=false.",
        )
    taken = _fill(sizes, min(examples, len(labels)), rng.permutation(len(classes)))
    chosen = [
        rng.permutation(np.flatnonzero(labels == number))[:count] for number, count in zip(classes, taken, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _fill(sizes: Array, total: int, order: Array) -> Array:
    """How many of each class, `total` together and none over its size; what doesn't divide goes by `order`."""
    taken = np.zeros_like(sizes)
    while left := total - int(taken.sum()):
        free = [number for number in order if taken[number] < sizes[number]]
        share, extra = divmod(left, len(free))
        for position, number in enumerate(free):
            taken[number] = min(taken[number] + share + (position < extra), sizes[number])
    return taken


def imbalance(labels: Array, *, ratio: float, seed: int) -> Array:
    """Sorted numbers of the rows that make the classes long-tailed.

    With the C classes found in order of frequency (ties: the lower id first), the k-th, counted from 0, keeps at most
    n * ratio^(-k / (C - 1)) rows, rounded down but at least 1, where n are the rows of the first. Which ones is drawn
    at random.

    Raises:
        DataError: the labels are targets of a regression.

    Source: Cui, Jia, Lin, Song, Belongie: "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    arXiv 1901.05555; official code richardaecn/class-balanced-loss at 0ab6eb7, src/data_utils.py,
    get_img_num_per_cls (its imb_factor is 1 / ratio, its classes are equally frequent and taken in order of id).
    """
    assert ratio >= 1, ratio
    if np.issubdtype(labels.dtype, np.floating):
        raise DataError(
            "A regression has no classes to thin out.", where="task.imbalance", fix="Set task.imbalance.ratio=1."
        )
    rng = _generator(seed, _IMBALANCE)
    classes, sizes = np.unique(labels, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    chosen = []
    for position, number in enumerate(order):
        share = position / max(len(classes) - 1, 1)
        most = max(int(sizes[order[0]] / ratio**share + 1e-9), 1)  # 1e-9: for quotients that should be whole
        chosen.append(rng.permutation(np.flatnonzero(labels == classes[number]))[:most])
    return np.sort(np.concatenate(chosen))


def noise(labels: Array, *, rate: float, classes: int | None, seed: int) -> tuple[Array, Array]:
    """(labels, some of them wrong [N]; which ones differ now [N], bool).

    With C `classes`, each label is replaced with the chance `rate` by one of the C - 1 others, each equally likely:
    symmetric noise. For a regression (classes=None) the replacement is the target of another row, each equally
    likely; this is our own definition, and a row may draw a target that equals its own.

    What is drawn does not depend on the rate: what is wrong at a low one is just as wrong at a higher one.

    Source: CR-ILD, dataloaders/glue_lnl.py at 97ec677, which leaves STS-B, its regression, as it is.
    """
    count = len(labels)
    rng = _generator(seed, _NOISE)
    drawn = rng.random(count) < rate
    if classes is None:
        assert count > 1
        others = labels[(np.arange(count) + rng.integers(1, count, size=count)) % count]
    else:
        assert classes > 1
        others = (labels + rng.integers(1, classes, size=count)) % classes
    noisy = np.where(drawn, others, labels)
    return noisy, noisy != labels
