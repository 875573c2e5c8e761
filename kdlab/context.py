"""What a stage is told that cannot change its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdlab.config import Budget, Hardware, Price


def _ignore(_: Mapping[str, Any]) -> None:
    return None


def _quiet(_: str) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Requests:
    """How an endpoint or a translator is asked: what can't change an answer."""

    concurrency: int = 8
    timeout: float = 120.0  # seconds
    attempts: int = 8
    price: Price = field(default_factory=Price)
    student_price: Price = field(default_factory=Price)  # of a student behind an endpoint
    budget: Budget = field(default_factory=Budget)
    max_missing: float = 1.0  # share of a language's rows without translation above which a stage stops


@dataclass(kw_only=True)
class Context:
    """Handed to every stage function as its first argument.

    out: the folder that becomes the artifact; whatever the stage leaves there is published, except `out/work`.
    work: `out/work`, for checkpoints; survives a crash, is removed before publication.
    """

    out: Path
    stage: str  # the label shown to the user: "teacher"
    hardware: Hardware = field(default_factory=lambda: Hardware(name="auto"))
    curves: int = 0  # rows of train and of dev on which a trained stage's loss is followed
    requests: Requests = field(default_factory=Requests)
    track: Callable[[Mapping[str, Any]], None] = _ignore  # live points for Weights & Biases
    show: Callable[[Mapping[str, Any]], None] = _ignore  # live progress for the terminal
    note: Callable[[str], None] = _quiet  # a line for the user
    warn: Callable[[str], None] = _quiet  # a warning for the user, kept in the manifest
    facts: dict[str, Any] = field(default_factory=dict)  # what the manifest should remember: rows, tokens, steps

    @property
    def work(self) -> Path:
        return self.out / "work"

    @property
    def journals(self) -> Path:
        """Where paid answers are kept, beside all artifacts: they outlive the stage that asked."""
        return self.out.parent.parent / "journals"

    @property
    def translations(self) -> Path:
        """Where translated sentences are kept, beside all artifacts: other stages and other tasks re-use them."""
        return self.out.parent.parent / "translations"
