"""Where an export may stand, and how it is put there in one piece."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdlab.errors import StoreError
from kdlab.integrity import checksum
from kdlab.runs import read_json

NAME = "export.json"
SHOWN = 3  # files that a message names


def check_target(to: Path, *, store: Path, student: Path, force: bool) -> Path:
    """The folder without links in its path. Raises StoreError if an export must not be written there.

    It must be new or empty, or with force hold nothing but an earlier export as it was written.
    """
    folder = to.expanduser().resolve()
    try:
        folder.exists()
    except OSError as error:
        raise StoreError(f"--to can't be a folder: {error.strerror}", where=str(to), fix="give another name") from error
    for own, what in ((store, "the store of artifacts"), (student, "the run's own student")):
        if folder == own.resolve() or own.resolve() in folder.parents:
            raise StoreError(f"--to is in {what}", where=str(to), fix="give a folder elsewhere")
    if folder.exists() and not folder.is_dir():
        raise StoreError("--to is a file", where=str(to), fix="give the name of a new folder")
    if folder in (Path.cwd(), *Path.cwd().parents) or os.path.ismount(folder):
        raise StoreError(
            "--to can't be put in place at once: it is a mount point, or the current folder is in it",
            where=str(to),
            fix=f"give the name of a new folder in it: --to {to / 'student'}",
        )
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    if held and not (folder / NAME).is_file():
        raise StoreError(
            f"--to is not empty, and no export: it holds {_listed([file.name for file in held])}",
            where=str(to),
            fix="give the name of a new folder",
        )
    if held and not force:
        raise StoreError(
            "--to holds an earlier export", where=str(to), fix="give the name of a new folder, or --force to replace it"
        )
    if held and (own_files := _not_exported(folder)):
        raise StoreError(
            f"--to holds files that no export wrote, or that were changed since: {_listed(own_files)}",
            where=str(to),
            fix="move them away, or give the name of a new folder; --force replaces what was exported, nothing else",
        )
    return folder


def _not_exported(folder: Path) -> list[str]:
    try:
        files = {name: entry["sha256"] for name, entry in read_json(folder / NAME)["files"].items()}
    except (StoreError, KeyError, TypeError, AttributeError):  # of something else, or not whole
        files = {}
    return [
        file.name
        for file in sorted(folder.iterdir())
        if file.name != NAME and (file.is_symlink() or not file.is_file() or checksum(file) != files.get(file.name))
    ]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into, which takes its place at the end; after an error nothing is left."""
    made = []
    parent = folder.parent
    while not parent.exists():
        made.append(parent)
        parent = parent.parent
    scratch = folder.with_name(f"{folder.name}.exporting-{os.getpid()}")
    replaced = folder.with_name(f"{folder.name}.replaced-{os.getpid()}")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir(parents=True)
        except OSError as error:
            said = f"no folder can be made there: {error.strerror}"
            raise StoreError(said, where=str(folder.parent), fix="give another place with --to") from error
        yield scratch
        if folder.exists():
            os.rename(folder, replaced)
        os.rename(scratch, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            os.rename(replaced, folder)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
