"""Runs beside each other, as plain JSON: what tables, CSV, LaTeX, Markdown and the page show.

    comparison = compare(records, settings=Settings(baseline="ft"), left_out=left_out)

Runs that differ in what is incidental only (`kdlab.study.INCIDENTAL`) are the seeds of one group. Groups of one task,
metric and set stand in one table; those of one model, too, are tested against each other (`kdlab.report.statistics`).
All scores are fractions. "format": 1; a key with nothing to tell is null.
"""

from __future__ import annotations

import hashlib
import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from kdlab import provenance
from kdlab.artifacts import Damaged, write_text
from kdlab.checks import suggest
from kdlab.data.answers import bootstrap
from kdlab.data.languages import ORIGINAL
from kdlab.errors import ConfigError, StoreError, disk_errors
from kdlab.graph import canonical
from kdlab.report import expected as papers
from kdlab.report.predictions import load
from kdlab.report.settings import differences
from kdlab.report.summary import marks, split_of
from kdlab.runs import Record, read_json
from kdlab.study import by_setting, leaves, setting, short, told_apart

FORMAT = 1
BASELINES = ("ft", "kd", "ft_answer", "zs", "zero_shot_xlt", "translate_train")  # the first that there is
NO_BASELINE = "none"
ALL_PAIRS = 10  # groups of one table of which all pairs are tested
AXES = ("method", "task", "model")
FEW_SEEDS = 3  # fewer are warned about
SIGNED = ("mcc", "pearson", "spearman", "pearson_spearman")  # metrics from -1 on
LEAST_RESAMPLES, MOST_RESAMPLES = 100, 100_000
CLOSE = 1e-6  # what a score may differ by from that of the predictions

Comparison = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare, and how."""

    metric: str | None = None  # None: each task's own
    split: str | None = None  # None: what each family compares on
    baseline: str | None = None  # a method, or a group's label; None: BASELINES; NO_BASELINE: none
    by: tuple[str, ...] = ()  # axes: runs that are alike in these are pooled; none: whatever is not incidental
    alpha: float = 0.05
    correction: str = "holm"  # holm, bh, none: over the tests of one table
    resamples: int = 1000
    seed: int = 0  # of the bootstrap

    def check(self) -> None:
        """Raises ConfigError with all that is wrong."""
        problems = []
        if not 0 < self.alpha < 1:
            problems.append(f"--alpha {self.alpha:g}: give a number between 0 and 1")
        if not LEAST_RESAMPLES <= self.resamples <= MOST_RESAMPLES:
            problems.append(f"--resamples {self.resamples}: give {LEAST_RESAMPLES} to {MOST_RESAMPLES}")
        if self.seed < 0:
            problems.append(f"--seed {self.seed}: give 0 or more")
        if problems:
            raise ConfigError(problems)


@dataclass(eq=False)
class Run:
    """One finished run in the comparison."""

    id: str
    record: Record
    metric: str
    split: str
    score: float

    @cached_property
    def result(self) -> Mapping[str, Any]:
        return self.record.finished


@dataclass(eq=False)
class Group:
    """Runs of one setting."""

    id: str
    runs: list[Run]
    label: str
    setting: dict[str, Any]
    resampled: Any = None  # scores of its runs [R, B] on resampled rows, by the order of its runs
    rows: str | None = None  # names the rows that these are of; only groups of the same ones are paired by them
    examples: int = 0
    languages: int = 1  # that the examples are in

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What groups must have in common to be tested against each other."""
        return self.of("task"), self.of("model"), self.runs[0].metric, self.runs[0].split

    @property
    def table(self) -> tuple[str, str, str]:
        return self.of("task"), self.runs[0].metric, self.runs[0].split

    def of(self, axis: str) -> str:
        """Its method, task or model; of a pooled group all of them."""
        return ", ".join(dict.fromkeys(getattr(run.record, axis) for run in self.runs))

    @cached_property
    def by_seed(self) -> dict[int, list[int]]:
        """Places of its runs by seed: one each, unless groups are pooled."""
        found: dict[int, list[int]] = {}
        for place, run in enumerate(self.runs):
            found.setdefault(run.record.seed, []).append(place)
        return dict(sorted(found.items()))

    def score(self, seed: int) -> float:
        return statistics.fmean(self.runs[place].score for place in self.by_seed[seed])

    @property
    def asked(self) -> str:
        """What its scores were resampled on."""
        return f"{self.examples} examples" + (f" in {self.languages} languages" if self.languages > 1 else "")

    @property
    def scores(self) -> list[float]:
        return [run.score for run in self.runs]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)


def compare(
    records: Sequence[Record],
    *,
    settings: Settings = Settings(),
    left_out: Sequence[str] = (),
    given: Iterable[str | Path] = (),
    store: str | Path | None = None,
    title: str | None = None,
) -> Comparison:
    """The comparison of these runs, in the shape that the module's readers agree on.

    left_out: what `kdlab.runs.collect` left out; given: the paths it was given, so that jobs of a whole sweep that
    have not started are told; store: where the runs' artifacts are, if not where the runs say.
    Raises ConfigError if what the settings ask for is not there.
    """
    left = list(left_out)
    usable = _once([record for record in records if _usable(record, left)], left)
    names = {id(record): f"r{number}" for number, record in enumerate(usable)}
    runs = list(_finished(usable, names, settings, left))
    groups = _groups(runs, settings)
    notes: list[str] = []
    _resample(groups, settings, store, notes)
    bases = {group.id: base for place in _places(groups) for base in [_base(place, settings)] for group in place}
    if settings.baseline not in (None, NO_BASELINE) and groups and not any(bases.values()):
        options = dict.fromkeys(name for group in groups for name in (group.of("method"), group.label))
        told = suggest(settings.baseline, options) or f"; there is {', '.join(options)}"
        raise ConfigError([f"--baseline {settings.baseline}: no group is called that{told}"])
    pairs = [pair for place in _places(groups) for pair in _tested(place, bases[place[0].id], settings)]
    chosen = dict.fromkeys(base.label for base in bases.values() if base is not None)
    owner = {run.id: group for group in groups for run in group.runs}
    scores = {run.id: run.score for run in runs}
    return {
        "format": FORMAT,
        "title": title or _title(groups),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kdlab": provenance.code(),
        "baseline": ", ".join(chosen) or None,
        "settings": {
            "alpha": settings.alpha,
            "correction": settings.correction,
            "resamples": settings.resamples,
            "seed": settings.seed,
        },
        "groups": [_told(group, settings, _delta(group, pairs, bases[group.id])) for group in groups],
        "pairs": pairs,
        "expected": _expected(usable, {id(run.record): owner[run.id] for run in runs}),
        "runs": [
            *(_run(record, names[id(record)], owner, scores) for record in usable),
            *_not_started(usable, given, len(usable)),
        ],
        "marks": marks([run.result for group in groups for run in group.runs]),
        "warnings": [*_warnings(groups), *notes],
        "left_out": left,
    }


def by_id(comparison: Comparison, records: Iterable[Record]) -> dict[str, Record]:
    """The records of a comparison by the ids of its runs."""
    ids = {run["folder"]: run["id"] for run in comparison["runs"]}
    return {ids[str(record.folder)]: record for record in records if str(record.folder) in ids}


# runs --------------------------------------------------------------------------------------------------------------


def _usable(record: Record, left_out: list[str]) -> bool:
    """Whether its files hold what a comparison reads; told in left_out if not."""
    broken = "run.json"
    try:
        _ = (record.family, record.method, record.task, record.model, record.seed)
        broken = "graph.json"
        _ = [(stage["label"], stage["artifact"], stage["values"], stage["inputs"]) for stage in record.graph]
        broken = "result.json"
        if record.result is not None:
            _ = (
                _all_scores(record.result),
                record.result["metric"],
                record.result["student"].get,
                marks([record.result]),
            )
            _ = record.result["artifacts"].get
    except (KeyError, TypeError, ValueError, AttributeError, StoreError):
        left_out.append(f"{record.folder}: {broken} is not whole, or was written by another kdlab")
        return False
    return True


def _once(records: Sequence[Record], left_out: list[str]) -> list[Record]:
    """Every run once: of several with the same setting and seed a finished one, then the first."""
    kept: dict[str, Record] = {}
    for record in sorted(records, key=lambda one: one.result is None):
        first = kept.setdefault(canonical([setting(record), record.seed]), record)
        if first is not record:
            same = first.told.get("identity") == record.told.get("identity")
            why = "the same run as" if same else "the same setting and seed, on other data or by other code, as"
            left_out.append(f"{record.folder}: {why} {first.folder}")
    chosen = set(map(id, kept.values()))
    return [record for record in records if id(record) in chosen]


def _finished(
    records: Sequence[Record], names: Mapping[int, str], settings: Settings, left_out: list[str]
) -> Iterator[Run]:
    """Those that have the score that is asked for. Raises ConfigError if it is none of the finished ones."""
    finished = [record for record in records if record.result is not None]
    there: dict[str, None] = {}
    found = 0
    for record in finished:
        assert record.result is not None
        metric = settings.metric or str(record.result["metric"])
        split = settings.split or split_of(record.result)
        table = _all_scores(record.result)
        there |= dict.fromkeys(f"{name} on {where}" for where, scores in table.items() for name in scores)
        score = table.get(split, {}).get(metric)
        if score is None or not math.isfinite(score):
            what = "it has no" if score is None else "not a number:"
            left_out.append(f"{record.folder}: {what} {metric} on {split}")
            continue
        found += 1
        yield Run(names[id(record)], record, metric, split, float(score))
    if finished and not found:
        asked = [f"--{name} {value}" for name in ("metric", "split") if (value := getattr(settings, name))]
        raise ConfigError([f"{' '.join(asked)}: none of these runs has it; there is {', '.join(there)}"])


def _all_scores(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """split -> metric -> the selected score; of several languages every metric's mean over them, in the run's mode."""
    found = {split: {name: one.get("selected") for name, one in own.items()} for split, own in result["scores"].items()}
    if "means" in result:
        mode = result["inference"]["mode"]
        for split, modes in result["means"].items():
            found[split] = {**modes.get(mode, {}).get("all", {}), **found.get(split, {})}
    return found


def _run(record: Record, name: str, owner: Mapping[str, Group], scores: Mapping[str, float]) -> dict[str, Any]:
    parent = record.folder.resolve().parent
    return {
        "id": name,
        "name": record.name,
        "folder": str(record.folder),
        "sweep": parent.name if parent.parent.name == "sweeps" or (parent / "sweep.json").is_file() else None,
        "state": record.state,
        "group": owner[name].id if name in owner else None,
        "method": record.method,
        "task": record.task,
        "model": record.model,
        "seed": record.seed,
        "score": scores.get(name),
        "error": record.failure if record.state == "failed" else None,
        "command": record.command,
    }


def _not_started(records: Sequence[Record], given: Iterable[str | Path], number: int) -> list[dict[str, Any]]:
    """Jobs that sweep.json names and that have no run folder, of sweeps that were given whole."""
    wanted = {Path(path).resolve() for path in given}
    found: list[dict[str, Any]] = []
    for whole, sweep in {record.folder.resolve().parent: record.folder.parent for record in records}.items():
        if not wanted & {whole, *whole.parents} or not (sweep / "sweep.json").is_file():
            continue
        for job in _jobs(sweep / "sweep.json"):
            if not (sweep / job["name"] / "run.json").is_file():
                words = shlex.join(["kdlab", "train", *map(str, job.get("overrides") or [])])
                found.append(
                    {
                        "id": f"r{number + len(found)}",
                        "name": job["name"],
                        "folder": str(sweep / job["name"]),
                        "sweep": whole.name,
                        "state": "not started",
                        "group": None,
                        **{axis: job.get(axis) for axis in (*AXES, "seed")},
                        "score": None,
                        "error": None,
                        "command": words,
                    }
                )
    return found


def _jobs(file: Path) -> list[dict[str, Any]]:
    try:
        told = read_json(file)
        return [job for job in told["jobs"] if isinstance(job.get("name"), str)]
    except (StoreError, KeyError, TypeError, AttributeError):
        return []  # being written, or of another kdlab: the runs themselves are told all the same


# groups ------------------------------------------------------------------------------------------------------------


def _groups(runs: Sequence[Run], settings: Settings) -> list[Group]:
    records = {id(run.record): run for run in runs}
    if settings.by:
        unknown = [axis for axis in settings.by if not any(papers.value(run.record.config, axis) for run in runs)]
        if unknown and runs:
            options = [*AXES, *leaves(runs[0].record.config)]
            raise ConfigError([f"--by {axis}: no run has it{suggest(axis, options)}" for axis in unknown])
        pooled: dict[tuple[str, ...], list[Run]] = {}
        for run in runs:
            axes = dict.fromkeys(["task", *settings.by])
            key = tuple(papers.value(run.record.config, axis) for axis in axes)
            pooled.setdefault((*key, run.metric, run.split), []).append(run)
        found = list(pooled.values())
    else:
        found = [[records[id(record)] for record in alike] for alike in by_setting([run.record for run in runs])]
    groups = [Group(f"g{number}", _ordered(own), "", {}) for number, own in enumerate(found)]
    places: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        places.setdefault((*group.place, "" if settings.by else group.of("method")), []).append(group)
    for alike in places.values():
        _label(alike, settings)
    return groups


def _ordered(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run.record.seed)


def _label(groups: Sequence[Group], settings: Settings) -> None:
    """Call groups of one place, and one method, by what sets them apart."""
    if settings.by:
        axes = [axis for axis in settings.by if axis not in ("task", "model")]
        for group in groups:
            config = group.runs[0].record.config
            group.setting = {axis: papers.value(config, axis) for axis in axes if axis != "method"}
            words = [group.of("method")] if "method" in axes else []
            group.label = ", ".join([*words, *(f"{short(axis)}={value}" for axis, value in group.setting.items())])
            group.label = group.label or group.of("model")
        return
    own = [setting(group.runs[0].record) for group in groups]
    differing = differences(own)
    shown = told_apart([leaves(one) for one in own])
    for number, group in enumerate(groups):
        group.setting = {path: values[number] for path, values in differing.items()}
        words = [f"{short(path)}={papers.text(value)}" for path, value in shown[number].items()]
        group.label = ", ".join([group.of("method"), *words])


def _places(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that can be tested against each other, together."""
    places: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        places.setdefault(group.place, []).append(group)
    return list(places.values())


def _title(groups: Sequence[Group]) -> str:
    tasks = ", ".join(dict.fromkeys(group.of("task") for group in groups))
    if not groups:
        return "no finished run"
    labels = len({group.label for group in groups})
    return f"{labels} method{'s' * (labels != 1)} on {tasks}"


def _told(group: Group, settings: Settings, delta: dict[str, Any] | None) -> dict[str, Any]:
    first = group.runs[0]
    interval, of = _interval(group, settings)
    results = _results(group)
    return {
        "id": group.id,
        "label": group.label,
        "family": first.record.family,
        "method": group.of("method"),
        "task": group.of("task"),
        "model": group.of("model"),
        "setting": group.setting,
        "metric": first.metric,
        "split": first.split,
        "seeds": [run.record.seed for run in group.runs],
        "runs": [run.id for run in group.runs],
        "scores": group.scores,
        "mean": group.mean,
        "sd": statistics.stdev(group.scores) if len(group.runs) > 1 else None,
        "interval": None if interval is None else list(interval),
        "interval_of": of,
        "floor": {name: _mean(_floor(run, name) for run in group.runs) for name in ("majority", "chance")},
        "teacher": _mean(_teacher(run) for run in group.runs),
        "figures": {name: _mean(map(figure, results)) for name, figure in FIGURES.items()}
        | {"train_seconds": _mean(map(_train_seconds, (run.record for run in group.runs)))},
        "teacher_figures": _teacher_figures(results),
        "delta": delta,
        "marks": list(marks(results)),
        "languages": _languages(results, first.split, first.metric, "languages"),
        "means": _languages(results, first.split, first.metric, "means"),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known else None


def _floor(run: Run, name: str) -> float | None:
    floor: float | None = (run.result.get(name) or {}).get(run.split, {}).get(run.metric)
    return floor


def _teacher(run: Run) -> float | None:
    scores = (run.result.get("teacher") or {}).get("scores", {})
    score: float | None = scores.get(run.split, {}).get(run.metric, {}).get("selected")
    return score


def _student(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda result: result["student"].get(name)


# Of the student: number of weights, bytes on disk, ms for one example (of a student that writes: one token), ...
FIGURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    **{name: _student(name) for name in ("parameters", "bytes", "latency_ms", "flops_per_example")},
    "tokens_per_second": lambda result: (result["student"].get("answers") or {}).get("tokens_per_second"),
}


def _teacher_figures(results: Sequence[Mapping[str, Any]]) -> dict[str, float | None] | None:
    """Size and speed of the teachers, where they were measured."""
    sides = [{"student": teacher} for result in results if "parameters" in (teacher := result.get("teacher") or {})]
    return {name: _mean(map(figure, sides)) for name, figure in FIGURES.items()} if sides else None


def _train_seconds(record: Record) -> float | None:
    """Of all stages that train what the student needs, its teacher and the teacher's logits included, wherever and
    whenever they ran."""
    seconds = record.finished.get("seconds_of_stages", {})
    made = {stage["label"] for stage in _needed(record) if "fit" in stage["values"] or stage["label"] == ANSWERS}
    known = [seconds[label] for label in seconds if label in made]
    return sum(known) if known else None


def _trained(record: Record) -> list[dict[str, Any]]:
    """The stages that trained a model that the student comes from, in order; its own is the last."""
    return [stage for stage in _needed(record) if "fit" in stage["values"]]


def _needed(record: Record) -> list[dict[str, Any]]:
    """The stages that the student is made of, in order."""
    stages = {stage["artifact"]: stage for stage in record.graph}
    of = {stage["label"]: stage for stage in record.graph}
    scored = of.get("evaluate_student")
    waiting = [scored["inputs"].get("model")] if scored else [of["student"]["artifact"]] if "student" in of else []
    needed: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in stages and name not in needed:
            needed.add(name)
            waiting += stages[name]["inputs"].values()
    return [stage for name, stage in stages.items() if name in needed]


def _languages(
    results: Sequence[Mapping[str, Any]], split: str, metric: str, key: str
) -> dict[str, dict[str, float]] | None:
    """Mode -> language, or group of languages -> the metric's mean over the runs."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for mode, of_mode in (result.get(key) or {}).get(split, {}).items():
            for language, own in of_mode.items():
                if metric in own:
                    found.setdefault(mode, {}).setdefault(language, []).append(own[metric])
    shown = {
        mode: {language: statistics.fmean(values) for language, values in of_mode.items()}
        for mode, of_mode in found.items()
    }
    return shown or None


# tests -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
    """One run's answers to the rows of one set, or of one language of it."""

    language: str
    ids: list[Any]
    gold: list[Any]  # classes by number, or numbers; of a run that writes 1, and found whether it was right
    found: list[Any]  # likewise


def _resample(groups: Sequence[Group], settings: Settings, store: str | Path | None, notes: list[str]) -> None:
    """Score every run on resampled examples, where its predictions are in the store and give the score it has."""
    from kdlab.report import statistics as tests

    sets: dict[tuple[str, str], tuple[list[Table], list[tuple[Run, list[Any]]]]] = {}  # rows once, answers by run
    without: dict[str, list[str]] = {}
    for group in groups:
        for run in group.runs:
            try:
                tables = _tables_of(run, store)
            except (KeyError, TypeError, ValueError):
                tables = "the predictions are not those of its rows"
            if isinstance(tables, str):
                without.setdefault(tables, []).append(run.record.name)
            else:
                rows = canonical([[table.language, table.ids, table.gold] for table in tables])
                name = hashlib.sha256(rows.encode()).hexdigest()
                answers = [_numbers(table.found) for table in tables]
                sets.setdefault((run.metric, name), (tables, []))[1].append((run, answers))
    draws: dict[str, tuple[str, Any, int, int]] = {}  # by run: of which rows, scores [B], examples, languages
    for (metric, name), (first, members) in sets.items():
        stacked = [
            tests.Rows(_numbers(one.gold), np.stack([answers[place] for _, answers in members]))
            for place, one in enumerate(first)
        ]
        together = len(first) > 1 and all((one.ids, one.gold) == (first[0].ids, first[0].gold) for one in first[1:])
        found = tests.resampled(metric, stacked, draws=settings.resamples, seed=settings.seed, together=together)
        count = len(first[0].ids) if together else sum(len(one.ids) for one in first)
        for (run, _), own, whole in zip(members, found, tests.scores(metric, stacked), strict=True):
            if abs(whole - run.score) > CLOSE:
                why = "the predictions in the store don't give the scores of result.json"
                without.setdefault(why, []).append(run.record.name)
            else:
                draws[run.id] = (name, own, count, len(first))
    for group in groups:
        own = [draws[run.id] for run in group.runs if run.id in draws]
        if len(own) == len(group.runs) and len({name for name, *_ in own}) == 1:
            group.rows, _, group.examples, group.languages = own[0]
            group.resampled = np.stack([scores for _, scores, *_ in own])
    for why, runs in without.items():
        notes.append(f"no bootstrap over examples for {_listed(runs)}: {why}")


def _numbers(values: Sequence[Any]) -> Any:
    return np.asarray(values, dtype=np.float64 if isinstance(values[0], float) else np.int64)


def _tables_of(run: Run, store: str | Path | None) -> list[Table] | str:
    """What the run answered to the set that it is compared on; text: why that is not known."""
    from kdlab.report.statistics import METRICS

    if run.metric not in METRICS:
        return f"{run.metric} is not computed again"
    try:
        found = load(run.record, store, split=run.split)
    except Damaged as problem:
        return problem.what
    except StoreError:
        return "the predictions are not in the store, or can't be read (--store FOLDER names another)"
    mode = run.result["inference"]["mode"] if "inference" in run.result else ""
    tables = []
    for asked, told in found.items():
        if (asked.split, asked.mode) != (run.split, mode):
            continue
        ids = sorted(told.rows)
        rows = [told.rows[name] for name in ids]
        if run.record.family == "reasoning":
            if run.metric != "accuracy":
                return f"{run.metric} is not computed again"
            tables.append(Table("", ids, [1] * len(rows), [int(bool(row.right)) for row in rows]))
        elif any(row.answer is None for row in rows):
            return "rows without a label"
        elif told.names is None:
            tables.append(Table("", ids, [float(row.answer) for row in rows], [float(row.prediction) for row in rows]))
        else:
            number = {name: place for place, name in enumerate(told.names)}
            gold, said = [number[row.answer] for row in rows], [number[str(row.prediction)] for row in rows]
            tables.append(Table(asked.language, ids, gold, said))
    if not tables or not all(table.ids for table in tables):
        return "no predictions"
    return tables


def _interval(group: Group, settings: Settings) -> tuple[tuple[float, float] | None, str | None]:
    """Of the group's mean, and how it was found."""
    from kdlab.report import statistics as tests

    count = len(group.by_seed)
    if group.resampled is not None:
        if group.runs[0].metric == "accuracy" and set(group.scores) in ({0.0}, {1.0}):
            interval = bootstrap([group.mean == 1] * group.examples, seed=settings.seed, draws=1, level=tests.LEVEL)
            return interval, f"Wilson over {group.asked}"
        draws = tests.mean_over_seeds(_of_seeds(group, group.by_seed), seed=settings.seed)
        return _within(group.runs[0].metric, tests.percentiles(draws)), _bootstrapped(group.asked, count)
    found = tests.t_interval([group.score(seed) for seed in group.by_seed])
    return (None, None) if found is None else (_within(group.runs[0].metric, found), f"t over {count} seeds")


def _within(metric: str, interval: tuple[float, float]) -> tuple[float, float]:
    """The part of an interval that scores can be in."""
    least = -1.0 if metric in SIGNED else 0.0
    return max(least, interval[0]), min(1.0, interval[1])


def _bootstrapped(examples: str, seeds: int) -> str:
    from kdlab.report.statistics import LEAST_SEEDS

    if seeds >= LEAST_SEEDS:
        return f"bootstrap over {examples} and {seeds} seeds"
    return f"bootstrap over {examples}, of {'this seed' if seeds == 1 else f'these {seeds} seeds'}"


def _of_seeds(group: Group, seeds: Iterable[int]) -> Any:
    """Scores on resampled examples by seed [S, B]."""
    return np.stack([group.resampled[group.by_seed[seed]].mean(axis=0) for seed in seeds])


def _base(groups: Sequence[Group], settings: Settings) -> Group | None:
    """The group of a place that the others are set against."""
    if settings.baseline == NO_BASELINE:
        return None
    for name in BASELINES if settings.baseline is None else (settings.baseline,):
        for group in sorted(groups, key=lambda one: one.label != name):
            if name in (group.label, group.of("method")):
                return group
    return None


def _tested(groups: Sequence[Group], base: Group | None, settings: Settings) -> list[dict[str, Any]]:
    """The tests among the groups of one place: all pairs; with the baseline only if it was asked for, or of many."""
    from kdlab.report import statistics as tests

    if settings.baseline in (None, NO_BASELINE) and len(groups) <= ALL_PAIRS:
        chosen = [(b, a) if a is base else (a, b) for a, b in combinations(groups, 2)]
    else:
        chosen = [(group, base) for group in groups if base is not None and group is not base]
    found = [_pair(a, b, settings) for a, b in chosen]
    least = [max((p for p in (one["p_seeds"], one["p_examples"]) if p is not None), default=None) for one in found]
    strict = settings.alpha / max(1, sum(p is not None for p in least))
    needed = tests.more_seeds(
        [_differences(a, b) for a, b in chosen], settings.alpha if settings.correction == "none" else strict
    )
    for one, p, more in zip(found, tests.corrected(least, settings.correction), needed, strict=True):
        one["p_corrected"] = p
        one["verdict"] = (
            "not testable"
            if p is None
            else "not separated"
            if p >= settings.alpha
            else ("better" if one["difference"] > 0 else "worse")
        )
        one["more_seeds"] = more if one["verdict"] == "not separated" else None
    return found


def _differences(a: Group, b: Group) -> list[float]:
    """Of the seeds that both have."""
    return [a.score(seed) - b.score(seed) for seed in a.by_seed if seed in b.by_seed]


def _pair(a: Group, b: Group, settings: Settings) -> dict[str, Any]:
    """a - b, over the seeds that both have; of groups without a common seed over all they have, by Welch's t test."""
    from kdlab.report import statistics as tests

    seeds = [seed for seed in a.by_seed if seed in b.by_seed]
    over_seeds = _differences(a, b)
    sides = [[group.score(seed) for seed in group.by_seed] for group in (a, b)]
    difference = statistics.fmean(over_seeds) if seeds else statistics.fmean(sides[0]) - statistics.fmean(sides[1])
    p_seeds = tests.paired_t(over_seeds) if seeds else tests.welch_t(*sides)
    names = []
    if p_seeds is not None:
        apart = " and ".join(str(len(side)) for side in sides)
        names.append(f"paired t over {len(seeds)} seeds" if seeds else f"Welch's t over {apart} seeds")
    p_examples, interval, of = None, None, None
    if a.rows is not None and a.rows == b.rows:
        draws = [_of_seeds(group, seeds or group.by_seed) for group in (a, b)]
        p_examples = tests.p_of_draws(difference, draws[0].mean(axis=0) - draws[1].mean(axis=0))
        names.append(f"paired bootstrap over {a.asked}")
        if seeds:
            moved = tests.mean_over_seeds(draws[0] - draws[1], seed=settings.seed)
            interval, of = tests.percentiles(moved), _bootstrapped(a.asked, len(seeds))
    elif seeds and (found := tests.t_interval(over_seeds)) is not None:
        interval, of = found, f"t over {len(seeds)} seeds"
    return {
        "a": a.id,
        "b": b.id,
        "difference": difference,
        "interval": None if interval is None else list(interval),
        "interval_of": of,
        "seeds": seeds,
        "p_seeds": p_seeds,
        "p_examples": p_examples,
        "p_corrected": None,
        "test": " and ".join(names) + (", the larger p" if len(names) > 1 else ""),
        "more_seeds": None,
        "verdict": "",
    }


def _delta(group: Group, pairs: Iterable[Mapping[str, Any]], base: Group | None) -> dict[str, Any] | None:
    if base is None:
        return None
    for pair in pairs:
        if (pair["a"], pair["b"]) == (group.id, base.id):
            return {"to": base.id, **{key: value for key, value in pair.items() if key not in ("a", "b")}}
    return None


# the papers' numbers -----------------------------------------------------------------------------------------------


def _expected(records: Sequence[Record], owner: Mapping[int, Group]) -> list[dict[str, Any]]:
    """Each cell of the papers' tables that the runs' experiments bring along, beside the mean of the runs it is about.

    A run stands for a cell if its experiment brings it; by its task's own metric and set, whatever is compared here.
    """
    tables: dict[str, list[Record]] = {}
    for record in records:
        told = record.config.get("expected") or {}
        if told.get("scores"):
            tables.setdefault(canonical(told), []).append(record)
    found = []
    for members in tables.values():
        told = members[0].config["expected"]
        for cell in papers.cells(told):
            own = [
                record
                for record in members
                if record.result is not None
                and all(papers.value(record.config, axis) == wanted for axis, wanted in cell["axes"].items())
            ]
            scores = [score for record in own if (score := _own_score(record.finished)) is not None]
            groups = dict.fromkeys(owner[id(record)].id for record in own if id(record) in owner)
            found.append(
                {
                    **cell,
                    "ours": statistics.fmean(scores) if scores else None,
                    "sd": statistics.stdev(scores) if len(scores) > 1 else None,
                    "group": next(iter(groups)) if len(groups) == 1 else None,
                    "groups": list(groups),
                    "seeds": len(scores),
                    "source": told.get("source") or "",
                    "protocol": told.get("protocol") or "",
                    "note": told.get("note") or "",
                    "own_protocol": _own_protocol(own),
                    "state": "not found" if cell["paper"] is None else "run" if scores else "not run",
                }
            )
    return found


def _own_score(result: Mapping[str, Any]) -> float | None:
    return _all_scores(result).get(split_of(result), {}).get(str(result["metric"]))


def _own_protocol(records: Sequence[Record]) -> str:
    """How our numbers were obtained, in the words of the settings."""
    if not records:
        return ""
    keys = ("model", "select_on", "precision")
    words = [
        f"{key}={', '.join(dict.fromkeys(papers.value(record.config, key) for record in records))}" for key in keys
    ]
    seeds = ", ".join(str(seed) for seed in sorted({record.seed for record in records}))
    small = any((record.config.get("debug") or {}).get("rows") for record in records)
    return "; ".join([*words, f"seeds {seeds}", *(["debug: a few rows and steps only"] if small else [])])


# warnings ----------------------------------------------------------------------------------------------------------

THEMES = {
    "selection": "checkpoints are chosen differently",
    "schedule": "the student's own stages are trained differently",
    "data": "the data differ",
    "training": "training differs",
    "code": "made by different code",
    "machine": "latency was measured on different machines",
}


def _warnings(groups: Sequence[Group]) -> list[str]:
    """What makes numbers of one table unlike each other, or weak; each says of which groups."""
    tables: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        tables.setdefault(group.table, []).append(group)
    asked: dict[str, set[tuple[str, ...]]] = {}
    for task, metric, split in tables:
        asked.setdefault(task, set()).add((metric, split))
    found = [
        f"{task}: runs are compared by different scores: {', '.join(f'{m} on {s}' for m, s in sorted(ways))}"
        for task, ways in asked.items()
        if len(ways) > 1
    ]
    for (task, _, _), members in tables.items():
        found += [f"{task}: {line}" for line in _of_table(members)]
    return found


def _of_table(groups: Sequence[Group]) -> Iterator[str]:
    models = len({group.of("model") for group in groups}) > 1
    names = {group.id: group.label + (f" of {group.of('model')}" if models else "") for group in groups}
    protocols = {group.id: [_protocol(run) for run in group.runs] for group in groups}
    for theme, words in THEMES.items():
        clauses = [*_clauses(names, {name: [one[theme] for one in own] for name, own in protocols.items()})]
        if clauses:
            yield f"{words}: {'; '.join(clauses)}"
    places: dict[str, list[Group]] = {}
    for group in groups:
        places.setdefault(group.of("model"), []).append(group)
    for members in places.values():
        teachers = {group.id: [_teacher_of(run) for run in group.runs if _teacher_of(run)] for group in members}
        clauses = [*_clauses(names, {name: own for name, own in teachers.items() if own})]
        if clauses:
            yield f"students have different teachers: {'; '.join(clauses)}"
    few = [names[group.id] for group in groups if len(group.by_seed) < FEW_SEEDS]
    if few:
        yield f"fewer than {FEW_SEEDS} seeds: {_listed(few)}"
    seeds = {group.id: ", ".join(map(str, group.by_seed)) for group in groups}
    if len(set(seeds.values())) > 1:
        told = "; ".join(f"{value} ({_listed(own)})" for value, own in _by_value(seeds, names).items())
        yield f"groups have different seeds, pairs are tested on the common ones: {told}"
    for mark in ("*", "="):
        marked = {names[group.id]: meaning[mark] for group in groups if mark in (meaning := marks(_results(group)))}
        if marked:
            yield f"{next(iter(marked.values()))}: {_listed(list(marked))}"
    for group in groups:
        if len(pooled := differences([setting(run.record) for run in group.runs])):
            yield f"{names[group.id]} pools runs that differ in {_listed(list(pooled))}"


def _results(group: Group) -> list[Mapping[str, Any]]:
    return [run.result for run in group.runs]


def _clauses(names: Mapping[str, str], values: Mapping[str, Sequence[Mapping[str, str]]]) -> Iterator[str]:
    """Of each key in which the runs differ: its values, each with the groups that have it."""
    for key in dict.fromkeys(key for own in values.values() for one in own for key in one):
        shown = {name: " or ".join(dict.fromkeys(one.get(key, "none") for one in own)) for name, own in values.items()}
        if len(set(shown.values())) > 1 or any(" or " in text for text in shown.values()):
            yield f"{key} " + ", ".join(f"{value} ({_listed(own)})" for value, own in _by_value(shown, names).items())


def _by_value(values: Mapping[str, str], names: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(names[name])
    return found


def _listed(names: Sequence[str], most: int = 6) -> str:
    """ "a, b" of a few; of many the first ones and how many more."""
    shown = list(dict.fromkeys(names))
    return ", ".join(shown if len(shown) <= most else [*shown[: most - 2], f"{len(shown) - most + 2} more"])


def _protocol(run: Run) -> dict[str, dict[str, str]]:
    """theme -> what -> value as text: what a fair comparison has in common."""
    config, result = run.record.config, run.result
    task, student = config["task"], result["student"]
    fits = [stage["values"]["fit"] for stage in _trained(run.record) if stage["label"] != "teacher"]
    sources = {
        f"{label}.{path}": papers.text(value)
        for label, source in (result.get("sources") or {}).items()
        if label in DATA_STAGES and isinstance(source, Mapping)
        for path, value in leaves(source).items()
    }
    rows = {
        f"rows of {name}": str(count)
        for name, count in (result.get("rows") or {}).items()
        if name in ("train", run.split) or (name.startswith(f"{run.split}.") and name.endswith(f".{ORIGINAL}"))
    }
    conditions = {
        key: papers.text(value)
        for name in ("few", "imbalance", "noise")
        for key, value in leaves(task.get(name) or {}, f"task.{name}").items()
    }
    versions = result.get("versions") or {}
    machine = {
        "device": student.get("device"),
        "threads": student.get("threads"),
        "processor": (student.get("machine") or {}).get("processor"),
    }
    return {
        "selection": {"select_on": str(config.get("select_on"))},
        "schedule": {key: _of_stages(key, [papers.text(fit[key]) for fit in fits if key in fit]) for key in FIT},
        "data": {**sources, **rows, **conditions, "task.max_length": str(task.get("max_length"))},
        "training": {
            "precision": str(config.get("precision")),
            "debug.rows": str((config.get("debug") or {}).get("rows")),
            "debug.steps": str((config.get("debug") or {}).get("steps")),
        },
        "code": {
            "kdlab": " and ".join(result.get("made_by") or [versions.get("kdlab", "unknown")]),
            **{name: versions.get(name, "unknown") for name in ("torch", "transformers")},
        },
        "machine": {key: str(value) for key, value in machine.items() if value is not None},
    }


DATA_STAGES = ("prepare", "prepare_sets", "questions")
ANSWERS = "teacher_logits"  # the stage that is no training, and done for it
FIT = ("epochs", "batch_size", "lr", "optimizer", "schedule", "warmup", "weight_decay")


def _of_stages(key: str, values: Sequence[str]) -> str:
    """One value of all stages, or "0.002 + 0.001"; epochs add up, so that they are told of each."""
    same = key != "epochs" and len(set(values)) == 1
    return values[0] if same else " + ".join(values) or "none"


def _teacher_of(run: Run) -> dict[str, str]:
    """What the student was taught by: the artifact of the teacher, or who wrote the rationales; {} of none."""
    artifacts = run.result["artifacts"]
    if any(stage["label"] == "teacher" for stage in _trained(run.record)):
        return {"teacher": artifacts["teacher"]}
    if "rationales" in artifacts:
        writer = run.result["sources"].get("rationales") or {}
        return {path: papers.text(value) for path, value in leaves(writer).items()}
    return {}


# files -------------------------------------------------------------------------------------------------------------


def default_folder(given: Sequence[str | Path], records: Sequence[Record]) -> Path:
    """outputs/compare/NAME in the outputs that the first run is in; of one path its name, of several how many runs."""
    folder = records[0].folder.resolve()
    outputs = next((one.parent for one in folder.parents[:3] if one.name in ("runs", "sweeps")), None)
    place = Path("outputs") if outputs is None else outputs
    if place.is_relative_to(Path.cwd()):
        place = place.relative_to(Path.cwd())
    if len(given) == 1 and Path(given[0]).is_dir():
        return place / "compare" / Path(given[0]).resolve().name
    names = sorted(str(record.folder.resolve()) for record in records)
    return place / "compare" / f"{len(names)}-runs-{hashlib.sha256(canonical(names).encode()).hexdigest()[:8]}"


def write(files: Mapping[Path, str]) -> None:
    """Write texts, each at once. Raises StoreError, before any is written, where something else is in the way."""
    for path in files:
        blocking = [one for one in path.parents if one.exists() and not one.is_dir()]
        if blocking or path.is_dir():
            what = "a file is in the way of a folder" if blocking else "a folder is in the way of a file"
            raise StoreError(what, where=str(blocking[0] if blocking else path), fix="give another --out or --html")
    for path, text in files.items():
        with disk_errors("writing the comparison", path, place="`--out` or `--html`"):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # such as below /proc
                what = f"no folder can be made there: {error.strerror}"
                raise StoreError(what, where=str(path.parent), fix="give another --out or --html") from error
            write_text(path, text)
