"""The store: one folder per finished stage, found by fingerprint.

    STORE/<stage>-<fingerprint>/   a published artifact: its files and manifest.json
    STORE/building/<artifact>/     a stage in progress, or interrupted; its checkpoints are in `work/`
    STORE/locks/<artifact>.lock    held while a process builds the artifact
    STORE/verified/<artifact>.json what its large files were like when they were last compared with their checksums

An artifact is published by renaming its folder after the manifest was written, so a half-written one is never found.
The manifest has the checksum of every file, and its own. What is damaged stays where it is until its stage has made
it anew, and is not used.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlab.errors import HubError, StoreError, TrainingError, disk_errors
from kdlab.integrity import SEAL, checksum, parsed, sealed, unsealed

MANIFEST = "manifest.json"
FORMAT = 2
UNSEALED = 1  # the format before, which is read as well: its manifests have no checksum of their own
SMALL = 1 << 18  # bytes; a file up to this size is compared with its checksum whenever a command meets it
AGAIN = "give the run's command again: what is damaged is made anew (`kdlab store verify` looks at all artifacts)"

Like = list[int]  # of a file: size, times of change (ns), inode. Whatever writes to it through the system changes them
_TAKEN: dict[Path, tuple[Like, str]] = {}  # checksums that this process has taken, and of what state of the file
_LOCKABLE: set[Path] = set()  # folders in which this process has tried locks


class Damaged(StoreError):
    """An artifact is not as it was published."""


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


_EFFECTIVE = os.access in os.supports_effective_ids  # what this process may do, which is not always what its user may
_DAMAGE = (errno.EIO, errno.EISDIR)  # all else may pass: nothing is thrown away for it


def write_json(path: Path, value: Any, *, seal: bool = False) -> None:
    """Write JSON as `write_text` does. seal: an object, that tells by itself whether it is whole."""
    if seal:
        write_text(path, sealed(value, indent=2))
    else:
        write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote, or anybody else. Raises OSError; ValueError if it is no JSON, or has a broken seal."""
    text = path.read_bytes().decode("utf-8")
    value = parsed(text)
    return unsealed(text, indent=2) if isinstance(value, dict) and SEAL in value else value


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never half of it."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(scratch, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def require_locks(folder: Path) -> None:
    """Raises StoreError if the file system of a folder can't lock files, or gives one lock to two; else OSError."""
    one, other = (os.open(folder / ".probe", os.O_RDWR | os.O_CREAT, 0o666) for _ in range(2))
    try:
        why = "two can hold the same one"
        for file in (one, other):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # file systems differ in how they say that it is taken
        return
    except OSError as error:
        why = error.strerror or str(error)
    finally:
        os.close(one)
        os.close(other)
    raise StoreError(
        f"locks don't work on the file system of this folder: {why}. Two processes would spoil each other's work",
        where=str(folder),
        fix="point `store=` and `outputs=` at a local disk, or at one that is mounted with locks (flock)",
    )


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
            text = manifest.read_bytes().decode("utf-8")
            content = unsealed(text, indent=2, required=f'"format": {FORMAT},' in text)
            if not content.keys() >= {"format", "files", "made"}:
                raise ValueError("it lacks what every manifest has")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _DAMAGE:
                raise StoreError(
                    f"{name} can't be read: {error.strerror or error}",
                    where=str(manifest),
                    fix="make it readable, or give the same command again: it may be whole",
                ) from error
            unreadable = isinstance(error, OSError | UnicodeDecodeError | json.JSONDecodeError)
            what = "can't be read" if unreadable else "is not whole"
            raise Damaged(f"the manifest of {name} {what}: {error}", where=str(manifest), fix=AGAIN) from error
        if content["format"] not in (UNSEALED, FORMAT):
            raise StoreError(
                f"{name} has format {content['format']}, this kdlab reads format {FORMAT}",
                where=str(manifest),
                fix="use another store (store=FOLDER) or the kdlab that wrote this one",
            )
        return Artifact(self.path(name), content)

    @contextmanager
    def locked(self, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the right to build an artifact; calls `waiting` once if another process has it."""
        from filelock import FileLock, Timeout

        with disk_errors("creating the store", self.root):
            lock = FileLock(self._locks() / f"{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire(poll_interval=0.2)
        try:
            yield
        finally:
            lock.release()

    def _locks(self) -> Path:
        """The folder of the locks. Raises OSError; StoreError if its file system has none that work."""
        folder = self.root / "locks"
        if folder not in _LOCKABLE or not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            require_locks(folder)
            _LOCKABLE.add(folder)
        return folder

    def begin(self, name: str) -> Path:
        """The folder in which to build; holds what an interrupted attempt left."""
        folder = self.building(name)
        with disk_errors("creating the store", folder):
            if self.root.is_dir() and not os.access(self.root, os.W_OK, effective_ids=_EFFECTIVE):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root))  # not after hours
            if (folder / MANIFEST).exists() and not (folder / "work").exists():
                for done in folder.parent.glob(f"{name}.done-*"):  # killed before the last rename: nothing is lost
                    os.rename(done, folder / "work")
                    break
            (folder / "work").mkdir(parents=True, exist_ok=True)
            for rest in self._rests(name):
                shutil.rmtree(rest, ignore_errors=True)
            for left in folder.glob("*.tmp"):  # by `write_json` in a process that was killed
                left.unlink()
        return folder

    def _rests(self, name: str) -> list[Path]:
        """What is left of a process that was killed while it published an artifact."""
        return [rest for word in ("done", "replaced") for rest in self.root.glob(f"building/{name}.{word}-*")]

    def tidy(self, name: str) -> None:
        """Remove what was left beside an artifact that is there, if it can be removed and nobody is at it."""
        with suppress(OSError, StoreError):
            if self._rests(name):
                with self.alone(name) as alone:
                    for rest in self._rests(name) if alone and self.path(name).is_dir() else []:
                        shutil.rmtree(rest, ignore_errors=True)

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
            write_json(folder / MANIFEST, {**manifest, "format": FORMAT, "files": files}, seal=True)
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
                _TAKEN[final / file_name] = (_like(final / file_name), str(files[file_name]["sha256"]))
        found = self.find(name)
        assert found is not None
        self.faults(name)  # remembers what the files are like now
        return found

    def busy(self) -> bool:
        """Whether a run is in progress: each holds a lock called run-<id>."""
        for path in (self.root / "locks").glob("run-*.lock"):
            with disk_errors("looking for runs", path), self.alone(path.stem) as alone:
                if not alone:
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

    def interrupted(self, name: str) -> bool:
        """Whether an attempt at an artifact left something to go on with."""
        folder = self.building(name)
        with disk_errors("looking into the store", folder):
            return any(folder.glob("work/*"))

    def unfinished(self) -> list[Path]:
        return sorted(path for path in (self.root / "building").glob("*") if path.is_dir())

    def verify(self) -> list[str]:
        """Compare every file with its checksum; one line per damage found."""
        folders = {path.name for path in self.root.glob("*") if _NAME.fullmatch(path.name) and path.is_dir()}
        found = []
        for name in sorted(folders | {path.parent.name for path in self.root.glob(f"*/{MANIFEST}")}):
            try:
                lines = self.faults(name, thorough=True)
                artifact = self.find(name)
            except Damaged:
                artifact = None
            except StoreError as error:
                lines, artifact = [f"{name}/{MANIFEST}: {error.what}"], None
            if artifact is not None:
                files = {path.relative_to(artifact.path).as_posix() for path in files_below(artifact.path)}
                strays = files - {MANIFEST, *artifact.manifest["files"]}
                lines += [f"{name}/{stray}: not in the manifest" for stray in strays]
            found += sorted(lines)
        return found

    def faults(self, name: str, *, thorough: bool = False) -> list[str]:
        """What of a published artifact is not as it was published, one line a file; nothing of one that isn't there.

        Small files are compared with their checksums. Large ones are only where size, times or inode are not as they
        were at the last comparison: so a disk that loses bits by itself is noticed if `thorough`, which reads every
        file, once a process. Files that are not in the manifest are nobody's input, and no fault.
        """
        with disk_errors("looking into the store", self.path(name)):
            if not self.path(name).is_dir():
                return []
        try:
            artifact = self.find(name)
        except Damaged as error:
            return [f"{name}/{MANIFEST}: {error.what}"]
        if artifact is None:
            return [f"{name}/{MANIFEST}: missing"]
        large = any(entry["bytes"] > SMALL for entry in artifact.manifest["files"].values())
        before, stamps = self._stamps(name) if large else {}, dict[str, Any]()
        found: list[str] = []
        for file, entry in sorted(artifact.manifest["files"].items()):
            path, wanted = artifact.path / file, str(entry["sha256"])
            try:
                like = _like(path)
                stamp = [wanted, *like]
                if thorough or like[0] <= SMALL or before.get(file) != stamp or path in _TAKEN:
                    if path not in _TAKEN or _TAKEN[path][0] != like:
                        _TAKEN[path] = like, checksum(path)
                    if _TAKEN[path][1] != wanted:
                        size = "" if like[0] == entry["bytes"] else f": {like[0]} bytes, and it had {entry['bytes']}"
                        found.append(f"{name}/{file}: changed since it was published{size}")
                        continue
                if like[0] > SMALL:
                    stamps[file] = stamp
            except (FileNotFoundError, NotADirectoryError):
                found.append(f"{name}/{file}: missing")
            except OSError as error:
                if error.errno not in _DAMAGE:
                    raise StoreError(
                        f"an artifact can't be read: {error.strerror or error}",
                        where=str(path),
                        fix="make it readable, or give the same command again: it may be whole",
                    ) from error
                found.append(f"{name}/{file}: can't be read: {error.strerror}")
        if stamps != before:
            self._remember(name, stamps)
        return found

    def _stamps(self, name: str) -> dict[str, Any]:
        """What the large files of an artifact were like when their checksums were found right."""
        try:
            return dict(read_json(self.root / "verified" / f"{name}.json"))
        except (OSError, ValueError, TypeError):
            return {}

    def _remember(self, name: str, stamps: Mapping[str, Any]) -> None:
        path = self.root / "verified" / f"{name}.json"
        with suppress(OSError):  # a store that can't be written: then they are read again next time
            path.parent.mkdir(exist_ok=True)
            write_json(path, stamps, seal=True)

    @contextmanager
    def reading(self, names: Iterable[str]) -> Iterator[None]:
        """Where work on artifacts fails because one of them is damaged or gone, say that instead."""
        try:
            yield
        except (StoreError, HubError, TrainingError):
            raise
        except Exception as error:
            for name in names:
                if not self.path(name).is_dir():
                    raise StoreError(
                        f"{name} was removed from the store while the run was at work",
                        where=str(self.path(name)),
                        fix="give the same command again; `kdlab store prune` needs the --outputs of every run",
                    ) from error
                self.refuse_damaged(name, cause=error)
            raise

    def refuse_damaged(self, name: str, *, thorough: bool = True, cause: Exception | None = None) -> None:
        """Raises Damaged if the artifact is not as it was published."""
        if lines := self.faults(name, thorough=thorough):
            more = f", and {len(lines) - 1} more files" if len(lines) > 1 else ""
            raise Damaged(f"an artifact is damaged: {lines[0]}{more}", where=str(self.path(name)), fix=AGAIN) from cause

    def prune(
        self,
        keep: Collection[str],
        *,
        older_than_days: float = 0.0,
        remove: bool,
        meanwhile: Callable[[], Collection[str]] = tuple,
    ) -> list[tuple[str, int]]:
        """Names and bytes of artifacts, and of interrupted work, that are not in `keep`; removes them if asked.

        What another process builds at this moment is locked and left alone; what one reads is safe only in `keep`.
        meanwhile: asked for further names to keep when all is out of the way and nothing is removed yet: of runs
        that began since. Raises StoreError, with everything back in its place, if one is in progress then.
        """
        limit = time.time() - older_than_days * 86400
        published = [path.parent for path in self.root.glob(f"*/{MANIFEST}") if self._ours(path.parent.name)]
        folders = [*sorted(published, key=lambda path: path.stat().st_mtime), *self.unfinished()]
        chosen: list[tuple[str, int]] = []
        moved: list[tuple[Path, Path]] = []
        busy = False
        alone_at_it = self.locked("prune") if remove and folders else nullcontext()
        with disk_errors("pruning the store", self.root), alone_at_it:
            for folder in folders:
                name = folder.name.partition(".")[0]  # building/<name>.done-12 is of <name>
                if folder.name in keep or folder.stat().st_mtime > limit:
                    continue
                with self.alone(name) as alone:
                    if not alone or not folder.is_dir():
                        continue
                    chosen.append((folder.name, sum(path.stat().st_size for path in files_below(folder))))
                    if remove:
                        aside = self.root / "pruned" / f"{os.getpid()}-{len(moved)}"
                        shutil.rmtree(aside, ignore_errors=True)
                        aside.parent.mkdir(exist_ok=True)
                        os.rename(folder, aside)
                        moved.append((folder, aside))
            if moved:
                try:
                    wanted, busy = set(meanwhile()), self.busy()
                except BaseException:
                    for folder, aside in moved:
                        _back(aside, folder)
                    raise
                for folder, aside in moved:
                    if busy or folder.name in wanted:
                        _back(aside, folder)
                        chosen = [one for one in chosen if one[0] != folder.name]
                    else:
                        (self.root / "verified" / f"{folder.name}.json").unlink(missing_ok=True)
            if remove:
                shutil.rmtree(self.root / "pruned", ignore_errors=True)
        if busy:
            raise StoreError(
                "a run has begun on this store: what it reads must stay, and nothing was removed",
                where=str(self.root),
                fix="wait until it has ended; without --yes you see what would go",
            )
        return chosen

    def _ours(self, name: str) -> bool:
        """Whether a folder is an artifact, perhaps a damaged one, that this version of kdlab may remove."""
        try:
            return self.find(name) is not None
        except Damaged:
            return _NAME.fullmatch(name) is not None
        except StoreError:  # of a later version
            return False

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Hold the right to build an artifact, if nobody else does."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._locks() / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


_NAME = re.compile(r"[a-z_]+-[0-9a-f]{16}")  # of a stage's artifact


def _back(aside: Path, folder: Path) -> None:
    """Put a folder back where it was, unless a run has begun it anew since."""
    with suppress(OSError):
        os.rename(aside, folder)


def _like(path: Path) -> Like:
    told = path.stat()
    return [told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino]
