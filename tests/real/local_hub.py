"""What the fixture `hub_run` gives, for the annotations of the tests that take it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class HubRun(Protocol):
    """Run a command with a private Hub that serves `hub_root`; stdout and stderr are captured as text."""

    def __call__(
        self,
        *command: str | Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        hf_home: Path | None = None,
        timeout: float = 900,
    ) -> subprocess.CompletedProcess[str]: ...
