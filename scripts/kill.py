"""Kill a run at random moments, give it again until it ends, and compare with the unbroken run.

    python scripts/kill.py --rounds 10 [--seed 0] [--folder FOLDER] [--command OVERRIDE ...]

The command runs once unbroken in a scratch folder. Then it runs in another one, where its whole process group gets
SIGKILL at a moment drawn uniformly over the unbroken run's duration. What is done by then is kept, as after a real
crash, and the same command is given again with the next moment; once it ends, a new folder begins, until there were
as many kills as --rounds says. Each folder that was finished must hold the same weights (every safetensors file of
every artifact and of the student), scores and metrics as the unbroken one, and pass `kdlab store verify`. Exit code:
0 if all is identical, else 1. A default command needs the Hub, or a local one (HF_ENDPOINT).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

COMMAND = [
    "method=cr_ild",
    "task=glue/rte",
    "model=minilm_6_to_3",
    "debug=fast",
    "tracking=none",
    "hardware.checkpoint_seconds=0",
]


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: when, what it broke off, and what became of it."""

    folder: Path
    second: float
    stage: str
    work: str  # steps that were logged, and how many of them the next attempt repeats
    identical: bool = False


def attempt(folder: Path, overrides: list[str], after: float | None) -> bool:
    """Give the command in `folder`; True if it ended by itself, False if it was killed `after` so many seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "attempts.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kdlab", "train", *overrides],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        raise SystemExit(f"the command failed with exit code {code}:\n{(folder / 'attempts.log').read_text()[-3000:]}")
    return True


def console(folder: Path) -> list[str]:
    """What the run said until now, over all attempts."""
    files = list(folder.glob("outputs/runs/*/console.log"))
    return files[0].read_text(encoding="utf-8").splitlines() if files else []


def interrupted(folder: Path, said: int) -> tuple[str, str]:
    """The stage that the kill broke off, and its steps; `said`: lines on the console before this attempt."""
    store = folder / "outputs" / "artifacts"
    last = "start"
    for line in console(folder)[said:]:
        found = re.match(r"(run|done|hit) +([^:]+):", line)
        if found:
            last = found[2] if found[1] == "run" else f"after {found[2]}"
    logged = kept = 0
    for building in store.glob("building/*/metrics.jsonl"):
        lines = building.read_bytes().split(b"\n")[:-1]
        logged = max((json.loads(line)["step"] for line in lines), default=0)
        names = [path.name for path in (building.parent / "work").glob("checkpoint-*")]
        kept = max((int(name[11:]) for name in names if name[11:].isdigit()), default=0)
    return last, f"{max(logged - kept, 0)} of {logged}" if logged else "none"


def fingerprints(folder: Path) -> dict[str, str]:
    """sha256 of all weights, scores and metrics that the run left, by relative path."""
    outputs = folder / "outputs"
    files = [*outputs.glob("artifacts/*/**/*.safetensors"), *outputs.glob("runs/*/student/*.safetensors")]
    files += [*outputs.glob("artifacts/*/scores.json"), *outputs.glob("artifacts/*/history.json")]
    files += [*outputs.glob("**/metrics.jsonl")]
    found = {str(file.relative_to(outputs)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
    for file in outputs.glob("runs/*/result.json"):
        scores = json.loads(file.read_text(encoding="utf-8"))["scores"]
        found[f"{file.relative_to(outputs)}: scores"] = json.dumps(scores, sort_keys=True)
    return found


def differences(folder: Path, whole: dict[str, str]) -> list[str]:
    found = fingerprints(folder)
    lines = [name for name in sorted(found.keys() | whole.keys()) if found.get(name) != whole.get(name)]
    verify = subprocess.run(
        [sys.executable, "-m", "kdlab", "store", "verify"], cwd=folder, capture_output=True, text=True, check=False
    )
    return lines + ([f"kdlab store verify: {verify.stdout}{verify.stderr}"] if verify.returncode else [])


def rounds(root: Path, overrides: list[str], count: int, seed: int) -> list[Kill]:
    """Break the command off `count` times; prints one line a kill and what differs."""
    draw = random.Random(seed)
    started = time.monotonic()
    attempt(root / "whole", overrides, None)
    seconds = time.monotonic() - started
    whole = fingerprints(root / "whole")
    print(f"unbroken run: {seconds:.1f} s, {len(whole)} things to compare")

    kills: list[Kill] = []
    for number in itertools.count():
        if len(kills) >= count:
            break
        folder, here = root / f"killed-{number}", list[Kill]()
        while True:
            moment = draw.uniform(0.0, seconds) if len(kills) + len(here) < count else None
            said = len(console(folder))
            if attempt(folder, overrides, moment):
                break
            assert moment is not None
            here.append(Kill(folder, moment, *interrupted(folder, said)))
        wrong = differences(folder, whole) if here else []
        for line in wrong:
            print(f"differs in {folder.name}: {line}")
        kills += [replace(kill, identical=not wrong) for kill in here]
    return kills


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where to run; kept (default: a temporary folder, removed)")
    parser.add_argument("--command", nargs="+", default=COMMAND, metavar="OVERRIDE", help="of `kdlab train`")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    with tempfile.TemporaryDirectory(prefix="kdlab-kill-") as scratch:
        kills = rounds((given.folder or Path(scratch)).absolute(), given.command, given.rounds, given.seed)
    print(f"\n{'killed at':>10}  {'folder':10}  {'broken off':20}  {'steps lost':>10}  identical")
    for kill in kills:
        word = "yes" if kill.identical else "no"
        print(f"{kill.second:8.2f} s  {kill.folder.name:10}  {kill.stage:20}  {kill.work:>10}  {word}")
    same = all(kill.identical for kill in kills)
    print(f"{sum(bool(kill.identical) for kill in kills)} of {len(kills)} kills left no trace")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
