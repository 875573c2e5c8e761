"""Tables of a run in several languages: languages beside modes of inference, and methods beside their means.

A mode is a way of asking the student: the text as it is (original), its translation into the source language, both, or
the text translated to the source language and back. The source language has one view, which stands in every mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from kdlab.data.languages import View
from kdlab.report.summary import (
    Result,
    hundredfold,
    metric_name,
    split_of,
    titled,
    with_columns,
)

MODES = ("original", "translated", "both", "back_translated")
OWN = " (score)"  # behind the run's own mode
LACKING = "without translation"
NARROW = {OWN: "\n(score)", LACKING: "without\ntransl.", "back_translated": "back-\ntrans."}  # for the terminal
GROUPS = {"all": "mean", "without_source": "mean without {source}"}


def modes(result: Result, split: str) -> list[str]:
    """The modes that a set was scored in."""
    return [mode for mode in MODES if mode in result["languages"].get(split, {})]


def languages(result: Result, split: str) -> list[str]:
    """The languages that a set was scored in, in the task's order."""
    scored = {language for of_mode in result["languages"].get(split, {}).values() for language in of_mode}
    return [language for language in result["task_languages"] if language in scored]


def language_columns(result: Result, split: str, metric: str) -> dict[str, list[str]]:
    """One metric of each language, and its means, in every mode: the columns of a table, in print."""
    scores, means = result["languages"][split], result["means"][split]
    names = languages(result, split)
    groups = [group for group in GROUPS if any(group in of_mode for of_mode in means.values())]
    own = result["inference"]["mode"]
    columns = {
        "": [*(_language(result, one) for one in names), *(group_name(result, group) for group in groups)],
        "rows": [
            *(str(result["rows"].get(str(View(split, one)), "-")) for one in names),
            *("" for _ in groups),
        ],
        "majority": [
            *(_majority(result, split, one, metric) for one in names),
            hundredfold(result["majority"].get(split, {}).get(metric)),
            *("" for _ in groups[1:]),
        ],
    }
    for mode in modes(result, split):
        values = [scores[mode].get(one, {}).get(metric) for one in names]
        values += [means[mode].get(group, {}).get(metric) for group in groups]
        columns[mode + (OWN if mode == own else "")] = [hundredfold(value) for value in values]
    columns[LACKING] = [*(_fallback(result, split, one) for one in names), *("" for _ in groups)]
    return columns


def _language(result: Result, language: str) -> str:
    return f"{language} (source)" if language == result["source_language"] else language


def group_name(result: Result, group: str) -> str:
    """What the languages of a mean are called: "mean without en"."""
    return GROUPS[group].format(source=result["source_language"])


def _majority(result: Result, split: str, language: str, metric: str) -> str:
    return hundredfold(result["majority_of_languages"].get(split, {}).get(language, {}).get(metric))


def _fallback(result: Result, split: str, language: str) -> str:
    """Rows that lack a view, of each view that some row lacks: "12", or "12 + 30"; "" for none."""
    lacking = result["inference"]["fallbacks"].get(split, {}).get(language, {})
    there, back = lacking.get("translated", 0), lacking.get("back_translated", 0)
    return f"{there} + {back}" if back else str(there or "")


def fallback_note(result: Result) -> str:
    """What the rows without translation mean, of a run that has any on the set it is compared by, else ""."""
    fallbacks = result["inference"]["fallbacks"].get(split_of(result), {})
    views = {view for lacking in fallbacks.values() for view, rows in lacking.items() if rows}
    back = " (+ without back-translation)" if "back_translated" in views else ""
    return f"{LACKING}{back}: rows that are answered from their original text" if views else ""


def told(result: Result) -> list[str]:
    """What must stand beside the scores by language, a line each."""
    inference, source = result["inference"], result["source_language"]
    shown = modes(result, split_of(result))
    once = f"; {source} is asked once and stands in every column" if len(shown) > 1 else ""
    lines = [f"(score): the run's own inference{once}"]
    if "both" in shown:
        share = inference["share"]
        mean = f"{1 - share:g} x probabilities of the original + {share:g} x those of the translation"
        logits = "the sum of the logits of the original and of the translation"
        lines.append(f"both: {mean if inference['ensemble'] == 'probabilities' else logits}")
    return [*lines, *filter(None, [fallback_note(result)])]


def language_table(result: Result) -> Table:
    """Languages beside modes, of the metric and the set that methods are compared by."""
    metric, split = result["metric"], split_of(result)
    table = titled(f"{metric_name(metric)} on {split} by language, x 100", told(result))
    columns = {}
    for title, cells in language_columns(result, split, metric).items():
        for wide, narrow in NARROW.items():
            title = title.replace(wide, narrow)
        columns[title] = cells
    return with_columns(table, columns, keep=[title for title in columns if not title or title.endswith(OWN[1:])])


def tables(result: Result) -> tuple[str, list[str], list[list[Any]]]:
    """(name, columns, rows) for `Tracker.table`: every score by set, metric and language, a column a mode."""
    shown = [mode for mode in MODES if any(mode in of_split for of_split in result["languages"].values())]
    rows: list[list[Any]] = []
    for split, of_split in result["languages"].items():
        metrics = dict.fromkeys(name for of_mode in of_split.values() for one in of_mode.values() for name in one)
        for metric in metrics:
            sources: list[tuple[str, str, Mapping[str, Any]]] = [
                (one, one, of_split) for one in languages(result, split)
            ]
            sources += [(group_name(result, group), group, result["means"][split]) for group in GROUPS]
            for label, key, values in sources:
                cells = [values.get(mode, {}).get(key, {}).get(metric) for mode in shown]
                rows += [[split, metric, label, *cells]] if any(cell is not None for cell in cells) else []
    return "languages", ["set", "metric", "language", *shown], rows
