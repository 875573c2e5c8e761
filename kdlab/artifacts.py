"""The store: one folder per finished stage, found by fingerprint.

    STORE/<stage>-<fingerprint>/   a published artifact: its files and manifest.json
    STORE/building/<artifact>/     a stage in progress, or interrupted; its checkpoints are in `work/`
    STORE/locks/<artifact>.lock    held while a process builds the artifact

An artifact is published by renaming its folder after the manifest was written, so a half-written one is never found.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlab.errors import HubError, KdlabError, StoreError, TrainingError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """A published artifact."""

    path: Path
    manifest: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.manifest.get("facts", {}))

    @property
    def bytes(self) -> int:
        return sum(int(entry["bytes"]) for entry in self.manifest["files"].values())


@contextmanager
def disk_errors(doing: str, where: Path, *, place: str = "`store=` and `outputs=`") -> Iterator[None]:
    """Turn the operating system's refusals into a `StoreError` that says what to do. place: what names another disk."""
    try:
        yield
    except KdlabError:
        raise
    except Exception as error:
        number = _refusal(error)
        fixes = {
            28: f"free some space, or point {place} at another disk; finished work is kept",
            122: f"raise the quota, or point {place} elsewhere; finished work is kept",
            30: f"the file system is read-only: point {place} at a place that can be written",
            13: f"make the folder writable, or point {place} elsewhere",
            20: f"a file is in the way: point {place} at a folder",
        }
        if number not in fixes:
            raise
        place = str(getattr(error, "filename", None) or where)
        raise StoreError(f"{doing} failed: {os.strerror(number)}", where=place, fix=fixes[number]) from error


def _refusal(error: Exception) -> int | None:
    """The operating system's error number; safetensors and pyarrow have it in their text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = re.search(r"(?:os error |\[Errno )(\d+)", str(error))
    return int(said.group(1)) if said else None


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never half of it."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(scratch, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Store:
    """Artifacts in one folder, shared by every run and process that names it."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()

    def path(self, name: str) -> Path:
        return self.root / name

    def building(self, name: str) -> Path:
        return self.root / "building" / name

    def find(self, name: str) -> Artifact | None:
        """The published artifact of this name, or None."""
        manifest = self.path(name) / MANIFEST
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, OSError) as error:
            raise StoreError(
                f"the manifest of {name} can't be read: {error}",
                where=str(manifest),
                fix="remove the folder; the stage then runs again",
            ) from error
        if not isinstance(content, dict) or not content.keys() >= {"format", "files", "made"}:
            raise StoreError(
                f"the manifest of {name} is not whole",
                where=str(manifest),
                fix="remove the folder; the stage then runs again",
            )
        if content.get("format") != FORMAT:
            raise StoreError(
                f"{name} has format {content.get('format')}, this kdlab reads format {FORMAT}",
                where=str(manifest),
                fix="use another store (store=FOLDER) or the kdlab that wrote this one",
            )
        return Artifact(self.path(name), content)

    @contextmanager
    def locked(self, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the right to build an artifact; calls `waiting` once if another process has it."""
        from filelock import FileLock, Timeout

        with disk_errors("creating the store", self.root):
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "locks" / f"{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire(poll_interval=0.2)
        try:
            yield
        finally:
            lock.release()

    def begin(self, name: str) -> Path:
        """The folder in which to build; holds what an interrupted attempt left."""
        folder = self.building(name)
        with disk_errors("creating the store", folder):
            (folder / "work").mkdir(parents=True, exist_ok=True)
            for left in folder.glob("*.tmp"):  # by `write_json` in a process that was killed
                left.unlink()
        return folder

    def publish(self, name: str, manifest: Mapping[str, Any]) -> Artifact:
        """Seal what was built and make it findable under its name; replaces an older artifact of that name."""
        folder, final = self.building(name), self.path(name)
        work = self.root / "building" / f"{name}.done-{os.getpid()}"
        with disk_errors(f"publishing {name}", folder):
            (folder / MANIFEST).unlink(missing_ok=True)
            files = {}
            for path in files_below(folder):
                if folder / "work" in path.parents:
                    continue
                files[path.relative_to(folder).as_posix()] = {
                    "sha256": checksum(path),
                    "bytes": path.stat().st_size,
                }
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            write_json(folder / MANIFEST, {**manifest, "format": FORMAT, "files": files})
            # Checkpoints stay until all else is done, and leave in one piece: a half removed one must not be found.
            if (folder / "work").exists():
                os.rename(folder / "work", work)
            if final.exists():
                old = self.root / "building" / f"{name}.replaced-{os.getpid()}"
                os.rename(final, old)
                os.rename(folder, final)
                shutil.rmtree(old)
            else:
                os.rename(folder, final)
            shutil.rmtree(work, ignore_errors=True)
            for file_name in files:
                (final / file_name).chmod(0o444)
        found = self.find(name)
        assert found is not None
        return found

    def busy(self) -> bool:
        """Whether a run is in progress: each holds a lock called run-<id>."""
        from filelock import FileLock, Timeout

        for path in (self.root / "locks").glob("run-*.lock"):
            try:
                with FileLock(path).acquire(timeout=0):
                    continue
            except Timeout:
                return True
        return False

    def artifacts(self) -> list[Artifact]:
        """All published artifacts whose manifest can be read, oldest first."""
        found = []
        for path in self.root.glob(f"*/{MANIFEST}"):
            with suppress(StoreError):
                found.append(self.find(path.parent.name))
        return sorted(
            (artifact for artifact in found if artifact is not None),
            key=lambda artifact: (artifact.manifest["made"]["at"], artifact.path.name),
        )

    def unfinished(self) -> list[Path]:
        return sorted(path for path in (self.root / "building").glob("*") if path.is_dir())

    def verify(self) -> list[str]:
        """Compare every file with its checksum; one line per damage found."""
        damage = []
        for path in sorted(self.root.glob(f"*/{MANIFEST}")):
            try:
                self.find(path.parent.name)
            except StoreError as error:
                damage.append(f"{path.parent.name}/{MANIFEST}: {error.what}")
        return damage + [line for artifact in self.artifacts() for line in self.damage(artifact)]

    def damage(self, artifact: Artifact) -> list[str]:
        """What of an artifact is not as it was published, one line for each file."""
        damage = []
        expected = artifact.manifest["files"]
        present = {path.relative_to(artifact.path).as_posix(): path for path in files_below(artifact.path)}
        present.pop(MANIFEST, None)
        for name in sorted(expected.keys() | present.keys()):
            where = f"{artifact.path.name}/{name}"
            if name not in present:
                damage.append(f"{where}: missing")
            elif name not in expected:
                damage.append(f"{where}: not in the manifest")
            elif checksum(present[name]) != expected[name]["sha256"]:
                damage.append(f"{where}: changed since it was published")
        return damage

    @contextmanager
    def reading(self, names: Iterable[str]) -> Iterator[None]:
        """Where work on artifacts fails because one of them is damaged or gone, say that instead."""
        try:
            yield
        except (StoreError, HubError, TrainingError):
            raise
        except Exception as error:
            for name in names:
                artifact = self.find(name)
                if artifact is None:
                    raise StoreError(
                        f"{name} was removed from the store while the run was at work",
                        where=str(self.path(name)),
                        fix="give the same command again; `kdlab store prune` needs the --outputs of every run",
                    ) from error
                if lines := self.damage(artifact):
                    more = f", and {len(lines) - 1} more files" if len(lines) > 1 else ""
                    raise StoreError(
                        f"an artifact is damaged: {lines[0]}{more}",
                        where=str(artifact.path),
                        fix="remove the folder; the next run makes it again (`kdlab store verify` looks at all)",
                    ) from error
            raise

    def prune(self, keep: Collection[str], *, older_than_days: float = 0.0, remove: bool) -> list[tuple[str, int]]:
        """Names and bytes of artifacts, and of interrupted work, that are not in `keep`; removes them if asked.

        What another process builds at this moment is locked and left alone; what one reads is safe only in `keep`.
        """
        from filelock import FileLock, Timeout

        limit = time.time() - older_than_days * 86400
        chosen: list[tuple[str, int]] = []
        folders = [artifact.path for artifact in self.artifacts()] + self.unfinished()
        for folder in folders:
            if folder.name in keep or folder.stat().st_mtime > limit:
                continue
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "locks" / f"{folder.name}.lock")
            try:
                with lock.acquire(timeout=0):
                    size = sum(path.stat().st_size for path in files_below(folder))
                    if remove:
                        (folder / MANIFEST).unlink(missing_ok=True)
                        shutil.rmtree(folder)
                    chosen.append((folder.name, size))
            except Timeout:
                continue
        return chosen
