"""What a finished model scored on a task that it was asked later: evaluation.json's numbers, and their tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from kdlab.artifacts import Artifact
from kdlab.config import Crosslingual, Run
from kdlab.report import languages
from kdlab.report.result import REASONING_METRICS, majority_of_languages, mean_of
from kdlab.report.summary import hundredfold, metric_name, spread, titled, with_columns

UNLABELLED = "no labels: predicted only"


def of_encoder(run: Run, made: Mapping[str, Artifact], sets: Sequence[str]) -> dict[str, Any]:
    """scores and majority: set -> metric; rows and unlabelled: by set."""
    task = run.task
    facts = [_read(made[label], "facts") for label in ("prepare", "prepare_sets") if label in made]
    scores = _read(made["evaluate"], "scores")
    wanted = list(dict.fromkeys([task.metric, *task.metrics]))
    return {
        "metric": task.metric,
        "scores": {name: {metric: scores[name][metric] for metric in wanted} for name in sets if name in scores},
        **{key: _of_sets(facts, key, sets) for key in ("majority", "rows", "unlabelled")},
        "cut": _of_sets([_read(made[label], "facts") for label in made if label.startswith("tokenise")], "cut", sets),
    }


def of_languages(run: Run, made: Mapping[str, Artifact], sets: Sequence[str]) -> dict[str, Any]:
    """As result.json has them: languages, means, majority_of_languages; scores: the means in the run's inference."""
    method, task = run.method, run.task
    assert isinstance(method, Crosslingual)
    facts = [_read(made[label], "facts") for label in ("prepare", "prepare_sets") if label in made]
    found = {name: _read(made["evaluate"], name) for name in ("scores", "means", "fallbacks")}
    means = found["means"]
    modes = {mode for of_split in means.values() for mode in of_split}
    mode = method.inference if method.inference in modes else "original"
    majority = majority_of_languages([one["majority"] for one in facts])
    wanted = list(dict.fromkeys([task.metric, *task.metrics]))
    return {
        "metric": task.metric,
        "split": "test" if "test" in means else "dev",
        "scores": {
            split: {metric: of_split[mode]["all"][metric] for metric in wanted} for split, of_split in means.items()
        },
        "languages": found["scores"],
        "means": means,
        "inference": {
            "mode": mode,
            "ensemble": method.ensemble,
            "share": method.share,
            "fallbacks": found["fallbacks"],
        },
        "task_languages": list(task.languages),
        "source_language": task.source_language,
        "translator": run.translator.name if modes - {"original"} else None,
        "majority": {split: mean_of(list(values.values())) for split, values in majority.items() if split in sets},
        "majority_of_languages": {split: values for split, values in majority.items() if split in sets},
        "rows": {name: rows for one in facts for name, rows in one["rows"].items() if name.partition(".")[0] in sets},
    }


def of_reasoning(run: Run, made: Mapping[str, Artifact], sets: Sequence[str]) -> dict[str, Any]:
    """scores and intervals: set -> metric; baselines: of constant and random answers."""
    scored = made["student_scores"]
    scores, baselines = _read(scored, "scores"), _read(scored, "baselines")
    return {
        "metric": "accuracy",
        "scores": {name: {metric: scores[name][metric] for metric in REASONING_METRICS} for name in scores},
        "intervals": _read(scored, "intervals"),
        "majority": baselines["majority"],
        "chance": baselines["chance"],
        "rows": baselines["rows"],
        "tokens_per_second": made["answers"].facts.get("answers", {}).get("tokens_per_second"),
    }


FAMILIES: dict[str, Callable[[Run, Mapping[str, Artifact], Sequence[str]], dict[str, Any]]] = {
    "distillation": of_encoder,
    "reasoning": of_reasoning,
    "crosslingual": of_languages,
}


def tables(told: Mapping[str, Any]) -> list[Table]:
    """What evaluation.json tells, for the terminal."""
    if "languages" in told:
        return [languages.language_table({**told, "split": split}) for split in told["means"]]
    scores: Mapping[str, Mapping[str, float]] = told["scores"]
    rows = [(name, metric) for name in told["sets"] for metric in scores.get(name, {"": 0.0})]
    labels = [name for name in told["sets"] if name not in scores]
    columns = {
        "set": [name for name, _ in rows],
        "rows": [str(told["rows"].get(name, "-")) for name, _ in rows],
        "metric": [metric_name(metric) or UNLABELLED for _, metric in rows],
        "chance": [_shown(told.get("chance", {}), *row) for row in rows],
        "majority": [_shown(told["majority"], *row) for row in rows],
        told["side"]: [_shown(scores, *row) for row in rows],
        "95 %\ninterval": [_interval(told, *row) for row in rows],
    }
    title = f"{told['run']['name']} on {told['task']}" + ("" if len(labels) == len(rows) else ", x 100")
    return [with_columns(titled(title, _notes(told)), columns, left=("set", "metric"))]


def _shown(scores: Mapping[str, Mapping[str, float]], name: str, metric: str) -> str:
    return hundredfold(scores.get(name, {}).get(metric))


def _interval(told: Mapping[str, Any], name: str, metric: str) -> str:
    found = told.get("intervals", {}).get(name, {}).get(metric)
    return "" if found is None else spread((found[0], found[1]))


def _notes(told: Mapping[str, Any]) -> list[str]:
    classes = told["classes"]
    if classes is None or not classes["reordered"]:
        return []
    return [f"the task has the model's classes in another order: {', '.join(classes['task'])}"]


def _of_sets(facts: Sequence[Mapping[str, Any]], key: str, sets: Sequence[str]) -> dict[str, Any]:
    return {name: one[key][name] for one in facts for name in sets if name in one[key]}


def _read(artifact: Artifact, name: str) -> Any:
    return json.loads((Path(artifact.path) / f"{name}.json").read_text(encoding="utf-8"))
