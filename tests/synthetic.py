"""Run folders as `kdlab train` leaves them, written without any training: for what looks back at many runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

FIT = {"epochs": 4, "lr": 3e-5, "batch_size": 32, "optimizer": "adamw", "schedule": "linear", "warmup": 0.1}
FIT |= {"weight_decay": 0.01}


class Outputs:
    """An outputs/ folder with its store, to write runs into."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, root / "artifacts"

    def rows(self, name: str, gold: Sequence[Any], labels: list[str] | None, ids: Sequence[int] | None = None) -> str:
        """A tokenised task with the right answers of its dev rows: class numbers, or numbers. The artifact's name."""
        folder = self.store / f"tokenise-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({"id": list(ids or range(len(gold))), "label": list(gold)})
        with pa.OSFile(str(folder / "dev.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        (folder / "facts.json").write_text(json.dumps({"labels": labels}))
        return folder.name

    def predictions(self, name: str, said: Sequence[Any], ids: Sequence[int] | None = None) -> str:
        """What a student answered to dev: names of classes, or numbers. The artifact's name."""
        folder = self.store / f"evaluate-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"id": row, "prediction": one, "logits": [0.0]})
            for row, one in zip(ids or range(len(said)), said, strict=True)
        ]
        (folder / "predictions-dev.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return folder.name

    def run(
        self,
        place: str,
        score: float | None,
        *,
        method: str = "kd",
        task: str = "glue/rte",
        model: str = "bert",
        seed: int = 1,
        metric: str = "accuracy",
        config: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
        fit: Mapping[str, Any] | None = None,
        data: str | None = None,
        predictions: str | None = None,
        failure: str | None = None,
        identity: str | None = None,
    ) -> Path:
        """The folder of one run below the root: "runs/NAME" or "sweeps/NAME/JOB". score None: it has not finished.

        config, result: what differs from the usual, as nested values; data, predictions: artifacts of `rows` and
        `predictions`.
        """
        folder = self.root / place
        folder.mkdir(parents=True)
        usual: dict[str, Any] = {
            "method": {"name": method, "family": "distillation", "logits": {**FIT, **(fit or {})}},
            "task": {"name": task, "max_length": 128, "few": {"examples": None}},
            "model": {"name": model},
            "seed": seed,
            "select_on": "heldout",
            "precision": "fp32",
            "debug": {"name": "off", "rows": None, "steps": None},
            "expected": {"source": "", "protocol": "", "note": "", "axes": [], "scores": {}},
            "name": folder.name,
            "store": str(self.store),
            "outputs": str(self.root),
        }
        told: dict[str, Any] = {
            "run_id": hashlib.sha256(place.encode()).hexdigest()[:16],
            "name": folder.name,
            "config": merged(usual, config or {}),
            "overrides": [f"method={method}", f"task={task}", f"seed={seed}"],
            "identity": identity or hashlib.sha256(place.encode()).hexdigest(),
        }
        write(folder / "run.json", told)
        stages = [
            stage("tokenise", data or "tokenise-none", {}),
            stage("teacher", "finetune-1", {"data": data or "tokenise-none"}, fit=FIT),
            stage("logits", f"distill_logits-{folder.name}", {"teacher": "finetune-1"}, fit={**FIT, **(fit or {})}),
            stage(
                "evaluate_student",
                predictions or "evaluate-none",
                {"model": f"distill_logits-{folder.name}", "data": data or "tokenise-none"},
            ),
        ]
        write(folder / "graph.json", stages)
        if failure is not None:
            (folder / "failure.txt").write_text(f"{failure}\n")
        if score is not None:
            scores = {"dev": {metric: {"selected": score, "last": score, "best": score}}}
            student = {"scores": scores, "parameters": 100, "bytes": 400, "latency_ms": 2.0, "flops_per_example": 50}
            found = {
                "run": {"name": folder.name, "method": method, "task": task, "model": model, "seed": seed}
                | {"select_on": told["config"]["select_on"], "family": "distillation"},
                "metric": metric,
                "split": "dev",
                "scores": scores,
                "student": {**student, "selection": {"on": "heldout"}, "device": "cpu", "threads": 1},
                "teacher": {"scores": {"dev": {metric: {"selected": 0.9}}}, "parameters": 200, "latency_ms": 4.0},
                "majority": {"dev": {metric: 0.5}},
                "rows": {"train": 1000, "dev": 100},
                "sources": {"prepare": {"hub": "nyu-mll/glue", "revision": "abc"}},
                "artifacts": {one["label"]: one["artifact"] for one in stages},
                "seconds_of_stages": {"teacher": 100.0, "logits": 20.0, "tokenise": 7.0, "evaluate_student": 3.0},
                "versions": {"kdlab": "0.1.0", "torch": "2.13", "transformers": "5.24"},
                "made_by": ["0.1.0"],
            }
            write(folder / "result.json", merged(found, result or {}))
        return folder


def stage(label: str, artifact: str, inputs: Mapping[str, str], fit: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "label": label,
        "artifact": artifact,
        "fingerprint": artifact,
        "function": f"kdlab.stages.x:{artifact.partition('-')[0]}",
        "version": 1,
        "values": {} if fit is None else {"fit": dict(fit)},
        "inputs": dict(inputs),
        "after": [],
    }


def merged(usual: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with those of `other` in place of the usual ones."""
    found = dict(usual)
    for key, value in other.items():
        inner = found.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        found[key] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return found


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
