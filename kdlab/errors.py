"""What can go wrong, said so that the reader knows what to do next.

Every error that a user can cause or mend is a `KdlabError`; the command line prints it without a traceback
and exits with 2 (`KDLAB_DEBUG=1` shows the traceback). Anything else is a bug of kdlab.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kdlab.showing import redact, visible


class KdlabError(Exception):
    """A problem the user can mend: what happened, where, and what to do next."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return str(redact(visible("\n".join(lines))))


class ConfigError(KdlabError):
    """The configuration can't be run. Holds every problem found, not only the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = "1 problem in the configuration" if count == 1 else f"{count} problems in the configuration"
        super().__init__("\n".join([f"{head}:", *(f"  - {problem}" for problem in self.problems)]))


def bug(error: Exception) -> str:
    """What to say of an exception that is no `KdlabError`."""
    return (
        f"kdlab itself failed: {type(error).__name__}: {redact(visible(error))}\n"
        "  fix:   this is a bug; KDLAB_DEBUG=1 shows where, please report it"
    )


class DataError(KdlabError):
    """A data set is missing, unreadable, or not what its task says."""


class ModelError(KdlabError):
    """A model is missing, of an unsupported kind, or does not fit its partner."""


class HubError(KdlabError):
    """The Hugging Face Hub can't be reached, or has no such thing."""


class StoreError(KdlabError):
    """The artifact store can't be read or written."""


class TrainingError(KdlabError):
    """Training can't go on: a loss that is not finite, a teacher that learned nothing."""


class TrackingError(KdlabError):
    """Weights & Biases can't be used as asked."""


class EndpointError(KdlabError):
    """An endpoint refuses what it is asked, or can't be reached."""


class BudgetError(KdlabError):
    """What is left to do would cost more than `budget` allows."""


def first_line(error: BaseException) -> str:
    """The first line with something on it of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def disk_errors(
    doing: str, where: Path, *, place: str = "`store=` and `outputs=`", named: bool = False
) -> Iterator[None]:
    """Turn the operating system's refusals into an error that says what to do.

    place: what names another disk. named: only those that name a file, and exhausted memory; for what does all kinds
    of things. Raises StoreError, or TrainingError where memory has run out.
    """
    try:
        yield
    except KdlabError:
        raise
    except Exception as error:
        number = _refusal(error)
        if named and not getattr(error, "filename", None) and not isinstance(error, MemoryError):
            raise
        fixes = {
            28: f"free some space, or point {place} at another disk; finished work is kept",
            122: f"raise the quota, or point {place} elsewhere; finished work is kept",
            30: f"the file system is read-only: point {place} at a place that can be written",
            13: f"make it readable and writable, or point {place} elsewhere",
            1: f"it is marked as not to be changed, or its file system is: point {place} elsewhere",
            5: f"the disk has errors: see the system's log, and point {place} at another disk",
            17: f"a file is in the way: point {place} at a folder",
            20: f"a file is in the way: point {place} at a folder",
            116: "the network's file system has lost sight of it: give the same command again",
            27: f"a file would be larger than is allowed (`ulimit -f`): raise that, or point {place} elsewhere",
        }
        if number == errno.ENOMEM:
            raise TrainingError(
                f"{doing} failed: memory ran out",
                where=str(where),
                fix="give the same command again once there is more, it goes on at the last checkpoint; or run fewer "
                "jobs at once, set hardware.micro_batch or hardware.eval_batch, or hardware.recompute",
            ) from error
        if number not in fixes:
            raise
        place = str(getattr(error, "filename", None) or where)
        raise StoreError(f"{doing} failed: {os.strerror(number)}", where=place, fix=fixes[number]) from error


def _refusal(error: Exception) -> int | None:
    """The operating system's error number; safetensors, pyarrow and torch have it in their text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, _OTHERS):
        return None
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return errno.ENOMEM
    cause = error.__cause__ or error.__context__
    if isinstance(error, ImportError) and isinstance(cause, Exception):  # libraries tell of their own in other words
        return _refusal(cause)
    said = re.search(r"os error (\d+)|^\[Errno (\d+)", str(error))  # what a network says has it in the middle
    return int(said[1] or said[2]) if said else None


_OTHERS = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)  # whatever they say
_NO_MEMORY = re.compile(  # torch on a processor, on a GPU; the loader of libraries; others
    r"can't allocate memory|out of memory|failed to map segment|cannot allocate memory", re.IGNORECASE
)
