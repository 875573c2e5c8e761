"""Fine-tune a model on a task's labels: every teacher, and the student without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from kdlab.context import Context
from kdlab.engine import device
from kdlab.engine.loop import Batch, Loss, Progress
from kdlab.objectives.logits import hard_label
from kdlab.stages.encoder import TaskData, new_model, train


def finetune(
    context: Context,
    *,
    data: Path,
    model: Mapping[str, Any],
    fit: Mapping[str, Any],
    metrics: Sequence[str],
    select_on: str,
    pad_to_max: bool,
    seed: int,
    precision: str,
    max_steps: int | None,
) -> None:
    """Cross entropy for classification, squared error for regression; one number per example, averaged."""
    task = TaskData(data)
    kernel = device.attention_kernel(device.pick_device(context.hardware), train=True)
    student = new_model(model, task, seed=seed, kernel=kernel)

    def step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        logits = model(batch).logits
        return Loss.of({"label": (1.0, hard_label(logits, batch["labels"], kind=task.kind))})

    train(
        context,
        student,
        step,
        task,
        fit_values=fit,
        seed=seed,
        precision=precision,
        max_steps=max_steps,
        pad_to_max=pad_to_max,
        select_on=select_on,
        metrics=metrics,
        expected=("label",),
    )
