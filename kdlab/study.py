"""What `kdlab analyze` looks at: finished runs by their folders, and the stages that analyse them.

Layer distillation: the gap of train and dev, and analyses of the student. Several languages: the gap, and the scores by
language, mode of inference and kind of training texts, which the runs have left already.

A run's graph is made again from its graph.json, and the analyses are stages on top of it, with artifacts in the same
store: what was analysed once is not analysed again. Nothing of the run itself is run: what is gone is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kdlab.artifacts import Store
from kdlab.checks import suggest
from kdlab.config import PLACEMENT
from kdlab.errors import ConfigError, KdlabError, StoreError
from kdlab.graph import Graph, Stage, canonical
from kdlab.runs import Record

ANALYSES = ("gap", "surface", "noise", "distance", "languages")
OF_FAMILY = {"distillation": ANALYSES[:4], "crosslingual": ("gap", "languages")}
ROWS = {"surface": 64, "noise": 300, "distance": 128}  # that each looks at, unless told otherwise
SCALES = (0.05, 0.1, 0.15, 0.2, 0.3)  # of the noise, as shares of a weight tensor's root mean square
INCIDENTAL = ("seed", *PLACEMENT, "curves", "budget")  # runs that differ here only are seeds of one setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to look at, and how closely."""

    analyses: tuple[str, ...] = ANALYSES
    rows: int | None = None  # None: ROWS
    points: int = 11  # of the surface, along each direction; odd
    span: float = 1.0  # of the surface: from -span to span
    draws: int = 3  # of noise, at each scale
    seed: int = 0  # of rows, directions and noise

    @classmethod
    def of(cls, analyses: str, **values: Any) -> Settings:
        """From words: "gap,noise", or nothing for all. Raises ConfigError with all that is wrong."""
        words = [word.strip() for word in analyses.split(",") if word.strip()]
        unknown = [word for word in words if word not in ANALYSES]
        problems = [f"--what {word}: choose among {', '.join(ANALYSES)}{suggest(word, ANALYSES)}" for word in unknown]
        made = cls(analyses=tuple(name for name in ANALYSES if name in words or not words), **values)
        if made.rows is not None and made.rows < 2:
            problems.append(f"--rows {made.rows}: give 2 or more")
        if made.points < 3 or made.points % 2 == 0:
            problems.append(
                f"--points {made.points}: give an odd number from 3 on, so that the student is in the middle"
            )
        if not 0 < made.span < float("inf"):
            problems.append(f"--span {made.span:g}: give a number above 0")
        if made.draws < 1:
            problems.append(f"--draws {made.draws}: give 1 or more")
        if made.seed < 0:
            problems.append(f"--seed {made.seed}: give 0 or more")
        if problems:
            raise ConfigError(problems)
        return made


class Configured(Protocol):
    @property
    def config(self) -> dict[str, Any]:
        """That of run.json."""
        ...


Of = TypeVar("Of", bound=Configured)


@dataclass(frozen=True, eq=False)
class Subject:
    """A finished run, and what of its graph is looked at."""

    record: Record
    graph: Graph
    student: Stage
    data: Stage
    teacher: Stage | None

    @property
    def folder(self) -> Path:
        return self.record.folder

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def config(self) -> dict[str, Any]:
        return self.record.config

    @property
    def seed(self) -> int:
        return self.record.seed

    @property
    def family(self) -> str:
        return self.record.family

    @property
    def result(self) -> Mapping[str, Any]:
        return self.record.finished

    @property
    def metric(self) -> str:
        return str(self.result["metric"])

    @property
    def layers(self) -> Stage | None:
        """The stage that distilled inner layers alone."""
        return next((stage for stage in self.graph if stage.label == "layers"), None)

    @property
    def trained(self) -> list[Stage]:
        """The stages that trained a model, in order."""
        return [stage for stage in self.graph if "fit" in stage.values]

    @classmethod
    def open(cls, folder: Path) -> Subject:
        """Raises StoreError if the folder is not that of a finished run, or its files do not fit together."""
        record = Record.open(folder)
        result, described = record.finished, record.graph
        again = "run it again, under another name"
        try:
            graph = Graph.load(described)
        except KdlabError as problem:
            raise StoreError(problem.what, where=str(folder / "graph.json"), fix=again) from problem
        if record.config.get("method", {}).get("family") == "reasoning":
            raise StoreError(
                "analyze looks at encoders, and this is a reasoning run",
                where=str(folder),
                fix=f"look at its answers with `kdlab samples {folder}`",
            )
        scored = {side: _labelled(graph, f"evaluate_{side}") for side in ("student", "teacher")}
        student, teacher = scored["student"], scored["teacher"]
        if student is None or "metric" not in result:
            raise StoreError(
                "this run can't be analysed: it was written by another kdlab", where=str(folder), fix=again
            )
        return cls(
            record,
            graph,
            student.inputs["model"],
            student.inputs["data"],
            None if teacher is None else teacher.inputs["model"],
        )


def open_all(given: Sequence[Sequence[Path]]) -> tuple[list[Subject], list[str]]:
    """(the runs, what was left out and why), from the run folders that each given folder stands for.

    A sweep's jobs that have not finished are left out; any other folder must hold a finished run, else StoreError.
    """
    subjects: dict[Path, Subject] = {}
    left_out = []
    for folders in given:
        for folder in folders:
            if len(folders) > 1 and not (folder / "result.json").exists():
                left_out.append(f"{folder}: it has not finished")
            elif folder.resolve() not in subjects:
                subjects[folder.resolve()] = Subject.open(folder)
    if not subjects:
        raise StoreError("none of these runs has finished", fix="give their commands again; they continue")
    first: dict[str, Subject] = {}
    for subject in subjects.values():
        kept = first.setdefault(canonical([setting(subject), subject.seed]), subject)
        if kept is not subject:
            left_out.append(f"{subject.folder}: the same run as {kept.folder}")
    return list(first.values()), left_out


def default_folder(given: Sequence[Path], subjects: Sequence[Subject]) -> Path:
    """Where the analysis goes: into the run's own folder, or for several runs to outputs/analysis/NAME."""
    if len(subjects) == 1:
        return subjects[0].folder / "analysis"
    if len(given) == 1:
        name = given[0].resolve().name
    else:
        names = sorted(str(subject.folder.resolve()) for subject in subjects)
        name = f"{len(names)}-runs-{hashlib.sha256(canonical(names).encode()).hexdigest()[:8]}"
    return Path(subjects[0].config["outputs"]) / "analysis" / name


def _labelled(graph: Graph, label: str) -> Stage | None:
    return next((stage for stage in graph if stage.label == label), None)


# planning ----------------------------------------------------------------------------------------------------------


def asked(subject: Subject, settings: Settings) -> list[str]:
    """The analyses of `settings` that there are of the run's family."""
    return [name for name in settings.analyses if name in OF_FAMILY[subject.family]]


def plan(subject: Subject, settings: Settings, *, prefix: str = "") -> dict[str, Stage]:
    """The analyses of one run that are stages, by name; without a teacher there is no distance."""
    common = {"seed": settings.seed, "pad_to_max": subject.config["task"]["pad_to_max"]}
    looked_at = {"model": subject.student, "data": subject.data}
    surface = {"points": settings.points, "span": settings.span}
    shaken = {"scales": list(SCALES), "draws": settings.draws, "metric": subject.metric}
    functions: dict[str, tuple[str, dict[str, Any], dict[str, Stage]]] = {
        "surface": ("loss_surface", surface, looked_at),
        "noise": ("weight_noise", shaken, looked_at),
    }
    if subject.teacher is not None:
        layers = {} if subject.layers is None else {"layers": subject.layers}
        functions["distance"] = (
            "layer_distance",
            own_map(subject),
            {**looked_at, "teacher": subject.teacher, **layers},
        )
    return {
        name: Stage(
            f"kdlab.stages.analyse:{function}",
            f"{prefix}{name}",
            values={**values, **common, "rows": settings.rows or ROWS[name]},
            inputs=inputs,
        )
        for name, (function, values, inputs) in functions.items()
        if name in asked(subject, settings)
    }


def own_map(subject: Subject) -> dict[str, Any]:
    """The layer map that the run distils by, as values of `layer_distance`; none where all layers meet all."""
    method = subject.config["method"]
    stage = next((name for name in ("layers", "joint") if name in method["stages"]), None)
    layer_map = None if stage is None else method[stage]["layer_map"]
    if stage is None or layer_map == "transport":
        return {"layer_map": None, "pairs": []}
    return {"layer_map": layer_map, "pairs": list(method[stage].get("pairs", [])) if layer_map == "pairs" else []}


def require(subject: Subject, stages: Mapping[str, Stage], settings: Settings, store: Store) -> None:
    """Raises StoreError if what the analyses still have to read of the run is no longer in the store.

    Raises ConfigError if none of them is of the run's family.
    """
    if not asked(subject, settings):
        known = ", ".join(OF_FAMILY[subject.family])
        raise ConfigError([f"--what {','.join(settings.analyses)}: of {subject.name}, a {subject.family} run: {known}"])
    needed = [need for stage in stages.values() if store.find(stage.artifact) is None for need in stage.needs()]
    if "gap" in settings.analyses:
        needed += subject.trained
    gone = dict.fromkeys(stage.artifact for stage in needed if store.find(stage.artifact) is None)
    if gone:
        raise StoreError(
            f"what run {subject.name} has made is no longer there: {', '.join(gone)}",
            where=str(store.root),
            fix=f"make it again with `{subject.record.command}`, or give the store that has it: --store FOLDER",
        )


def alone(planned: Sequence[Mapping[str, Stage]]) -> Graph:
    """The analyses as a graph without the stages of the runs, so that none of these can be run."""
    stages = {stage.fingerprint: stage for stages in planned for stage in stages.values()}
    return Graph(tuple(stages.values()), {stage.artifact: stage for stage in stages.values()})


# seeds of one setting ----------------------------------------------------------------------------------------------


def by_setting(runs: Iterable[Of]) -> list[list[Of]]:
    """Runs that differ in what is incidental only, together."""
    groups: dict[str, list[Of]] = {}
    for run in runs:
        groups.setdefault(canonical(setting(run)), []).append(run)
    return list(groups.values())


def told_apart(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each of some settings (path -> value) that are not the same: a few values that tell it from all the others.

    The same paths for all; each is the one that splits most of what the ones before it left together.
    """
    paths = list(dict.fromkeys(path for one in settings for path in one))
    words = {path: [canonical(one.get(path)) for one in settings] for path in paths}
    chosen: list[str] = []
    classes = [0] * len(settings)
    while len(set(classes)) < len(settings):
        counts = {path: len(set(zip(classes, values, strict=True))) for path, values in words.items()}
        best = max(counts, key=lambda path: counts[path], default=None)
        if best is None or counts[best] == len(set(classes)):
            break
        chosen.append(best)
        numbers: dict[tuple[int, str], int] = {}
        classes = [numbers.setdefault(key, len(numbers)) for key in zip(classes, words[best], strict=True)]
    return [{path: one.get(path) for path in chosen} for one in settings]


def short(path: str) -> str:
    """A setting's path without its group, whose name says little: layers.mixup."""
    return path.partition(".")[2] or path


def grouped(subjects: Sequence[Of]) -> dict[str, list[Of]]:
    """Runs that differ in their seed only, together; the labels say in what the groups differ."""
    groups = by_setting(subjects)
    settings = [leaves(setting(group[0])) for group in groups]
    names = ["method.name"]
    names += [name for name in ("task.name", "model.name") if len({one[name] for one in settings}) > 1]
    labels = [", ".join(str(one[name]) for name in names) for one in settings]
    for label in set(labels):
        alike = [number for number, own in enumerate(labels) if own == label]
        for number, shown in zip(alike, told_apart([settings[number] for number in alike]), strict=True):
            labels[number] = ", ".join([label, *(f"{short(path)}={value}" for path, value in shown.items())])
    return dict(zip(labels, groups, strict=True))


def matrix(subject: Subject) -> str:
    """The same for runs that differ in the kind of their training texts, and in their seed, only."""
    method = {key: value for key, value in subject.config["method"].items() if key != "texts"}
    return hashlib.sha256(canonical({**setting(subject), "method": method}).encode()).hexdigest()[:8]


def setting(run: Configured) -> dict[str, Any]:
    """The configuration without what makes no other setting of it."""
    return {key: value for key, value in run.config.items() if key not in INCIDENTAL}


def leaves(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The values of a configuration by their paths: {"method.layers.mixup": 1.0}; a list is one value."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        where = f"{path}.{key}" if path else key
        found |= leaves(value, where) if isinstance(value, Mapping) and value else {where: value}
    return found
