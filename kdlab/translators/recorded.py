"""Translations that exist already: XTREME's, or any file with texts and their translations.

What `translator.path` may be; {source} and {target} in it stand for the languages:

    FILE.jsonl        objects with `source` (the text) and `target` (its translation)
    FILE.csv, .tsv    a header that names `source` and `target`, in a TSV file one line a row
    FILE.tsv          five columns without a header: two texts, their two translations, a label (XTREME's layout)
    FOLDER            holds the files of XTREME's PAWS-X or XNLI, or files SOURCE-TARGET.jsonl, .csv or .tsv

The first three may also have `source_language` and `target_language`; rows of other languages are then passed over.

XTREME (Hu et al. 2020): translate-train/en-L-translated.tsv has English and its translation, in
translate-test/test-L-en-translated.tsv the translation is English; MUSC calls them train-L.tsv and test-L.tsv. No field
is quoted, and some lines of PAWS-X's are broken: those without five columns are skipped, and counted.

A text is found by its words: white space, and quotes around the whole, make no difference.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kdlab.errors import DataError

SUFFIXES = (".jsonl", ".csv", ".tsv")
COLUMNS = 5  # of XTREME's files: texts a and b, their translations, label
MANY_BROKEN = 0.1  # share of lines without five columns from which on a file is not XTREME's
_ENCLOSED = re.compile(r'"((?:[^"]|"")*)"')


class Row(NamedTuple):
    """A text and its translation; languages where the file tells them."""

    text: str
    translation: str | None
    source: str | None = None
    target: str | None = None


@dataclass
class Counts:
    """What was found in the files of a pair of languages."""

    files: list[Path] = field(default_factory=list)
    texts: int = 0  # different ones with a translation
    conflicts: int = 0  # translations that differ from the first one of their text, which is taken
    skipped: int = 0  # broken lines


class Recorded:
    """A `Translate` that looks translations up.

    path: a file or folder; pattern: what follows below it, with {source} and {target} for the languages.
    codes: what the files call a language, where it is not its code: {"zh": "zh-CN"}.

    Raises DataError for files that are missing or in none of the layouts, and where two pairs of languages would be
    answered from one file that does not tell its languages.
    """

    def __init__(self, path: Path, pattern: str | None = None, codes: Mapping[str, str] | None = None) -> None:
        self.path, self._pattern, self._codes = path.expanduser(), pattern, codes or {}
        self.counts: dict[tuple[str, str], Counts] = {}
        self._owners: dict[Path, tuple[str, str]] = {}  # of files that don't tell their languages
        self._open: tuple[tuple[str, str], dict[str, str]] | None = None  # the last pair and its translations

    def __call__(self, texts: Sequence[str], source: str, target: str) -> list[str | None]:
        if self._open is None or self._open[0] != (source, target):
            self._open = (source, target), self._read(source, target)
        _, known = self._open
        return [known.get(_key(text)) for text in texts]

    def _read(self, source: str, target: str) -> dict[str, str]:
        counts = Counts()
        known: dict[str, str] = {}
        names = self._codes.get(source, source), self._codes.get(target, target)
        for file in self._files(*names):
            counts.files.append(file)
            rows, skipped = read(file)
            counts.skipped += skipped
            if file == self.path and not all(row.source and row.target for row in rows):
                self._claim(file, source, target)
            for row in rows:
                if (row.source or names[0], row.target or names[1]) != names or not (
                    row.translation and row.translation.strip()
                ):
                    continue
                first = known.setdefault(_key(row.text), row.translation)
                counts.conflicts += _key(first) != _key(row.translation)
        counts.texts = len(known)
        if not known:
            raise DataError(
                f"There is no translation from {source} to {target}.",
                where=", ".join(map(str, counts.files)),
                fix="Check the files, and the languages in them (source_language, target_language).",
            )
        self.counts[source, target] = counts
        return known

    def _claim(self, file: Path, source: str, target: str) -> None:
        """Refuse a file that is to answer for two pairs of languages, where neither its name nor its rows tell them."""
        first = self._owners.setdefault(file, (source, target))
        if first != (source, target):
            raise DataError(
                f"One file is to translate {'-'.join(first)} and {source}-{target}, and does not tell its languages.",
                where=str(file),
                fix="Add source_language and target_language to its rows; or have a file for each pair, and {source} "
                "and {target} in translator.path.",
            )

    def _files(self, source: str, target: str) -> list[Path]:
        """The files of a pair, by the names that it has in them."""
        path = self.path
        if self._pattern is not None:
            path = path / self._pattern.replace("{source}", source).replace("{target}", target)
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise DataError(
                f"There are no recorded translations from {source} to {target}: no such file or folder.",
                where=str(path),
                fix="Set translator.path to a file with texts and translations, or to a folder with XTREME's files.",
            )
        names = file_names(source, target)
        for alike in names:
            if found := [path / name for name in alike if (path / name).is_file()]:
                return found
        there = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.suffix in SUFFIXES)
        more = f" and {len(there) - 10} more" if len(there) > 10 else ""
        raise DataError(
            f"The folder has no translations from {source} to {target}.\n"
            f"  looked for: {', '.join(name for alike in names for name in alike)}\n"
            f"  there are:  {', '.join(there[:10]) or 'none'}{more}",
            where=str(path),
            fix="Set translator.path to the folder that holds them, leave languages out (task.languages), or choose "
            "another translator.",
        )


def file_names(source: str, target: str) -> list[list[str]]:
    """Names in a folder by which a pair's files are found; of the first list that has any, all are read."""
    found = [[f"{source}-{target}{suffix}" for suffix in SUFFIXES]]
    if source == "en":
        name = f"en-{target}-translated.tsv"
        found += [[f"translate-train/{name}"], [name], [f"train-{target}.tsv"]]
    if target == "en":
        name = f"test-{source}-en-translated.tsv"
        found += [[f"translate-test/{name}"], [name], [f"test-{source}.tsv"]]
    return found


def read(file: Path) -> tuple[list[Row], int]:
    """The rows of a file, and how many lines of it are broken. Raises DataError for what is in no layout."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise _broken(file, f"its name ends in {suffix or 'nothing'!r}, not in {', '.join(SUFFIXES)}")
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _broken(file, f"it can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise _broken(file, f"byte {error.start} is no UTF-8") from None
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    if suffix == ".jsonl":
        return list(_json_rows(file, lines)), 0
    if suffix == ".csv":
        return list(_table_rows(file, _quoted(file, content))), 0
    table = [line.split("\t") for line in lines if line.strip()]
    if table and not {"source", "target"} & set(table[0]):
        return _xtreme_rows(file, table)
    return list(_table_rows(file, ([_unquoted(field) for field in fields] for fields in table))), 0


def _json_rows(file: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise _broken(file, f"line {number} is no JSON") from None
        if not isinstance(row, dict) or not isinstance(row.get("source"), str) or "target" not in row:
            raise _broken(file, f"line {number} is no object with source and target")
        values = [row.get(name) for name in ("target", "source_language", "target_language")]
        if not all(isinstance(value, str | None) for value in values):
            raise _broken(file, f"target and the languages of line {number} are not text or null")
        if re.search("[\ud800-\udfff]", f"{row['source']}{row['target']}"):
            raise _broken(file, f"line {number} holds half of a surrogate pair")
        yield Row(row["source"], *values)


def _table_rows(file: Path, table: Iterable[list[str]]) -> Iterator[Row]:
    rows = iter(table)
    header = [name.strip() for name in next(rows, [])]
    if not {"source", "target"} <= set(header):
        raise _broken(file, f"its header names no source and target, but {', '.join(map(repr, header)) or 'nothing'}")
    for number, fields in enumerate(rows, 2):
        if len(fields) != len(header):
            raise _broken(file, f"row {number} has {len(fields)} fields, and the header {len(header)}")
        row = dict(zip(header, fields, strict=True))
        languages = [row.get(name) or None for name in ("source_language", "target_language")]
        yield Row(row["source"], row["target"], *languages)


def _quoted(file: Path, content: str) -> Iterator[list[str]]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield from (row for row in csv.reader(io.StringIO(content, newline=""), strict=True) if row)
    except csv.Error as error:
        raise _broken(file, f"its quotes are wrong: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _xtreme_rows(file: Path, table: Sequence[list[str]]) -> tuple[list[Row], int]:
    rows = [Row(fields[side], fields[2 + side]) for fields in table if len(fields) == COLUMNS for side in (0, 1)]
    skipped = sum(len(fields) != COLUMNS for fields in table)
    if skipped > MANY_BROKEN * len(table):
        first = next(fields for fields in table if len(fields) != COLUMNS)
        raise _broken(file, f"it has no header with source and target, and {skipped} of {len(table)} lines have not "
                      f"the {COLUMNS} columns of XTREME's files (one has {len(first)})")  # fmt: skip
    return rows, skipped


def _unquoted(field: str) -> str:
    match = _ENCLOSED.fullmatch(field)
    return match[1].replace('""', '"') if match else field


def _key(text: str) -> str:
    return " ".join(_unquoted(" ".join(text.split())).split())


def _broken(file: Path, why: str) -> DataError:
    return DataError(
        f"The recorded translations are not as they should be: {why}.",
        where=str(file),
        fix="Give JSONL, CSV or TSV with `source` and `target`, or XTREME's files of five columns.",
    )
