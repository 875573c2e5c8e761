"""The translation memory: one SQLite file a translator, in which every text is translated once.

A row holds source and target language, the text, its translation (NULL: the translator has none for it), whether
the text or its translation was cut to fit the translator, and the sha256 of all that: a row that is not as it was
written is as good as none, and its text is translated again. What was translated is committed in blocks, each before
the next one begins: a process that is killed loses the block on its way, and SQLite takes back what a torn commit left.

Several processes may use a file at the same time. They wait for each other's commits by SQLite's own locks, and where
two have translated the same text, both go on with what was committed first. On a network file system this holds as far
as its file locks do, which `kdlab doctor` tries out for the store; where they don't, the file can be damaged, which is
noticed and said when it is read. The file is in SQLite's rollback mode, since its write-ahead log needs shared memory,
which machines don't share.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from kdlab.errors import StoreError

Translate = Callable[[Sequence[str], str, str], "list[str | None]"]
"""(texts, source language, target language) -> their translations in order, None where there is none."""

BLOCK = 256  # texts between two commits
WAIT = 60.0  # seconds for another process's commit
LOOKED_UP = 500  # texts in one query: SQLite before 3.32 allows 999 parameters
SCANNED = 10_000  # rows in one reading of all
UNSEALED, FORMAT = 1, 2  # an older version's rows have no checksums

_TABLES = """
CREATE TABLE IF NOT EXISTS translator (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS translations (
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    text TEXT NOT NULL,
    translation TEXT,
    cut INTEGER NOT NULL,
    sha256 TEXT,
    PRIMARY KEY (source, target, text)
) WITHOUT ROWID;
"""


AWAY = "Move the file away, and what lies beside it with its name: its texts are then translated again."
MEND = f"Rows that were removed are translated again by whoever needs them. If SQLite can't read a file: {AWAY}"
_MALFORMED = (sqlite3.DatabaseError, UnicodeDecodeError)  # the second from the module: names in what SQLite says
_COLUMNS = ("source", "target", "text", "translation", "cut", "sha256")
_ROWS = f"SELECT {', '.join(_COLUMNS)} FROM translations"
_PUT = f"INSERT OR REPLACE INTO translations ({', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?)"


class Entry(NamedTuple):
    """What is known of a text."""

    translation: str | None
    cut: bool = False


def memory_path(folder: Path, name: str, identity: Mapping[str, Any]) -> Path:
    """The file of one translator: readable, and never that of another. name: for people; identity: plain values."""
    digest = hashlib.sha256(_canonical(identity).encode()).hexdigest()[:12]
    return folder / f"{re.sub(r'[^A-Za-z0-9._]+', '-', name).strip('-.')[:60]}-{digest}.sqlite3"


def _canonical(values: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _sealed(*row: Any) -> tuple[Any, ...]:
    """A row's values and their checksum."""
    return (*row, hashlib.sha256(_canonical(row).encode()).hexdigest())


def _read(row: Sequence[Any]) -> tuple[Any, ...] | None:
    """The values of a row as it was written, or None. SQLite gives texts as bytes, which may be none any more."""
    try:
        read = tuple(value.decode() if isinstance(value, bytes) else value for value in row)
        whole = read[-1] is None or _sealed(*read[:-1]) == read  # an older version wrote no checksum
        return read[:-1] if whole else None
    except (TypeError, ValueError):  # a number in the place of a text, an infinity
        return None


def _connected(path: Path, wait: float, *, new: bool) -> sqlite3.Connection:
    mode = "rwc" if new else "rw"
    base = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=wait, isolation_level=None)
    base.text_factory = bytes
    return base


def mend(path: Path) -> list[str]:
    """Remove the rows of a memory that are not as they were written; what was wrong, one text a line.

    What a killed process left half committed is taken back first. Raises StoreError if the file can't be used.
    """
    with _problems(path, WAIT), closing(_connected(path, WAIT, new=False)) as base:
        try:
            found = [line.decode("utf-8", "replace") for (line,) in base.execute("PRAGMA quick_check") if line != b"ok"]
            (version,) = base.execute("PRAGMA user_version").fetchone()
            count = sum(_without(base, rows) for rows in _blocks(base)) if version == FORMAT else 0
        except sqlite3.OperationalError:
            raise
        except _MALFORMED as error:
            return [str(error)]
    return [*found, *([f"{count} rows were not as they were written, and are removed"] if count else [])]


def _blocks(base: sqlite3.Connection) -> Iterator[list[Any]]:
    """All rows, a block in one reading: others may commit between two."""
    after = "(source, target, text) > (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT))"
    order = f"ORDER BY source, target, text LIMIT {SCANNED}"
    last, rows = None, base.execute(f"{_ROWS} {order}").fetchall()
    while rows and rows[-1][:3] != last:  # what is no text any more comes after all texts, again and again
        yield rows
        last = rows[-1][:3]
        rows = base.execute(f"{_ROWS} WHERE {after} {order}", last).fetchall()


def _without(base: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> int:
    """Remove those that are not as they were written, unless somebody has mended them since; how many were."""
    bad = [row for row in rows if _read(row) is None]
    where = " AND ".join(f"CAST({name} AS BLOB) IS CAST(? AS BLOB)" for name in _COLUMNS)
    if bad:
        base.executemany(f"DELETE FROM translations WHERE {where}", bad)
    return len(bad)


@contextmanager
def _problems(path: Path, wait: float) -> Iterator[None]:
    """What the disk or SQLite refuses becomes an error that can be mended."""
    kept = "then run the same command again: what was translated is kept."
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The translation memory can't be opened: {error.strerror or error}.",
            where=str(path),
            fix=f"Make its folder writable, or give store=FOLDER elsewhere, {kept}",
        ) from error
    except sqlite3.OperationalError as error:
        said = str(error)
        fix = f"Make the file and its folder writable, or give store=FOLDER elsewhere, {kept}"
        if "full" in said:
            fix = f"Make room on the disk, {kept}"
        elif "locked" in said:
            fix = f"Another process holds it for more than {wait:g} s: wait until it is done, {kept}"
        raise StoreError(f"The translation memory can't be used: {said}.", where=str(path), fix=fix) from error
    except _MALFORMED as error:
        raise StoreError(f"The translation memory is damaged: {error}.", where=str(path), fix=AWAY) from error


class Memory:
    """The memory of one translator; a context manager. damaged: rows met that are not as they were written.

    Raises StoreError for a file that is damaged or another's, that can't be opened or written, or a full disk.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, wait: float = WAIT) -> None:
        self.path, self._identity, self._wait = path, _canonical(identity), wait
        self._base: sqlite3.Connection | None = None
        self.damaged = 0

    def __enter__(self) -> Memory:
        with _problems(self.path, self._wait):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._base = _connected(self.path, self._wait, new=True)
            try:
                self._open(self._base)
            except BaseException:
                self._base.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._base is not None:
            self._base.close()
            self._base = None

    def find(self, texts: Collection[str], source: str, target: str) -> dict[str, Entry]:
        """What is known of these texts."""
        found, damaged = self._look(texts, source, target)
        self.damaged += damaged
        return found

    def _look(self, texts: Collection[str], source: str, target: str) -> tuple[dict[str, Entry], int]:
        """What is known of these texts, and how many of their rows are not as they were written."""
        assert self._base is not None, "the memory is closed"
        wanted, found, damaged = list(texts), dict[str, Entry](), 0
        with _problems(self.path, self._wait):
            for start in range(0, len(wanted), LOOKED_UP):
                part = wanted[start : start + LOOKED_UP]
                marks = ",".join("?" * len(part))
                query = f"{_ROWS} WHERE source = ? AND target = ? AND text IN ({marks})"
                for row in self._base.execute(query, (source, target, *part)):
                    if (read := _read(row)) is not None:
                        found[read[2]] = Entry(read[3], bool(read[4]))
                    else:
                        damaged += 1
        return found, damaged

    def add(self, entries: Mapping[str, Entry], source: str, target: str) -> dict[str, Entry]:
        """Commit what was translated, and give what the memory holds of these texts now: the first one stays."""
        assert self._base is not None, "the memory is closed"
        with _problems(self.path, self._wait), self._transaction(self._base):
            known, _ = self._look(entries, source, target)
            missing = {text: entry for text, entry in entries.items() if text not in known}
            rows = [_sealed(source, target, text, one.translation, int(one.cut)) for text, one in missing.items()]
            self._base.executemany(_PUT, rows)
        return known | missing

    def _open(self, base: sqlite3.Connection) -> None:
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version not in (0, UNSEALED, FORMAT):
            raise StoreError(
                f"The translation memory has format {version}, this kdlab reads format {FORMAT}.",
                where=str(self.path),
                fix="Use the kdlab that wrote it, or move the file away: its texts are then translated again.",
            )
        with self._transaction(base):
            for statement in _TABLES.split(";"):
                base.execute(statement)
            (version,) = base.execute("PRAGMA user_version").fetchone()  # another process may have been here
            if version == UNSEALED:
                base.execute("ALTER TABLE translations ADD COLUMN sha256 TEXT")
            known = base.execute("SELECT identity FROM translator").fetchone()
            if known is None:
                base.execute("INSERT INTO translator VALUES (?)", (self._identity,))
            if version != FORMAT:
                base.execute(f"PRAGMA user_version = {FORMAT}")
        found = self._identity if known is None else known[0].decode("utf-8", "replace")
        if found != self._identity:
            raise StoreError(
                f"The translation memory is another translator's.\n  wanted: {self._identity}\n  found:  {found}",
                where=str(self.path),
                fix="Move the file away: its texts are then translated again.",
            )

    @contextmanager
    def _transaction(self, base: sqlite3.Connection) -> Iterator[None]:
        base.execute("BEGIN IMMEDIATE")
        try:
            yield
            base.execute("COMMIT")
        except BaseException:
            if base.in_transaction:
                base.execute("ROLLBACK")
            raise


class Remembered:
    """A `Translate` that translates nothing twice: what the memory holds is taken from it, the rest is added to it.

    Equal texts of a call are translated once. Of the calls so far: `fresh`, how many different texts were translated;
    `remembered`, how many the memory held; `cut`, how many of both were cut.

    block: texts handed to `translate` at once, and committed when it is done with them.
    cut: which texts of its last call `translate` has cut; None: it cuts none.
    progress: told how many of how many different texts are there, after the look-up and after each block.
    """

    def __init__(
        self,
        translate: Translate,
        memory: Memory,
        *,
        block: int = BLOCK,
        cut: Callable[[], Collection[str]] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._translate, self._memory, self._block, self._cut, self._progress = translate, memory, block, cut, progress
        self.fresh = self.remembered = self.cut = 0

    def __call__(self, texts: Sequence[str], source: str, target: str) -> list[str | None]:
        different = list(dict.fromkeys(texts))
        known = self._memory.find(different, source, target)
        self.remembered += len(known)
        self._progress(len(known), len(different))
        missing = [text for text in different if text not in known]
        for start in range(0, len(missing), self._block):
            part = missing[start : start + self._block]
            translated = self._translate(part, source, target)
            cut = frozenset(self._cut()) if self._cut else frozenset()
            entries = {text: Entry(one, text in cut) for text, one in zip(part, translated, strict=True)}
            known |= self._memory.add(entries, source, target)
            self.fresh += len(part)
            self._progress(len(known), len(different))
        self.cut += sum(entry.cut for entry in known.values())
        return [known[text].translation for text in texts]
