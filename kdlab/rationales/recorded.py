"""Completions that somebody paid for already, in reasoning-teacher's layout.

A file holds {"metadata": {...}, "data": {"<sample_index>": [record, ...]}} (itsnamgyu/reasoning-teacher,
src/data/completion_dataset.py:4-27); it lies in completion_data/B_<base model>__C_<completion key>/D_<data set>.json
(src/paths.py:24-34). kdlab writes its own `completions.json` alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlab.errors import DataError

OWN = "completions.json"
TEMPLATES = ("zs", "zs_cot", "fs_cot", "ft_token", "ft_cot_token", "ft_cot_natural")
_TEXT = ("question", "answer", "completion")  # what every record has
_OPTIONAL = ("reasoning_prompt", "reasoning_completion", "reasoning_finish_reason", "prompt", "finish_reason")
FIELDS = (
    "sample_index",
    "completion_index",
    "question",
    "answer",
    "reasoning_prompt",
    "reasoning_completion",
    "reasoning_finish_reason",
    "prompt",
    "completion",
    "finish_reason",
)


@dataclass(frozen=True)
class Selection:
    """The records that were taken, in the order of the questions."""

    records: list[dict[str, Any]]
    missing: list[int]  # ids of questions without a record
    short: dict[int, int]  # ids of questions with fewer records than asked, with their number


def completion_file(path: Path, model: str | None, key: str | None, task_key: str) -> Path:
    """The file with a task's completions.

    path: the file itself; or a folder that holds `completion_data`, is it, is one of its B_...__C_... folders, or
    holds a completions.json of kdlab, or is the folder of a finished run. Raises DataError that lists what there is.
    """
    path = path.expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(
            "There are no recorded completions: no such file or folder.",
            where=str(path),
            fix="Set rationales.path to the folder with completion_data/B_MODEL__C_KEY/D_TASK.json, or to one file.",
        )
    if (own := _of_run(path)) is not None:
        return own
    name = f"D_{task_key}.json"
    roots = [path / "saved" / "completion_data", path / "completion_data", path]  # the first: the official repository
    folder = f"B_{model}__C_{key}"
    for root in roots:
        if (file := root / folder / name).is_file():
            return file
    if path.name.startswith("B_") and (path / name).is_file():
        return path / name
    if (path / OWN).is_file():
        return path / OWN
    found = sorted(file for root in roots for file in root.glob("B_*__C_*/D_*.json"))
    found += sorted(path.glob("D_*.json"))
    tasks = sorted({file.stem.removeprefix("D_") for file in found if file.parent.name == folder})
    pairs = sorted({file.parent.name for file in found})
    if tasks:
        what = f"{folder} has no completions for {task_key!r}. It has: {', '.join(tasks)}."
        fix = "Choose one of these tasks, or completions of another model or key (rationales.model, rationales.key)."
    elif pairs:
        what = f"There is no folder {folder}. There are: {', '.join(pairs)}."
        fix = "Set rationales.model and rationales.key to what stands between B_, __C_ and the end of one of them."
    else:
        what = f"There are no recorded completions here: no {folder}/{name} and no {OWN}."
        fix = "Set rationales.path to the folder with completion_data/B_MODEL__C_KEY/D_TASK.json, or to one file."
    raise DataError(what, where=str(path), fix=fix)


def _of_run(folder: Path) -> Path | None:
    """The completions of a finished run of kdlab, if `folder` is one with a teacher and its store has them still."""
    try:
        store = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]["store"]
        artifact = json.loads((folder / "result.json").read_text(encoding="utf-8"))["artifacts"]["rationales"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    file = Path(str(store)) / str(artifact) / OWN
    return file if file.is_file() else None


def read(file: Path) -> dict[int, list[dict[str, Any]]]:
    """The records of each question, by their `completion_index`; all `FIELDS`, None for what a record doesn't have.

    Other fields are left out. Raises DataError for what is not in the layout.
    """
    data = _load(file)["data"]
    if not isinstance(data, dict):
        raise _broken(file, 'its "data" is no object of lists')
    return {_sample_index(file, name): _records(file, name, rows) for name, rows in data.items()}


def prediction_template(file: Path) -> str:
    """Which answers the completions hold: the template of `TEMPLATES` by which they are parsed."""
    template = _load(file)["metadata"].get("prediction_template")
    if template not in TEMPLATES:
        raise _broken(file, f"metadata.prediction_template is {template!r}, not one of {', '.join(TEMPLATES)}")
    return str(template)


def origin(file: Path) -> tuple[str, str]:
    """(base_model, completion_key): who wrote the completions, and how it was asked; "" where the file doesn't say."""
    metadata = _load(file)["metadata"]
    return str(metadata.get("base_model") or ""), str(metadata.get("completion_key") or "")


def select(
    records: Mapping[int, Sequence[dict[str, Any]]], questions: Sequence[Mapping[str, Any]], samples: int
) -> Selection:
    """Of each question ("id", "question") its first `samples` records.

    Raises DataError if a text is not the question that was recorded, or if nothing was recorded of any question.
    """
    selection = Selection([], [], {})
    for question in questions:
        number = int(question["id"])
        rows = records.get(number, ())
        for row in rows[:samples]:
            if row["question"].strip() != question["question"].strip():
                raise DataError(
                    "A recorded completion answers another question than the task's of the same number.\n"
                    f"  recorded: {row['question']!r}\n"
                    f"  task's:   {question['question']!r}",
                    where=f"sample_index {number}, completion_index {row['completion_index']}",
                    fix="Use completions recorded of this very data: set rationales.path, or task.source to theirs.",
                )
            selection.records.append(row)
        if not rows:
            selection.missing.append(number)
        elif len(rows) < samples:
            selection.short[number] = len(rows)
    if questions and not selection.records:
        raise DataError(
            f"None of the {len(questions)} questions has a recorded completion.",
            where=f"recorded are {len(records)} others"
            + (f", sample_index {min(records)} to {max(records)}" if records else ""),
            fix="Check that rationales.path holds completions of this task and of this part of it.",
        )
    return selection


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"), object_pairs_hook=_object)
    except OSError as error:
        raise _broken(file, f"it can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise _broken(file, f"byte {error.start} is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise _broken(file, f"it is no JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, lists in lists without end
        raise _broken(file, f"it can't be read: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("metadata"), dict) or "data" not in content:
        raise _broken(file, 'it has no "metadata" and "data"')
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values of one key, JSON's reader would take the last and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in found if names.count(name) > 1)[:60]!r} is there twice")
    return found


def _sample_index(file: Path, name: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", name):
        raise _broken(file, f"the key {name[:60]!r} of its data is no sample_index")
    return int(name)


def _records(file: Path, name: str, rows: Any) -> list[dict[str, Any]]:
    if not isinstance(rows, list):
        raise _broken(file, f"data of question {name} is no list")
    found: dict[int, dict[str, Any]] = {}
    for position, row in enumerate(rows):
        place = f"question {name}, record {position}"
        if not isinstance(row, dict):
            raise _broken(file, f"{place} is no object")
        for field in ("sample_index", "completion_index"):
            if type(row.get(field)) is not int or row[field] < 0:
                raise _broken(file, f"{field} of {place} is {row.get(field)!r}, no whole number")
        for field in _TEXT:
            if not isinstance(row.get(field), str):
                raise _broken(file, f"{field} of {place} is {row.get(field)!r}, no text")
        for field in _OPTIONAL:
            if not isinstance(row.get(field), str | None):
                raise _broken(file, f"{field} of {place} is {row.get(field)!r}, no text")
        if row["sample_index"] != int(name):
            raise _broken(file, f"sample_index of {place} is {row['sample_index']}")
        if row["completion_index"] in found:
            raise _broken(file, f"completion_index {row['completion_index']} of question {name} is there twice")
        found[row["completion_index"]] = {field: row.get(field) for field in FIELDS}
    return [found[index] for index in sorted(found)]


def _broken(file: Path, why: str) -> DataError:
    return DataError(
        f"The recorded completions are not as they should be: {why}.",
        where=str(file),
        fix='They are JSON: {"metadata": {...}, "data": {"<sample_index>": [record, ...]}}.',
    )
