"""Runs the command line inside the test process, on one store for the whole session: teachers are trained once."""

from __future__ import annotations

import io
import json
import os
import shlex
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from kdlab import cli

TINY = "task=demo/nli model=tiny debug=fast task.max_length=32 tracking=none hardware.threads=1"

# A teacher of 4 layers and a student of 2, whatever model=tiny is like: for tests that change one of the two.
SIZES = (
    "model_type: bert, hidden_size: 64, num_attention_heads: 4, intermediate_size: 128, "
    "max_position_embeddings: 64, num_hidden_layers: {layers}"
)
PAIR = (
    "model=tiny model.teacher.init=random model.student.init=random model.student.num_layers=null "
    f"'model.teacher.config={{{SIZES.format(layers=4)}}}' 'model.student.config={{{SIZES.format(layers=2)}}}'"
)


@dataclass
class Done:
    """What a command left: exit code, and all it printed."""

    code: int
    out: str
    err: str

    def stages(self, word: str) -> list[str]:
        """Labels of the stages that were "run", or a "hit"."""
        lines = [line.split() for line in self.out.splitlines()]
        return [line[1].rstrip(":") for line in lines if line[:1] == [word]]


class Lab:
    def __init__(self, root: Path) -> None:
        self.root, self.store, self.conf = root, root / "artifacts", root / "conf"

    def command(self, line: str) -> Done:
        """One command; what earlier ones have pinned is forgotten, as in a new process."""
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(cli, "_PINS", None),
            mock.patch.dict(os.environ, COLUMNS="240"),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            code = cli.main(shlex.split(line))
        return Done(code, out.getvalue(), err.getvalue())

    def run(self, line: str, *, outputs: Path, verb: str = "train") -> Done:
        """`kdlab train` with the session's store."""
        return self.command(f"{verb} {line} store={self.store} outputs={outputs}")

    def task(self, name: str, text: str) -> str:
        """A task file of one's own; returns the words that choose it."""
        (self.conf / "task").mkdir(parents=True, exist_ok=True)
        (self.conf / "task" / f"{name}.yaml").write_text(text, encoding="utf-8")
        return f"--config-dir {self.conf} task={name}"


def run_folder(outputs: Path) -> Path:
    """The only run below a folder."""
    (folder,) = (outputs / "runs").iterdir()
    return folder


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def points(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
