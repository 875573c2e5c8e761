"""What a finished run's student said of every scored row, beside what is right: from the artifacts in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kdlab.data.languages import ORIGINAL, View
from kdlab.errors import StoreError
from kdlab.report.samples import SCORED, answered, read_samples
from kdlab.runs import Record, read_json, read_lines

SCORING = ("evaluate_student", SCORED)  # labels of the stages that leave predictions


class Asked(NamedTuple):
    """Which rows, and how they were asked. language, mode: of runs in several languages, else ""."""

    split: str
    language: str = ""
    mode: str = ""

    def __str__(self) -> str:
        return ".".join(part for part in self if part)


class Said(NamedTuple):
    """One row. answer, prediction: a class's name, a number, or a text; prediction None: no answer was found."""

    answer: Any
    prediction: Any
    right: bool | None  # None: the row has no label, or is a number to come near to


@dataclass(frozen=True)
class Predictions:
    """A table's rows, by their id in the source. data: what they were read from, equal for equal rows.

    names: of the classes, in the order of their numbers; None: answers are numbers or texts.
    """

    rows: Mapping[Any, Said]
    data: str
    names: list[str] | None = None


def load(record: Record, store: str | Path | None = None, *, split: str | None = None) -> dict[Asked, Predictions]:
    """The student's predictions on every set, or on one split's, in the order of its files; {} if the run left none.

    Raises StoreError if they are no longer in the store, or can't be read.
    """
    label = next((name for name in SCORING if name in (record.result or {}).get("artifacts", {})), None)
    if label is None:
        return {}
    folder = _found(record, label, store)
    if label == SCORED:
        return _of_samples(record, folder)
    stage = next((one for one in record.graph if one["label"] == label), None)
    inputs = [] if stage is None else [record.whole(name, store) for name in stage["inputs"].values()]
    tables = _tables([folder for folder in inputs if folder is not None])
    found: dict[Asked, Predictions] = {}
    for file in sorted(folder.glob("predictions-*.jsonl")):
        name = file.stem.removeprefix("predictions-")
        # of several languages: predictions-test.es.jsonl, of the table test.es.original.arrow
        part, _, language = name.partition(".") if f"{name}.{ORIGINAL}" in tables else (name, "", "")
        if split not in (None, part):
            continue
        table = tables.get(str(View(part, language)) if language else name)
        if table is None:
            raise StoreError(
                f"the rows of {name} are no longer in the store", where=str(record.store(store)), fix=_again(record)
            )
        answers, names = _answers(table)
        modes: dict[str, dict[Any, Said]] = {}
        for row in read_lines(file, what="predictions"):
            told, answer = row["prediction"], answers.get(row["id"])
            for mode, prediction in told.items() if isinstance(told, Mapping) else [("", told)]:
                right = None if answer is None or names is None else answer == prediction
                modes.setdefault(mode, {})[row["id"]] = Said(answer, prediction, right)
        source = _source(record, table.parent.name)
        found |= {Asked(part, language, mode): Predictions(rows, source, names) for mode, rows in modes.items()}
    return found


def _of_samples(record: Record, folder: Path) -> dict[Asked, Predictions]:
    found: dict[Asked, dict[Any, Said]] = {}
    for sample in read_samples(folder / "samples.jsonl"):
        if answered(sample):
            said = Said(sample["answer"], sample["prediction"], bool(sample["correct"]))
            found.setdefault(Asked(sample["split"]), {})[sample["id"]] = said
    return {where: Predictions(rows, _source(record, "")) for where, rows in found.items()}


def _found(record: Record, label: str, store: str | Path | None) -> Path:
    folder = record.artifact(label, store)
    if folder is None:
        raise StoreError(
            f"the predictions of {record.name} are no longer in the store",
            where=str(record.store(store)),
            fix=_again(record),
        )
    return folder


def _again(record: Record) -> str:
    return f"make them again with `{record.command}`, or give the store that has them: --store FOLDER"


def _tables(folders: list[Path]) -> dict[str, Path]:
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.arrow"))}


@lru_cache(maxsize=64)
def _answers(table: Path) -> tuple[dict[Any, Any], list[str] | None]:
    """(the right answer of each row by its id, names of the classes or None for numbers)."""
    import pyarrow as pa

    names: list[str] | None = read_json(table.parent / "facts.json")["labels"]
    try:
        with pa.memory_map(str(table)) as source:
            rows = pa.ipc.open_file(source).read_all().select(["id", "label"]).to_pydict()
    except (OSError, pa.ArrowException) as problem:
        raise StoreError(
            f"the rows can't be read: {problem}",
            where=str(table),
            fix="`kdlab store verify` looks at all artifacts; remove the damaged one and give the run's command again",
        ) from problem
    labels = [one if one is None or names is None else names[one] for one in rows["label"]]
    return dict(zip(rows["id"], labels, strict=True)), names


def _source(record: Record, table: str) -> str:
    """What the rows were read from: the source of every stage that the table is made of, as JSON."""
    stages = {stage["artifact"]: stage for stage in record.graph}
    names, sources = [table] if table else list(stages), []
    while names:
        stage = stages.get(names.pop(), {"values": {}, "inputs": {}})
        if "source" in stage["values"]:
            sources.append(json.dumps(stage["values"]["source"], sort_keys=True))
        names += stage["inputs"].values() if table else []
    return " ".join(dict.fromkeys(sources))
