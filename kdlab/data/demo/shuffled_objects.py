"""Embedded task "demo/shuffled_objects": players swap what they hold; who ends up with what?

After "tracking shuffled objects" of BIG-bench (2022, arXiv 2206.04615), in the form in which Kojima et al. (2022,
arXiv 2205.11916) ask it: the options stand behind the question, in the order of the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from string import ascii_uppercase
from typing import Any

from kdlab.data.demo.distinct import arrangement, arrangements, draw
from kdlab.errors import DataError

_PLAYERS = ("Alan", "Bea", "Cleo", "Dirk", "Elsa", "Fred", "Gwen", "Hans")
_COLOURS = ("black", "blue", "brown", "green", "orange", "pink", "red", "white")
_THINGS = ("ball", "cap", "kite", "mug")


def questions(split: str, generate: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return "train" or "test" as rows with `question`, `answer` (a letter, each equally often) and `facts`.

    generate: `train` and `test` questions of `objects` players and `steps` swaps each, drawn with `seed`. The same
    rows on every machine. Raises DataError for an unknown split, more questions than there are, or too many players.
    """
    steps, objects = generate["steps"], generate["objects"]
    if not 2 <= objects <= len(_PLAYERS):
        raise DataError(
            f"the embedded task shuffled_objects can't have {objects} players",
            where="task.generate.objects",
            fix=f"give 2 to {len(_PLAYERS)}, and as many letters in task.choices",
        )
    first, further = _swaps(objects)
    size = len(_THINGS) * arrangements(len(_COLOURS), objects) * first * further ** (max(steps, 1) - 1)
    drawn = draw("shuffled_objects", split, generate, size=size, groups=objects)
    return [_row(answer, number, steps, objects) for answer, number in drawn]


def _swaps(objects: int) -> tuple[int, int]:
    """How many first swaps there are, and how many after another: none is undone at once, if that can be."""
    first = objects * (objects - 1) // 2
    return first, max(first - 1, 1)


def _row(answer: int, number: int, steps: int, objects: int) -> dict[str, Any]:
    """answer: which of the options, counted from 0, is right."""
    players = list(_PLAYERS[:objects])
    items, number = arrangement(number, _COLOURS, objects)
    number, place = divmod(number, len(_THINGS))
    thing = _THINGS[place]
    swaps: list[tuple[int, int]] = []
    held = list(range(objects))
    for _ in range(steps):
        pairs = [pair for pair in combinations(range(objects), 2) if objects == 2 or pair not in swaps[-1:]]
        number, place = divmod(number, len(pairs))
        one, other = pairs[place]
        held[one], held[other] = held[other], held[one]
        swaps.append((one, other))
    asked = held.index(answer)
    start = _listed([f"{player} has the {item} {thing}" for player, item in zip(players, items, strict=True)])
    moves = " ".join(
        f"{_when(step, steps)}, {players[one]} and {players[other]} swap {thing}s."
        for step, (one, other) in enumerate(swaps)
    )
    options = ", ".join(f"({letter}) {item} {thing}" for letter, item in zip(ascii_uppercase, items, strict=False))
    return {
        "question": f"{start}. {moves} At the end, {players[asked]} has the\nWhich choice is true?"
        f" Answer choices: {options}.",
        "answer": ascii_uppercase[answer],
        "facts": {
            "kind": "shuffled_objects",
            "players": players,
            "items": items,
            "thing": thing,
            "swaps": [list(swap) for swap in swaps],
            "asked": asked,
        },
    }


def _when(step: int, steps: int) -> str:
    if step == 0:
        return "First"
    return "Finally" if step == steps - 1 else "Then"


def _listed(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
