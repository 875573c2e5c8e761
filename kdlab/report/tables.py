"""The tables of a comparison (`kdlab.report.compare`): for the terminal, and as CSV, JSON, LaTeX and Markdown.

    for part in shown(comparison): console.print(part)
    text = FORMATS["latex"](comparison)

Every form but CSV and JSON renders the same sheets, and scores are shown times 100. CSV has a row a group, and its
scores are fractions.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from kdlab.report.languages import MODES
from kdlab.report.summary import (
    count,
    duration,
    filled,
    hundredfold,
    megabytes,
    metric_name,
    milliseconds,
    over_seeds,
    probability,
    signed,
    spread,
    titled,
    with_columns,
)

Comparison = Mapping[str, Any]
Group = Mapping[str, Any]

MARKS = {"*": "selected on the test set", "=": "constant answer"}  # in CSV, where a cell "=" would be a formula
MOST_ROWS = 40  # of the papers' cells on the terminal; files have all
MOST_SEEDS = 1000  # a number of seeds that stands for "or more"
LEFT = ("", "source")  # columns of words


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One table in print. A title may have line breaks for the terminal."""

    title: str
    columns: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)
    bold: set[tuple[int, str]] = field(default_factory=set)  # cells by row and column; not on the terminal
    keep: tuple[str, ...] = ("",)  # columns that are shown though nothing fills them
    left: tuple[str, ...] = LEFT

    @property
    def shown(self) -> dict[str, list[str]]:
        return {title: list(cells) for title, cells in filled(self.columns, keep=self.keep).items()}


def sheets(comparison: Comparison) -> list[Sheet]:
    """All tables: methods beside tasks, then of each task scores with their tests, and sizes; the papers' numbers.

    What several have to be told of stands below the first of them.
    """
    found = list(_pivots(comparison))
    for groups in tables(comparison):
        found += [sheet for sheet in (_scores(comparison, groups), _modes(groups), _sizes(groups)) if sheet is not None]
    told: set[str] = set()
    shown = []
    for sheet in [*found, *_papers(comparison)]:
        shown.append(replace(sheet, notes=[note for note in sheet.notes if note not in told]))
        told |= {note for note in sheet.notes if note[0] not in comparison["marks"]}
    return shown


def tables(comparison: Comparison) -> list[list[Group]]:
    """The groups of each task, metric and set."""
    found: dict[tuple[str, str, str], list[Group]] = {}
    for group in comparison["groups"]:
        found.setdefault((group["task"], group["metric"], group["split"]), []).append(group)
    return list(found.values())


# sheets ------------------------------------------------------------------------------------------------------------


def _names(groups: Iterable[Group]) -> dict[str, str]:
    """What groups of one table are called: with the model only where there are several."""
    own = list(groups)
    several = len({group["model"] for group in own}) > 1
    return {group["id"]: group["label"] + (f" of {group['model']}" if several else "") for group in own}


def score(group: Group) -> str:
    """ "52.7 ± 1.3" over seeds, with its marks."""
    return over_seeds(group["scores"]) + "".join(group["marks"])


def _told_marks(comparison: Comparison, groups: Iterable[Group]) -> list[str]:
    used = {mark for group in groups for mark in group["marks"]}
    return [f"{mark} {meaning}" for mark, meaning in comparison["marks"].items() if mark in used]


def _pivots(comparison: Comparison) -> Iterator[Sheet]:
    """Methods beside tasks, a sheet each model, as papers print them; none of a model with one task."""
    for model in dict.fromkeys(group["model"] for group in comparison["groups"]):
        own = [group for group in comparison["groups"] if group["model"] == model]
        places = list(dict.fromkeys((group["task"], group["metric"], group["split"]) for group in own))
        if len({task for task, _, _ in places}) < 2:
            continue
        titles = dict(zip(places, _column_titles(places), strict=True))
        labels = list(dict.fromkeys(group["label"] for group in own))
        rows = [*_floor_rows(own), *labels]
        columns: dict[str, list[str]] = {"": rows}
        bold = set()
        for place, title in titles.items():
            of_place = {
                group["label"]: group for group in own if (group["task"], group["metric"], group["split"]) == place
            }
            best = separated_best(comparison, list(of_place.values()))
            cells = [_floor_cell(list(of_place.values()), name) for name in rows[: len(rows) - len(labels)]]
            for label in labels:
                group = of_place.get(label)
                if group is not None and group["id"] == best:
                    bold.add((len(cells), title))
                method = next(one["method"] for one in own if one["label"] == label)
                cells.append(_missing(comparison, method, place[0], model) if group is None else score(group))
            columns[title] = cells
        seeds = sorted({len(group["seeds"]) for group in own})
        notes = [f"mean ± standard deviation over {_range(seeds)} seeds"] if seeds != [1] else ["one seed"]
        yield Sheet(
            title=f"{model}: scores x 100",
            columns=columns,
            notes=[*notes, *_told_marks(comparison, own)],
            bold=bold,
        )


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"


def _column_titles(places: Sequence[tuple[str, str, str]]) -> list[str]:
    """The task and its metric; the set too, where a task has several."""
    tasks = [task for task, _, _ in places]
    return [
        f"{task.rpartition('/')[2] if _once_without_folder(task, tasks) else task}\n{metric_name(metric)}"
        + (f" {split}" if tasks.count(task) > 1 else "")
        for task, metric, split in places
    ]


def _once_without_folder(task: str, tasks: Sequence[str]) -> bool:
    return len({one for one in tasks if one.rpartition("/")[2] == task.rpartition("/")[2]}) == 1


def _missing(comparison: Comparison, method: str, task: str, model: str) -> str:
    """Of a cell without a score: "not run" where a run of it is there that has none yet, else "-"."""
    wanted = (method, task, model)
    there = any((run["method"], run["task"], run["model"]) == wanted for run in comparison["runs"])
    return "not run" if there else "-"


def _floor_rows(groups: Sequence[Group]) -> list[str]:
    names = [name for name in ("chance", "majority") if any(group["floor"].get(name) is not None for group in groups)]
    return [*names, *(["teacher"] if any(group["teacher"] is not None for group in groups) else [])]


def _floor_cell(groups: Sequence[Group], name: str) -> str:
    """Of the groups of one table: one number, or the lowest and highest where they don't have the same."""
    found = [group["teacher"] if name == "teacher" else group["floor"].get(name) for group in groups]
    known = sorted({hundredfold(value): value for value in found if value is not None}.values())
    if not known:
        return "-"
    return hundredfold(known[0]) if len(known) == 1 else f"{hundredfold(known[0])}-{hundredfold(known[-1])}"


def separated_best(comparison: Comparison, groups: Sequence[Group]) -> str | None:
    """The group with the highest mean, if a test separates it from every other one that comes within its reach.

    That is the second best; where the two were not tested against each other, none is called the best.
    """
    ranked = sorted((group for group in groups if group["mean"] is not None), key=lambda group: -group["mean"])
    if len(ranked) < 2:
        return None
    first, second = ranked[0]["id"], ranked[1]["id"]
    for pair in comparison["pairs"]:
        if {pair["a"], pair["b"]} == {first, second}:
            return first if pair["verdict"] in ("better", "worse") else None
    return None


def _scores(comparison: Comparison, groups: Sequence[Group]) -> Sheet:
    names = _names(groups)
    first = groups[0]
    floors = _floor_rows(groups)
    blank = [""] * len(floors)
    deltas = [group["delta"] for group in groups]
    labels = {group["id"]: group["label"] for group in comparison["groups"]}
    bases = dict.fromkeys(labels[delta["to"]] for delta in deltas if delta)
    against = f"minus\n{next(iter(bases))}" if len(bases) == 1 else "minus\nbaseline"
    best = separated_best(comparison, groups) if len({group["model"] for group in groups}) == 1 else None
    columns = {
        "": [*floors, *names.values()],
        "score": [*(_floor_cell(groups, name) for name in floors), *map(score, groups)],
        "95 %\ninterval": [*blank, *(_interval(group["interval"]) for group in groups)],
        against: [*blank, *("-" if delta is None else signed(delta["difference"]) for delta in deltas)],
        "p": [*blank, *("-" if delta is None else probability(delta["p_corrected"]) for delta in deltas)],
        "about more\nseeds": [*blank, *("-" if delta is None else more_seeds(delta) for delta in deltas)],
        "seeds": [*blank, *(str(len(set(group["seeds"]))) for group in groups)],
    }
    notes = [*_told_marks(comparison, groups)]
    intervals = list(dict.fromkeys(group["interval_of"] for group in groups if group["interval_of"]))
    notes += [f"interval: {', '.join(intervals)}"] if intervals else []
    tests = list(dict.fromkeys(delta["test"] for delta in deltas if delta and delta["test"]))
    if tests:
        correction = comparison["settings"]["correction"]
        number = _range(sorted(set(_tests(comparison, groups).values())))
        told = (
            "" if correction == "none" else f", corrected ({correction}) for the tests of the task and model ({number})"
        )
        notes.append(f"p: {'; '.join(tests)}{told}")
        if any(delta and more_seeds(delta) != "-" for delta in deltas):
            notes.append(
                "about more seeds: to separate the two with a chance of 80 %, if the difference is as it looks"
            )
    return Sheet(
        title=f"{first['task']}: {metric_name(first['metric'])} on {first['split']}, x 100",
        columns=columns,
        notes=notes,
        bold={(len(floors) + place, "score") for place, group in enumerate(groups) if group["id"] == best},
        keep=("", "score", "seeds"),
    )


def _tests(comparison: Comparison, groups: Sequence[Group]) -> Counter[str]:
    """How many tests there are of each model."""
    models = {group["id"]: group["model"] for group in groups}
    return Counter(models[pair["a"]] for pair in comparison["pairs"] if pair["a"] in models and pair["test"])


def _modes(groups: Sequence[Group]) -> Sheet | None:
    """Of students in several languages: the mean over languages in each mode of inference."""
    own = [group for group in groups if group["means"]]
    modes = [mode for mode in MODES if any(mode in group["means"] for group in own)]
    if not own or len(modes) < 2:
        return None
    names = _names(groups)
    columns = {"": [names[group["id"]] for group in own]}
    for mode in modes:
        columns[mode.replace("_", "\n")] = [hundredfold(group["means"].get(mode, {}).get("all")) for group in own]
    for mode in modes:
        title = f"{mode.replace('_', ' ')}\nno source"
        columns[title] = [hundredfold(group["means"].get(mode, {}).get("without_source")) for group in own]
    first = own[0]
    return Sheet(
        title=f"{first['task']}: {metric_name(first['metric'])} on {first['split']} by mode of inference, x 100",
        columns=columns,
        notes=["mean over languages and seeds; no source: without the source language"],
    )


FIGURES: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "parameters": ("parameters", count),
    "bytes": ("size\nMB", megabytes),
    "latency_ms": ("latency\nms", milliseconds),
    "flops_per_example": ("FLOPs per\nexample", count),
    "tokens_per_second": ("tokens\nper s", count),
    "train_seconds": ("training", duration),
}


def _sizes(groups: Sequence[Group]) -> Sheet | None:
    """Scores beside size, speed and training time; the teacher's first."""
    names = _names(groups)
    teachers = {
        json.dumps(group["teacher_figures"], sort_keys=True): group for group in groups if group["teacher_figures"]
    }
    rows = []
    for one in teachers.values():
        whose = "" if len(teachers) == 1 else f" of {names[one['id']]}"
        rows.append((f"teacher{whose}", one["teacher"], one["teacher_figures"]))
    rows += [(names[group["id"]], group["mean"], group["figures"]) for group in groups]
    columns = {"": [name for name, _, _ in rows], "score": [hundredfold(value) for _, value, _ in rows]}
    for key, (title, show) in FIGURES.items():
        columns[title] = [show(figures.get(key)) for _, _, figures in rows]
    if len(filled(columns, keep=("", "score"))) < 3:
        return None
    writes = any(group["figures"].get("tokens_per_second") is not None for group in groups)
    notes = ["training: of all stages that train what the student needs, its teacher's among them"]
    notes += ["latency: of one token"] if writes else ["latency: of one example"]
    return Sheet(title=f"{groups[0]['task']}: size and speed", columns=columns, notes=notes, keep=("", "score"))


def _papers(comparison: Comparison) -> Iterator[Sheet]:
    """The papers' numbers beside ours, a sheet each source and protocol."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in comparison["expected"]:
        found.setdefault((cell["source"], cell["protocol"], *cell["axes"]), []).append(cell)
    for (source, protocol, *axes), cells in found.items():
        columns: dict[str, list[str]] = {axis: [cell["axes"][axis] for cell in cells] for axis in axes}
        columns["paper"] = ["not found" if cell["paper"] is None else hundredfold(cell["paper"]) for cell in cells]
        columns["ours"] = ["not run" if cell["ours"] is None else _ours(cell) for cell in cells]
        columns["ours minus\npaper"] = [
            "-" if None in (cell["ours"], cell["paper"]) else signed(cell["ours"] - cell["paper"]) for cell in cells
        ]
        columns["seeds"] = [str(cell["seeds"] or "") for cell in cells]
        own = list(dict.fromkeys(cell["own_protocol"] for cell in cells if cell["own_protocol"]))
        notes = [f"paper: {source}; {protocol}" if protocol else f"paper: {source}"]
        notes += [f"ours: {' | '.join(own)}"] if own else []
        notes += ["where the two were not obtained alike, a difference says nothing of either"] if own else []
        notes += dict.fromkeys(cell["note"] for cell in cells if cell["note"])
        yield Sheet(
            title="The papers' numbers beside ours, x 100",
            columns=columns,
            notes=notes,
            keep=(*axes, "paper", "ours"),
            left=tuple(axes),
        )


def _ours(cell: Mapping[str, Any]) -> str:
    return hundredfold(cell["ours"]) + ("" if cell["sd"] is None else f" ± {hundredfold(cell['sd'])}")


def _interval(interval: Sequence[float] | None) -> str:
    """ "44.1-58.0"; with a sign "-2.0 to 3.1"."""
    if interval is None or interval[0] >= 0:
        return spread(None if interval is None else (interval[0], interval[1]))
    return " to ".join(map(hundredfold, interval))


def more_seeds(delta: Mapping[str, Any]) -> str:
    """Of a pair that is not separated: "9", "1000 or more"; 0 where more seeds alone would not do it."""
    if delta["more_seeds"] is None:
        return "-"
    return f"{MOST_SEEDS} +" if delta["more_seeds"] >= MOST_SEEDS else str(delta["more_seeds"])


# the terminal ------------------------------------------------------------------------------------------------------


def shown(comparison: Comparison) -> list[RenderableType]:
    """Tables that fit 80 columns where names are not too long, then what to know of them, a line each."""
    parts: list[RenderableType] = [_rich(_cut(sheet)) for sheet in sheets(comparison)]
    return [*parts, *(Text(line) for line in remarks(comparison))]


def brief(comparison: Comparison) -> list[RenderableType]:
    """What stands at the end of a sweep: methods beside tasks; of a single task its scores, and its sizes."""
    return [_rich(sheet) for sheet in [*_pivots(comparison)] or sheets({**comparison, "expected": []})]


def remarks(comparison: Comparison) -> list[str]:
    """What did not finish, what makes numbers unlike each other, and what was left out."""
    runs = comparison["runs"]
    lines = [f"failed: {run['name']}: {run['error'].splitlines()[0]}" for run in runs if run["state"] == "failed"]
    for state in ("unfinished", "not started"):
        names = [run["name"] for run in runs if run["state"] == state]
        lines += (
            [f"{state}: {len(names)} of {len(runs)} runs: {', '.join(names[:3])}{', ...' * (len(names) > 3)}"]
            if names
            else []
        )
    lines += [f"warning: {line}" for line in comparison["warnings"]]
    return [*lines, *(f"left out: {line}" for line in comparison["left_out"])]


def _cut(sheet: Sheet) -> Sheet:
    """Of a long table of the papers' numbers the cells that were run, if that leaves any out."""
    cells = sheet.columns.get("ours")
    if cells is None or len(cells) <= MOST_ROWS:
        return sheet
    kept = [place for place, cell in enumerate(cells) if cell != "not run"][:MOST_ROWS]
    columns = {title: [values[place] for place in kept] for title, values in sheet.columns.items()}
    note = f"{len(cells) - len(kept)} more cells, most of them not run: in the files"
    return replace(sheet, columns=columns, notes=[*sheet.notes, note])


def _rich(sheet: Sheet) -> RenderableType:
    return with_columns(titled(sheet.title, sheet.notes), sheet.columns, keep=sheet.keep, left=sheet.left, wrap=True)


# files -------------------------------------------------------------------------------------------------------------


def as_json(comparison: Comparison) -> str:
    return json.dumps(comparison, indent=1, ensure_ascii=False) + "\n"


def as_csv(comparison: Comparison) -> str:
    """A row a group; scores are fractions, lists are separated by spaces, what is not known is empty."""
    labels = {group["id"]: group["label"] for group in comparison["groups"]}
    rows = [_plain(group, labels) for group in comparison["groups"]]
    names = list(rows[0]) if rows else list(_PLAIN)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_PLAIN = ("label", "family", "method", "task", "model", "setting", "metric", "split")


def _plain(group: Group, labels: Mapping[str, str]) -> dict[str, Any]:
    delta = group["delta"] or {}
    low, high = group["interval"] or (None, None)
    lower, upper = delta.get("interval") or (None, None)
    return {
        **{name: group[name] for name in _PLAIN if name != "setting"},
        "setting": json.dumps(group["setting"], ensure_ascii=False) if group["setting"] else "",
        "seeds": " ".join(map(str, group["seeds"])),
        "runs": len(group["runs"]),
        "scores": " ".join(map(repr, group["scores"])),
        "mean": group["mean"],
        "sd": group["sd"],
        "low": low,
        "high": high,
        "interval_of": group["interval_of"],
        **{name: group["floor"][name] for name in ("majority", "chance")},
        "teacher": group["teacher"],
        **{name: group["figures"][name] for name in FIGURES},
        "delta_to": labels.get(delta.get("to", "")),
        "difference": delta.get("difference"),
        "difference_low": lower,
        "difference_high": upper,
        **{name: delta.get(name) for name in ("p_seeds", "p_examples", "p_corrected", "test", "more_seeds", "verdict")},
        "marks": " and ".join(MARKS.get(mark, mark) for mark in group["marks"]),
    }


def as_markdown(comparison: Comparison) -> str:
    parts = [f"# {markdown_text(comparison['title'])}", *map(_markdown, sheets(comparison))]
    lines = [f"- {markdown_text(line)}" for line in remarks(comparison)]
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])]) + "\n"


def _markdown(sheet: Sheet) -> str:
    columns = sheet.shown
    titles = [" ".join(title.split()) for title in columns]
    lines = [
        f"| {' | '.join(map(markdown_text, titles))} |",
        "|" + "|".join("---" if title in sheet.left else "---:" for title in columns) + "|",
    ]
    for number, cells in enumerate(zip(*columns.values(), strict=True)):
        texts = [
            f"**{markdown_text(cell)}**" if (number, title) in sheet.bold else markdown_text(cell)
            for title, cell in zip(columns, cells, strict=True)
        ]
        lines.append(f"| {' | '.join(texts)} |")
    parts = [f"**{markdown_text(sheet.title)}**", "\n".join(lines)]
    return "\n\n".join([*parts, *map(markdown_text, sheet.notes)])


def markdown_text(text: str) -> str:
    """Text that is nothing but text in Markdown, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", " ".join(text.split()))


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "|": r"\textbar{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def latex_text(text: str) -> str:
    """Text that is nothing but text in LaTeX; a number's sign and ± in math mode."""
    escaped = "".join(LATEX.get(sign, sign) for sign in " ".join(text.split()))
    return re.sub(r"^([+-])(?=\d)", r"$\1$", escaped)


def as_latex(comparison: Comparison) -> str:
    """Tables for \\input, one after the other; they need \\usepackage{booktabs}."""
    head = [
        "% needs \\usepackage{booktabs}",
        f"% {' '.join(comparison['title'].split())}; kdlab {comparison['kdlab']}, {comparison['made']}",
        *(f"% {' '.join(line.split())}" for line in remarks(comparison)),
    ]
    return "\n".join(head) + "\n\n" + "\n\n".join(map(_latex, sheets(comparison))) + "\n"


def _latex(sheet: Sheet) -> str:
    columns = sheet.shown
    align = "".join("l" if title in sheet.left else "r" for title in columns)
    lines = [
        *(f"% {' '.join(line.split())}" for line in (sheet.title, *sheet.notes)),
        f"\\begin{{tabular}}{{{align}}}",
        "\\toprule",
        f"{' & '.join(map(latex_text, columns))} \\\\",
        "\\midrule",
    ]
    for number, cells in enumerate(zip(*columns.values(), strict=True)):
        texts = [
            f"\\textbf{{{latex_text(cell)}}}" if (number, title) in sheet.bold else latex_text(cell)
            for title, cell in zip(columns, cells, strict=True)
        ]
        lines.append(f"{' & '.join(texts)} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "csv": as_csv,
    "json": as_json,
    "latex": as_latex,
    "markdown": as_markdown,
}
FILES = {"json": "compare.json", "csv": "table.csv", "latex": "table.tex", "markdown": "table.md"}
