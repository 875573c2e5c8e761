"""The folders of reasoning-teacher: one JSON file with the questions of each data set.

{"metadata", "data"} in data/dataset/KEY.json (itsnamgyu/reasoning-teacher, src/paths.py and src/data/dataset.py at
de0a327), or a bare list in dataset/KEY.json (at 5a5104a). A row has question, answer, and where they exist sample_index
and rationale. Imports nothing slow, so that a plan can ask for the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdlab.errors import DataError

_FOLDERS = ("data/dataset", "dataset", ".")


def dataset_file(path: Path, key: str) -> Path:
    """The file with the questions of `key`: below a folder, or `path` itself. Raises DataError if there is none."""
    path = path.expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(
            "The folder with the questions does not exist.",
            where=str(path),
            fix=f"Give the folder that holds dataset/{key}.json: task.source.path=FOLDER.",
        )
    folders = [path / name for name in _FOLDERS]
    for folder in folders:
        if (folder / f"{key}.json").is_file():
            return folder / f"{key}.json"
    there = sorted({file.stem for folder in folders for file in folder.glob("*.json")})
    raise DataError(
        f"The folder has no dataset/{key}.json. It has: {', '.join(there) or 'no JSON file'}.",
        where=str(path),
        fix="Give the folder of the authors' data as task.source.path, choose a task whose file is there, or set"
        " task.source.key=null to read a folder of your own with one file per split.",
    )


def read_dataset(file: Path, key: str) -> list[dict[str, Any]]:
    """The rows of a file in its order, each with a sample_index (int) that no other row has."""
    where = str(file)
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"The file can't be read: {error.strerror or error}.", where=where) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"The file is no JSON: {error}.", where=where, fix="Download it again.") from error
    rows = content
    if isinstance(content, dict):
        metadata, rows = content.get("metadata"), content.get("data")
        named = metadata.get("dataset_key") if isinstance(metadata, dict) else None
        if named is not None and named != key:
            raise DataError(
                f"The file holds {named}, not {key}.",
                where=where,
                fix=f"Take the task whose task.source.key is {named}.",
            )
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            "The file is not in the layout of reasoning-teacher.",
            where=where,
            fix='It should be {"data": [{"sample_index": 0, "question": "...", "answer": "..."}, ...]}.',
        )
    if not rows:
        raise DataError("The file has no questions.", where=where)
    if not any("sample_index" in row for row in rows):
        return [{**row, "sample_index": place} for place, row in enumerate(rows)]
    seen: dict[int, int] = {}
    for place, row in enumerate(rows):
        index = row.get("sample_index")
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise DataError(f"The sample_index {index!r} is no place of a question.", where=f"{where}, row {place}")
        if index in seen:
            raise DataError(
                f"The sample_index {index} is there twice: in rows {seen[index]} and {place}.",
                where=where,
                fix="Give each question its own, its place in the whole data set.",
            )
        seen[index] = place
    return rows
