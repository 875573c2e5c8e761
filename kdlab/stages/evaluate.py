"""Score a finished model, check a teacher, measure a model's size and speed."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kdlab.artifacts import write_json
from kdlab.context import Context
from kdlab.data.metrics import score
from kdlab.engine import device
from kdlab.errors import TrainingError
from kdlab.models.taps import Tapped
from kdlab.stages.encoder import TaskData, answers, on, predict, saved_model

LATENCY_ROWS = 16
LATENCY_ROUNDS = 3


def evaluate(
    context: Context,
    *,
    model: Path,
    data: Path,
    sets: Path | None = None,
    pad_to_max: bool,
    classes: Sequence[str] | None = None,
) -> None:
    """Reload the published model and score it on every labelled split, by every metric of the task.

    data: the task, with heldout and dev; sets: its further evaluation sets. classes: the model's in its own order,
    where the task has them in another. Leaves scores.json and predictions.
    """
    place = device.pick_device(context.hardware)
    loaded = saved_model(model / "model", kernel=device.attention_kernel(context.hardware)).to(place)
    scores: dict[str, dict[str, float]] = {}
    for task in [TaskData(folder) for folder in (data, sets) if folder is not None]:
        labelled = task.splits(labelled=True)
        for name in task.splits(labelled=False):
            split = task.split(name)
            size = context.hardware.eval_batch
            logits = predict(loaded, task, split, batch_size=size, pad_to_max=pad_to_max, classes=classes)
            found = answers(logits, task.kind)
            if name in labelled:
                scores[name] = {metric: score(metric, found, split.labels) for metric in task.metrics}
            with open(context.out / f"predictions-{name}.jsonl", "w", encoding="utf-8") as file:
                for row, answer, line in zip(split.ids, found, logits, strict=True):
                    shown = task.labels[int(answer)] if task.labels else float(answer)
                    file.write(json.dumps({"id": int(row), "prediction": shown, "logits": line.tolist()}) + "\n")
    write_json(context.out / "scores.json", scores)
    context.facts["scores"] = scores


def vet(context: Context, *, scores: Path, data: Path, metric: str, on_weak: str) -> None:
    """Refuse to distil from a teacher that is no better on dev than always answering the majority class."""
    found = json.loads((scores / "scores.json").read_text(encoding="utf-8"))["dev"][metric]
    floor = json.loads((data / "facts.json").read_text(encoding="utf-8"))["majority"]["dev"][metric]
    write_json(context.out / "vet.json", {"metric": metric, "teacher": found, "majority": floor})
    if found > floor:
        return
    message = f"the teacher's dev {metric} is {found:.4f}; always answering the majority class gives {floor:.4f}"
    if on_weak == "warn":
        context.warn(message)
        return
    raise TrainingError(
        f"{message}: nothing can be learned from it",
        where="stage 'teacher'",
        fix="train it longer or otherwise (method.teacher.epochs, method.teacher.lr, method.teacher_seed), choose "
        "another teacher (model.teacher.id), or go on all the same with method.weak_teacher=warn",
    )


def measure(context: Context, *, model: Path, data: Path, machine: Mapping[str, Any]) -> None:
    """Parameters, bytes on disk, FLOPs of a forward pass per example, and latency in milliseconds at batch size 1.

    FLOPs are counted, and latency is timed (median over the same dev rows, after a warm-up), at each row's own
    length. `machine` is what the latency depends on; it is part of the identity.
    """
    from torch.utils.flop_counter import FlopCounterMode

    task = TaskData(data)
    place = device.pick_device(context.hardware)
    loaded = saved_model(model / "model", kernel=device.attention_kernel(context.hardware)).to(place).eval()
    split = task.split(task.sample)
    rows = range(min(LATENCY_ROWS, len(split)))
    batches = [on(place, task.rows(split, [row])) for row in rows]
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            for batch in batches:
                loaded(batch)
        times = [_seconds(loaded, batch, place) for _ in range(LATENCY_ROUNDS) for batch in batches]
    figures = {
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "bytes": sum(path.stat().st_size for path in (model / "model").glob("*.safetensors")),
        "flops_per_example": counter.get_total_flops() // len(batches),
        "latency_ms": 1000 * statistics.median(times[len(batches) :]),
        "tokens_per_example": float(split.lengths[: len(rows)].mean()),
        "threads": torch.get_num_threads(),
        "device": place.type,
        "machine": dict(machine),
    }
    write_json(context.out / "figures.json", figures)


def _seconds(model: Tapped, batch: Mapping[str, torch.Tensor], place: torch.device) -> float:
    if place.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    model(batch)
    if place.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
