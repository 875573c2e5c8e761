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
from rich.console import Console, ConsoleOptions, RenderResult
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
NARROWEST = 20  # of a column whose names fold
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


class WholeTable(Table):
    """A table never laid out in less than `least` characters: rich would fold whole columns to nothing."""

    least = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from super().__rich_console__(console, options.update_width(max(options.max_width, self.least)))


def titled(title: str, notes: Sequence[str]) -> WholeTable:
    return WholeTable(
        title=Text(title, style="table.title"),
        title_justify="left",
        caption=Text("\n".join(notes), style="table.caption") if notes else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def with_columns(
    table: WholeTable,
    columns: Mapping[str, Sequence[str]],
    *,
    keep: Sequence[str] = (),
    left: Sequence[str] = ("",),
    wrap: bool = False,
) -> Table:
    """The table with these columns, without those that nothing fills unless they are to be kept.

    They stand closer together where they would not fit otherwise. Numbers are never cut, nor names below NARROWEST:
    printed with crop=False, a table is wider than a narrow terminal rather than without its last columns.
    """
    shown = filled(columns, keep=keep)
    widths = [max(len(line) for text in (title, *cells) for line in text.split("\n")) for title, cells in shown.items()]
    if sum(widths) + 2 * len(widths) > WIDTH:
        table.padding = (0, 0, 0, 0)
    for title, width in zip(shown, widths, strict=True):
        folds = wrap and title in left
        table.add_column(
            title,
            justify="left" if title in left else "right",
            no_wrap=not folds,
            overflow="fold",
            min_width=min(width, NARROWEST) if folds else width,
        )
        table.least += (min(width, NARROWEST) if folds else width) + table.padding[1] + 1
    table.least += 1
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


def signed(value: float | None) -> str:
    """A difference of fractions: 0.012 is "+1.2"."""
    return "-" if value is None or not math.isfinite(value) else f"{value * 100:+.1f}"


def probability(p: float | None) -> str:
    """A p-value: "0.034", or "<0.001"."""
    return "-" if p is None or not math.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


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


def duration(seconds: float | None) -> str:
    """ "42 s", "12 min", "3 h 05 min"."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


# Figures of a model by title, for the summary and the model card.
SIZE_AND_SPEED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "parameters": lambda one: count(one.get("parameters")),
    "size\nMB": lambda one: megabytes(one.get("bytes")),
    "latency\nms": lambda one: milliseconds(_latency(one)),
    "FLOPs per\nexample": lambda one: count(one.get("flops_per_example")),
    "ms per\ntoken": lambda one: milliseconds(_latency(one, writes=True)),
    "tokens\nper s": lambda one: count(_speed(one)),
}
