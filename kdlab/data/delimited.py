"""CSV and TSV: the fields of each row that is not empty, with the number of its line, counted from 1."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Generator, Iterable, Iterator

from kdlab.errors import DataError

_ENCLOSED = re.compile(r'"((?:[^"]|"")*)"')


def plain_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """One line is one row, its fields parted by tabs, whether in quotes or not."""
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        if line:
            yield number, [_plain(field) for field in line.split("\t")]


def _plain(field: str) -> str:
    match = _ENCLOSED.fullmatch(field)
    return match[1].replace('""', '"') if match else field


def quoted_rows(lines: Iterable[str], where: str, delimiter: str) -> Generator[tuple[int, list[str]], None, None]:
    """Fields of any length; one in double quotes may hold the delimiter and line ends. Raises DataError."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(sys.maxsize)
    line = 1
    try:
        while True:
            line = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            if row:
                yield line, row
    except csv.Error as error:
        raise DataError(
            f"The quotes of a field are wrong: {error}.",
            where=f"{where}, line {line}",
            fix='Enclose the field in double quotes and write a quote inside it as "".',
        ) from error
    finally:
        csv.field_size_limit(limit)
