"""The page of a comparison: one HTML file that asks for nothing else, to read, to print, to send to somebody.

    text = render(comparison, {"r0": record, ...})

It shows what `report.compare` has found, and what lies in the runs' folders: curves, graphs, samples, configurations,
where everything came from. The markup is in `templates/`; here is what stands in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdlab.errors import KdlabError
from kdlab.report import charts
from kdlab.report.charts import SHARED, Curve, Dot, Look, Scale, Track
from kdlab.report.expected import text
from kdlab.report.languages import GROUPS, MODES
from kdlab.report.samples import KINDS, SCORED, Sample, read_samples
from kdlab.report.settings import ABSENT
from kdlab.report.summary import (
    count,
    duration,
    hundredfold,
    metric_name,
    milliseconds,
    probability,
    signed,
    spread,
)
from kdlab.report.tables import separated_best
from kdlab.runs import Record, read_json
from kdlab.showing import visible
from kdlab.study import leaves, setting

if TYPE_CHECKING:
    from jinja2 import Environment

Comparison = Mapping[str, Any]
Group = Mapping[str, Any]
Place = tuple[str, str]  # task and model: only groups of one can be compared

POINTS, MOST, LEAST = 60_000, 300, 24  # of all curves together; of a single one
LONGEST = 2_000  # characters of a sample's text or an error
SAMPLED = 12  # groups whose samples are shown
PAIRS = 1_000
GRAPHS = 12
STATES = ("finished", "failed", "unfinished", "not started")
AXES = {  # figures that a score is set against
    "parameters": "parameters",
    "latency_ms": "latency (ms per example)",
    "flops_per_example": "FLOPs per example",
}
FIGURES = (*AXES, "tokens_per_second", "train_seconds")
SHORT = {"parameters": "parameters", "latency_ms": "latency", "flops_per_example": "FLOPs"}


def render(comparison: Comparison, records: Mapping[str, Record], *, store: str | None = None) -> str:
    """The page as HTML; records: by the ids of the comparison's runs.

    store: where the artifacts are; None: as the runs say. A file of a run that is absent or can't be read is left out,
    and the page says so.
    """
    lab = Lab(comparison, records, store)
    sections = {
        "results": results(lab),
        "tasks": pivot(lab),
        "papers": papers(lab),
        "costs": costs(lab),
        "curves": curves(lab),
        "languages": heat(lab),
        "samples": samples(lab),
        "graphs": graphs(lab),
        "settings": configurations(lab),
        "provenance": provenance(lab),
        "runs": comparison["runs"],
    }
    environment = _environment()
    script = _source(environment, "page.js")
    return environment.get_template("page.html").render(
        lab=lab,
        comparison=comparison,
        sections=sections,
        charts=charts,
        style=_source(environment, "page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


@cache
def _environment() -> Environment:
    """Escapes everything; control characters are written as their escapes, as on the terminal."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def plain(value: Any) -> Any:
        if value is None:
            return ""
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("kdlab.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "hundredfold": hundredfold,
        "signed": with_minus,
        "spread": spread,
        "count": count,
        "milliseconds": milliseconds,
        "duration": duration,
        "probability": probability,
        "metric_name": metric_name,
        "cut": cut,
    }
    return environment


def _source(environment: Environment, name: str) -> Any:
    from markupsafe import Markup

    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def with_minus(value: float | None) -> str:
    """A difference of fractions, with the sign that is as wide as a plus: -0.012 is "−1.2"."""
    shown = signed(value)
    return shown if shown == "-" else shown.replace("-", "−")


# what all sections look things up in --------------------------------------------------------------------------------


@dataclass
class Lab:
    """The comparison with its runs; `notes` collects what could not be read."""

    comparison: Comparison
    records: Mapping[str, Record]
    store: str | None
    notes: dict[str, None] = field(default_factory=dict)

    @cached_property
    def groups(self) -> dict[str, Group]:
        return {group["id"]: group for group in self.comparison["groups"]}

    @cached_property
    def looks(self) -> dict[str, Look]:
        """By group: those of one name look alike wherever they stand."""
        numbers: dict[str, int] = {}
        return {
            name: charts.look(numbers.setdefault(group["label"], len(numbers))) for name, group in self.groups.items()
        }

    @cached_property
    def names(self) -> dict[str, str]:
        """By group: its method, and what else sets it apart; without its task and model."""
        return {name: group["label"] for name, group in self.groups.items()}

    @cached_property
    def bases(self) -> set[str]:
        """The groups that others are set against."""
        return {group["delta"]["to"] for group in self.groups.values() if group["delta"]}

    @cached_property
    def places(self) -> dict[Place, list[Group]]:
        found: dict[Place, list[Group]] = {}
        for group in self.groups.values():
            found.setdefault((group["task"], group["model"]), []).append(group)
        return found

    @cached_property
    def best(self) -> set[str]:
        """The groups that a test separates from the second best of their place, metric and set."""
        rivals: dict[tuple[Any, ...], list[Group]] = {}
        for group in self.groups.values():
            rivals.setdefault(_measured(group), []).append(group)
        return {best for groups in rivals.values() if (best := separated_best(self.comparison, groups)) is not None}

    @cached_property
    def states(self) -> dict[str, int]:
        told = Counter(run["state"] for run in self.comparison["runs"])
        return {state: told[state] for state in dict.fromkeys([*STATES, *told]) if told[state]}

    @cached_property
    def compared_by(self) -> str:
        """ "accuracy on dev, MCC on dev"."""
        return ", ".join(
            dict.fromkeys(f"{metric_name(one['metric'])} on {one['split']}" for one in self.groups.values())
        )

    def where(self, place: Place) -> str:
        """The task and the model, of these what is not the same everywhere."""
        varied = [len({one[number] for one in self.places}) > 1 for number in (0, 1)]
        return ", ".join(word for word, shown in zip(place, varied, strict=True) if shown)

    def runs(self, group: Group) -> list[Record]:
        return [self.records[name] for name in group["runs"] if name in self.records]

    def quietly(self, record: Record, what: str, otherwise: Any, read: Callable[..., Any], *given: Any) -> Any:
        """What `read` gives; if it can't be read, or is not as it should be, a note and what to go on with."""
        try:
            return read(*given)
        except (KdlabError, OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
            first = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            self.notes[f"{record.name}: {what} can't be read: {first}"] = None
            return otherwise


def _measured(group: Group) -> tuple[Any, ...]:
    return group["task"], group["model"], group["metric"], group["split"]


# results ------------------------------------------------------------------------------------------------------------


def results(lab: Lab) -> dict[str, Any]:
    """The rows of the table of groups, which of its columns say something, and the pairs."""
    groups = [group for own in lab.places.values() for group in own]
    scales = _strips(groups)
    rows = []
    for group in groups:
        delta, scale = group["delta"], scales.get(_measured(group))
        against = lab.groups[delta["to"]]["mean"] if delta and delta["to"] in lab.groups else None
        mean = group["mean"]
        rows.append(
            {
                "group": group,
                "look": lab.looks[group["id"]],
                "name": lab.names[group["id"]],
                "best": group["id"] in lab.best,
                "strip": None
                if mean is None or scale is None
                else charts.strip(mean, group["interval"], group["scores"], against, scale),
            }
        )
    floors = [
        name for name in ("chance", "majority") if any((one["floor"] or {}).get(name) is not None for one in groups)
    ]
    figures = [name for name in FIGURES if any(one["figures"].get(name) is not None for one in groups)]
    return {
        "rows": rows,
        "several": {key: len({one[key] for one in groups}) > 1 for key in ("task", "model", "metric", "split")},
        "deltas": any(one["delta"] for one in groups),
        "teachers": any(one["teacher"] is not None for one in groups),
        "intervals": list(
            dict.fromkeys(one["interval_of"] for one in groups if one["interval"] and one["interval_of"])
        ),
        "tests": list(dict.fromkeys(one["delta"]["test"] for one in groups if one["delta"] and one["delta"]["test"])),
        "floors": floors,
        "figures": figures,
        "pairs": [one for one in lab.comparison["pairs"] if one["a"] in lab.groups and one["b"] in lab.groups][:PAIRS],
        "all_pairs": len(lab.comparison["pairs"]),
    }


def _strips(groups: Sequence[Group]) -> dict[tuple[Any, ...], Scale]:
    """One scale for all groups that can be compared, over all that is drawn of them."""
    ends: dict[tuple[Any, ...], list[float]] = {}
    for group in groups:
        ends.setdefault(_measured(group), []).extend([*group["scores"], *(group["interval"] or [])])
    return {
        key: Scale.around(values, 4, charts.STRIP[0] - 4, log=False, margin=0) for key, values in ends.items() if values
    }


def pivot(lab: Lab) -> dict[str, Any] | None:
    """Methods beside tasks (and models), and the mean over all of them where a method has all; None of one column."""
    columns = list(lab.places)
    if len(columns) < 2:
        return None
    rows: dict[str, dict[Place, Group]] = {}
    for group in lab.groups.values():
        rows.setdefault(group["label"], {}).setdefault((group["task"], group["model"]), group)
    metrics = {
        place: ", ".join(dict.fromkeys(f"{metric_name(one['metric'])}, {one['split']}" for one in groups))
        for place, groups in lab.places.items()
    }
    found = []
    for cells in rows.values():
        some = next(iter(cells.values()))
        means = [cells[place]["mean"] for place in columns if place in cells]
        whole = len(means) == len(columns) and None not in means
        found.append(
            {
                "name": lab.names[some["id"]],
                "look": lab.looks[some["id"]],
                "cells": [cells.get(place) for place in columns],
                "mean": statistics.fmean(means) if whole else None,
            }
        )
    highest = max((row["mean"] for row in found if row["mean"] is not None), default=None)
    return {
        "columns": [(place, lab.where(place), metrics[place]) for place in columns],
        "rows": found,
        "best": lab.best,
        "highest": highest if sum(row["mean"] is not None for row in found) > 1 else None,
        "means": any(row["mean"] is not None for row in found),
    }


def papers(lab: Lab) -> list[dict[str, Any]]:
    """A table for each source of the papers' numbers: its last axis is across, the others are down."""
    tables: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for cell in filter(lambda one: one["axes"], lab.comparison["expected"]):
        tables.setdefault((cell["source"] or "", cell["protocol"] or "", *cell["axes"]), []).append(cell)
    found = []
    for (source, protocol, *axes), cells in tables.items():
        across = axes[-1]
        columns = list(dict.fromkeys(text(cell["axes"][across]) for cell in cells))
        rows: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
        for cell in cells:
            key = tuple(text(cell["axes"][axis]) for axis in axes[:-1])
            rows.setdefault(key, {})[text(cell["axes"][across])] = cell
        found.append(
            {
                "source": source,
                "protocol": protocol,
                "down": axes[:-1],
                "across": across,
                "columns": columns,
                "rows": [(", ".join(key), [own.get(column) for column in columns]) for key, own in rows.items()],
                "counts": Counter(cell["state"] for cell in cells),
                "notes": list(dict.fromkeys(note for cell in cells if (note := cell.get("note")))),
                "own": list(dict.fromkeys(own for cell in cells if (own := cell.get("own_protocol")))),
            }
        )
    return found


# curves and costs ---------------------------------------------------------------------------------------------------


def curves(lab: Lab) -> list[dict[str, Any]]:
    """For each place its stages, and of each the panels: the loss, its terms, train and dev, the score."""
    places = []
    for place, groups in lab.places.items():
        stages: dict[str, dict[str, list[Track]]] = {}
        for stage, panels in _tracks(lab, groups).items():
            stages[stage] = panels
        places.append((place, groups, stages))
    lines = sum(len(tracks) for *_, stages in places for panels in stages.values() for tracks in panels.values())
    most = min(MOST, max(LEAST, POINTS // max(lines, 1)))
    found = []
    for place, groups, stages in places:
        drawn = {}
        for stage, panels in stages.items():
            made = [
                charts.panel(title, tracks, most=most, factor=100 if title.startswith(SCORE) else 1)
                for title, tracks in panels.items()
            ]
            if any(made):
                drawn[stage] = [one for one in made if one is not None]
        if drawn:
            own = {group["id"] for group in groups}
            found.append({"where": lab.where(place), "stages": drawn, "legend": legend(lab, own)})
    return found


SCORE = "score: "


def legend(lab: Lab, own: set[str]) -> list[tuple[str, Look]]:
    """The series of some groups, each once."""
    return list(dict.fromkeys((lab.names[name], lab.looks[name]) for name in lab.groups if name in own))


def _tracks(lab: Lab, groups: Sequence[Group]) -> dict[str, dict[str, list[Track]]]:
    """By stage and panel: the lines of the groups; a stage that several groups share has one line of its own."""
    read: dict[tuple[str, str], dict[str, list[tuple[str, Curve]]]] = {}  # (stage, curve) -> group -> its runs'
    for group in groups:
        for record in lab.runs(group):
            made = (record.result or {}).get("artifacts") or {}
            for (stage, name), curve in lab.quietly(record, "metrics.jsonl", {}, _series, record).items():
                artifact = made.get(stage) or str(record.folder)
                read.setdefault((stage, name), {}).setdefault(group["id"], []).append((artifact, curve))
    found: dict[str, dict[str, list[Track]]] = {}
    for stage in dict.fromkeys(stage for stage, _ in read):
        names = [name for one, name in read if one == stage]
        for title, wanted in _panels(names, groups).items():
            tracks = found.setdefault(stage, {}).setdefault(title, [])
            for name, thin in wanted:
                for users, runs in _shared(read[stage, name]):
                    label = ", ".join(lab.names[one] for one in users[:4]) + (f" +{len(users) - 4}" * (len(users) > 4))
                    label += f" ({name.split('/')[1]})" if len(wanted) > 1 else ""
                    common = 1 < len(users) == len(read[stage, name])
                    series = [] if common else [lab.looks[one].number for one in users]
                    tracks.append(Track(label, SHARED if common else lab.looks[users[0]], series, runs, thin))
    return found


def _shared(curves: Mapping[str, Sequence[tuple[str, Curve]]]) -> Iterator[tuple[list[str], list[Curve]]]:
    """(groups, the curves of their runs): groups whose runs have the same artifacts in common are together."""
    users: dict[tuple[str, ...], list[str]] = {}
    for group, runs in curves.items():
        users.setdefault(tuple(sorted({artifact for artifact, _ in runs})), []).append(group)
    for groups in users.values():
        yield groups, list(dict(curves[groups[0]]).values())


def _series(record: Record) -> dict[tuple[str, str], Curve]:
    """What was measured over the steps of each stage, by name."""
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    drawn: dict[str, bool] = {}
    for point in record.points:
        stage, step = str(point["stage"]), point["step"]
        for name, value in point.items():
            if name not in drawn:
                drawn[name] = name == "loss" or name.startswith(("parts/", "eval/", "curve/"))
            if drawn[name]:
                steps, values = found.setdefault((stage, name), ([], []))
                steps.append(step)
                values.append(value)
    return {
        key: (np.array(steps, dtype=float), np.array(values, dtype=float)) for key, (steps, values) in found.items()
    }


def _panels(names: Sequence[str], groups: Sequence[Group]) -> dict[str, list[tuple[str, bool]]]:
    """Title -> the curves in it, and whether each is thin. Sets of single languages have no panel."""
    terms = [name for name in names if name.startswith("parts/")]
    found: dict[str, list[tuple[str, bool]]] = {}
    if "loss" in names and len(terms) != 1:
        found["loss"] = [("loss", False)]
    found |= {f"loss: {name.partition('/')[2]}": [(name, False)] for name in terms}
    sets = {name.split("/")[1]: name for name in names if name.startswith("curve/")}
    if "train" in sets and "dev" in sets:
        found["fixed rows: dev (marked), train"] = [(sets["train"], True), (sets["dev"], False)]
    for metric in dict.fromkeys(group["metric"] for group in groups):
        for name in names:
            kind, _, rest = name.partition("/")
            split, _, own = rest.partition("/")
            if kind == "eval" and own == metric and "." not in split:
                found[f"{SCORE}{metric_name(metric)} on {split} × 100"] = [(name, False)]
    return found


def costs(lab: Lab) -> list[dict[str, Any]]:
    """Scores against what a model costs, for each place a plot a figure."""
    found = []
    for place, groups in lab.places.items():
        plots = []
        for figure, title in AXES.items():
            dots = [
                Dot(
                    lab.names[group["id"]],
                    lab.looks[group["id"]],
                    group["figures"][figure],
                    100 * group["mean"],
                    None if group["sd"] is None else 100 * group["sd"],
                    f"{lab.names[group['id']]}: {hundredfold(group['mean'])}, "
                    f"{AMOUNTS[figure](group['figures'][figure])}",
                )
                for group in groups
                if group["mean"] is not None and group["figures"].get(figure) is not None
            ]
            if any(group["family"] == "reasoning" for group in groups):
                title = title.replace("example", "token") if figure == "latency_ms" else title
            dots += _teachers(lab, groups, figure) if dots else []
            if len(dots) > 1:
                scores = " and ".join(dict.fromkeys(metric_name(one["metric"]) for one in groups))
                plots.append(charts.scatter(dots, title, f"{scores} by {SHORT[figure]}"))
        if plots:
            own = {group["id"] for group in groups}
            found.append({"where": lab.where(place), "plots": plots, "legend": legend(lab, own)})
    return found


AMOUNTS: dict[str, Callable[[float], str]] = {
    "parameters": lambda value: f"{count(value)} parameters",
    "latency_ms": lambda value: f"{milliseconds(value)} ms",
    "flops_per_example": lambda value: f"{count(value)} FLOPs",
}


def _teachers(lab: Lab, groups: Sequence[Group], figure: str) -> Iterator[Dot]:
    """The teachers whose size or speed was measured, those that are alike once."""
    seen = set()
    for group in groups:
        for record in lab.runs(group):
            teacher = (record.result or {}).get("teacher") or {}
            score = (teacher.get("scores") or {}).get(group["split"], {}).get(group["metric"], {}).get("selected")
            amount = teacher.get(figure)
            if score is None or amount is None or (score, teacher.get("parameters")) in seen:
                continue
            seen.add((score, teacher.get("parameters")))
            title = f"teacher: {hundredfold(score)}, {AMOUNTS[figure](amount)}"
            yield Dot("teacher" if len(seen) == 1 else "", SHARED, amount, 100 * score, None, title, hollow=True)


# languages and samples ----------------------------------------------------------------------------------------------


def heat(lab: Lab) -> list[dict[str, Any]]:
    """For each place and mode of inference: methods down, languages across, on one scale for the place."""
    found = []
    for place, groups in lab.places.items():
        shown = [group for group in groups if group["languages"]]
        values = [
            value for one in shown for own in one["languages"].values() for value in own.values() if value is not None
        ]
        if not values:
            continue
        low, high = min(values), max(values)
        modes = [mode for mode in MODES if any(mode in one["languages"] for one in shown)]
        scored = dict.fromkeys(name for one in shown for own in one["languages"].values() for name in own)
        order = [name for one in shown for name in _told(lab, one, "task_languages") or []]
        languages = list(dict.fromkeys([*(name for name in order if name in scored), *scored]))
        tables = []
        for mode in modes:
            rows = [one for one in shown if mode in one["languages"]]
            means = [key for key in GROUPS if any(key in (one["means"] or {}).get(mode, {}) for one in rows)]
            tables.append((mode, means, rows))
        some = shown[0]
        found.append(
            {
                "where": lab.where(place),
                "languages": languages,
                "source": _told(lab, some, "source_language"),
                "tables": tables,
                "asked": {one["id"]: (_told(lab, one, "inference") or {}).get("mode") for one in shown},
                "low": low,
                "span": max(high - low, 1e-9),
                "metric": f"{metric_name(some['metric'])} × 100 on {some['split']}",
            }
        )
    return found


def _told(lab: Lab, group: Group, key: str) -> Any:
    """What the result of the group's first run says."""
    return next(((one.result or {}).get(key) for one in lab.runs(group)), None)


def samples(lab: Lab) -> dict[str, Any] | None:
    """A few questions of the first run of each reasoning group: answered rightly, and wrongly."""
    groups = [group for group in lab.groups.values() if group["family"] == "reasoning"]
    found = []
    for group in groups[:SAMPLED]:
        for record in lab.runs(group):
            folder = record.artifact(SCORED, lab.store)
            if folder is None:
                continue
            chosen = lab.quietly(record, "samples.jsonl", None, _chosen, folder / "samples.jsonl")
            if chosen:
                place = lab.where((group["task"], group["model"]))
                name = lab.names[group["id"]]
                found.append({"title": f"{name}, {place}" if place else name, "record": record, "samples": chosen})
                break
    return {"groups": found, "of": len(groups)} if found else None


def _chosen(file: Path) -> list[Sample]:
    test = [row for row in read_samples(file) if row["split"] == "test"]
    return [row for kind in ("right", "wrong") for row in [one for one in test if KINDS[kind][1](one)][:2]]


def cut(written: Any) -> str:
    """At most LONGEST characters of a text."""
    whole = str(written if written is not None else "").strip()
    left = len(whole) - LONGEST
    return whole if left <= 0 else f"{whole[:LONGEST]} [... {left} more characters]"


# graphs, settings, provenance ---------------------------------------------------------------------------------------


def graphs(lab: Lab) -> list[dict[str, Any]]:
    """The graphs of the groups' first runs; those of one form are drawn once, as that of the first."""
    shares = Counter(
        name for record in lab.records.values() for name in set(((record.result or {}).get("artifacts") or {}).values())
    )
    forms: dict[str, dict[str, Any]] = {}
    for group in lab.groups.values():
        for record in lab.runs(group)[:1]:
            stages = lab.quietly(record, "graph.json", [], getattr, record, "graph")
            form = lab.quietly(record, "graph.json", "", _form, stages)
            if not form:
                continue
            if form not in forms and len(forms) < GRAPHS:
                seconds = (record.result or {}).get("seconds_of_stages") or {}
                flow = lab.quietly(record, "graph.json", None, charts.flow, stages)
                if flow is not None:
                    forms[form] = {"record": record, "flow": flow, "seconds": seconds, "shares": shares, "names": {}}
            if form in forms:
                forms[form]["names"][lab.names[group["id"]]] = None
    return list(forms.values())


def _form(stages: Sequence[Mapping[str, Any]]) -> str:
    """The same for graphs whose stages have the same labels and edges."""
    labels = {stage["artifact"]: stage["label"] for stage in stages}
    return (
        json.dumps(
            [
                [stage["label"], sorted((name, labels.get(one)) for name, one in stage["inputs"].items())]
                for stage in stages
            ],
            default=str,
        )
        if stages
        else ""
    )


def configurations(lab: Lab) -> dict[str, Any] | None:
    """Settings in which groups differ, a column a group; and those that all have in common."""
    shown = [(group, own[0]) for group in lab.groups.values() if (own := lab.runs(group))]
    if not shown:
        return None
    flat = [leaves(setting(one)) for _, one in shown]
    paths = list(dict.fromkeys(path for one in flat for path in one))
    base = next((number for number, (group, _) in enumerate(shown) if group["id"] in lab.bases), 0)
    differing, common = [], []
    for path in sorted(paths, key=lambda name: (not name.endswith(".name"), paths.index(name))):
        values = [one.get(path, ABSENT) for one in flat]
        if any(value != values[0] for value in values):
            differing.append((path, [(text(value), value != values[base], value == ABSENT) for value in values]))
        else:
            common.append((path, text(values[0])))
    columns = [
        (lab.names[group["id"]], lab.where((group["task"], group["model"])), lab.looks[group["id"]])
        for group, _ in shown
    ]
    return {"columns": columns, "differing": differing, "common": common, "base": base}


def provenance(lab: Lab) -> dict[str, Any]:
    """What was typed, and where code, data and models came from: facts by name, each with the runs it is true of."""
    facts: dict[str, dict[str, dict[str, list[str]]]] = {}
    for record in lab.records.values():
        for kind, own in lab.quietly(record, "result.json", {}, _facts, record).items():
            for name, value in own.items():
                if value:
                    facts.setdefault(kind, {}).setdefault(name, {}).setdefault(value, []).append(record.name)
    told = sum(record.result is not None for record in lab.records.values())
    return {"commands": _commands(lab), "facts": facts, "of": told}


def _facts(record: Record) -> dict[str, dict[str, str]]:
    """Of a finished run."""
    result = record.result
    if result is None:
        return {}
    git, student = result.get("git") or {}, result.get("student") or {}
    commit = str(git.get("commit") or "")
    machine = student.get("machine") or {}
    threads = student.get("threads")
    versions = {str(name): str(version) for name, version in (result.get("versions") or {}).items()}
    return {
        "Code": {
            "git commit": commit + (", with changes that are not committed" if commit and git.get("dirty") else ""),
            "kdlab": versions.pop("kdlab", ""),
            "stages made by": ", ".join(map(str, result.get("made_by") or [])),
        },
        "Data and models": {str(label): _compact(source) for label, source in (result.get("sources") or {}).items()},
        "Conditions": {
            "seeds": _compact(result.get("seeds")),
            "precision": str(result.get("run", {}).get("precision") or ""),
            "selected on": str(result.get("run", {}).get("select_on") or ""),
            "rows": _compact(result.get("rows")),
        },
        "Machine": {
            "device": str(student.get("device") or ""),
            "processor": ", ".join(
                f"{key} {value}" if key != "processor" else str(value)
                for key, value in sorted(machine.items(), key=lambda one: one[0] != "processor")
                if value not in (None, "")
            ),
            "threads": "" if threads is None else str(threads),
        },
        "Versions": versions,
    }


def _compact(value: Any) -> str:
    """Plain values on one line, without what is not set: "hub=glue, revision=bcdcba7"."""
    if not isinstance(value, Mapping):
        return "" if value is None else text(value)
    return ", ".join(f"{path}={text(one)}" for path, one in leaves(value).items() if one not in (None, {}, []))


def _commands(lab: Lab) -> list[tuple[str, str]]:
    """(sweep, command): what was typed for the sweeps; what single runs were given stands beside them."""
    found: dict[tuple[str, str], None] = {}
    for folder, record in {one.folder.parent: one for one in lab.records.values()}.items():
        file = folder / "sweep.json"
        told = lab.quietly(record, "sweep.json", {}, read_json, file) if file.is_file() else {}
        for command in (told.get("commands") or []) if isinstance(told, Mapping) else []:
            found[str(told.get("name") or folder.name), str(command)] = None
    return list(found)
