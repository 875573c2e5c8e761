"""Names of a multilingual task's tables: which rows, and in which form their texts are.

train.en.original   English training rows as they are
train.en.es         the same rows, translated into Spanish
test.es.en          Spanish test rows, translated into English
test.es.back        Spanish test rows, translated into English and back
"""

from __future__ import annotations

from typing import NamedTuple

ORIGINAL = "original"
BACK = "back"


class View(NamedTuple):
    """One form of the rows of one split and language."""

    split: str  # train, heldout, dev, test
    language: str  # of the source's rows
    form: str = ORIGINAL  # ORIGINAL, BACK, or the language that they were translated into

    def __str__(self) -> str:
        return ".".join(self)

    @classmethod
    def of(cls, name: str) -> View:
        """The view of a table's name; ValueError for another name."""
        split, language, form = name.split(".")
        return cls(split, language, form)
