"""A run's own folder: what was asked, the graph, the points, the console, the result, and the student.

    outputs/runs/<name>/  or  outputs/sweeps/<sweep>/<job>/
        run.json  graph.json  metrics.jsonl  console.log  result.json  student/  (failure.txt if it failed)

The artifacts stay in the store; this folder can be deleted without losing work.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdlab.artifacts import Artifact, disk_errors, write_json
from kdlab.config import Run
from kdlab.engine.tracking import redact
from kdlab.errors import ConfigError
from kdlab.graph import Graph


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
            "tags": [*run.tracking.tags, run.task.name, run.model.name, run.method.name],
            "config": asdict(run),
        }

    def open(self) -> None:
        """Create the folder; refuses one that holds another run of the same name."""
        self.refuse_another()
        with disk_errors("creating the run's folder", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "failure.txt").unlink(missing_ok=True)
            told = redact({**self.identity(), "overrides": self.overrides})
            write_json(self.path / "run.json", {**told, "identity": self.graph.identity()})
            write_json(self.path / "graph.json", self.graph.describe())

    def refuse_another(self) -> None:
        held = read(self.path / "run.json")
        if held is not None and held.get("identity") != self.graph.identity():
            raise ConfigError(
                [f"name={self.run.name}: {self.path} holds another run; choose another name or move that folder away"]
            )

    def result(self) -> dict[str, Any] | None:
        """The result of this very run, if it was finished before."""
        held = read(self.path / "run.json")
        if held is None or held.get("identity") != self.graph.identity():
            return None
        return read(self.path / "result.json")

    def write_metrics(self, stages: list[tuple[str, Artifact]]) -> None:
        """All points of the stages so far, in order, each with its global step."""
        lines = [json.dumps(point, sort_keys=True) for point in points(stages)]
        scratch = self.metrics.with_suffix(".tmp")
        scratch.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(scratch, self.metrics)

    def write_student(self, model: Path, card: str) -> None:
        """The student as a plain Hugging Face folder; its weights share the artifact's disk space."""
        target, scratch = self.path / "student", self.path / "student.tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for file in sorted(model.iterdir()):
            try:
                os.link(file, scratch / file.name)
            except OSError:
                shutil.copyfile(file, scratch / file.name)
        (scratch / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.rename(scratch, target)

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_json(self.path / "result.json", result)

    def write_failure(self, message: str) -> None:
        (self.path / "failure.txt").write_text(f"{message}\n", encoding="utf-8")


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


def read(path: Path) -> dict[str, Any] | None:
    """A JSON file, or None if it is not there or not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def used_artifacts(outputs: Path) -> set[str]:
    """Names of the artifacts that the runs below a folder, and what was analyzed of them, are made of."""
    used: set[str] = set()
    runs = [*outputs.glob("runs/*/"), *outputs.glob("sweeps/*/*/")]
    studies = [*outputs.glob("analysis/*/"), *(run / "analysis" for run in runs)]
    for file in [folder / "graph.json" for folder in [*runs, *studies]]:
        try:
            used |= {stage["artifact"] for stage in json.loads(file.read_text(encoding="utf-8"))}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return used
