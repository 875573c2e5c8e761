"""Eight commands at once on one store: each stage runs once; one that dies with a lock in its hand is followed."""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from kdlab import cli
from kdlab.artifacts import Store
from kdlab.engine import loop
from kdlab.verbs.verify_resume import Left, compared
from lab import Lab

COMMANDS = 8
LINE = (
    "train -m method=kd seed=1,2 name=mine task=demo/nli model=tiny debug=fast task.max_length=32 tracking=none "
    "hardware=cpu hardware.threads=1 hardware.checkpoint_seconds=0 curves=8"
)


def words(folder: Path) -> list[str]:
    return shlex.split(f"{LINE} outputs={folder}/outputs store={folder}/outputs/artifacts")


def command(folder: Path, number: int) -> None:
    """The command in a process of its own, first of a group: its jobs' processes are in it."""
    os.setsid()
    log = os.open(folder / f"said-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.exit(cli.main(words(folder)))


def die_once(note: Path, patched: pytest.MonkeyPatch) -> None:
    """The command whose job is the first to come to the third step of a teacher dies, with all its processes."""
    real = loop._Trainer.train_step

    def step(self: Any, *rest: Any) -> None:
        if self.step == 2 and self.context.stage == "teacher":
            try:
                os.close(os.open(note, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.killpg(os.getpgrp(), signal.SIGKILL)
        real(self, *rest)

    patched.setattr(loop._Trainer, "train_step", step)


@pytest.mark.timeout(300)
def test_eight_commands_and_the_death_of_one(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    done = lab.command(shlex.join(words(alone)))
    assert done.code == 0, done.err
    together.mkdir()
    die_once(tmp_path / "died", monkeypatch)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=command, args=(together, number)) for number in range(COMMANDS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    said = [(together / f"said-{number}.log").read_text() for number in range(COMMANDS)]
    codes = [process.exitcode for process in processes]
    assert sorted(codes) == [-signal.SIGKILL] + [0] * (COMMANDS - 1), "\n".join(said)

    artifacts = Store(together / "outputs" / "artifacts").artifacts()
    begun = re.findall(r"^run +(\S+): (.*)$", "\n".join(said), re.MULTILINE)
    assert len(begun) == len(artifacts) + 1, begun  # each once, and the dead one's again
    assert sum(artifact.manifest["made"]["continued"] for artifact in artifacts) == 1
    assert sum("continues" in why for label, why in begun if label == "teacher") == 1
    assert compared(Left.of(together), Left.of(alone)) == []
