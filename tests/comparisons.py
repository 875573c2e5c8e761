"""Runs that never ran: folders as `kdlab train` leaves them, and what `kdlab compare` would find in them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab.runs import Record

METRICS = {"glue/cola": "mcc", "demo/arithmetic": "accuracy", "demo/sentiment_xx": "macro_f1"}
LANGUAGES = ("en", "de", "es", "fr")
MODES = ("original", "translated", "both")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def run(
    outputs: Path,
    method: str,
    task: str,
    seed: int,
    *,
    family: str = "distillation",
    sweep: str = "sweep",
    score: float = 0.5,
    points: int = 40,
    settings: Mapping[str, Any] | None = None,
    failure: str | None = None,
    finished: bool = True,
) -> Path:
    """The folder of one run; its teacher, if it has one, is that of all runs of the task."""
    folder = outputs / "sweeps" / sweep / f"method={method},task={task.replace('/', '_')},seed={seed}"
    own, teacher = f"distill-{method}{seed:x}", f"finetune-{task.replace('/', '')}"
    stages = ["teacher", "layers"] if family == "distillation" and method != "ft" else ["student"]
    config = {
        "seed": seed,
        "name": "",
        "outputs": str(outputs),
        "store": str(outputs / "artifacts"),
        "precision": "fp32",
        "method": {"name": method, "family": family, "stages": stages, **(settings or {})},
        "task": {"name": task, "max_length": 128},
        "model": {"name": "tiny"},
        "expected": {},
    }
    told = {
        "run_id": f"{method}{seed}",
        "config": config,
        "overrides": [f"method={method}", f"task={task}", f"seed={seed}"],
    }
    write(folder / "run.json", told)
    artifacts = {"prepare": f"prepare-{task.replace('/', '')}", stages[-1]: own, "evaluate_student": f"evaluate-{own}"}
    if "teacher" in stages:
        artifacts["teacher"] = teacher
    if family == "reasoning":
        artifacts["student_scores"] = f"score-{own}"
    write(folder / "graph.json", graph(artifacts))
    lines = [
        point
        for stage in stages
        for point in curve(stage, METRICS.get(task, "accuracy"), points, 0 if stage == "teacher" else seed)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if failure is not None:
        (folder / "failure.txt").write_text(failure, encoding="utf-8")
    elif finished:
        write(folder / "result.json", result(method, family, task, seed, score, artifacts))
        if family == "reasoning":
            samples(outputs / "artifacts" / artifacts["student_scores"] / "samples.jsonl")
    return folder


def curve(stage: str, metric: str, points: int, seed: int) -> Iterable[dict[str, Any]]:
    for number in range(1, points + 1):
        loss = 2 * math.exp(-3 * number / points) + 0.02 * ((seed * number) % 7)
        told = {"stage": stage, "step": 5 * number, "steps": 5 * points, "epoch": number / 10, "global_step": number}
        yield {**told, "loss": loss, "parts/attention": loss / 2, "parts/hidden": loss / 3, "lr": 1e-3, "tokens": 99}
        if number % 10 == 0:
            yield {**told, "curve/train/loss": loss, "curve/dev/loss": loss + 0.1}
            yield {**told, f"eval/dev/{metric}": 0.5 + number / points / 4, "eval/dev.de/accuracy": 0.3}


def graph(artifacts: Mapping[str, str]) -> list[dict[str, Any]]:
    """A chain, in which the last stage needs the first one too."""
    names = sorted(
        artifacts, key=["prepare", "teacher", "student", "layers", "evaluate_student", "student_scores"].index
    )
    return [
        {
            "label": label,
            "function": f"kdlab.stages.{label}:{label}",
            "version": 1,
            "artifact": artifacts[label],
            "fingerprint": "0" * 64,
            "values": {},
            "inputs": {"data": artifacts[names[0]], "from": artifacts[names[number - 1]]} if number else {},
            "after": [],
        }
        for number, label in enumerate(names)
    ]


def result(
    method: str, family: str, task: str, seed: int, score: float, artifacts: Mapping[str, str]
) -> dict[str, Any]:
    metric, split = METRICS.get(task, "accuracy"), "test" if family == "crosslingual" else "dev"
    scores = {split: {metric: {"selected": score, "last": score, "best": score + 0.01}}}
    side = {"parameters": 66_000_000, "bytes": 264_000_000, "latency_ms": 1.5 + seed / 10, "flops_per_example": 2.2e10}
    student = {
        **side,
        "scores": scores,
        "device": "cpu",
        "threads": 1,
        "machine": {"processor": "AMD EPYC", "cores": 2},
    }
    teacher = {**side, "parameters": 110_000_000, "latency_ms": 3.0, "scores": {split: {metric: {"selected": 0.7}}}}
    return {
        "run": {"name": "", "family": family, "method": method, "task": task, "model": "tiny", "seed": seed}
        | {"precision": "fp32", "select_on": "dev"},
        "metric": metric,
        "split": split,
        "scores": scores,
        "student": student,
        "teacher": teacher if "teacher" in artifacts else None,
        "majority": {split: {metric: 0.33}},
        "rows": {"train": 1000, split: 277},
        "artifacts": dict(artifacts),
        "seconds_of_stages": {label: 3.2 for label in artifacts},
        "sources": {"prepare": {"hub": task, "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", "config": None}},
        "seeds": {"run": seed},
        "versions": {"kdlab": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "git": {"commit": "4b29abc054b59de80d8519065789f9545ba8a4dc", "dirty": True},
        "made_by": ["0.1.0"],
        "warnings": [],
        "inference": {"mode": "both"},
        "source_language": "en",
    }


def samples(file: Path, text: str = "Anna has 3 apples. #### 3") -> None:
    rows = [
        {
            "id": f"q{number}",
            "split": "test",
            "question": "How many apples?",
            "answer": "3",
            "teacher": [{"rationale": "Three.", "completion": "3", "prediction": "3", "correct": True, "why": None}],
            "text": text,
            "prediction": "3" if number % 2 else None,
            "correct": bool(number % 2),
            "contains_answer": True,
            "correct_format": True,
            "complete": True,
        }
        for number in range(6)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# what compare would say ---------------------------------------------------------------------------------------------


def compared(
    records: Sequence[Record], *, baseline: str | None = None, **more: Any
) -> tuple[dict[str, Any], dict[str, Record]]:
    """(a comparison of the agreed shape, the records by the ids of its runs): made simply, and not by the package."""
    known = {f"r{number}": record for number, record in enumerate(records)}
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for name, record in known.items():
        if record.result is not None:
            grouped.setdefault((record.method, record.task, record.model), []).append(name)
    groups = [
        group(f"g{number}", [known[name] for name in names], names) for number, names in enumerate(grouped.values())
    ]
    for one in groups:
        against = next((other for other in groups if other["method"] == baseline and other["task"] == one["task"]), one)
        one["delta"] = None if against is one else delta(one, against)
    pairs = [
        {"a": a["id"], "b": b["id"], **delta(a, b)}
        for number, a in enumerate(groups)
        for b in groups[number + 1 :]
        if a["task"] == b["task"]
    ]
    of = {name: one["id"] for one in groups for name in one["runs"]}
    runs = [
        {
            "id": name,
            "name": record.name,
            "folder": str(record.folder),
            "sweep": record.folder.parent.name,
            "state": record.state,
            "group": of.get(name),
            "method": record.method,
            "seed": record.seed,
            "score": None if record.result is None else selected(record.result),
            "error": record.failure,
            "command": record.command,
        }
        for name, record in known.items()
    ]
    comparison = {
        "format": 1,
        "title": "sweep",
        "made": "2026-11-29T12:00:00",
        "kdlab": "0.1.0",
        "baseline": baseline,
        "groups": groups,
        "pairs": pairs,
        "expected": [],
        "runs": runs,
        "marks": {},
        "warnings": [],
        "left_out": [],
    }
    return {**comparison, **more}, known


def selected(result: Mapping[str, Any]) -> float:
    return float(result["scores"][result["split"]][result["metric"]]["selected"])


def group(name: str, records: Sequence[Record], runs: list[str]) -> dict[str, Any]:
    results = [record.finished for record in records]
    first, record = results[0], records[0]
    scores = [selected(one) for one in results]
    sd = statistics.stdev(scores) if len(scores) > 1 else None
    mean = statistics.fmean(scores)
    student, teacher = first["student"], first.get("teacher") or {}
    metric, split = first["metric"], first["split"]
    languages = {
        mode: {one: values[metric] for one, values in own.items()}
        for mode, own in first.get("languages", {}).get(split, {}).items()
    }
    if record.family == "crosslingual" and not languages:
        languages = {
            mode: {one: mean - 0.05 * i - 0.02 * j for j, one in enumerate(LANGUAGES)} for i, mode in enumerate(MODES)
        }
    half = 2 * (sd or 0.02) / math.sqrt(len(scores))
    return {
        "id": name,
        "label": record.method,
        "family": record.family,
        "method": record.method,
        "task": record.task,
        "model": record.model,
        "setting": {},
        "metric": metric,
        "split": split,
        "seeds": [one.seed for one in records],
        "runs": runs,
        "scores": scores,
        "mean": mean,
        "sd": sd,
        "interval": [mean - half, mean + half],
        "interval_of": f"bootstrap over 277 examples and {len(scores)} seeds",
        "floor": {"majority": first.get("majority", {}).get(split, {}).get(metric)}
        | {"chance": first.get("chance", {}).get(split, {}).get(metric)},
        "teacher": teacher.get("scores", {}).get(split, {}).get(metric, {}).get("selected"),
        "figures": {key: student.get(key) for key in ("parameters", "bytes", "latency_ms", "flops_per_example")}
        | {"tokens_per_second": (student.get("answers") or {}).get("tokens_per_second")}
        | {"train_seconds": sum(first.get("seconds_of_stages", {}).values())},
        "delta": None,
        "marks": [],
        "languages": languages or None,
        "means": {mode: {"all": statistics.fmean(own.values())} for mode, own in languages.items()} or None,
    }


def delta(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    difference = one["mean"] - other["mean"]
    separated = abs(difference) > 0.05
    return {
        "to": other["id"],
        "difference": difference,
        "interval": [difference - 0.03, difference + 0.03],
        "p_seeds": 0.01 if separated else 0.4,
        "p_examples": 0.0002 if separated else 0.3,
        "p_corrected": 0.0004 if separated else 0.6,
        "test": "paired t test over seeds, Holm",
        "more_seeds": None if separated else 4,
        "verdict": ("better" if difference > 0 else "worse") if separated else "not separated",
    }
