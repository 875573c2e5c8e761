"""Rows of one's own to be answered: read one after the other, so that a file need not fit in memory.

JSONL, CSV and TSV with a header line, and Parquet; what is read of a row is its texts and its `id`. In a TSV file of
which every line has as many fields as the header, one line is one row, as in `kdlab.data.tasks`; from standard input it
always is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kdlab.data.delimited import plain_rows, quoted_rows
from kdlab.data.parquet import readable_parquet
from kdlab.errors import DataError

FORMATS = ("jsonl", "csv", "tsv", "parquet")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
ID = "id"  # a column that is handed through
AT_ONCE = 1024  # rows of Parquet

Bad = Callable[[int, str], None]  # what hears of a row that can't be answered: its place, and why


@dataclass(frozen=True)
class Row:
    """line: of a text file, from 1; of Parquet the row, from 1. texts: in the order of the columns asked for."""

    line: int
    id: Any
    texts: tuple[str, ...]


def format_of(path: Path | None, given: str | None) -> str:
    """What a file is by its name, unless it is said; standard input (None) is JSONL. Raises DataError."""
    if given is not None or path is None:
        if path is None and given == "parquet":
            raise DataError("Parquet can't be read from standard input.", where="--input -", fix="Give the file.")
        return given or "jsonl"
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is a pipe or a device" if path.exists() else "does not exist"
        raise DataError(f"The input {what}.", where=str(path), fix="Give a file, or - for standard input.")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"What the input is can't be told from its name, which ends in {path.suffix or 'nothing'!r}.",
            where=str(path),
            fix=f"Say it with --format: {', '.join(FORMATS)}.",
        )
    return SUFFIXES[path.suffix.lower()]


def read_rows(path: Path | None, form: str, columns: Sequence[str], *, optional: int = 0, bad: Bad) -> Iterator[Row]:
    """The rows that can be answered, in order; of the others `bad` hears.

    path: None for standard input. columns: with the texts; the last `optional` ones may be empty in a row.

    Raises DataError where the file as a whole can't be read, or has not these columns.
    """
    where = "standard input" if path is None else str(path)
    if form == "parquet":
        assert path is not None
        yield from _checked(_parquet(path, columns, optional), columns, optional, where, bad)
        return
    try:
        with nullcontext(sys.stdin.buffer) if path is None else open(path, "rb") as file:
            if form == "jsonl":
                found: Iterable[tuple[int, Any]] = _jsonl(file, bad)
            else:
                plain = form == "tsv" and (path is None or _is_plain(path))
                text = _decoded(file, where)
                rows = plain_rows(text) if plain else quoted_rows(text, where, "\t" if form == "tsv" else ",")
                found = _headed(rows, where, columns, optional, bad)
            yield from _checked(found, columns, optional, where, bad)
    except OSError as error:
        raise DataError(f"The input can't be read: {error.strerror or error}.", where=where) from error


def _checked(
    found: Iterable[tuple[int, dict[str, Any]]], columns: Sequence[str], optional: int, where: str, bad: Bad
) -> Iterator[Row]:
    needed = columns[: len(columns) - optional]
    other: list[str] | None = None  # the columns of the first row, as long as none has those that are needed
    known = False
    for line, row in found:
        lacking = [column for column in needed if column not in row]
        if lacking:
            other = list(row) if other is None else other
            bad(line, f"has no field {lacking[0]!r}, but {', '.join(map(str, row)) or 'none'}")
            continue
        known = True
        texts = []
        for column in columns:
            try:
                text = _text(row.get(column))
                if text is None and column in needed:
                    raise ValueError("is null")
            except ValueError as error:
                bad(line, f"the field {column!r} {error}")
                break
            texts.append(text or "")
        else:
            try:
                yield Row(line, _id(row.get(ID)), tuple(texts))
            except ValueError as error:
                bad(line, f"the field {ID!r} {error}")
    if other is not None and not known:
        raise _absent(columns, optional, other, where)


def _absent(wanted: Sequence[str], optional: int, found: Sequence[str], where: str) -> DataError:
    names = ("text_a", "text_b")[: len(wanted) - optional]
    return DataError(
        f"The columns {', '.join(wanted)} are wanted, and the input has: {', '.join(map(str, found)) or 'none'}.",
        where=where,
        fix=f"Say which columns have the texts: --columns {','.join(f'{name}=COLUMN' for name in names)}",
    )


def _text(value: Any) -> str | None:
    """A value as the text that a CSV file would hold; None for null and NaN. Raises ValueError for one that is none."""
    if value is None or value != value:
        return None
    if isinstance(value, dict | list | bytes):
        raise ValueError(f"is no text but {type(value).__name__}")
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    _require_utf8(text)
    return text


def _id(value: Any) -> Any:
    """What is handed through; None for NaN, which JSON has not. Raises ValueError for what can't be written."""
    if value != value:
        return None
    if isinstance(value, str | dict | list):
        _require_utf8(json.dumps(value, ensure_ascii=False, default=str))
    return value


def _require_utf8(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None


def _jsonl(file: BinaryIO, bad: Bad) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            row = json.loads(text)
        except UnicodeDecodeError as error:
            bad(number, f"the byte 0x{line[error.start]:02x} is no UTF-8")
            continue
        except (ValueError, RecursionError) as error:
            bad(number, f"is no JSON: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            bad(number, "is no JSON object")


def _decoded(file: BinaryIO, where: str) -> Iterator[str]:
    """Lines with their ends. Of a delimited file all is lost where a byte is wrong: it may be in quotes."""
    for number, line in enumerate(file, start=1):
        if b"\0" in line:
            raise DataError(
                "There is a NUL byte: the input is damaged, or no text in UTF-8.", where=f"{where}, line {number}"
            )
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"The byte 0x{line[error.start]:02x} is no UTF-8.",
                where=f"{where}, line {number}",
                fix="Save the file as UTF-8 (from Latin-1: iconv -f latin1 -t utf-8).",
            ) from error


def _headed(
    rows: Iterator[tuple[int, list[str]]], where: str, columns: Sequence[str], optional: int, bad: Bad
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows by the names of their header, which is the first."""
    _, names = next(rows, (0, []))
    header = [name.strip() for name in names]
    if not header:
        raise DataError("The input has no header line.", where=where)
    if twice := [name for name in columns if header.count(name) > 1]:
        raise DataError(f"The input has the column {twice[0]!r} twice.", where=where)
    if not set(columns) <= set(header):
        raise _absent(columns, optional, header, where)
    for number, fields in rows:
        if len(fields) != len(header):
            bad(number, f"has {len(fields)} fields, and the header {len(header)}")
        else:
            yield number, dict(zip(header, fields, strict=True))


def _is_plain(path: Path) -> bool:
    """Whether every line has as many fields as the first."""
    with open(path, "rb") as file:
        return len({line.count(b"\t") for line in file if line.strip(b"\r\n")}) == 1


def _parquet(path: Path, columns: Sequence[str], optional: int) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet as pq

    with readable_parquet(path):
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if not set(columns) <= set(names):
            raise _absent(columns, optional, names, str(path))
        wanted = [name for name in dict.fromkeys([*columns, ID]) if name in names]
        number = 0
        for batch in file.iter_batches(batch_size=AT_ONCE, columns=wanted):
            batch.validate(full=True)  # texts that are no UTF-8
            for row in batch.to_pylist():
                number += 1
                yield number, row
