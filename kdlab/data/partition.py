"""Which questions are trained on: the splits of Fine-tune-CoT, recomputed.

All functions give sorted positions (int64) in the whole data set. Source: reasoning-teacher, src/data/generate_split.py
and src/data/split.py at f847166, notebooks/old/Data Preparation.ipynb at de0a327 (template splits).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_SHARE = 0.7  # of the questions, or of the groups of questions
_SEED = 0


def random_split(size: int) -> tuple[Array, Array]:
    """(train, test) of `size` questions: 70 % and the rest."""
    order = np.random.RandomState(_SEED).permutation(size)
    count = round(size * _SHARE)
    return np.sort(order[:count]), np.sort(order[count:])


def grouped_split(groups: Sequence[Hashable]) -> tuple[Array, Array]:
    """(train, test): 70 % of the groups and the rest. groups: that of each question."""
    numbers: dict[Hashable, int] = {}
    member = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
    chosen, _ = random_split(len(numbers))
    trained = np.isin(member, chosen)
    return np.flatnonzero(trained), np.flatnonzero(~trained)


def first_split(size: int, train: int) -> tuple[Array, Array]:
    """(train, test): the first `train` questions and the rest."""
    return np.arange(train), np.arange(train, size)


def draw(positions: Array, count: int, *, seed: int = _SEED) -> Array:
    """`count` of the positions, or all if there are no more: AQUA's limit (seed 0), and the k-shot subsets."""
    return np.sort(np.random.RandomState(seed).permutation(positions)[:count])


def template(question: str, until: str | None = None) -> str:
    """What is left of a question without its numbers and the words with a capital: questions with equal rests differ
    in numbers and names only. until: the text before it, numbers and names included.

    Departure: the official notebook lists the names of MultiArith one by one; the groups are the same.
    """
    if until is not None:
        return question.partition(until)[0]
    return " ".join(word for word in re.sub(r"\d+", " ", question).split() if not word[0].isupper())
