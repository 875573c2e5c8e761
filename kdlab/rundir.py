"""A run's own folder: what was asked, the graph, the points, the console, the result, and the student.

    outputs/runs/<name>/  or  outputs/sweeps/<sweep>/<job>/
        run.json  graph.json  status.json  metrics.jsonl  console.log  result.json  student/
        (failure.txt if it failed)

The artifacts stay in the store; this folder can be deleted without losing work. result.json has the checksums of what
does not change any more, and with run.json its own; what is damaged is written anew when the command is given again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from kdlab.artifacts import SMALL, Artifact, read_json, write_json, write_text
from kdlab.config import PLACEMENT, Run
from kdlab.errors import ConfigError, StoreError, disk_errors
from kdlab.graph import Graph
from kdlab.integrity import checksum
from kdlab.showing import redact

STATUS_SECONDS = 1.0  # between two reports of progress, at least
SHOWN = 6  # keys in a message


class Taken(ConfigError):
    """A run's folder holds another run."""


def default_name(run: Run, graph: Graph) -> str:
    """Says what the run does; ends in the first digits of its identity."""
    words = [run.method.name, run.task.name, run.model.name, f"seed{run.seed}"]
    return "-".join(word.replace("/", "_") for word in words) + f"-{graph.identity()[:8]}"


class RunDirectory:
    """Writes the folder of one run. Giving the same run again continues in the same folder."""

    def __init__(self, path: Path, run: Run, graph: Graph, *, group: str | None, overrides: list[str]) -> None:
        self.path, self.run, self.graph, self.group = path, run, graph, group
        self.overrides = overrides
        self.metrics = path / "metrics.jsonl"

    @property
    def run_id(self) -> str:
        """The same for the same run in the same folder, so that tracking continues it."""
        return hashlib.sha256(f"{self.graph.identity()} {self.group} {self.path.name}".encode()).hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        run = self.run
        return {
            "run_id": self.run_id,
            "name": self.path.name,
            "group": self.group or run.task.name,
            "job_type": run.method.name,
            "tags": [*run.tracking.tags, run.task.name, run.model.name, run.method.name, run.method.family],
            "config": asdict(run),
        }

    def open(self) -> None:
        """Create the folder; refuses one that holds another run of the same name."""
        self.refuse_another()
        with disk_errors("creating the run's folder", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "failure.txt").unlink(missing_ok=True)
            for left in self.path.glob("*.tmp"):  # of a process that was killed while it wrote a file
                if left.is_file():
                    left.unlink(missing_ok=True)
            told = redact({**self.identity(), "overrides": self.overrides})
            write_json(self.path / "run.json", {**told, "identity": self.graph.identity()}, seal=True)
            write_json(self.path / "graph.json", self.graph.describe())

    def refuse_another(self) -> None:
        """Refuse a folder that holds the result of another run, or that another run is writing at this moment."""
        held = read(self.path / "run.json")
        if held is None and self._made_of_the_same():
            return
        if held is not None and held.get("identity") == self.graph.identity():
            return
        status = read(self.path / "status.json")
        if read(self.path / "result.json") is None and not (status is not None and alive(status)):
            return  # it never finished, and what its stages have finished is in the store
        differs = "its stages are others, and its run.json is damaged" if held is None else self.what_differs(held)
        raise Taken(
            [
                f"name={self.run.name}: {self.path} holds another run: {differs}; give another name=, "
                "or move that folder away (stages that are the same are not run again)"
            ]
        )

    def _made_of_the_same(self) -> bool:
        """Whether graph.json names this run's stages, or none; of a folder whose run.json is damaged, or not there."""
        known = {stage["fingerprint"] for stage in _list(self.path / "graph.json")}
        return not known or known == {stage.fingerprint for stage in self.graph}

    def damage(self, model: Path | None) -> list[str]:
        """What of a finished run's folder is not as it was written, one line a file.

        model: the student in the store, looked at already: what is the same file on the disk needs no look here.
        """
        found = [f"{name}: not as it was written" for name in ("run.json", "result.json") if self._broken(name)]
        for name, wanted in (self.result() or {}).get("files", {}).items():
            path = self.path / name
            try:
                if name.startswith("student/") and model is not None and _as_linked(path, model / path.name):
                    continue
                if checksum(path) != wanted:
                    found.append(f"{name}: not as it was written")
            except FileNotFoundError:
                found.append(f"{name}: missing")
            except OSError as error:
                found.append(f"{name}: can't be read: {error.strerror or error}")
        return found

    def _broken(self, name: str) -> bool:
        return (self.path / name).exists() and read(self.path / name) is None

    def what_differs(self, held: Mapping[str, Any]) -> str:
        """Between the run that the folder holds and this one: keys with their values, else stages."""
        before, now = (dict(_flat(config)) for config in (held.get("config") or {}, redact(asdict(self.run))))
        keys = [
            f"{key} is {_word(before.get(key))} there, here {_word(now.get(key))}"
            for key in sorted(before.keys() | now.keys())
            if key.split(".")[0] not in PLACEMENT and before.get(key) != now.get(key)
        ]
        if not keys:
            known = {stage["label"]: stage["fingerprint"] for stage in _list(self.path / "graph.json")}
            stages = [stage.label for stage in self.graph if known.get(stage.label) != stage.fingerprint]
            return f"the same keys, but another version of the code or of the data ({_several(stages)})"
        return _several(keys)

    def result(self) -> dict[str, Any] | None:
        """The result of this very run, if it was finished before."""
        held = read(self.path / "run.json")
        if held is None or held.get("identity") != self.graph.identity():
            return None
        return read(self.path / "result.json")

    def write_metrics(self, stages: list[tuple[str, Artifact]]) -> None:
        """All points of the stages so far, in order, each with its global step."""
        lines = [json.dumps(point, sort_keys=True) for point in points(stages)]
        write_text(self.metrics, "".join(f"{line}\n" for line in lines))

    def write_student(self, model: Path, card: str) -> None:
        """The student as a plain Hugging Face folder; its weights share the artifact's disk space."""
        target, scratch = self.path / "student", self.path / "student.tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for file in sorted(model.iterdir()):
            try:
                os.link(file, scratch / file.name)
            except OSError:
                shutil.copy2(file, scratch / file.name)  # with its time, see `_as_linked`
        (scratch / "README.md").write_text(card, encoding="utf-8")
        if target.is_symlink():  # put there by the user, to another disk
            target.unlink()
        elif target.exists():
            shutil.rmtree(target)
        os.rename(scratch, target)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """result.json, when all else is there: `files` has the checksums of what does not change any more."""
        lasting = [self.path / "graph.json", self.metrics, *sorted((self.path / "student").glob("*"))]
        files = {path.relative_to(self.path).as_posix(): checksum(path) for path in lasting if path.is_file()}
        write_json(self.path / "result.json", {**result, "files": files}, seal=True)

    def write_failure(self, message: str) -> None:
        """failure.txt: why the run did not finish."""
        (self.path / "failure.txt").write_text(f"{message}\n", encoding="utf-8")


class Status:
    """Writes status.json: what a run does at this moment, for whoever looks at it from outside; a `runner.Screen`.

    {"state": "waiting" | "running" | "finished" | "failed", "stage", "step", "steps", "seconds_left", "pid", "host",
    "at"}. Progress within a stage is written at most once a second. A disk that takes no more never stops the run here.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.clock = folder / "status.json", clock
        self.label: str | None = None
        self.written_at = -STATUS_SECONDS

    def __enter__(self) -> Status:
        self.write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.write("finished")
        elif issubclass(kind, Exception):
            self.write("failed")

    def stage_started(self, label: str, why: str = "") -> None:
        self.label = label
        self.write("running")

    def stage_hit(self, label: str, age: float, note: str = "") -> None:
        self.label = None

    def stage_waiting(self, label: str) -> None:
        self.label = label
        self.write("waiting")

    def stage_done(self, label: str, seconds: float) -> None:
        self.label = None

    def update(self, point: Mapping[str, Any]) -> None:
        if "step" in point and self.clock() - self.written_at >= STATUS_SECONDS:
            self.write("running", **{key: point.get(key) for key in ("step", "steps", "seconds_left")})

    def note(self, text: str) -> None:
        return

    def table(self, table: Any) -> None:
        return

    def write(self, state: str, **progress: Any) -> None:
        self.written_at = self.clock()
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        values = dict.fromkeys(("step", "steps", "seconds_left")) | progress
        told = {"state": state, "stage": self.label, **values, "pid": os.getpid(), "host": socket.gethostname()}
        scratch = self.path.with_name(f"status.json.{os.getpid()}.tmp")
        with suppress(OSError):
            scratch.write_text(json.dumps({**told, "at": now}), encoding="utf-8")
            os.replace(scratch, self.path)


def alive(status: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a status is still at it; on another machine: whether it never said it ended."""
    if status.get("state") not in ("running", "waiting"):
        return False
    if status.get("host") != socket.gethostname():
        return True
    try:
        number = int(status["pid"])
        if number <= 0:
            return False
        os.kill(number, 0)
    except PermissionError:
        return True  # somebody else's
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        return False
    return True


def points(stages: list[tuple[str, Artifact]]) -> list[dict[str, Any]]:
    """Points of finished stages; the global step counts on from stage to stage."""
    found = []
    offset = 0
    for _, artifact in stages:
        file = artifact.path / "metrics.jsonl"
        if not file.exists():
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            point = json.loads(line)
            found.append({**point, "global_step": offset + point["step"]})
        offset += int(artifact.facts["steps"])
    return found


def _as_linked(path: Path, twin: Path) -> bool:
    """Whether two are one file on the disk, or a large one looks like the copy that was made of the other."""
    if not twin.exists():
        return False
    ours, theirs = path.stat(), twin.stat()
    if os.path.samestat(ours, theirs):
        return True
    alike = (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
    return alike and ours.st_size > SMALL


def read(path: Path) -> dict[str, Any] | None:
    """A JSON file, or None if it is not there or not whole."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _list(path: Path) -> list[dict[str, Any]]:
    """The stages of a graph.json; none of one that is not whole."""
    try:
        return [
            stage for stage in json.loads(path.read_text(encoding="utf-8")) if {"label", "fingerprint"} <= set(stage)
        ]
    except (OSError, ValueError, TypeError):
        return []


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, where)
        else:
            yield where, list(value) if isinstance(value, tuple) else value


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _several(texts: list[str]) -> str:
    return "; ".join(texts[:SHOWN]) + (f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")


def used_artifacts(outputs: Path) -> set[str]:
    """Names of the artifacts that the runs below a folder, and what was analyzed or evaluated of them, are made of.

    Of a sweep also what the jobs need that have not begun. Raises StoreError for a file that should tell and can't.
    """
    used: set[str] = set()
    runs = [*outputs.glob("runs/*/"), *outputs.glob("sweeps/*/*/")]
    studies = [*outputs.glob("analysis/*/"), *(run / "analysis" for run in runs)]
    studies += [folder for run in runs for folder in run.glob("evaluations/*/")]
    for file in [folder / "graph.json" for folder in [*runs, *studies]]:
        with _telling(file):
            for stage in read_json(file) if file.exists() else []:
                name, _, digits = stage["artifact"].rpartition("-")
                said = stage.get("function", f":{name}").partition(":")[2], stage.get("fingerprint", digits)[:16]
                if said != (name, digits):
                    raise ValueError(f"it says {stage['artifact']}, which is {'-'.join(said)}")
                used.add(stage["artifact"])
    for file in outputs.glob("sweeps/*/sweep.json"):
        with _telling(file):
            for job in read_json(file)["jobs"]:
                used |= set(job.get("artifacts", []))
    return used


@contextmanager
def _telling(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"it can't be told which artifacts are in use: {type(error).__name__}: {error}",
            where=str(file),
            fix="give the command of that run or sweep again, which writes the file anew; or move its folder away",
        ) from error
