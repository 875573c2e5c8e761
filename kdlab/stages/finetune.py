"""Fine-tune a model on a task's labels: every teacher, and the student without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdlab.context import Context
from kdlab.engine import device
from kdlab.stages.encoder import TaskData, new_model, train
from kdlab.stages.steps import LabelStep


def finetune(
    context: Context,
    *,
    data: Path,
    model: Mapping[str, Any],
    fit: Mapping[str, Any],
    metric: str | None,
    select_on: str,
    pad_to_max: bool,
    seed: int,
    precision: str,
    max_steps: int | None,
) -> None:
    """Cross entropy for classification, squared error for regression; one number per example, averaged."""
    task = TaskData(data)
    kernel = device.attention_kernel(context.hardware)
    train(
        context,
        new_model(model, task, seed=seed, kernel=kernel),
        LabelStep(task.kind),
        task,
        fit_values=fit,
        metric=metric,
        select_on=select_on,
        pad_to_max=pad_to_max,
        seed=seed,
        precision=precision,
        max_steps=max_steps,
    )
