"""The store never shows half of an artifact, and says what to do when the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from kdlab.artifacts import MANIFEST, Artifact, Store, write_json
from kdlab.errors import StoreError, TrainingError, disk_errors
from lab import permissions_hold

BUILDER = """
import sys, time
from pathlib import Path
from kdlab.artifacts import Store

store, log = Store(sys.argv[1]), Path(sys.argv[2])
def waiting():
    log.with_suffix(".waiting").touch()
with store.locked("one-1", waiting):
    if store.find("one-1") is None:
        print("built", flush=True)
        folder = store.begin("one-1")
        (folder / "a.txt").write_text("a")
        while len(sys.argv) > 3 and not Path(sys.argv[3]).exists():
            time.sleep(0.02)
        store.publish("one-1", {"made": {"at": "2026-01-01T00:00:00+00:00"}})
    else:
        print("taken", flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(second: int = 0) -> dict[str, Any]:
    return {"made": {"at": f"2026-01-01T00:00:{second:02d}+00:00"}}


def put(store: Store, name: str, second: int = 0, **files: str) -> Artifact:
    folder = store.begin(name)
    for path, text in (files or {"a.txt": "a"}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return store.publish(name, made(second))


def builder(store: Store, log: Path, *rest: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(store.root), str(log), *rest], stdout=subprocess.PIPE, text=True
    )


def wait_for(seen: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < until
        time.sleep(0.02)


# publishing


def test_what_is_published_is_found_whole(store: Store) -> None:
    assert store.find("one-1") is None
    folder = store.begin("one-1")
    (folder / "work" / "checkpoint").write_text("half")
    artifact = put(store, "one-1", **{"a.txt": "a", "model/b.txt": "bb"})
    assert artifact.path == store.path("one-1") and not store.building("one-1").exists()
    assert {path.name for path in artifact.path.iterdir()} == {"a.txt", "model", MANIFEST}
    assert artifact.manifest["files"].keys() == {"a.txt", "model/b.txt"} and artifact.bytes == 3
    found = store.find("one-1")
    assert found is not None and found.manifest == artifact.manifest
    assert store.verify() == []


def test_published_files_are_read_only(store: Store) -> None:
    artifact = put(store, "one-1")
    assert (artifact.path / "a.txt").stat().st_mode & 0o222 == 0


def test_the_manifest_comes_last_and_the_rename_after_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    replace, rename = os.replace, os.rename

    def replaced(source: Any, target: Any) -> None:
        assert store.find("one-1") is None
        steps.append(f"manifest with {sorted(path.name for path in Path(target).parent.glob('*.txt'))}")
        replace(source, target)

    def renamed(source: Any, target: Any) -> None:
        assert store.find("one-1") is None
        whole = (store.building("one-1") / MANIFEST).exists()
        steps.append(f"{Path(source).name} to {Path(target).parent.name}" if whole else "too early")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "rename", renamed)
    put(store, "one-1", **{"a.txt": "a", "b.txt": "b"})
    assert steps == ["manifest with ['a.txt', 'b.txt']", "work to building", "one-1 to store"]


@pytest.mark.parametrize("killed_in", ["write_json", "rename"])
def test_what_was_killed_while_publishing_is_not_found(
    store: Store, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"kdlab.artifacts.{'os.rename' if killed_in == 'rename' else killed_in}", killed)
        with pytest.raises(KeyboardInterrupt):
            put(store, "one-1")
    assert store.find("one-1") is None and store.artifacts() == []
    assert [folder.name for folder in store.unfinished()] == ["one-1"]
    assert put(store, "one-1").manifest["files"].keys() == {"a.txt"}  # the next attempt succeeds
    assert store.verify() == [] and store.unfinished() == []


def test_checkpoints_outlive_a_kill_while_publishing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    folder = store.begin("one-1")
    (folder / "work" / "checkpoint").write_text("hours")
    with monkeypatch.context() as patch:
        patch.setattr("kdlab.artifacts.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            put(store, "one-1")
    (folder / "manifest.json.1.tmp").write_text("torn")
    assert (store.begin("one-1") / "work" / "checkpoint").read_text() == "hours"
    assert put(store, "one-1").manifest["files"].keys() == {"a.txt"}
    assert store.unfinished() == []


def test_a_folder_without_manifest_is_not_an_artifact(store: Store) -> None:
    (store.path("one-1")).mkdir(parents=True)
    (store.path("one-1") / "a.txt").write_text("a")
    assert store.find("one-1") is None and store.artifacts() == []


def test_an_artifact_is_replaced_whole(store: Store) -> None:
    put(store, "one-1", **{"a.txt": "old", "old.txt": "old"})
    folder = store.begin("one-1")
    (folder / "a.txt").write_text("new")
    found = store.find("one-1")
    assert found is not None and (found.path / "a.txt").read_text() == "old"
    artifact = store.publish("one-1", made())
    assert (artifact.path / "a.txt").read_text() == "new" and not (artifact.path / "old.txt").exists()
    assert store.unfinished() == [] and store.verify() == []


def test_a_manifest_of_another_format_or_of_no_format_is_refused(store: Store) -> None:
    artifact = put(store, "one-1")
    file = artifact.path / MANIFEST
    write_json(file, {**artifact.manifest, "format": 99})
    with pytest.raises(StoreError, match="format 99"):
        store.find("one-1")
    file.write_text("{half")
    with pytest.raises(StoreError, match="can't be read") as caught:
        store.find("one-1")
    assert caught.value.fix and caught.value.where == str(file)


def test_artifacts_are_listed_oldest_first(store: Store) -> None:
    put(store, "b-2", 1)
    put(store, "a-1", 2)
    put(store, "c-3", 0)
    store.begin("d-4")
    assert [artifact.path.name for artifact in store.artifacts()] == ["c-3", "b-2", "a-1"]
    assert [folder.name for folder in store.unfinished()] == ["d-4"]


# verifying


def test_verify_names_every_damage(store: Store) -> None:
    put(store, "whole-0")
    damaged = put(store, "one-1", **{"flipped.txt": "abc", "gone.txt": "x", "deep/same.txt": "y"}).path
    (damaged / "flipped.txt").chmod(0o644)
    (damaged / "flipped.txt").write_text("abd")
    (damaged / "gone.txt").unlink()
    (damaged / "deep" / "extra.txt").write_text("")
    assert store.verify() == [
        "one-1/deep/extra.txt: not in the manifest",
        "one-1/flipped.txt: changed since it was published",
        "one-1/gone.txt: missing",
    ]


def test_verify_names_a_manifest_that_cannot_be_read(store: Store) -> None:
    put(store, "whole-0")
    broken = put(store, "one-1").path / MANIFEST
    broken.write_text("{half")
    (line,) = store.verify()
    assert line.startswith(f"one-1/{MANIFEST}: the manifest of one-1 can't be read")


# pruning


def test_prune_keeps_what_is_used_and_removes_only_when_told(store: Store) -> None:
    put(store, "used-1")
    put(store, "unused-2", **{"a.txt": "12345"})
    (store.begin("interrupted-3") / "work" / "checkpoint").write_text("123")
    size = sum(path.stat().st_size for path in store.path("unused-2").iterdir())
    expected = [("unused-2", size), ("interrupted-3", 3)]
    assert store.prune({"used-1"}, remove=False) == expected
    assert store.find("unused-2") is not None and store.unfinished()
    assert store.prune({"used-1"}, remove=True) == expected
    assert store.find("unused-2") is None and not store.unfinished()
    assert [artifact.path.name for artifact in store.artifacts()] == ["used-1"]
    assert store.prune({"used-1"}, remove=True) == []


def test_prune_leaves_interrupted_work_of_a_used_artifact(store: Store) -> None:
    store.begin("used-1")
    assert store.prune({"used-1"}, remove=True) == [] and store.unfinished()


def test_prune_looks_at_the_age(store: Store) -> None:
    put(store, "young-1")
    old = put(store, "old-2").path
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    assert [name for name, _ in store.prune(set(), older_than_days=2, remove=True)] == ["old-2"]
    assert store.find("young-1") is not None


def test_prune_leaves_what_another_process_holds(store: Store, tmp_path: Path) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    put(store, "free-2")
    process = builder(store, log, str(go))
    try:
        wait_for(lambda: store.building("one-1").exists())
        assert [name for name, _ in store.prune(set(), remove=True)] == ["free-2"]
        assert (store.building("one-1") / "a.txt").exists()
    finally:
        go.touch()
        process.communicate(timeout=60)
    assert store.find("one-1") is not None


def test_prune_of_no_store(store: Store) -> None:
    assert store.prune(set(), remove=True) == [] and store.artifacts() == [] and store.verify() == []


# locking


def test_of_two_processes_one_builds_and_the_other_takes_it(store: Store, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = builder(store, tmp_path / "first", str(go))
    wait_for(lambda: store.building("one-1").exists())
    second = builder(store, tmp_path / "second", str(go))
    wait_for((tmp_path / "second.waiting").exists)
    assert second.poll() is None and not (tmp_path / "first.waiting").exists()
    go.touch()
    assert first.communicate(timeout=60)[0] == "built\n"
    assert second.communicate(timeout=60)[0] == "taken\n"
    assert first.returncode == second.returncode == 0 and store.verify() == []


def test_the_lock_of_a_dead_owner_is_free(store: Store, tmp_path: Path) -> None:
    process = builder(store, tmp_path / "log", str(tmp_path / "never"))
    wait_for(lambda: (store.building("one-1") / "a.txt").exists())
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert process.stdout is not None
    process.stdout.close()
    waited: list[bool] = []
    with store.locked("one-1", waiting=lambda: waited.append(True)):
        assert store.find("one-1") is None
    assert waited == []


def test_locks_of_different_artifacts_are_apart_and_end_with_an_error(store: Store) -> None:
    with pytest.raises(RuntimeError), store.locked("one-1"), store.locked("two-2"):
        raise RuntimeError
    waited: list[bool] = []
    with store.locked("one-1", waiting=lambda: waited.append(True)):
        assert waited == []


# the disk


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "writable"),
    ],
)
def test_a_disk_that_refuses_is_a_store_error_with_a_fix(number: int, fix: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="saving failed") as caught, disk_errors("saving", tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))
    assert fix in str(caught.value.fix) and caught.value.where == str(tmp_path / "file")


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # as of tokenizers
        OSError("[Errno 28] Error writing bytes to file"),  # as of pyarrow
    ],
)
def test_a_refusal_that_only_the_text_tells(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(StoreError, match="saving failed: No space left"), disk_errors("saving", tmp_path):
        raise error


def test_damage_is_said_instead_of_what_comes_of_it(store: Store) -> None:
    folder = put(store, "one-1", **{"a.txt": "a", "b.txt": "b"}).path
    with pytest.raises(ValueError, match="own"), store.reading(["one-1"]):
        raise ValueError("own")
    (folder / "a.txt").unlink()
    with pytest.raises(StoreError, match=r"damaged: one-1/a\.txt: missing") as caught, store.reading(["one-1"]):
        (folder / "a.txt").read_text()
    assert caught.value.where == str(folder) and "made anew" in str(caught.value.fix)
    with pytest.raises(StoreError, match="two-2 was removed from the store"), store.reading(["two-2"]):
        raise FileNotFoundError
    with pytest.raises(TrainingError), store.reading(["one-1"]):
        raise TrainingError("own")


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1}'])
def test_a_manifest_that_is_not_whole(store: Store, content: str) -> None:
    file = put(store, "one-1").path / MANIFEST
    file.write_text(content)
    with pytest.raises(StoreError, match="manifest of one-1 is not whole"):
        store.find("one-1")
    assert store.artifacts() == [] and len(store.verify()) == 1


def test_other_errors_of_the_system_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors("reading", tmp_path):
        (tmp_path / "absent").read_text()


def test_a_full_disk_while_publishing_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "one-1", **{"a.txt": "old"})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left") as caught:
            put(store, "one-1", **{"a.txt": "new"})
    assert "finished work is kept" in str(caught.value.fix)
    found = store.find("one-1")
    assert found is not None and (found.path / "a.txt").read_text() == "old"
    assert (store.building("one-1") / "a.txt").read_text() == "new"


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    store = Store(folder / "store")
    with permissions_hold():
        for attempt in (lambda: store.begin("one-1"), lambda: store.locked("one-1").__enter__()):
            with pytest.raises(StoreError, match="creating the store failed") as caught:
                attempt()
            assert "store=" in str(caught.value.fix)
    assert store.find("one-1") is None


def test_a_store_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    assert store.find("one-1") is None
    for attempt in (lambda: store.begin("one-1"), lambda: store.locked("one-1").__enter__()):
        with pytest.raises(StoreError, match="Not a directory") as caught:
            attempt()
        assert "a file is in the way" in str(caught.value.fix)


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError):
        write_json(file, {"a": float("nan")})
    assert json.loads(file.read_text()) == {"a": 1}
