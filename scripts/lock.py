"""Write requirements.lock: what a fresh environment gets from the ranges in pyproject.toml, all extras included.

torch is held at TORCH and installed first, so that pip takes a CPU build where it knows of one.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

TORCH = "2.13.0"
PROJECT = Path(__file__).resolve().parents[1]
HEAD = """\
# What `make install` puts into .venv, exactly. Made by `make lock` on {system} with Python {python}, for
# Python 3.11 and newer; on 3.10 it takes what the ranges in pyproject.toml give.
# Where pip knows of a CPU build of torch it takes that, else PyPI's build with the CUDA packages it asks for.
"""


def main() -> None:
    described = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    project, build = described["project"], described["build-system"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    wanted = [*project["dependencies"], *extras, *build["requires"]]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/pip", "--quiet"]
        subprocess.run([*pip, "install", f"torch=={TORCH}"], check=True)
        subprocess.run([*pip, "install", f"torch=={TORCH}", *wanted], check=True)
        frozen = subprocess.run([*pip, "freeze", "--all"], check=True, capture_output=True, text=True).stdout
    names = [line.split("+")[0] for line in frozen.splitlines()]
    kept = [line for line in names if not line.startswith(("pip==", "nvidia-", "cuda-", "triton=="))]
    system = f"{platform.system()} {platform.machine().replace('_', '-')}"
    head = HEAD.format(system=system, python=".".join(platform.python_version_tuple()[:2]))
    (PROJECT / "requirements.lock").write_text(head + "\n".join(kept) + "\n")


if __name__ == "__main__":
    main()
