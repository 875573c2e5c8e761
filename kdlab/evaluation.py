"""What `kdlab evaluate` does with one run: its finished model is asked another task, or other rows, in the same store.

Nothing of the run itself is run or changed; what the evaluation needs of it and is gone is asked for.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from kdlab import provenance, runner, supplies
from kdlab.artifacts import Artifact, Store, write_json
from kdlab.config import Crosslingual, Reasoning, Run
from kdlab.context import Requests
from kdlab.errors import ConfigError, DataError, KdlabError, StoreError, disk_errors
from kdlab.graph import Graph, Stage
from kdlab.methods import evaluation as planning
from kdlab.models.architectures import longest_input
from kdlab.pins import Pins
from kdlab.report import evaluation as report
from kdlab.runs import Record, read_json
from kdlab.showing import redact

AGAIN = "run it again, under another name"
FORMAT = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """A finished run, and which of its models is asked."""

    record: Record
    store: Store
    side: str  # student, teacher
    model: planning.Model

    @classmethod
    def open(cls, record: Record, *, side: str, store: str | None) -> Subject:
        """Raises StoreError if the run has not finished, its files do not fit together, or it has no such model."""
        _ = record.finished
        try:
            graph = Graph.load(record.graph)
            model = planning.Model.of(graph, family=record.family, side=side)
        except StoreError as problem:
            raise StoreError(problem.what, where=problem.where or str(record.folder), fix=problem.fix) from problem
        except KdlabError as problem:
            raise StoreError(problem.what, where=str(record.folder / "graph.json"), fix=AGAIN) from problem
        return cls(record=record, store=Store(record.store(store)), side=side, model=model)

    def need(self, stages: Sequence[Stage]) -> None:
        """Raises StoreError if something of the run that these stages read is no longer in the store."""
        own = {stage.fingerprint for stage in stages}
        needed = [need for stage in stages if self.store.find(stage.artifact) is None for need in stage.needs()]
        gone = dict.fromkeys(
            need.artifact for need in needed if need.fingerprint not in own and self.store.find(need.artifact) is None
        )
        if gone:
            raise StoreError(
                f"what run {self.record.name} has made is no longer there: {', '.join(gone)}",
                where=str(self.store.root),
                fix=f"make it again with `{self.record.command}`, or give the store that has it: --store FOLDER",
            )

    def classes(self) -> list[str] | None:
        """Of an encoder, in the order of its logits; None: it gives a number."""
        config = self.config
        if config.get("problem_type") == "regression":
            return None
        return [str(config["id2label"][key]) for key in sorted(config["id2label"], key=int)]

    def check_length(self, max_length: int) -> None:
        """Raises ConfigError if an encoder can't read so many tokens."""
        longest = longest_input(self.config)
        if longest is not None and max_length > longest:
            raise ConfigError(
                [
                    f"task.max_length={max_length}: the {self.side} reads at most {longest} tokens; "
                    f"give task.max_length={longest} or less"
                ]
            )

    @cached_property
    def config(self) -> dict[str, Any]:
        """An encoder's config.json. Raises StoreError if the store no longer has the model."""
        stage = self.model.stage
        assert stage is not None
        if self.store.find(stage.artifact) is None:
            raise StoreError(
                f"the {self.side} of run {self.record.name} is no longer there: {stage.artifact}",
                where=str(self.store.root),
                fix=f"make it again with `{self.record.command}`, or give the store that has it: --store FOLDER",
            )
        return dict(read_json(self.store.path(stage.artifact) / "model" / "config.json"))


def reordered(own: Sequence[str] | None, task: str, kind: str, classes: Sequence[str] | None) -> list[str] | None:
    """The model's classes, if the task has the same in another order; None if in the same, or for numbers.

    own: the model's, None: it gives a number; classes: the task's. Raises DataError if they are not the same.
    """
    if (own is None) != (kind == "regression"):
        gives = "a number" if own is None else f"one of the classes {_listed(own)}"
        raise DataError(
            f"the model gives {gives}, and {task} is a {kind} task",
            where="task",
            fix="choose a task of the kind that the model was trained on",
        )
    if own is None or classes is None or list(classes) == list(own):
        return None
    if sorted(classes) == sorted(own):
        return list(own)
    fix = "choose a task with the model's classes"
    if len(classes) == len(own):
        fix += ", or if these mean the same, give the task the model's names in the order of the task's ids: "
        fix += f"task.labels=[{_closest(classes, own)}]"
    raise DataError(
        f"the classes are not the same: the model knows {_listed(own)}; {task} has {_listed(classes)}",
        where="task.labels",
        fix=fix,
    )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names)}"


def _closest(classes: Sequence[str], own: Sequence[str]) -> str:
    """The model's names, those that differ in case only in the places of the task's."""
    known = {name.lower(): name for name in own}
    if {name.lower() for name in classes} == set(known):
        return ",".join(known[name.lower()] for name in classes)
    return ",".join(own)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found. told: evaluation.json; predictions: the file of each set, of an encoder."""

    folder: Path
    told: dict[str, Any]
    predictions: Mapping[str, Path] = field(default_factory=dict)


def evaluate(
    subject: Subject,
    run: Run,
    *,
    sets: Sequence[str],
    words: Sequence[str],
    translate: bool = False,
    out: Path | None = None,
    screen: runner.Screen,
    requests: Requests = runner.REQUESTS,
) -> Evaluation:
    """Ask the subject's model the task of `run`, and write evaluation.json and graph.json into a folder of its own.

    run: the run's own configuration, with the task that is asked. sets: as `methods.evaluation.chosen` takes them.
    words: what changed the configuration, to be told. translate: make translations that are not there.
    """
    changed = any(word.lstrip("+~").partition("=")[0] == "task" for word in words)
    run = planning.asked(run, changed=changed, rows=run.debug.rows if _cut(words) else None)
    run.task, names = planning.chosen(run, sets)
    pins = planning.pinned(run, subject.model)
    encoder = not isinstance(run.method, Reasoning)
    own = subject.classes() if encoder else None
    if encoder:
        reordered(own, run.task.name, run.task.kind, run.task.labels)
        subject.check_length(run.task.max_length)

    ran: list[str] = []
    made: dict[str, Artifact] = {}

    def work(stages: Sequence[Stage]) -> None:
        subject.need(stages)
        graph = Graph(tuple(stages), {stage.label: stage for stage in stages})
        outcome = runner.run(
            graph,
            subject.store,
            hardware=run.hardware,
            requests=requests,
            fresh=[],
            screen=screen,
            track=lambda stage, point: None,
            finished=lambda stage, artifact: made.update({stage.label: artifact}),
        )
        ran.extend(outcome.ran)

    prepared = planning.prepare(run, pins)
    supplies.require(run, Graph.of({"data": prepared}), pins, command=shlex.join(["kdlab", "fetch", *words]))
    with subject.store.locked(f"run-{prepared.fingerprint[:16]}"):
        work([prepared])
        facts = read_json(made[prepared.label].path / "facts.json")
        order = reordered(own, run.task.name, run.task.kind, facts["labels"]) if encoder else None
        stages, note = _stages(subject, run, pins, prepared, names, order, translate=translate)
        work(list(stages.values()))
    whole = Graph.of({label: stage for label, stage in {prepared.label: prepared, **stages}.items()})
    folder = out or subject.record.folder / "evaluations" / _name(subject, run, names, whole)
    told = {
        **_told(subject, run, names, words),
        **report.FAMILIES[_family(run)](run, made, names),
        "classes": {"model": own, "task": facts.get("labels"), "reordered": order is not None} if encoder else None,
        "source": prepared.values["source"],
        "ran": ran,
        "seconds": round(sum(float(one.manifest["made"]["seconds"]) for one in made.values()), 3),
        "artifacts": {label: one.path.name for label, one in made.items()},
        "warnings": [
            *([note] if note else []),
            *(f"{label}: {line}" for label, one in made.items() for line in one.manifest["warnings"]),
        ],
    }
    with disk_errors("writing the evaluation", folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "graph.json", whole.describe())
        write_json(folder / "evaluation.json", told)
    scored = made.get("evaluate")
    files = {} if scored is None else {name: scored.path / f"predictions-{name}.jsonl" for name in names}
    return Evaluation(
        folder=folder, told=told, predictions={name: file for name, file in files.items() if file.exists()}
    )


def _cut(words: Sequence[str]) -> bool:
    return any(word.lstrip("+").partition("=")[0] == "debug.rows" for word in words)


def _family(run: Run) -> str:
    """How the model is asked: a student of several languages that gets a task in one is asked as any encoder."""
    if isinstance(run.method, Crosslingual) and not run.task.languages:
        return "distillation"
    return run.method.family


def _stages(
    subject: Subject,
    run: Run,
    pins: Pins,
    prepared: Stage,
    names: Sequence[str],
    order: Sequence[str] | None,
    *,
    translate: bool,
) -> tuple[dict[str, Stage], str | None]:
    family = _family(run)
    if family == "reasoning":
        return planning.questions(run, pins, subject.model, prepared), None
    if family == "distillation":
        return planning.encoder(run, pins, subject.model, prepared, names, order), None
    return planning.languages(
        run,
        pins,
        subject.model,
        prepared,
        names,
        order,
        there=lambda stage: subject.store.find(stage.artifact) is not None,
        translate=translate,
    )


def _name(subject: Subject, run: Run, names: Sequence[str], graph: Graph) -> str:
    """glue_rte-test-1a2b3c4d: the same for the same evaluation."""
    side = "" if subject.side == "student" else f"{subject.side}-"
    shown = "-".join([run.task.name, *names]).replace("/", "_")[:80]
    return f"{side}{shown}-{graph.identity()[:8]}"


def _told(subject: Subject, run: Run, names: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    record = subject.record
    return {
        "format": FORMAT,
        "kdlab": provenance.code(),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run": {
            "name": record.name,
            "id": record.told["run_id"],
            "family": record.family,
            "method": record.method,
            "model": record.model,
            "task": record.task,
            "seed": record.seed,
        },
        "side": subject.side,
        "task": run.task.name,
        "words": redact(list(words)),
        "sets": list(names),
        "max_length": None if isinstance(run.method, Reasoning) else run.task.max_length,
    }
