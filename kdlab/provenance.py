"""What made a result: the code, the packages, the state of git."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import kdlab

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy", "scikit-learn", "scipy", "POT")


@cache
def code() -> str:
    """kdlab's version and a hash of its source files: equal for equal code, installed or checked out."""
    digest = hashlib.sha256()
    root = Path(kdlab.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(file.read_bytes())
    return f"{kdlab.__version__}+{digest.hexdigest()[:12]}"


@cache
def versions() -> dict[str, str]:
    found = {"kdlab": code(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def git() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that kdlab runs from; both None for an installed package."""
    folder = Path(kdlab.__file__).parents[1]
    if not (folder / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = _run(folder, "rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(_run(folder, "status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _run(folder: Path, *command: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=10
    ).stdout
