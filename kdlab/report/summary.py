"""Tables of results for the terminal. They fit 80 columns, with or without one.

Scores are shown times 100. `selected` is the score of the checkpoint that the run chose, and the one to
compare; `best` picks the checkpoint on the scored rows themselves, so it flatters. All families share the tables:
columns that nothing fills are left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

METRIC_NAMES = {
    "mcc": "MCC",
    "f1": "F1",
    "macro_f1": "macro F1",
    "pearson_spearman": "Pearson-Spearman",
    "contains_answer": "contains",
    "correct_format": "format",
}
ROLES = ("teacher", "student")
FLOORS = ("chance", "majority")  # scores that need no model
WIDTH = 80
INTERVAL = "95 %\ninterval"
SELECTED_ON_TEST = "selected on the test set, as the paper did: optimistic"
CONSTANT = "like the score of a constant answer"

Result = Mapping[str, Any]


def summary_table(result: Result) -> Table:
    """Teacher and student of one run side by side: size, speed, and the metric that methods are compared by."""
    run, metric, split = result["run"], result["metric"], split_of(result)
    roles = [role for role in ROLES if result.get(role)]
    floors = {name: floor for name in FLOORS if (floor := _floor(result, name, split, metric)) is not None}
    scores = [result[role]["scores"].get(split, {}).get(metric, {}) for role in roles]
    intervals = [_interval(result, split, metric) if role == "student" else None for role in roles]
    blank = [""] * len(floors)
    columns = {"": [*roles, *floors]}
    for title, show in SIZE_AND_SPEED.items():
        columns[title] = [*(show(result[role]) for role in roles), *blank]
    columns["selected"] = [hundredfold(one.get("selected")) for one in scores] + [*map(hundredfold, floors.values())]
    columns[INTERVAL] = [*map(spread, intervals), *blank]
    columns["last"] = [*(hundredfold(one.get("last")) for one in scores), *blank]
    columns["best\n(optimistic)"] = [*(hundredfold(one.get("best")) for one in scores), *blank]
    notes = [*remarks(result), *made_of(result)]
    table = titled(f"{run['name']}: {metric_name(metric)} on {split}, x 100", notes)
    return with_columns(table, columns, keep=("", "selected"))


def score_table(result: Result) -> Table:
    """Every score of one run: each evaluation set and metric."""
    return with_columns(titled("Scores x 100", remarks(result)), score_columns(result), left=("set", "metric"))


def score_columns(result: Result) -> dict[str, list[str]]:
    """Every score of one run as the columns of a table, in print."""
    rows = list(score_rows(result))
    return {
        "set": [row.split for row in rows],
        "metric": [metric_name(row.metric) for row in rows],
        "chance": [hundredfold(row.chance) for row in rows],
        "majority": [hundredfold(row.majority) for row in rows],
        "teacher": [hundredfold(row.teacher) for row in rows],
        "student": [hundredfold(row.student) for row in rows],
        INTERVAL: [spread(row.interval) for row in rows],
        "last": [hundredfold(row.last) for row in rows],
        "best\n(optimistic)": [hundredfold(row.best) for row in rows],
    }


class ScoreRow(NamedTuple):
    """Fractions; None where it is not known. teacher, student: selected; interval: of the student's."""

    split: str
    metric: str
    chance: float | None
    majority: float | None
    teacher: float | None
    student: float | None
    interval: tuple[float, float] | None
    last: float | None
    best: float | None


def score_rows(result: Result) -> Iterator[ScoreRow]:
    """One row for each evaluation set and metric of the student, then those that only the teacher has."""
    teacher = (result.get("teacher") or {}).get("scores", {})
    student = result["student"]["scores"]
    for split in dict.fromkeys([*student, *teacher]):
        own = student.get(split, {})
        for metric in dict.fromkeys([*own, *teacher.get(split, {})]):
            scores = own.get(metric, {})
            yield ScoreRow(
                split,
                metric,
                _floor(result, "chance", split, metric),
                _floor(result, "majority", split, metric),
                teacher.get(split, {}).get(metric, {}).get("selected"),
                scores.get("selected"),
                _interval(result, split, metric) if scores else None,
                scores.get("last"),
                scores.get("best"),
            )


def comparison_table(results: Sequence[Result]) -> Table:
    """Methods beside their teacher, from several runs: parameters, speed, and the selected score.

    Runs that differ in their seed only make one row, mean and standard deviation over the seeds.
    """
    several = len({(one["run"]["task"], one["run"]["model"]) for one in results}) > 1
    rows: list[tuple[str, Sequence[Result], str]] = []  # label, its runs, role
    for place, group in by_place(results).items():
        suffix = f" ({', '.join(place)})" if several else ""
        rows += [(f"{label}{suffix}", runs, "teacher") for label, runs in _by_teacher(group).items()]
        rows += [(f"{label}{suffix}", runs, "student") for label, runs in by_method(group).items()]
    columns = {"": [label for label, _, _ in rows]}
    columns["parameters"] = [count(runs[0][role].get("parameters")) for _, runs, role in rows]
    columns["latency ms"] = [milliseconds(_mean(runs, role, _latency)) for _, runs, role in rows]
    columns["tokens\nper s"] = [count(_mean(runs, role, _speed)) for _, runs, role in rows]
    for name in FLOORS:
        columns[name] = [_floor_beside(runs[0], name) for _, runs, _ in rows]
    columns["score"] = [_score(runs, role) for _, runs, role in rows]
    columns["seeds"] = [str(len(runs)) for _, runs, _ in rows]
    table = titled(f"{compared_by(results)}, x 100 (mean ± deviation over seeds)", told_marks(results))
    return with_columns(table, columns, keep=("", "score", "seeds"), wrap=True)


def compared_by(results: Sequence[Result]) -> str:
    """The metrics and the sets of several runs: "accuracy on test"."""
    metrics = dict.fromkeys(metric_name(one["metric"]) for one in results)
    splits = dict.fromkeys(split_of(one) for one in results)
    return f"{', '.join(metrics)} on {', '.join(splits)}"


def by_place(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    places: dict[tuple[str, str], list[Result]] = {}
    for one in results:
        places.setdefault((one["run"]["task"], one["run"]["model"]), []).append(one)
    return places


def _by_teacher(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs whose teachers have a score, one of each seed; teachers that are not the same have rows of their own."""
    taught = [one for one in results if one.get("teacher") and _selected(one, "teacher") is not None]
    names = {one["teacher"].get("name") for one in taught}
    scores = {(one["teacher"].get("name"), one["run"]["seed"], _selected(one, "teacher")) for one in taught}
    unequal = len(scores) > len({(name, seed) for name, seed, _ in scores})  # asked otherwise by another method
    rows: dict[str, dict[int, Result]] = {}
    for one in taught:
        label = f"teacher {one['teacher']['name']}" if len(names) > 1 else "teacher"
        label += f" of {one['run']['method']}" if unequal else ""
        rows.setdefault(label, {})[one["run"]["seed"]] = one
    return {label: list(runs.values()) for label, runs in rows.items()}


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
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


def _score(runs: Sequence[Result], role: str) -> str:
    """The selected score; its deviation over seeds, or of a single run its interval; and its marks."""
    known = [score for one in runs if (score := _selected(one, role)) is not None]
    shown = over_seeds(known)
    if role != "student":
        return shown
    interval = _interval(runs[0], split_of(runs[0]), runs[0]["metric"])
    if len(runs) == 1 and interval is not None:
        shown += f" ({spread(interval)})"
    return shown + "".join(marks(runs))


def over_seeds(values: Sequence[float]) -> str:
    """The mean, and of several values their deviation; "-" of none."""
    shown = hundredfold(statistics.fmean(values) if values else None)
    return f"{shown} ± {hundredfold(statistics.stdev(values))}" if len(values) > 1 else shown


def marks(results: Sequence[Result]) -> dict[str, str]:
    """What stands behind the score of these runs in a comparison, and what it means."""
    found: dict[str, str] = {}
    for one in results:
        if (told := selected_on_test(one)) is not None:
            found["*"] = told
        if one.get("constant"):
            found["="] = CONSTANT
    return dict(sorted(found.items()))


def told_marks(results: Sequence[Result]) -> list[str]:
    """What the marks in a comparison of these runs mean, a line each."""
    return [f"{mark} {told}" for mark, told in marks(results).items()]


def _selected(result: Result, role: str) -> float | None:
    score: float | None = result[role]["scores"].get(split_of(result), {}).get(result["metric"], {}).get("selected")
    return score


def _mean(runs: Sequence[Result], role: str, figure: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    known = [value for one in runs if (value := figure(one[role])) is not None]
    return statistics.fmean(known) if known else None


def _latency(one: Mapping[str, Any], *, writes: bool = False) -> float | None:
    """Milliseconds for one example; writes: for one token, of a side that writes."""
    latency: float | None = one.get("latency_ms") if ("answers" in one) == writes else None
    return latency


def _speed(one: Mapping[str, Any]) -> float | None:
    """Tokens per second of a side that writes."""
    speed: float | None = (one.get("answers") or {}).get("tokens_per_second")
    return speed


def _floor(result: Result, name: str, split: str, metric: str) -> float | None:
    floor: float | None = result.get(name, {}).get(split, {}).get(metric)
    return floor


def _floor_beside(result: Result, name: str) -> str:
    """Of a run whose task has a chance: answers of a classification task are compared by other metrics, too."""
    return hundredfold(_floor(result, name, split_of(result), result["metric"]) if result.get("chance") else None)


def _interval(result: Result, split: str, metric: str) -> tuple[float, float] | None:
    found = result.get("intervals", {}).get(split, {}).get(metric)
    return None if found is None else (found[0], found[1])


def split_of(result: Result) -> str:
    """The set that methods are compared on."""
    return str(result.get("split", "dev"))


def selected_on_test(result: Result) -> str | None:
    """What to say of a checkpoint that was chosen by the very scores that are reported; None: it was not."""
    selection = result["student"].get("selection")
    if result["run"]["select_on"] != "test" or selection is None:
        return None
    return str(selection.get("note", SELECTED_ON_TEST))


def remarks(result: Result) -> list[str]:
    """What must stand beside the scores of a run, a line each."""
    told = selected_on_test(result)
    lines = [] if told is None else [told]
    constant = result.get("constant")
    if constant:
        answer, score = repr(constant["answer"]), hundredfold(constant["accuracy"])
        share = f"{100 * constant['share']:.0f} % of the answers are {answer}"
        lines.append(f"like a constant answer: {share}, and always giving it scores {score}")
    return lines


def made_of(result: Result) -> list[str]:
    """What the score is a mean of, what curation kept, what requests have cost, what was translated, a line each."""
    lines = []
    curation, cost, translations = (result.get(name) for name in ("curation", "cost", "translations"))
    if "inference" in result:
        mode = result["inference"]["mode"]
        languages = len(result["languages"].get(split_of(result), {}).get(mode, {}))
        lines.append(f"selected: mean over {languages} languages, inference={mode}")
    if curation:
        dropped = ", ".join(f"{number} {why}" for why, number in curation["dropped"].items())
        lines.append(
            f"rationales: {curation['kept']} of {curation['rationales']} kept, for {curation['questions']} of "
            f"{curation['asked']} questions" + (f"; dropped: {dropped}" if dropped else "")
        )
    if cost:
        tokens = f"{count(cost['prompt_tokens'])} + {count(cost['completion_tokens'])} tokens"
        usd = "price unknown" if cost["usd"] is None else f"${cost['usd']:.4f}"
        lines.append(f"requests: {cost['requests']}, {tokens}, {usd}")
    if translations:
        lines.append(f"translations by {result['translator']['name']}: {translated(translations)}")
    return lines


def translated(translations: Mapping[str, Mapping[str, int]]) -> str:
    """The counts of all translated tables together, those of what can be wrong only where there are any."""
    sums = {name: sum(counts[name] for counts in translations.values()) for name in next(iter(translations.values()))}
    tables = f"{len(translations)} table{'s' if len(translations) > 1 else ''}"
    units = f"{sums['units']} units" + (f", {sums['remembered']} of them remembered" if sums["remembered"] else "")
    wrong = {
        "missing": "rows without translation",
        "empty": "empty texts",
        "unchanged": "texts unchanged",
        "cut": "units cut",
    }
    parts = [f"{sums[name]} {words}" for name, words in wrong.items() if sums[name]]
    return "; ".join([f"{sums['rows']} rows of {tables} ({units})", *parts])


def titled(title: str, notes: Sequence[str]) -> Table:
    return Table(
        title=Text(title, style="table.title"),
        title_justify="left",
        caption=Text("\n".join(notes), style="table.caption") if notes else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def with_columns(
    table: Table,
    columns: Mapping[str, Sequence[str]],
    *,
    keep: Sequence[str] = (),
    left: Sequence[str] = ("",),
    wrap: bool = False,
) -> Table:
    """The table with these columns, without those that nothing fills unless they are to be kept.

    They stand closer together where they would not fit otherwise.
    """
    shown = filled(columns, keep=keep)
    widths = [max(len(line) for text in (title, *cells) for line in text.split("\n")) for title, cells in shown.items()]
    if sum(widths) + 2 * len(widths) > WIDTH:
        table.padding = (0, 0, 0, 0)
    for title in shown:
        table.add_column(
            title, justify="left" if title in left else "right", no_wrap=not wrap or title not in left, overflow="fold"
        )
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*map(Text, cells))
    return table


def filled(columns: Mapping[str, Sequence[str]], *, keep: Sequence[str] = ()) -> dict[str, Sequence[str]]:
    """Columns in which some cell says something."""
    return {
        title: cells for title, cells in columns.items() if title in keep or any(one not in ("", "-") for one in cells)
    }


def metric_name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric)


def hundredfold(value: float | None) -> str:
    """A fraction as scores are printed in papers: 0.5271 is "52.7"."""
    return "-" if value is None or not math.isfinite(value) else f"{value * 100:.1f}"


def spread(interval: tuple[float, float] | None) -> str:
    """An interval of fractions: "44.1-58.0"."""
    return "-" if interval is None else "-".join(map(hundredfold, interval))


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


# Figures of a model by title, for the summary and the model card.
SIZE_AND_SPEED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "parameters": lambda one: count(one.get("parameters")),
    "size\nMB": lambda one: megabytes(one.get("bytes")),
    "latency\nms": lambda one: milliseconds(_latency(one)),
    "FLOPs per\nexample": lambda one: count(one.get("flops_per_example")),
    "ms per\ntoken": lambda one: milliseconds(_latency(one, writes=True)),
    "tokens\nper s": lambda one: count(_speed(one)),
}
