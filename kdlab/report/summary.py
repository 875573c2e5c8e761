"""Tables of results for the terminal. They fit 80 columns, with or without one.

Scores are shown times 100. `selected` is the score of the checkpoint that the run chose, and the one to
compare; `best` picks the checkpoint on the scored rows themselves, so it flatters.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

METRIC_NAMES = {"mcc": "MCC", "f1": "F1", "macro_f1": "macro F1", "pearson_spearman": "Pearson-Spearman"}

Result = Mapping[str, Any]


def summary_table(result: Result) -> Table:
    """Teacher and student of one run side by side: size, speed, and the task's metric on dev."""
    run, metric = result["run"], result["metric"]
    table = _table(f"{run['name']}: {metric_name(metric)} on dev, x 100")
    for column in (
        "",
        "para-\nmeters",
        "size\nMB",
        "latency\nms",
        "FLOPs per\nexample",
        "selected",
        "last",
        "best\n(optimistic)",
    ):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for role in ("teacher", "student"):
        one = result.get(role)
        if one:
            scores = one["scores"].get("dev", {}).get(metric, {})
            table.add_row(
                role,
                count(one.get("parameters")),
                megabytes(one.get("bytes")),
                milliseconds(one.get("latency_ms")),
                count(one.get("flops_per_example")),
                *(hundredfold(scores.get(kind)) for kind in ("selected", "last", "best")),
            )
    floor = result.get("majority", {}).get("dev", {}).get(metric)
    if floor is not None:
        table.add_row("majority", *[""] * 4, hundredfold(floor), "", "")
    return table


def score_table(result: Result) -> Table:
    """Every score of one run: each evaluation set and metric."""
    table = _table("Scores x 100")
    for column in ("set", "metric", "majority", "teacher", "student", "last", "best\n(optimistic)"):
        table.add_column(column, justify="left" if column in ("set", "metric") else "right")
    for row in score_rows(result):
        table.add_row(row.split, metric_name(row.metric), *(hundredfold(value) for value in row.values))
    return table


class ScoreRow(NamedTuple):
    """values: majority, teacher selected, student selected, student last, student best; as fractions."""

    split: str
    metric: str
    values: tuple[float | None, float | None, float | None, float | None, float | None]


def score_rows(result: Result) -> Iterator[ScoreRow]:
    """One row for each evaluation set and metric of the student."""
    teacher = (result.get("teacher") or {}).get("scores", {})
    for split, metrics in result["student"]["scores"].items():
        for metric, scores in metrics.items():
            values = (
                result.get("majority", {}).get(split, {}).get(metric),
                teacher.get(split, {}).get(metric, {}).get("selected"),
                scores.get("selected"),
                scores.get("last"),
                scores.get("best"),
            )
            yield ScoreRow(split, metric, values)


def comparison_table(results: Sequence[Result]) -> Table:
    """Methods beside their teacher, from several runs: parameters, latency, and the selected score on dev.

    Runs that differ in their seed only make one row, mean and standard deviation over the seeds.
    """
    several = len({(one["run"]["task"], one["run"]["model"]) for one in results}) > 1
    metrics = list(dict.fromkeys(metric_name(one["metric"]) for one in results))
    table = _table(f"{', '.join(metrics)} on dev, x 100 (mean ± deviation over seeds)")
    for column in ("", "parameters", "latency ms", "score", "seeds"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for place, group in _by_place(results).items():
        suffix = f" ({', '.join(place)})" if several else ""
        teachers = list({one["run"]["seed"]: one for one in group if one.get("teacher")}.values())
        if teachers:
            _add_row(table, f"teacher{suffix}", teachers, "teacher")
        for label, runs in _by_method(group).items():
            _add_row(table, f"{label}{suffix}", runs, "student")
    return table


def _by_place(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    places: dict[tuple[str, str], list[Result]] = {}
    for one in results:
        places.setdefault((one["run"]["task"], one["run"]["model"]), []).append(one)
    return places


def _by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs of one method together if their seeds tell them apart, else each under its own name."""
    methods: dict[str, list[Result]] = {}
    for one in results:
        methods.setdefault(one["run"]["method"], []).append(one)
    rows: dict[str, list[Result]] = {}
    for method, runs in methods.items():
        if len({one["run"]["seed"] for one in runs}) == len(runs):
            rows[method] = runs
        else:
            rows.update({f"{method}: {one['run']['name']}, seed {one['run']['seed']}": [one] for one in runs})
    return rows


def _add_row(table: Table, label: str, runs: Sequence[Result], role: str) -> None:
    scores = [one[role]["scores"].get("dev", {}).get(one["metric"], {}).get("selected") for one in runs]
    known = [score for score in scores if score is not None]
    shown = hundredfold(statistics.fmean(known) if known else None)
    if len(known) > 1:
        shown += f" ± {hundredfold(statistics.stdev(known))}"
    latencies = [one[role]["latency_ms"] for one in runs if one[role].get("latency_ms") is not None]
    table.add_row(
        label,
        count(runs[0][role].get("parameters")),
        milliseconds(statistics.fmean(latencies) if latencies else None),
        shown,
        str(len(runs)),
    )


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def metric_name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric)


def hundredfold(value: float | None) -> str:
    """A fraction as scores are printed in papers: 0.5271 is "52.7"."""
    return "-" if value is None or not math.isfinite(value) else f"{value * 100:.1f}"


def count(value: float | None) -> str:
    """A number in three digits or so: "109.5 M"."""
    if value is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def megabytes(value: float | None) -> str:
    """Bytes in units of 10^6."""
    return "-" if value is None else f"{value / 1e6:.1f}"


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
