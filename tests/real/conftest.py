"""Real data and a real model: both come from the folder `shared` beside the project.

Set KDLAB_TEST_CACHE to a folder to keep the model that is built (92 MB) between runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from filelock import FileLock

from local_hub import HubRun

PROJECT = Path(__file__).resolve().parents[2]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the project's root."""
    folder = PROJECT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("there is no folder `shared` beside the project: real data and models come from it")
    return folder


@pytest.fixture(scope="session")
def hub_root(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the Hub mirror can serve: data sets of `shared`, and MiniLM built from a PyPI wheel."""
    kept = os.environ.get("KDLAB_TEST_CACHE")
    root = Path(kept).resolve() if kept else tmp_path_factory.mktemp("hub")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "lock"):  # the workers of one session may share a cache
        datasets = root / "datasets"
        if not datasets.exists():
            datasets.unlink(missing_ok=True)  # a link to a `shared` that has moved
            datasets.symlink_to(shared / "hub" / "datasets", target_is_directory=True)
        if not (root / "models" / MINILM / "model.safetensors").is_file():
            script = shared / "models" / "build_models.py"
            arguments = ["--out", root / "models", "--only", "minilm", "--cache", root / "wheels"]
            built = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=600)
            if built.returncode:
                pytest.fail(f"MiniLM could not be built:\n{built.stdout[-1000:]}{built.stderr[-1000:]}")
    return root


@pytest.fixture(scope="session")
def hub_run(shared: Path, hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> HubRun:
    """Runs a command against the local Hub; calls share one HF_HOME unless told otherwise."""
    common = tmp_path_factory.mktemp("hf-home")

    def run(
        *command: str | Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        hf_home: Path | None = None,
        timeout: float = 900,
    ) -> subprocess.CompletedProcess[str]:
        mirror = [sys.executable, shared / "hub" / "hub_mirror.py", "exec", "--trap", "--root", hub_root]
        whole = [*mirror, "--hf-home", hf_home or common, "--", *command]
        inherited = os.environ | dict(env or {})
        return subprocess.run(whole, cwd=cwd, env=inherited, capture_output=True, text=True, timeout=timeout)

    return run
