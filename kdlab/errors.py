"""What can go wrong, said so that the reader knows what to do next.

Every error that a user can cause or mend is a `KdlabError`; the command line prints it without a traceback
and exits with 2 (`KDLAB_DEBUG=1` shows the traceback). Anything else is a bug of kdlab.
"""

from __future__ import annotations

from collections.abc import Sequence

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
