"""Embedded task "demo/coin_flip": people flip a coin or leave it; is it still heads up?

After the task of the same name of Wei et al. (2022, arXiv 2201.11903): the answer is the parity of the flips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdlab.data.demo.distinct import arrangement, arrangements, draw

ANSWERS = ("yes", "no")

_NAMES = (
    *("Ada", "Ben", "Carla", "Dan", "Ella", "Finn", "Gina", "Hugo", "Ida", "Jack", "Kate", "Leo", "Mia", "Noah"),
    *("Olga", "Paul", "Rosa", "Sam", "Tina", "Uma", "Vera", "Will", "Yara", "Zoe"),
)


def questions(split: str, generate: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return "train" or "test" as rows with `question`, `answer` (yes or no, equally often) and `facts`.

    generate: `train` and `test` questions of `steps` people each, drawn with `seed`. The same rows on every machine.
    Raises DataError for an unknown split or more questions than there are.
    """
    steps = generate["steps"]
    size = arrangements(len(_NAMES), steps) * 2 ** (max(steps, 1) - 1)
    return [_row(group, number, steps) for group, number in draw("coin_flip", split, generate, size=size, groups=2)]


def _row(turned: int, number: int, steps: int) -> dict[str, Any]:
    """turned: 1 if the coin ends tails up."""
    names, number = arrangement(number, _NAMES, steps)
    flips = [bool(number >> step & 1) for step in range(steps - 1)]
    flips.append(sum(flips) % 2 != turned)
    deeds = " ".join(
        f"{name} flips the coin." if flip else f"{name} does not flip the coin."
        for name, flip in zip(names, flips, strict=True)
    )
    return {
        "question": f"A coin is heads up. {deeds} Is the coin still heads up?",
        "answer": ANSWERS[turned],
        "facts": {"kind": "coin_flip", "names": names, "flips": flips},
    }
