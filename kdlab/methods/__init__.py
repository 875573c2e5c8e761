"""Families of methods: each file plans a run as a graph of stages. No torch here."""

from __future__ import annotations

from collections.abc import Callable

from kdlab.config import Run
from kdlab.graph import Graph
from kdlab.methods import crosslingual, distillation, reasoning
from kdlab.pins import Pins

FAMILIES: dict[str, Callable[[Run, Pins], Graph]] = {
    "crosslingual": crosslingual.plan,
    "distillation": distillation.plan,
    "reasoning": reasoning.plan,
}


def plan(run: Run, pins: Pins) -> Graph:
    """The run's graph. Raises `ConfigError` with every reason why the run can't be done."""
    return FAMILIES[run.method.family](run, pins)
