"""Damage every file of a finished run's store, and give the command again.

    python scripts/damage.py [--seed 0] [--command OVERRIDE ...]

The command runs once in a scratch folder. Then, one file of each artifact at a time, a bit is flipped, or the file is
cut, at a place that is drawn; the command is given again, and must name each damaged file, make exactly the damaged
artifacts anew, and leave the same bits: data, weights, texts, scores and points. So until every file of every artifact
was flipped and was cut. Exit code: 0 if all is as it must be, else 1. Commands run in this process.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from kdlab import cli
from kdlab.artifacts import Store, files_below

COMMAND = ["method=cr_ild", "task=demo/nli", "model=tiny", "debug=fast", "tracking=none", "hardware=cpu"]
MACHINE = ("figures.json", "manifest.json")  # files that tell of times


def train(root: Path, overrides: Sequence[str]) -> str:
    """What the command printed; SystemExit if it failed."""
    out = io.StringIO()
    os.environ["COLUMNS"] = "400"  # each line of the screen whole
    with redirect_stdout(out), redirect_stderr(out):
        code = cli.main(["train", *overrides, f"store={root / 'artifacts'}", f"outputs={root}"])
    if code:
        raise SystemExit(f"the command failed with exit code {code}:\n{out.getvalue()[-3000:]}")
    return out.getvalue()


def state(root: Path) -> dict[str, str]:
    """sha256 of all that must be the same, by relative path; the scores as they are."""
    (run,) = (root / "runs").iterdir()
    found = {}
    for artifact in Store(root / "artifacts").artifacts():
        for file in files_below(artifact.path):
            if file.name not in MACHINE:
                content = file.read_bytes()
                found[str(file.relative_to(root))] = hashlib.sha256(content).hexdigest()
    for file in [run / "metrics.jsonl", *run.glob("student/*.safetensors")]:
        found[str(file.relative_to(root))] = hashlib.sha256(file.read_bytes()).hexdigest()
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return found | {"scores": json.dumps(result["scores"], sort_keys=True)}


def harm(file: Path, draw: random.Random, how: str) -> None:
    size = file.stat().st_size
    file.chmod(0o644)
    if how == "cut":
        os.truncate(file, draw.randrange(size))
        return
    place = draw.randrange(size)
    with open(file, "r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0] ^ (1 << draw.randrange(8))
        opened.seek(place)
        opened.write(bytes([byte]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of places, bits and lengths")
    parser.add_argument("--command", nargs="+", default=COMMAND, metavar="OVERRIDE", help="of `kdlab train`")
    given = parser.parse_args(arguments)
    draw, damaged, wrong = random.Random(given.seed), 0, 0
    with tempfile.TemporaryDirectory(prefix="kdlab-damage-") as scratch:
        root = Path(scratch)
        train(root, given.command)
        whole, store = state(root), Store(root / "artifacts")
        files = {one.path.name: files_below(one.path) for one in store.artifacts()}
        for number in range(max(map(len, files.values()))):
            for how in ("flip", "cut"):
                chosen = {name: own[number] for name, own in files.items() if number < len(own)}
                chosen = {name: file for name, file in chosen.items() if file.stat().st_size}
                for file in chosen.values():
                    harm(file, draw, how)
                said = train(root, given.command).splitlines()
                lines = [line for line in said if line.startswith("damaged: ")]
                missed = [
                    str(file.relative_to(store.root))
                    for name, file in chosen.items()
                    if not any(
                        line.startswith(f"damaged: {name}/{file.relative_to(store.path(name))}:") for line in lines
                    )
                ]
                after = state(root)
                differs = [name for name in sorted(after.keys() | whole.keys()) if after.get(name) != whole.get(name)]
                ran = sum(line.startswith("run ") for line in said)
                problems = [*(f"not named: {one}" for one in missed), *(f"differs: {one}" for one in differs)]
                problems += [] if ran == len(chosen) else [f"{ran} stages ran, and {len(chosen)} were damaged"]
                problems += store.verify()
                for problem in problems:
                    print(f"wrong: {how} {number}: {problem}", flush=True)
                damaged, wrong = damaged + len(chosen), wrong + len(problems)
    print(f"{damaged} files damaged in {len(files)} artifacts, {len(whole)} things compared; {wrong} things were wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
