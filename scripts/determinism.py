"""Which settings that enter no fingerprint change the bits of a training, and by how much.

    python scripts/determinism.py [OVERRIDE ...]
    python ../shared/hub/hub_mirror.py exec --root ROOT -- python scripts/determinism.py \\
        method=cr_ild task=glue/rte model=minilm_6_to_3 debug=fast debug.steps=10 debug.rows=256

The command is run from an empty store, once more as it is, and with one setting changed at a time. The table tells
how many files of the artifacts have other bytes (not counting those that tell of times), the largest difference of a
weight of the student and which one it is, and that of a score. Exit code: 0 if the same command gave the same bytes,
else 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from kdlab.artifacts import Store, files_below, read_json
from kdlab.engine.tracking import summarised
from kdlab.integrity import checksum

DEFAULT = ["method=cr_ild", "task=demo/nli", "model=tiny", "debug=fast"]
FIXED = ["hardware=cpu", "hardware.threads=2", "tracking=none"]
MACHINE = ("figures.json", "manifest.json")  # files that tell of times
CHANGES = [
    [],
    ["hardware.threads=1"],
    ["hardware.eval_batch=7"],
    ["hardware.checkpoint_seconds=0"],
    ["hardware.recompute=true"],
    ["hardware.micro_batch=8"],
    ["hardware.attention=eager"],
    ["hardware.attention=sdpa"],
    ["hardware.processes=2", "hardware.threads=1"],
]


def train(folder: Path, words: list[str]) -> str | None:
    """Run the command with all its output in one folder; returns why it can't be run, if so."""
    command = [sys.executable, "-m", "kdlab", "train", *words, f"outputs={folder}", f"store={folder / 'artifacts'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else " ".join((done.stderr or done.stdout).split())[:200]


def files_of(folder: Path) -> dict[str, str]:
    """sha256 of the artifacts' files by stage and name; artifacts of the same stage have the same name."""
    found = {}
    for artifact in Store(folder / "artifacts").artifacts():
        for file in files_below(artifact.path):
            if file.name not in MACHINE:
                found[f"{artifact.manifest['label']}/{file.relative_to(artifact.path)}"] = checksum(file)
    return found


def weights_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("runs/*/student/*.safetensors")
    return load_file(file)


def scores_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("runs/*/result.json")
    return summarised(read_json(file)["scores"])


def differences(one: Path, other: Path) -> tuple[str, str, str]:
    """Files of other bytes, of how many; the largest difference of a weight, and its name; that of a score."""
    before, after = files_of(one), files_of(other)
    count = sum(before.get(name) != after.get(name) for name in before.keys() | after.keys())
    ours, theirs = weights_of(one), weights_of(other)
    weight, name = max((float((ours[name].double() - theirs[name].double()).abs().max()), name) for name in ours)
    first, second = scores_of(one), scores_of(other)
    score = max(abs(first[name] - second[name]) for name in first)
    return f"{count} of {len(before)}", f"{weight:.1e} {name}" if weight else "0", f"{score:.1e}" if score else "0"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="OVERRIDE", help=f"of kdlab train; default: {' '.join(DEFAULT)}")
    parser.add_argument("--change", action="append", metavar="OVERRIDE", help="instead of all; may be given repeatedly")
    given = parser.parse_args(arguments)
    changes = CHANGES if given.change is None else [[], *([word] for word in given.change)]
    words = [*(given.words or DEFAULT), *FIXED]
    table = Table("changed", "other bytes", "weights", "scores")
    same = False
    with tempfile.TemporaryDirectory(prefix="kdlab-determinism-") as scratch:
        base = Path(scratch) / "base"
        if (problem := train(base, words)) is not None:
            raise SystemExit(problem)
        for number, change in enumerate(changes):
            folder = Path(scratch) / str(number)
            if (problem := train(folder, [*words, *change])) is not None:
                table.add_row(" ".join(change), "not run", problem, "")
                continue
            found = differences(base, folder)
            same = same or (not change and found[0].startswith("0 of "))
            table.add_row(" ".join(change) or "nothing", *found)
    print(" ".join(words))
    Console(width=140, highlight=False).print(table)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
