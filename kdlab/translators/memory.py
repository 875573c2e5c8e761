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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from kdlab.errors import StoreError

Translate = Callable[[Sequence[str], str, str], "list[str | None]"]
"""(texts, source language, target language) -> their translations in order, None where there is none."""

BLOCK = 256  # texts between two commits
WAIT = 60.0  # seconds for another process's commit
LOOKED_UP = 500  # texts in one query: SQLite before 3.32 allows 999 parameters
UNSEALED, FORMAT = 1, 2  # an older version's rows have no checksums; they get them when the file is opened

_TABLES = """
CREATE TABLE IF NOT EXISTS translator (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS translations (
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    text TEXT NOT NULL,
    translation TEXT,
    cut INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (source, target, text)
) WITHOUT ROWID;
"""


MEND = (
    "Rows that are not as they were written are translated again by whoever needs them. A file that SQLite can't read: "
    "move it away, and what lies beside it with its name; its texts are then translated again."
)
_ADDED = "ALTER TABLE translations ADD COLUMN sha256 TEXT NOT NULL DEFAULT ''"
_ROWS = "SELECT source, target, text, translation, cut, sha256 FROM translations"
_PUT = "INSERT OR REPLACE INTO translations (source, target, text, translation, cut, sha256) VALUES (?, ?, ?, ?, ?, ?)"


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


def _whole(row: Sequence[Any]) -> bool:
    try:
        return _sealed(*row[:-1]) == tuple(row)
    except (TypeError, ValueError):  # a blob, an infinity: SQLite keeps a value's kind beside the value
        return False


def damage(path: Path) -> list[str]:
    """What of a memory is not as it was written, one text a line. Changes nothing."""
    base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=WAIT)
    base.text_factory = _text
    try:
        (version,) = base.execute("PRAGMA user_version").fetchone()
        found = [line for (line,) in base.execute("PRAGMA integrity_check") if line != "ok"]
        if version == FORMAT:
            count = sum(not _whole(row) for row in base.execute(_ROWS))
            found += [f"{count} rows are not as they were written"] if count else []
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    finally:
        base.close()
    return found


def _text(content: bytes) -> str:
    """Bytes that are no UTF-8 any more are damage that the checksum tells."""
    return content.decode("utf-8", "replace")


class Memory:
    """The memory of one translator; a context manager. damaged: rows met that are not as they were written.

    Raises StoreError for a file that is damaged or another's, that can't be opened or written, or a full disk.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, wait: float = WAIT) -> None:
        self.path, self._identity, self._wait = path, _canonical(identity), wait
        self._base: sqlite3.Connection | None = None
        self.damaged = 0

    def __enter__(self) -> Memory:
        with self._problems():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self.path, timeout=self._wait, isolation_level=None)
            self._base.text_factory = _text
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
        assert self._base is not None, "the memory is closed"
        wanted, found = list(texts), {}
        with self._problems():
            for start in range(0, len(wanted), LOOKED_UP):
                part = wanted[start : start + LOOKED_UP]
                marks = ",".join("?" * len(part))
                query = f"{_ROWS} WHERE source = ? AND target = ? AND text IN ({marks})"
                for row in self._base.execute(query, (source, target, *part)):
                    if _whole(row):
                        found[row[2]] = Entry(row[3], bool(row[4]))
                    else:
                        self.damaged += 1
        return found

    def add(self, entries: Mapping[str, Entry], source: str, target: str) -> dict[str, Entry]:
        """Commit what was translated, and give what the memory holds of these texts now: the first one stays."""
        assert self._base is not None, "the memory is closed"
        with self._problems(), self._transaction(self._base):
            before = self.damaged
            known = self.find(entries, source, target)
            self.damaged = before  # they were met when these texts were looked for
            missing = {text: entry for text, entry in entries.items() if text not in known}
            self._put(self._base, ((source, target, text, *entry) for text, entry in missing.items()))
        return known | missing

    def _put(self, base: sqlite3.Connection, rows: Iterable[tuple[str, str, str, str | None, bool]]) -> None:
        base.executemany(_PUT, [_sealed(*row[:-1], int(row[-1])) for row in rows])

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
                base.execute(_ADDED)
                self._put(base, [row[:-1] for row in base.execute(_ROWS).fetchall()])
            known = base.execute("SELECT identity FROM translator").fetchone()
            if known is None:
                base.execute("INSERT INTO translator VALUES (?)", (self._identity,))
            if version != FORMAT:
                base.execute(f"PRAGMA user_version = {FORMAT}")
        if known is not None and known[0] != self._identity:
            raise StoreError(
                f"The translation memory is another translator's.\n  wanted: {self._identity}\n  found:  {known[0]}",
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

    @contextmanager
    def _problems(self) -> Iterator[None]:
        """What the disk or SQLite refuses becomes an error that can be mended."""
        kept = "then run the same command again: what was translated is kept."
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"The translation memory can't be opened: {error.strerror or error}.",
                where=str(self.path),
                fix=f"Make its folder writable, or give store=FOLDER elsewhere, {kept}",
            ) from error
        except sqlite3.OperationalError as error:
            said = str(error)
            fix = f"Make the file and its folder writable, or give store=FOLDER elsewhere, {kept}"
            if "full" in said:
                fix = f"Make room on the disk, {kept}"
            elif "locked" in said:
                fix = f"Another process holds it for more than {self._wait:g} s: wait until it is done, {kept}"
            raise StoreError(f"The translation memory can't be used: {said}.", where=str(self.path), fix=fix) from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"The translation memory is damaged: {error}.",
                where=str(self.path),
                fix=MEND,
            ) from error


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
