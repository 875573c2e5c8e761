"""The verbs of the command, a module each: its `main` takes the words after the verb and returns the exit code."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser(verb: str, about: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"kdlab {verb}", description=about, allow_abbrev=False)


def run_folders(folder: Path) -> list[Path]:
    """The run folder itself, or those of a sweep's jobs."""
    inner = sorted(file.parent for file in folder.glob("*/run.json"))
    return [folder] if (folder / "run.json").exists() or not inner else inner
