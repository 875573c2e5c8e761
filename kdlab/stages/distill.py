"""Distil a teacher into a student: inner layers first, then logits; or both in one stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdlab.context import Context
from kdlab.engine import device
from kdlab.models.taps import Tapped
from kdlab.stages.encoder import TaskData, new_model, on, parameters_without_gradient, saved_model, train
from kdlab.stages.steps import JointStep, LayerStep, LogitStep


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
    curves: int,
    forward_rows: int | None,
    processes: int | None = None,
) -> None:
    """Train the student's layers towards the teacher's; labels are not used and no checkpoint is selected.

    The teacher is the fine-tuned one (`teacher`), or what it was before (`base`, new weights drawn from `base_seed`).
    Rows are those of `supplement`, if there is one, else the task's own.
    `objective` holds the fields of `config.LayerFit` that `config.Fit` has not. `forward_rows` is the size of one
    forward pass where examples are coupled, `processes` the number that share a batch: both decide who is mixed with
    whom, and which rows decide on a transport, so they are values and not placement. None where nothing is coupled.
    """
    assert processes in (None, device.World.current().size)
    task = TaskData(data)
    texts = None if supplement is None else TaskData(supplement)
    place = device.pick_device(context.hardware)
    kernel = device.attention_kernel(place, train=True)
    if teacher is not None:
        guide = saved_model(teacher / "model", kernel=kernel)
    else:
        assert base is not None
        guide = new_model(base, task, seed=base_seed, kernel=kernel)
    guide = guide.to(place).eval().requires_grad_(False)
    pupil = new_model(student, task, seed=seed, kernel=kernel)
    add_projection(pupil, guide, always=objective["projection"] == "always", seed=seed)
    pupil.to(place)
    step = LayerStep(guide, objective, layers=(depth(pupil), depth(guide)), precision=precision, place=place)
    step.keep_average(pupil)

    def probe() -> Tensor:
        """The loss of two training rows, to see which parameters it reaches."""
        batch = task.rows(task.split("train"), [0, 1], pad_to_max=pad_to_max)
        return step.loss(pupil, on(place, batch), None, 0.0).total

    with device.frozen(parameters_without_gradient(pupil, probe)):
        train(
            context,
            pupil,
            step,
            task,
            fit_values=fit,
            texts=texts,
            seed=seed,
            precision=precision,
            max_steps=max_steps,
            pad_to_max=pad_to_max,
            curves=curves,
            select_on=None,
            state=step.state(),
            after_step=lambda: step.after_step(pupil),
            forward_rows=forward_rows,
        )
    save_projection(context, pupil)


def distill_logits(
    context: Context,
    *,
    data: Path,
    teacher: Path,
    student: Mapping[str, Any] | None = None,
    layers: Path | None = None,
    fit: Mapping[str, Any],
    objective: Mapping[str, Any],
    metric: str,
    select_on: str,
    pad_to_max: bool,
    seed: int,
    precision: str,
    max_steps: int | None,
    curves: int,
    forward_rows: int | None = None,
    processes: int | None = None,
) -> None:
    """Train the student's logits towards the teacher's (Hinton et al., 2015).

    The student is what layer distillation left (`layers`), or new (`student`). `objective` holds the fields of
    `config.LogitFit` that `config.Fit` has not; `forward_rows` and `processes` as for `distill_layers`.
    """
    assert processes in (None, device.World.current().size)
    task = TaskData(data)
    place = device.pick_device(context.hardware)
    kernel = device.attention_kernel(place, train=True)
    guide = saved_model(teacher / "model", kernel=kernel).to(place).eval().requires_grad_(False)
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
        curves=curves,
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
    metric: str,
    select_on: str,
    pad_to_max: bool,
    seed: int,
    precision: str,
    max_steps: int | None,
    curves: int,
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
    kernel = device.attention_kernel(place, train=True)
    guide = saved_model(teacher / "model", kernel=kernel).to(place).eval().requires_grad_(False)
    pupil = new_model(student, task, seed=seed, kernel=kernel)
    add_projection(pupil, guide, always=objective["projection"] == "always", seed=seed)
    pupil.to(place)
    layers = LayerStep(guide, objective, layers=(depth(pupil), depth(guide)), precision=precision, place=place)
    layers.keep_average(pupil)
    step = JointStep(layers, objective, kind=task.kind)

    def probe() -> Tensor:
        batch = on(place, task.rows(task.split("train"), [0, 1], pad_to_max=pad_to_max))
        return step.clean(pupil, batch)[0].total

    with device.frozen(parameters_without_gradient(pupil, probe)):
        train(
            context,
            pupil,
            step,
            task,
            fit_values=fit,
            seed=seed,
            precision=precision,
            max_steps=max_steps,
            pad_to_max=pad_to_max,
            curves=curves,
            select_on=select_on,
            metric=metric,
            state=layers.state(),
            after_step=lambda: layers.after_step(pupil),
            forward_rows=forward_rows,
        )
    save_projection(context, pupil)


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


def save_projection(context: Context, student: Tapped) -> None:
    """Keep the linear map beside the model, which is published without it."""
    if student.projection is None or not device.World.current().first:
        return
    weights = {name: value.contiguous() for name, value in student.projection.state_dict().items()}
    save_file(weights, context.out / "projection.safetensors")
