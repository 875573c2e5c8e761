"""`result.json`: every number of a run, and where each came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab import provenance
from kdlab.artifacts import Artifact
from kdlab.config import Distillation, Run


def build(run: Run, targets: Mapping[str, Artifact], stages: Mapping[str, Artifact], seconds: float) -> dict[str, Any]:
    """The result of a run of the distillation family.

    targets: artifacts by the names that the plan gave them; stages: artifacts by stage label.
    Scores are fractions: `selected` is of the published student, reloaded; `last` and `best` are of its last
    training stage's evaluations, and `best` is chosen on the very set that it reports.
    """
    method = run.method
    assert isinstance(method, Distillation)
    facts = _read(targets["data"].path / "facts.json")
    further = _read(targets["sets"].path / "facts.json") if "sets" in targets else {"majority": {}, "rows": {}}
    student = _side(run, targets, "student")
    others = sorted({artifact.manifest["made"]["versions"]["kdlab"] for artifact in stages.values()})
    return {
        "run": {
            "name": run.name,
            "method": method.name,
            "task": run.task.name,
            "model": run.model.name,
            "seed": run.seed,
            "precision": run.precision,
            "select_on": run.select_on,
        },
        "metric": run.task.metric,
        "scores": student["scores"],
        "student": {**student, "path": "student"},
        "teacher": _side(run, targets, "teacher") if "teacher" in targets else None,
        "majority": {**facts["majority"], **further["majority"]},
        "rows": {**facts["rows"], **further["rows"]},
        "conditions": facts["conditions"],
        "seeds": {"run": run.seed} | ({"teacher": method.teacher_seed} if "teacher" in targets else {}),
        "sources": {
            label: artifact.manifest["values"][name]
            for name in ("source", "model", "student", "tokenizer")
            for label, artifact in stages.items()
            if artifact.manifest["values"].get(name)
        },
        "artifacts": {label: artifact.path.name for label, artifact in stages.items()},
        "warnings": [
            {"stage": label, "text": text}
            for label, artifact in stages.items()
            for text in [*artifact.manifest["warnings"], *artifact.facts.get("warnings", [])]
        ],
        "versions": provenance.versions(),
        "git": provenance.git(),
        "made_by": others,
        "seconds": round(seconds, 3),
        "seconds_of_stages": {label: artifact.manifest["made"]["seconds"] for label, artifact in stages.items()},
    }


def _side(run: Run, targets: Mapping[str, Artifact], side: str) -> dict[str, Any]:
    figures = _read(targets[f"{side}_figures"].path / "figures.json")
    selected = _read(targets[f"{side}_scores"].path / "scores.json")
    history = _read(targets[side].path / "history.json")
    head = _read(targets[side].path / "model" / "config.json").get("kdlab_head", "stock")
    return {
        "scores": _scores(selected, history, [run.task.metric, *run.task.metrics]),
        "selection": {
            "on": run.select_on,
            "step": history["selected_step"],
            "last_step": history["last_step"],
            "score": history["best_score"],
        },
        "head": head,
        **figures,
    }


def _scores(
    selected: Mapping[str, Mapping[str, float]], history: Mapping[str, Any], wanted: Sequence[str]
) -> dict[str, Any]:
    """The wanted metrics, of all that were scored."""
    evaluations = history["evaluations"]
    scores: dict[str, Any] = {}
    for split, metrics in selected.items():
        scores[split] = {}
        for metric in dict.fromkeys(wanted):
            value = metrics[metric]
            curve = [one["scores"][split][metric] for one in evaluations if split in one["scores"]]
            scores[split][metric] = {"selected": value} | ({"last": curve[-1], "best": max(curve)} if curve else {})
    return scores


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
