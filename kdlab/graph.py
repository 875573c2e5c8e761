"""A run as a graph of stages. Knows no machine learning.

    data  = Stage("kdlab.stages.prepare:prepare", "prepare", values={...})
    model = Stage("kdlab.stages.finetune:finetune", "teacher", values={...}, inputs={"data": data})

Handing one stage to another as an input is the edge. A stage's fingerprint is the sha256 of its function's name and
version, its plain values and its inputs' fingerprints: whatever can change a number, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdlab.errors import KdlabError

UNPINNED = "unpinned"  # the revision of a hub model or data set that could not be looked up


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """What a stage has to do, for the estimates of `kdlab plan`. None: not known yet."""

    examples: int | None = None  # per epoch
    epochs: int = 1
    batch_size: int = 1
    drop_last: bool = False
    max_steps: int | None = None
    parameters: int | None = None  # of the model that is trained or run
    cost: float = 0.0  # forward passes' worth of arithmetic per token: 1 evaluation, 3 training; 0: not estimated
    checkpoint: bool = False  # trains, so that it writes checkpoints

    def steps(self) -> int | None:
        if self.examples is None:
            return None
        whole, left = divmod(self.examples, self.batch_size)
        steps = (whole + (1 if left and not self.drop_last else 0)) * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass(frozen=True, eq=False)
class Stage:
    """One unit of work, identified by what goes into it."""

    function: str  # "kdlab.stages.prepare:prepare", imported only when the stage runs
    label: str  # what the user sees and `fresh` names: "teacher"
    values: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    places: Mapping[str, str] = field(
        default_factory=dict
    )  # paths of local things, by the value that names their content
    tried: str | None = None  # called with the arguments before the first stage starts: raises what is wrong with them
    after: tuple[Stage, ...] = ()  # must have passed before this one starts; not part of the identity
    version: int = 1  # raised when the function's result changes for the same values
    of_machine: bool = False  # tells of this machine, so that a run elsewhere is still the same run
    parallel: bool = False  # run by all processes of a distributed job, not only the first
    work: Work = field(default_factory=Work)
    notes: tuple[str, ...] = ()  # lines for `kdlab plan`; not part of the identity

    @property
    def name(self) -> str:
        return self.function.partition(":")[2]

    @property
    def pinned(self) -> bool:
        """Whether every model and data revision that goes into this stage is known."""
        return UNPINNED not in canonical(self.values) and all(stage.pinned for stage in self.inputs.values())

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits."""
        cached = self.__dict__.get("_fingerprint")
        if cached is None:
            identity = {
                "function": self.name,
                "version": self.version,
                "values": dict(self.values),
                "inputs": {name: stage.fingerprint for name, stage in self.inputs.items()},
            }
            cached = hashlib.sha256(canonical(identity).encode()).hexdigest()
            object.__setattr__(self, "_fingerprint", cached)
        return str(cached)

    @property
    def artifact(self) -> str:
        """Name of the artifact's folder in the store."""
        return f"{self.name}-{self.fingerprint[:16]}"

    def arguments(self) -> dict[str, Any]:
        """The plain values as the function gets them, with the place of each local thing as its `path`."""
        return {
            name: {**value, "path": self.places[name]} if name in self.places else value
            for name, value in self.values.items()
        }

    def needs(self) -> tuple[Stage, ...]:
        return (*self.inputs.values(), *self.after)


@dataclass(frozen=True, eq=False)
class Graph:
    """Stages in the order in which they can run; one entry for stages of equal identity."""

    stages: tuple[Stage, ...]
    targets: Mapping[str, Stage]

    @classmethod
    def of(cls, targets: Mapping[str, Stage]) -> Graph:
        order: dict[str, Stage] = {}
        for stage in targets.values():
            _visit(stage, order)
        return cls(tuple(order.values()), dict(targets))

    @classmethod
    def load(cls, described: Sequence[Mapping[str, Any]]) -> Graph:
        """The graph that `describe` gave, to look at and to build upon; its targets are what no other stage needs.

        What enters no identity, such as places and estimates of work, is not in a description and gets its default.
        Raises KdlabError where the description is not whole, or its stages do not have the fingerprints it names.
        """
        made: dict[str, Stage] = {}
        needed: set[str] = set()
        for number, entry in enumerate(described):
            try:
                stage = Stage(
                    entry["function"],
                    entry["label"],
                    values=entry["values"],
                    inputs={name: made[artifact] for name, artifact in entry["inputs"].items()},
                    after=tuple(made[artifact] for artifact in entry["after"]),
                    version=entry["version"],
                )
                same = (stage.fingerprint, stage.artifact) == (entry["fingerprint"], entry["artifact"])
            except (KeyError, TypeError, AttributeError, ValueError) as problem:
                raise KdlabError(
                    f"stage {number + 1} of a graph is not described in full: {type(problem).__name__} {problem}"
                ) from problem
            if not same:
                raise KdlabError(
                    f"the description of stage '{stage.label}' says it is {entry['artifact']}, but what it holds makes "
                    f"{stage.artifact}: it was changed, or written by another version of kdlab"
                )
            made[stage.artifact] = stage
            needed |= {need.artifact for need in stage.needs()}
        return cls(tuple(made.values()), {stage.label: stage for name, stage in made.items() if name not in needed})

    def needed_by(self, stage: Stage) -> list[str]:
        """Labels of the stages that use this one."""
        return [
            other.label for other in self.stages if any(need.fingerprint == stage.fingerprint for need in other.needs())
        ]

    def dependents(self, labels: Iterable[str]) -> set[str]:
        """Fingerprints of the stages with these labels and of all that is made from them."""
        chosen = {stage.fingerprint for stage in self.stages if stage.label in set(labels)}
        for stage in self.stages:
            if any(need.fingerprint in chosen for need in stage.needs()):
                chosen.add(stage.fingerprint)
        return chosen

    def identity(self) -> str:
        """Fingerprint of the whole run: what its targets are made of, wherever it runs."""
        named = {name: stage.fingerprint for name, stage in self.targets.items() if not stage.of_machine}
        return hashlib.sha256(canonical(named).encode()).hexdigest()

    def describe(self) -> list[dict[str, Any]]:
        """The graph as plain JSON, for the run directory."""
        return [
            {
                "label": stage.label,
                "function": stage.function,
                "version": stage.version,
                "artifact": stage.artifact,
                "fingerprint": stage.fingerprint,
                "values": dict(stage.values),
                "inputs": {name: other.artifact for name, other in stage.inputs.items()},
                "after": [other.artifact for other in stage.after],
            }
            for stage in self.stages
        ]

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)


def _visit(stage: Stage, order: dict[str, Stage]) -> None:
    if stage.fingerprint in order:
        return
    for need in stage.needs():
        _visit(need, order)
    order[stage.fingerprint] = stage
