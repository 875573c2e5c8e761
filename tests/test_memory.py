"""The translation memory: nothing is translated twice, whatever else happens."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from kdlab.errors import StoreError
from kdlab.translators.memory import Entry, Memory, Remembered, memory_path, mend
from lab import permissions_hold

WHO = {"kind": "test", "version": 1}


class Shouting:
    """Translates into capitals; has none of what holds a "?"; cuts what is longer than ten letters."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.cut: set[str] = set()

    def __call__(self, texts: Sequence[str], source: str, target: str) -> list[str | None]:
        self.asked.append(list(texts))
        self.cut = {text for text in texts if len(text) > 10}
        return [None if "?" in text else text[:10].upper() for text in texts]


def memory(folder: Path, identity: dict[str, object] = WHO, **more: float) -> Memory:
    return Memory(memory_path(folder, "test", identity), identity, **more)


def test_what_was_added_is_found(tmp_path: Path) -> None:
    entries = {"dog": Entry("perro"), "¿qué? 🙂": Entry(None), "": Entry("", True)}
    with memory(tmp_path) as opened:
        assert opened.find(["dog"], "en", "es") == {}
        assert opened.add(entries, "en", "es") == entries
    with memory(tmp_path) as opened:
        assert opened.find([*entries, "cat"], "en", "es") == entries
        assert opened.find(entries, "en", "fr") == opened.find(entries, "es", "en") == {}


def test_more_texts_than_a_query_takes(tmp_path: Path) -> None:
    entries = {f"text {number}": Entry(f"texto {number}") for number in range(2345)}
    with memory(tmp_path) as opened:
        opened.add(entries, "en", "es")
        assert opened.find(entries, "en", "es") == entries


def test_the_first_translation_stays(tmp_path: Path) -> None:
    with memory(tmp_path) as one, memory(tmp_path) as other:
        assert one.add({"dog": Entry("perro")}, "en", "es") == {"dog": Entry("perro")}
        assert other.add({"dog": Entry("can")}, "en", "es") == {"dog": Entry("perro")}


def test_each_translator_has_a_file_of_its_own(tmp_path: Path) -> None:
    paths = {memory_path(tmp_path, "a/b: c", {"version": version}) for version in (1, 2)}
    assert len(paths) == 2 and all(path.name.startswith("a-b-c-") and path.suffix == ".sqlite3" for path in paths)
    assert memory_path(tmp_path, "x", {"a": 1, "b": 2}) == memory_path(tmp_path, "x", {"b": 2, "a": 1})


# through it


def test_only_what_is_missing_is_translated(tmp_path: Path) -> None:
    shouting = Shouting()
    with memory(tmp_path) as opened:
        ask = Remembered(shouting, opened)
        assert ask(["dog", "cat", "dog", "who?"], "en", "es") == ["DOG", "CAT", "DOG", None]
        assert (ask.fresh, ask.remembered) == (3, 0)
    with memory(tmp_path) as opened:
        ask = Remembered(shouting, opened)
        assert ask(["who?", "cow", "cat"], "en", "es") == [None, "COW", "CAT"]
        assert (ask.fresh, ask.remembered) == (1, 2)
        assert ask([], "en", "es") == []
    assert shouting.asked == [["dog", "cat", "who?"], ["cow"]]


def test_what_was_cut_is_remembered_too(tmp_path: Path) -> None:
    shouting = Shouting()
    texts = ["a long sentence", "short", "another long one"]
    with memory(tmp_path) as opened:
        for fresh in (True, False):
            ask = Remembered(shouting, opened, cut=lambda: shouting.cut, block=2)
            assert ask(texts, "en", "es") == ["A LONG SEN", "SHORT", "ANOTHER LO"]
            assert (ask.cut, bool(ask.fresh)) == (2, fresh)


def test_blocks_and_progress(tmp_path: Path) -> None:
    shouting, told = Shouting(), []
    with memory(tmp_path) as opened:
        opened.add({"b": Entry("B")}, "en", "es")
        ask = Remembered(shouting, opened, block=2, progress=lambda done, total: told.append((done, total)))
        assert ask(list("abcdea"), "en", "es") == list("ABCDEA")
    assert shouting.asked == [["a", "c"], ["d", "e"]]
    assert told == [(1, 5), (3, 5), (5, 5)]


def test_a_translator_that_fails_loses_its_block_only(tmp_path: Path) -> None:
    def failing(texts: Sequence[str], source: str, target: str) -> list[str | None]:
        if "e" in texts:
            raise ZeroDivisionError
        return [text.upper() for text in texts]

    with memory(tmp_path) as opened, pytest.raises(ZeroDivisionError):
        Remembered(failing, opened, block=2)(list("abcdef"), "en", "es")
    with memory(tmp_path) as opened:
        assert sorted(opened.find(list("abcdef"), "en", "es")) == list("abcd")


SLOW = """
    import sys, time
    from pathlib import Path
    from kdlab.translators.memory import Memory, Remembered, memory_path

    def slow(texts, source, target):
        time.sleep(0.05)
        return [text.upper() for text in texts]

    identity = {"kind": "test", "version": 1}
    with Memory(memory_path(Path(sys.argv[1]), "test", identity), identity) as memory:
        said = lambda done, total: print(done, flush=True)
        Remembered(slow, memory, block=10, progress=said)([f"text {n}" for n in range(10_000)], "en", "es")
"""


def test_a_killed_process_loses_its_block_only(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        done = 0
        while done < 50:
            done = int(process.stdout.readline())
        process.kill()
    assert process.returncode == -signal.SIGKILL
    texts = [f"text {number}" for number in range(10_000)]
    with memory(tmp_path) as opened:
        found = opened.find(texts, "en", "es")
    assert done <= len(found) <= done + 500 and list(found) and len(found) % 10 == 0
    assert set(found) == set(texts[: len(found)])


def _write(folder: Path, worker: int) -> None:
    with memory(folder) as opened:
        ask = Remembered(lambda texts, *_: [f"{text} by {worker}" for text in texts], opened, block=5)
        found = ask([f"text {number}" for number in range(100)], "en", "es")
        (folder / f"{worker}.txt").write_text("\n".join(map(str, found)))


def test_processes_agree_on_what_was_first(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_write, args=(tmp_path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len({(tmp_path / f"{worker}.txt").read_text() for worker in range(3)}) == 1


# what can go wrong


def test_a_damaged_file(tmp_path: Path) -> None:
    path = memory_path(tmp_path, "test", WHO)
    path.write_bytes(b"no data base at all" * 100)
    with pytest.raises(StoreError, match="damaged: file is not a database") as caught, memory(tmp_path):
        pass
    assert caught.value.where == str(path) and "Move the file away" in str(caught.value.fix)


def test_damage_in_the_middle_of_a_file(tmp_path: Path) -> None:
    texts = {f"text {number}": Entry("x" * 200) for number in range(2000)}
    with memory(tmp_path) as opened:
        opened.add(texts, "en", "es")
    path = memory_path(tmp_path, "test", WHO)
    content = bytearray(path.read_bytes())
    content[8192 : len(content) // 2] = b"\xff" * (len(content) // 2 - 8192)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"), memory(tmp_path) as opened:
        opened.find(texts, "en", "es")


def test_whichever_bit_changes_no_wrong_translation_is_given(tmp_path: Path) -> None:
    """Rows that are damaged are translated again; a file that is, is named."""
    texts = [f"Is this text number {number}, or is it the {number + 1}th?" for number in range(40)]
    with memory(tmp_path) as opened:
        wanted = Remembered(lambda *asked: [text.upper() for text in asked[0]], opened)(texts, "en", "es")
    path, draw = memory_path(tmp_path, "test", WHO), random.Random(0)
    whole = path.read_bytes()
    used = [place for place, byte in enumerate(whole) if byte]
    named = mended = lasting = removed = 0
    for place in draw.sample(used, 400):
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        fresh = 0
        try:
            with memory(tmp_path) as opened:
                again = Remembered(lambda *asked: [text.upper() for text in asked[0]], opened)
                assert again(texts, "en", "es") == wanted, place
                fresh = again.fresh
        except StoreError as error:
            named += 1
            assert error.where == str(path), place
            continue
        mended += bool(fresh)
        with suppress(StoreError), memory(tmp_path) as opened:
            lasting += bool(fresh) and len(opened.find(texts, "en", "es")) == len(texts)
        path.write_bytes(changed)
        told = mend(path)
        removed += told == ["1 rows were not as they were written, and are removed"] and mend(path) == []
    assert named > 10 and mended > 200 and lasting > 0.8 * mended  # a key out of its order is not found again
    assert removed > 0.8 * mended


def test_what_an_older_version_wrote_is_kept(tmp_path: Path) -> None:
    with sqlite3.connect(memory_path(tmp_path, "test", WHO)) as base:
        base.execute("CREATE TABLE translator (identity TEXT NOT NULL)")
        base.execute("INSERT INTO translator VALUES (?)", (json.dumps(WHO, sort_keys=True, separators=(",", ":")),))
        base.execute(
            "CREATE TABLE translations (source TEXT NOT NULL, target TEXT NOT NULL, text TEXT NOT NULL, "
            "translation TEXT, cut INTEGER NOT NULL, PRIMARY KEY (source, target, text)) WITHOUT ROWID"
        )
        rows = [("en", "es", "dog", "perro", 0), ("en", "es", "¿qué?", None, 0), ("en", "es", "long", "l", 1)]
        base.executemany("INSERT INTO translations VALUES (?, ?, ?, ?, ?)", rows)
        base.execute("PRAGMA user_version = 1")
    base.close()
    wanted = {"dog": Entry("perro"), "¿qué?": Entry(None), "long": Entry("l", True)}
    for _ in range(2):
        with memory(tmp_path) as opened:
            assert opened.find([*wanted, "cat"], "en", "es") == wanted and not opened.damaged
    assert mend(memory_path(tmp_path, "test", WHO)) == []


def test_mending_looks_at_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdlab.translators.memory.SCANNED", 10)
    entries = {f"text {number:03}": Entry(f"texto {number}") for number in range(95)}
    path = memory_path(tmp_path, "test", WHO)
    with memory(tmp_path) as opened:
        opened.add(entries, "en", "es")
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("UPDATE translations SET translation = 'wrong' WHERE text LIKE 'text 09_'")
        base.execute("UPDATE translations SET text = x'ff' WHERE text = 'text 050'")
        base.execute("UPDATE translations SET cut = 'x' WHERE text = 'text 000'")
    assert mend(path) == ["7 rows were not as they were written, and are removed"]
    assert mend(path) == []
    with memory(tmp_path) as opened:
        assert len(opened.find(entries, "en", "es")) == 88


def test_what_was_half_committed_is_taken_back_and_no_damage(tmp_path: Path) -> None:
    with memory(tmp_path) as opened:
        opened.add({"dog": Entry("perro")}, "en", "es")
    path = memory_path(tmp_path, "test", WHO)
    code = (
        "import os, signal, sqlite3, sys; base = sqlite3.connect(sys.argv[1]); base.execute('PRAGMA cache_size = 1'); "
        "[base.execute('INSERT INTO translations VALUES (?, ?, ?, ?, 0, ?)', ('a', 'b', str(n) * 400, 'c', 'd')) "
        "for n in range(500)]; os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.with_name(f"{path.name}-journal").stat().st_size > 0
    assert mend(path) == []
    with memory(tmp_path) as opened:
        assert opened.find(["dog"], "en", "es") == {"dog": Entry("perro")}


def test_a_memory_that_is_locked_or_forbidden_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdlab.translators.memory.WAIT", 0.1)
    path = memory_path(tmp_path, "test", WHO)
    with memory(tmp_path), closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="can't be used: database is locked"):
            mend(path)
        other.execute("ROLLBACK")
    path.chmod(0o000)
    with permissions_hold(), pytest.raises(StoreError, match="can't be used: unable to open database file"):
        mend(path)


def test_another_translators_file(tmp_path: Path) -> None:
    with memory(tmp_path):
        pass
    other = {**WHO, "version": 2}
    os.rename(memory_path(tmp_path, "test", WHO), memory_path(tmp_path, "test", other))
    with pytest.raises(StoreError, match="another translator's"), memory(tmp_path, other):
        pass


def test_a_file_of_another_format(tmp_path: Path) -> None:
    with sqlite3.connect(memory_path(tmp_path, "test", WHO)) as base:
        base.execute("PRAGMA user_version = 7")
    base.close()
    with pytest.raises(StoreError, match="format 7, this kdlab reads format 2"), memory(tmp_path):
        pass


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be opened: ") as caught, memory(tmp_path / "file" / "translations"):
        pass
    assert "store=FOLDER" in str(caught.value.fix)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    memory_path(tmp_path, "test", WHO).mkdir()
    with pytest.raises(StoreError, match="can't be used: unable to open database file"), memory(tmp_path):
        pass


def test_a_full_disk_keeps_what_is_there(tmp_path: Path) -> None:
    with memory(tmp_path) as opened:
        opened.add({"dog": Entry("perro")}, "en", "es")
        assert opened._base is not None
        opened._base.execute("PRAGMA max_page_count = 10")  # what SQLite then says is what it says of a full disk
        with pytest.raises(StoreError, match="can't be used: database or disk is full") as caught:
            opened.add({f"text {number}": Entry("x" * 500) for number in range(500)}, "en", "es")
        assert "Make room on the disk" in str(caught.value.fix)
        assert opened.find(["dog", "text 0"], "en", "es") == {"dog": Entry("perro")}


def test_a_process_that_never_lets_go(tmp_path: Path) -> None:
    with memory(tmp_path), sqlite3.connect(memory_path(tmp_path, "test", WHO), isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        with pytest.raises(StoreError, match="database is locked") as caught, memory(tmp_path, wait=0.2):
            pass
        assert time.monotonic() - started < 30
        assert "more than 0.2 s" in str(caught.value.fix)
        other.execute("ROLLBACK")
    other.close()
