"""The files that GLUE's leaderboard takes, and the archive of them."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kdlab.artifacts import write_text
from kdlab.data.glue import HIDDEN_SETS, HIGHEST, HiddenSet
from kdlab.errors import DataError, StoreError, disk_errors

HEADER = "index\tprediction"
ARCHIVE = "submission.zip"
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the archive, so that equal predictions make an equal archive


def write_file(one: HiddenSet, predictions: Path, folder: Path) -> Path:
    """One file of a submission, from what the stage `evaluate` has left.

    Raises DataError if its rows are not those of the test set, or a class has no name there.
    """
    lines = [HEADER]
    for number, row in enumerate(_read(predictions)):
        if row["id"] != number:
            raise _other_rows(one, f"line {number + 1} is row {row['id']}")
        lines.append(f"{number}\t{_answer(one, row['prediction'])}")
    if len(lines) - 1 != one.rows:
        raise _other_rows(one, f"{len(lines) - 1} rows, and it has {one.rows}")
    target = folder / one.file
    with disk_errors("writing a file of the leaderboard", folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(target, "".join(f"{line}\n" for line in lines))
    return target


def _read(predictions: Path) -> Iterator[Mapping[str, object]]:
    with open(predictions, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _answer(one: HiddenSet, prediction: object) -> str:
    if one.answers is None:
        return f"{min(max(float(str(prediction)), 0.0), HIGHEST):.6f}"
    if prediction not in one.answers:
        raise DataError(
            f"{one.file}: the leaderboard has no class '{prediction}', only {', '.join(one.answers)}",
            where="task.labels",
            fix=f"name the classes as task=glue/{one.task} does",
        )
    return one.answers[str(prediction)]


def _other_rows(one: HiddenSet, what: str) -> DataError:
    return DataError(
        f"{one.file}: these are not the rows of GLUE's test set: {what}",
        where="task.source",
        fix="take the whole test set as nyu-mll/glue has it, without debug.rows",
    )


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What an archive holds."""

    archive: Path
    there: list[str]
    missing: list[str]
    unfit: list[str]  # files of the folder that are not as the leaderboard takes them, and why


def pack(folder: Path) -> Submission:
    """Put the files of the leaderboard that are in a folder into its submission.zip. Raises StoreError for none."""
    unfit = [f"{one.file}: {why}" for one in HIDDEN_SETS if (why := _wrong(one, folder / one.file))]
    bad = {line.partition(":")[0] for line in unfit}
    there = [one.file for one in HIDDEN_SETS if (folder / one.file).is_file() and one.file not in bad]
    if not there:
        raise StoreError(
            "there is no file for the leaderboard: " + ("; ".join(unfit) or "no run was asked a test set of GLUE"),
            where=str(folder),
            fix="kdlab evaluate RUN --leaderboard DIR, with runs that were trained on tasks of GLUE",
        )
    archive = folder / ARCHIVE
    scratch = archive.with_name(f"{archive.name}.{os.getpid()}.tmp")
    with disk_errors("writing the submission", folder):
        with zipfile.ZipFile(scratch, "w") as packed:
            for name in there:
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.external_attr = 0o644 << 16
                packed.writestr(entry, (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
        os.replace(scratch, archive)
    missing = [one.file for one in HIDDEN_SETS if one.file not in there]
    return Submission(archive=archive, there=there, missing=missing, unfit=unfit)


def _wrong(one: HiddenSet, file: Path) -> str | None:
    """Why a file, if it is there, is not what the leaderboard takes."""
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0] != HEADER:
        return "its first line is not index<TAB>prediction"
    if len(lines) - 1 != one.rows:
        return f"it has {len(lines) - 1} rows, the test set {one.rows}"
    return None
