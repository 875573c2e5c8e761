"""Runs the command line inside the test process, on one store for the whole session: teachers are trained once."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import yaml

import kdlab
from kdlab import catalog, cli, compose
from kdlab.artifacts import read_json
from kdlab.config import Run
from kdlab.errors import ConfigError
from kdlab.verbs import plan as planning

CONF = Path(kdlab.__file__).parent.parent / "conf"
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
            mock.patch.object(planning, "_PINS", None),
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


def script(name: str) -> ModuleType:
    """A program of scripts/ as a module, loaded once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, CONF.parent / "scripts" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def permissions_hold() -> Iterator[None]:
    """What files forbid, they forbid to root too: this thread gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.geteuid() != 0:
        yield
        return
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(0x20080522), (_Sets * 2)()

    def call(name: str) -> None:
        if getattr(libc, name)(ctypes.byref(header), sets) != 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

    call("capget")
    before = sets[0].effective
    sets[0].effective = before & ~0b110
    call("capset")
    try:
        yield
    finally:
        sets[0].effective = before
        call("capset")


@functools.cache
def parts(group: str, name: str) -> list[dict[str, Any]]:
    """A yaml file of conf/ and those that it builds upon."""
    file = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    found = [file]
    for default in file.get("defaults", []):
        if isinstance(default, str) and default != "_self_":
            path = default.partition("@")[0]
            if not path.startswith("/"):
                path = (Path(group) / Path(name).parent / path).as_posix()
            root, _, inner = path.strip("/").partition("/")
            found += parts(root, inner)
    return found


FAMILIES = ("distillation", "reasoning", "crosslingual")


def families(group: str, name: str) -> set[str]:
    """The families of methods that a method, task, model or experiment is for."""
    found = parts(group, name)
    if group in ("task", "model") and any(part.get("kind") in ("reasoning", "decoder", "endpoint") for part in found):
        return {"reasoning"}
    if group == "task":
        return {"distillation", *(["crosslingual"] if any(part.get("languages") for part in found) else [])}
    if group == "model":
        taught = any("teacher" in part for part in found)
        alone = all(part.get("student", {}).get("init") != "cut" for part in found)
        return {*(["distillation"] if taught else []), *(["crosslingual"] if alone else [])}
    chosen = [one for part in found for one in part.get("defaults", []) if isinstance(one, dict)]
    if group == "method":
        return {one["/schema@method"] for one in chosen if "/schema@method" in one}
    methods = [one["override /method"] for one in chosen if "override /method" in one]
    swept = [part["hydra"]["sweeper"]["params"].get("method") for part in found if "hydra" in part]
    methods += [name for names in swept if names for name in names.split(",")]
    return families("method", methods[-1]) if methods else {"distillation"}


def presets(group: str, family: str) -> list[str]:
    """The options of a group that are for one family."""
    return [name for name, _ in catalog.entries(group) if family in families(group, name)]


def composed(line: str) -> Run:
    """The one run of a command line, without the verb."""
    (job,) = compose.jobs(shlex.split(line)).jobs
    return job.run


def problems(line: str) -> list[str]:
    """What is wrong with a command line that can't be composed."""
    with pytest.raises(ConfigError) as caught:
        composed(line)
    return caught.value.problems


def once(lab: Lab, words: Callable[[str], str], factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Done]]:
    """A function that runs the command of each name once: the run's folder and what the command printed."""
    known: dict[str, tuple[Path, Done]] = {}

    def run(name: str) -> tuple[Path, Done]:
        if name not in known:
            outputs = factory.mktemp(name)
            done = lab.run(words(name), outputs=outputs)
            assert done.code == 0, done.err
            known[name] = run_folder(outputs), done
        return known[name]

    return run


def run_folder(outputs: Path) -> Path:
    """The only run below a folder."""
    (folder,) = (outputs / "runs").iterdir()
    return folder


def read(file: Path) -> Any:
    """A JSON file, without its seal: what is written back may be changed."""
    return read_json(file)


def points(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
