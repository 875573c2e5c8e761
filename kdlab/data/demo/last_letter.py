"""Embedded task "demo/last_letter": take the last letters of some words and join them.

After the last-letter concatenation of Wei et al. (2022, arXiv 2201.11903), with everyday words for names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdlab.data.demo.distinct import arrangement, arrangements, draw

_WORDS = (
    *("area", "sofa", "extra", "panda", "club", "crab", "climb", "bulb", "magic", "music", "topic", "picnic"),
    *("bread", "cloud", "field", "wind", "apple", "horse", "stone", "voice", "chef", "leaf", "roof", "wolf"),
    *("flag", "king", "song", "frog", "beach", "fish", "month", "watch", "chili", "taxi", "alibi", "safari"),
    *("book", "clock", "milk", "desk", "girl", "hotel", "school", "animal", "arm", "dream", "farm", "room"),
    *("green", "lemon", "rain", "train", "hero", "piano", "radio", "zero", "lamp", "map", "sleep", "soup"),
    *("door", "flower", "river", "sugar", "bus", "glass", "grass", "dress", "boat", "fruit", "night", "west"),
    *("emu", "menu", "tofu", "you", "window", "snow", "view", "yellow", "box", "fox", "six", "relax"),
    *("city", "key", "story", "money", "jazz", "quiz", "waltz", "topaz"),
)


def questions(split: str, generate: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return "train" or "test" as rows with `question`, `answer` (small letters) and `facts`.

    generate: `train` and `test` questions of `steps` words each, drawn with `seed`. The same rows on every machine.
    Raises DataError for an unknown split or more questions than there are.
    """
    steps = generate["steps"]
    size = arrangements(len(_WORDS), steps)
    return [_row(number, steps) for _, number in draw("last_letter", split, generate, size=size)]


def _row(number: int, steps: int) -> dict[str, Any]:
    words, _ = arrangement(number, _WORDS, steps)
    return {
        "question": f'Take the last letter of each word in "{" ".join(words)}" and join the letters.',
        "answer": "".join(word[-1] for word in words),
        "facts": {"kind": "last_letter", "words": words},
    }
