"""Distil a teacher into a student: inner layers first, then logits; or both in one stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdlab.config import Hardware
from kdlab.context import Context
from kdlab.engine import device
from kdlab.models.taps import Tapped
from kdlab.stages.encoder import TaskData, new_model, on, parameters_without_gradient, saved_model, train
from kdlab.stages.steps import JointStep, LayerStep, LogitStep, Objective
from kdlab.stages.teacher_logits import TaughtData


def distill_layers(
    context: Context,
    *,
    data: Path,
    teacher: Path | None = None,
    base: Mapping[str, Any] | None = None,
    base_seed: int = 0,
    supplement: Path | None = None,
    student: Mapping[str, Any],
    fit: Mapping[str, Any],
    objective: Mapping[str, Any],
    pad_to_max: bool,
    seed: int,
    precision: str,
    max_steps: int | None,
    forward_rows: int | None,
    processes: int | None = None,
) -> None:
    """Train the student's layers towards the teacher's; labels are not used and no checkpoint is selected.

    The teacher is the fine-tuned one (`teacher`), or what it was before (`base`, new weights drawn from `base_seed`).
    Rows are those of `supplement`, if there is one, else the task's own.
    `objective` holds the fields of `config.LayerObjective` that `config.Fit` has not. `forward_rows` is the size of one
    forward pass where examples are coupled, `processes` the number that share a batch: both decide who is mixed with
    whom, and which rows decide on a transport, so they are values and not placement. None where nothing is coupled.
    """
    assert processes in (None, device.World.current().size)
    task = TaskData(data)
    place = device.pick_device(context.hardware)
    kernel = device.attention_kernel(context.hardware)
    if teacher is not None:
        guide = saved_model(teacher / "model", kernel=kernel)
    else:
        assert base is not None
        guide = new_model(base, task, seed=base_seed, kernel=kernel)
    pupil, step = layer_step(guide, student, task, objective, seed=seed, precision=precision, hardware=context.hardware)
    train_layers(
        context,
        pupil,
        step,
        step,
        task,
        place=place,
        fit_values=fit,
        texts=None if supplement is None else TaskData(supplement),
        seed=seed,
        precision=precision,
        max_steps=max_steps,
        pad_to_max=pad_to_max,
        select_on=None,
        forward_rows=forward_rows,
    )


def distill_logits(
    context: Context,
    *,
    data: Path,
    teacher: Path | None = None,
    teacher_logits: Path | None = None,
    student: Mapping[str, Any] | None = None,
    layers: Path | None = None,
    fit: Mapping[str, Any],
    objective: Mapping[str, Any],
    metric: str | None,
    select_on: str,
    pad_to_max: bool,
    seed: int,
    precision: str,
    max_steps: int | None,
    forward_rows: int | None = None,
    processes: int | None = None,
) -> None:
    """Train the student's logits towards the teacher's (Hinton et al., 2015).

    The student is what layer distillation left (`layers`), or new (`student`). `objective` holds the fields of
    `config.LogitFit` that `config.Fit` has not; `forward_rows` and `processes` as for `distill_layers`.
    `teacher_logits` are the teacher's of clean inputs, made by the stage of that name; without it, and for the logits
    of mixed inputs (mixed.target=mixed), the `teacher` itself runs.
    """
    assert processes in (None, device.World.current().size)
    task = TaskData(data) if teacher_logits is None else TaughtData(data, teacher_logits)
    place = device.pick_device(context.hardware)
    kernel = device.attention_kernel(context.hardware)
    guide = None
    if teacher is not None:
        guide = saved_model(teacher / "model", kernel=kernel).to(place).freeze()
    if layers is not None:
        pupil = saved_model(layers / "model", kernel=kernel)
    else:
        assert student is not None
        pupil = new_model(student, task, seed=seed, kernel=kernel)
    train(
        context,
        pupil,
        LogitStep(guide, objective, kind=task.kind, precision=precision, place=place),
        task,
        fit_values=fit,
        seed=seed,
        precision=precision,
        max_steps=max_steps,
        pad_to_max=pad_to_max,
        select_on=select_on,
        metric=metric,
        forward_rows=forward_rows,
    )


def distill_joint(
    context: Context,
    *,
    data: Path,
    teacher: Path,
    student: Mapping[str, Any],
    fit: Mapping[str, Any],
    objective: Mapping[str, Any],
    metric: str | None,
    select_on: str,
    pad_to_max: bool,
    seed: int,
    precision: str,
    max_steps: int | None,
    forward_rows: int | None,
    processes: int | None = None,
) -> None:
    """Train the student's layers and logits towards the teacher's together (`stages.steps.JointStep`).

    `objective` holds the fields of `config.JointFit` that `config.Fit` has not; `forward_rows` and `processes` as for
    `distill_layers`.
    """
    assert processes in (None, device.World.current().size)
    task = TaskData(data)
    place = device.pick_device(context.hardware)
    guide = saved_model(teacher / "model", kernel=device.attention_kernel(context.hardware))
    pupil, layers = layer_step(
        guide, student, task, objective, seed=seed, precision=precision, hardware=context.hardware
    )
    train_layers(
        context,
        pupil,
        layers,
        JointStep(layers, objective, kind=task.kind),
        task,
        place=place,
        fit_values=fit,
        seed=seed,
        precision=precision,
        max_steps=max_steps,
        pad_to_max=pad_to_max,
        select_on=select_on,
        metric=metric,
        forward_rows=forward_rows,
    )


def layer_step(
    teacher: Tapped,
    student: Mapping[str, Any],
    task: TaskData,
    objective: Mapping[str, Any],
    *,
    seed: int,
    precision: str,
    hardware: Hardware,
) -> tuple[Tapped, LayerStep]:
    """The new student, with its projection if it needs one, and the step that trains its layers."""
    place = device.pick_device(hardware)
    guide = teacher.to(place).freeze()
    pupil = new_model(student, task, seed=seed, kernel=device.attention_kernel(hardware))
    add_projection(pupil, guide, always=objective["projection"] == "always", seed=seed)
    pupil.to(place)
    step = LayerStep(guide, objective, layers=(depth(pupil), depth(guide)), precision=precision, place=place)
    step.keep_average(pupil)
    return pupil, step


def train_layers(
    context: Context,
    pupil: Tapped,
    layers: LayerStep,
    objective: Objective,
    task: TaskData,
    *,
    place: torch.device,
    pad_to_max: bool,
    **settings: Any,
) -> None:
    """Train what the objective reaches; keep the projection beside the model, which is published without it."""

    def probe() -> Tensor:
        """The loss of two training rows, to see which parameters it reaches."""
        split = task.split("train")
        batch = task.rows(split, range(min(2, len(split))), pad_to_max=pad_to_max)
        return objective.clean(pupil, on(place, batch))[0].total

    with device.frozen(parameters_without_gradient(pupil, probe)):
        train(
            context,
            pupil,
            objective,
            task,
            pad_to_max=pad_to_max,
            state=layers.state(),
            after_step=lambda: layers.after_step(pupil),
            **settings,
        )
    if pupil.projection is not None and device.World.current().first:
        weights = {name: value.contiguous() for name, value in pupil.projection.state_dict().items()}
        save_file(weights, context.out / "projection.safetensors")


def depth(model: Tapped) -> int:
    """Number of Transformer layers."""
    return int(model.model.config.num_hidden_layers)


def add_projection(student: Tapped, teacher: Tapped, *, always: bool, seed: int) -> None:
    """Give the student a linear map to the teacher's width if the widths differ; init N(0, 0.02), bias 0."""
    ours, theirs = student.model.config.hidden_size, teacher.model.config.hidden_size
    if not always and ours == theirs:
        return
    linear = nn.Linear(ours, theirs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.normal_(0.0, 0.02, generator=generator)
        linear.bias.zero_()
    student.projection = linear
