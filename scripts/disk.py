"""Fill the disk under a run again and again: at every write, and at every file that is made.

    python scripts/disk.py [--step 16] [--command OVERRIDE ...]        as root, on Linux

Store and outputs of the run lie on a file system of their own (tmpfs), which is full from the start. The command is
given, must end with exit code 2 and one message about the disk, and leave nothing half-published; then there are
--step KiB more, and it is given again, until it ends by itself. Then the same once more with the number of files in
the place of bytes. Weights, data, scores and points must be those of a run that never met a full disk. Exit code: 0 if
so, else 1. Commands run in this process: a fault that a new process would not see stays.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from kdlab import cli
from kdlab.artifacts import Store

COMMAND = [
    "method=cr_ild",
    "task=demo/nli",
    "model=tiny",
    "debug=fast",
    "task.max_length=32",
    "tracking=none",
    "hardware=cpu",
    "hardware.threads=1",
    "hardware.checkpoint_seconds=0",
]
PAGE = 4  # KiB, the least that a file takes there
MACHINE = ("figures.json", "manifest.json")  # files that tell of times


class NoMount(Exception):
    """This machine does not let us mount a file system."""


@contextmanager
def disk(place: Path) -> Iterator[Path]:
    """A file system of its own, in which nothing fits yet. Raises NoMount."""
    place.mkdir(parents=True)
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={PAGE}k", "kdlab", str(place)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoMount(str(error)) from error
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # a service of wandb may hold on to it for a while


def resize(place: Path, limit: str) -> None:
    """limit: an option of tmpfs, size=64k or nr_inodes=20."""
    subprocess.run(["mount", "-o", f"remount,{limit}", str(place)], check=True)


def train(place: Path, overrides: Sequence[str]) -> tuple[int, str]:
    """(exit code, what was printed to standard error) of the command with all its output in one folder."""
    told, said = io.StringIO(), io.StringIO()
    with redirect_stdout(told), redirect_stderr(said):
        code = cli.main(["train", *overrides, f"store={place / 'artifacts'}", f"outputs={place}"])
    return code, said.getvalue()


def state(place: Path) -> dict[str, str]:
    """sha256 of all that must be the same, by relative path; the scores as they are."""
    (run,) = (place / "runs").iterdir()
    artifacts = Store(place / "artifacts").artifacts()
    files = [file for one in artifacts for file in one.path.rglob("*") if file.is_file() and file.name not in MACHINE]
    files += [run / "metrics.jsonl", *run.glob("student/*.safetensors")]
    found = {str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
    scores = json.loads((run / "result.json").read_text(encoding="utf-8"))["scores"]
    return found | {"scores": json.dumps(scores, sort_keys=True)}


@dataclass
class Found:
    """How often the disk was full, and what was wrong."""

    attempts: int = 0
    places: set[str] = field(default_factory=set)  # what was being done
    wrong: list[str] = field(default_factory=list)


def filled(place: Path, overrides: Sequence[str], limits: Iterator[str], whole: dict[str, str]) -> Found:
    """Give the command under one limit after the other, until it ends by itself."""
    found = Found()
    for limit in limits:
        resize(place, limit)
        code, said = train(place, overrides)
        if code == 0:
            break
        found.attempts += 1
        found.places.add(said.partition(" failed: ")[0].partition("error: ")[2])
        fine = code == 2 and said.count("error: ") == 1 and "No space left on device" in said and "  fix: " in said
        if not fine or "Traceback" in said:
            found.wrong.append(f"{limit}: exit code {code}: {said[-800:]}")
        found.wrong += [f"{limit}: {line}" for line in Store(place / "artifacts").verify()]
    after = state(place)
    found.wrong += [
        f"differs: {name}" for name in sorted(after.keys() | whole.keys()) if after.get(name) != whole.get(name)
    ]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--step", type=int, default=16, metavar="KIB", help="between two attempts (default: 16)")
    parser.add_argument("--files", type=int, default=1, help="more files between two attempts (default: 1)")
    parser.add_argument("--command", nargs="+", default=COMMAND, metavar="OVERRIDE", help="of `kdlab train`")
    given = parser.parse_args(arguments)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="kdlab-disk-") as scratch:
        root = Path(scratch)
        (root / "whole").mkdir()
        code, said = train(root / "whole", given.command)
        if code:
            raise SystemExit(said)
        whole = state(root / "whole")
        kinds = {
            "bytes": (f"size={PAGE + given.step * number}k" for number in range(1_000_000)),
            "files": (f"nr_inodes={2 + given.files * number},size=1g" for number in range(1_000_000)),
        }
        for kind, limits in kinds.items():
            try:
                with disk(root / kind) as place:
                    found = filled(place, given.command, limits, whole)
            except NoMount as error:
                raise SystemExit(f"this needs root and Linux: {error}") from error
            for line in found.wrong:
                print(f"wrong: {line}")
            print(f"{kind}: full {found.attempts} times, while: {'; '.join(sorted(found.places))}")
            wrong += len(found.wrong)
    print(f"{wrong} things were wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
