"""Distinct questions for the embedded reasoning tasks.

A task numbers its possible questions: `groups` of them (one per answer, to balance the answers), each with the numbers
0 to size - 1. Distinct numbers make distinct questions, so no question comes twice, none of train is in test, and what
can't be had is known before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import factorial, perm
from random import Random
from typing import TypeVar

from kdlab.errors import DataError

SPLITS = ("train", "test")

_SHUFFLED = 1 << 16  # as many numbers are shuffled; of more, numbers are drawn until one is new

Item = TypeVar("Item")


def draw(task: str, split: str, generate: Mapping[str, int], *, size: int, groups: int = 1) -> list[tuple[int, int]]:
    """Return (group, number) of each question of `split`, the groups equally often, in random order.

    size: questions of each group. More questions in train leave test and the first ones of train as they were.
    Raises DataError for an unknown split, and for more questions than there are.
    """
    train, test = generate["train"], generate["test"]
    if split not in SPLITS:
        raise DataError(
            f"the embedded task {task} has no split {split!r}",
            where="task.splits",
            fix=f"choose one of {', '.join(SPLITS)}",
        )
    if train < 1 or test < 0 or generate["steps"] < 1:
        raise DataError(
            f"the embedded task {task} can't make {train} training questions and {test} test questions"
            f" of {generate['steps']} steps",
            where="task.generate",
            fix="give train and steps of at least 1, and test of at least 0",
        )
    if train + test > groups * size:
        raise DataError(
            f"the embedded task {task} has {groups * size} different questions with steps={generate['steps']}:"
            f" too few for train={train} and test={test}",
            where="task.generate",
            fix=f"ask for at most {groups * size} in all, or for more steps",
        )
    drawn = _draw(f"{generate['seed']} {task} {generate['steps']}", size, groups)
    return list(islice(drawn, test) if split == "test" else islice(drawn, test, test + train))


def arrangements(items: int, count: int) -> int:
    """In how many ways `arrangement` can line up `count` of so many items."""
    rounds, rest = divmod(count, items)
    return int(factorial(items) ** rounds) * perm(items, rest)


def arrangement(number: int, items: Sequence[Item], count: int) -> tuple[list[Item], int]:
    """Line up `count` items as `number` says; return them and what is left of the number.

    An item comes again only when all others have come.
    """
    lined: list[Item] = []
    pool: list[Item] = []
    for _ in range(count):
        pool = pool or list(items)
        number, place = divmod(number, len(pool))
        lined.append(pool.pop(place))
    return lined, number


def _draw(seed: str, size: int, groups: int) -> Iterator[tuple[int, int]]:
    numbers = [_distinct(Random(f"{seed} {group}"), size) for group in range(groups)]
    rng = Random(seed)
    order = list(range(groups))
    while True:
        rng.shuffle(order)
        for group in order:
            yield group, next(numbers[group])


def _distinct(rng: Random, size: int) -> Iterator[int]:
    if size <= _SHUFFLED:
        shuffled = list(range(size))
        rng.shuffle(shuffled)
        yield from shuffled
        return
    seen: set[int] = set()
    while len(seen) < size:
        number = rng.randrange(size)
        if number not in seen:
            seen.add(number)
            yield number
