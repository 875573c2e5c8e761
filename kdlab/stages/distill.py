"""Distil a teacher into a student: inner layers first, then logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdlab.context import Context
from kdlab.engine import device
from kdlab.engine.loop import Batch, Loss, Progress, Stateful
from kdlab.models.ema import MovingAverage
from kdlab.models.taps import Tap, Tapped, Views
from kdlab.objectives.layer_map import layer_pairs
from kdlab.objectives.layers import consistency_terms, layer_terms
from kdlab.objectives.logits import hard_label, scaled_mse, soft_cross_entropy
from kdlab.objectives.mixup import folded_beta
from kdlab.stages.encoder import TaskData, new_model, on, parameters_without_gradient, saved_model, train


def distill_layers(
    context: Context,
    *,
    data: Path,
    teacher: Path,
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

    `objective` holds the fields of `config.LayerFit` that `config.Fit` has not. `forward_rows` is the size of one
    forward pass where examples are mixed with each other, `processes` the number that share a batch: both decide who is
    mixed with whom, so they are values and not placement. None where nothing is mixed.
    """
    assert processes in (None, device.World.current().size)
    task = TaskData(data)
    place = device.pick_device(context.hardware)
    kernel = device.attention_kernel(place, train=True)
    guide = saved_model(teacher / "model", kernel=kernel).to(place).eval().requires_grad_(False)
    pupil = new_model(student, task, seed=seed, kernel=kernel)
    add_projection(pupil, guide, always=objective["projection"] == "always", seed=seed)

    step = LayerStep(guide, objective, layers=(depth(pupil), depth(guide)), precision=precision, place=place)
    state: dict[str, Stateful] = {}
    consistency = objective["consistency"]
    if step.consistent and consistency["target"] == "ema":
        step.average = MovingAverage(pupil, consistency["decay"])
        step.average.module.to(place)
        state["ema"] = step.average

    def after_step() -> None:
        if step.average is not None:
            step.average.update(pupil)

    pupil.to(place)
    with device.frozen(parameters_without_gradient(pupil, lambda: step.probe(pupil, task, pad_to_max))):
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
            select_on=None,
            metrics=(),
            expected=step.expected(),
            state=state,
            after_step=after_step,
            forward_rows=forward_rows,
        )
    if pupil.projection is not None and device.World.current().first:
        save_file(
            {name: value.contiguous() for name, value in pupil.projection.state_dict().items()},
            context.out / "projection.safetensors",
        )


class LayerStep:
    """One training step of layer distillation, papers.md 1.3: L_ILD on mixed inputs plus the consistency terms."""

    def __init__(
        self,
        teacher: Tapped,
        objective: Mapping[str, Any],
        *,
        layers: tuple[int, int],
        precision: str,
        place: torch.device,
    ) -> None:
        self.teacher, self.objective, self.precision, self.place = teacher, objective, precision, place
        self.average: MovingAverage[Tapped] | None = None
        self.relations: list[str] = list(objective["relations"])
        self.consistency: Mapping[str, Any] = objective["consistency"]
        uniform = objective["layer_map"] == "uniform"
        self.pairs = layer_pairs(objective["layer_map"], *layers, embeddings=False)
        self.hidden_pairs = layer_pairs(objective["layer_map"], *layers, embeddings=uniform)
        self.matched: dict[str, Any] = {
            "pairs_attention": self.pairs,
            "pairs_hidden": self.hidden_pairs,
            "pad_rows": objective["pad_rows"],
        }
        self.held = [name for name in self.consistency["terms"] if name in self.relations]

    @property
    def consistent(self) -> bool:
        """Whether a consistency term can contribute."""
        return bool(self.consistency["weight"] and self.objective["mixup"] and self.held)

    def expected(self) -> list[str]:
        wanted = [f"consistency_{name}" for name in self.consistency["terms"]] if self.consistency["weight"] else []
        return [*self.relations, *wanted]

    def taps(self, side: int, names: Sequence[str] | None = None) -> list[Tap]:
        """What to tap on one side: 0 the student, 1 the teacher."""
        return [
            Tap(name, pair[side])
            for name in (self.relations if names is None else names)
            for pair in (self.hidden_pairs if name == "hidden" else self.pairs)
        ]

    def weight(self, progress: Progress) -> float:
        """Of the consistency terms now: weight * epoch / epochs with epoch counted from 0, or constant."""
        if not self.consistent:
            return 0.0
        ramp = progress.epoch / progress.epochs if self.consistency["ramp"] == "linear" else 1.0
        return float(self.consistency["weight"]) * ramp

    def __call__(self, model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        lam = folded_beta(progress.rng, self.objective["mixup"]) if self.objective["mixup"] else None
        return self.loss(model, batch, lam, self.weight(progress))

    def loss(self, model: nn.Module, batch: Batch, lam: float | None, consistency_weight: float) -> Loss:
        own: Tensor = batch["attention_mask"]
        with torch.no_grad(), device.autocast(self.place, self.precision):
            target: Views = self.teacher(batch, taps=self.taps(1), lam=lam)
        mixed: Views = model(batch, taps=self.taps(0), lam=lam)
        seen = {"union": mixed.mask, "own": own, "none": None}[self.objective["relation_mask"]]
        weighted: dict[str, tuple[float, Tensor]] = {}
        for name in self.relations:
            mask = mixed.mask if name == "hidden" and seen is None else seen
            terms = layer_terms(mixed, target, relations=[name], mask=mask, **self.matched)
            weighted |= {part: (1.0, values) for part, values in terms.items()}
        if lam is not None and consistency_weight > 0.0:
            source = model if self.average is None else self.average.module
            with torch.no_grad(), device.autocast(self.place, self.precision):
                clean: Views = source(batch, taps=self.taps(0, self.held))
            for name in self.held:
                mask = own if name == "hidden" or seen is not None else None
                terms = consistency_terms(mixed, clean, on=[name], lam=lam, mask=mask, **self.matched)
                weighted |= {part: (consistency_weight, values) for part, values in terms.items()}
        return Loss.of(weighted)

    def probe(self, model: Tapped, task: TaskData, pad_to_max: bool) -> Tensor:
        """The loss of two training rows, to see which parameters it reaches."""
        batch = task.rows(task.split("train"), [0, 1], pad_to_max=pad_to_max)
        return self.loss(model, on(self.place, batch), None, 0.0).total


def distill_logits(
    context: Context,
    *,
    data: Path,
    teacher: Path,
    student: Mapping[str, Any] | None = None,
    layers: Path | None = None,
    fit: Mapping[str, Any],
    temperature: float,
    alpha: float,
    regression_scale: str,
    metrics: Sequence[str],
    select_on: str,
    pad_to_max: bool,
    seed: int,
    precision: str,
    max_steps: int | None,
) -> None:
    """Train the student's logits towards the teacher's (Hinton et al., 2015).

    The student is what layer distillation left (`layers`), or new (`student`). Loss per example:
    (1 - alpha) * soft + alpha * hard, soft = tau^2 cross entropy at temperature tau, or ((z_S - z_T) / tau)^2 for
    regression (papers.md 1.3, "Logit KD").
    """
    task = TaskData(data)
    place = device.pick_device(context.hardware)
    kernel = device.attention_kernel(place, train=True)
    guide = saved_model(teacher / "model", kernel=kernel).to(place).eval().requires_grad_(False)
    if layers is not None:
        pupil = saved_model(layers / "model", kernel=kernel)
    else:
        assert student is not None
        pupil = new_model(student, task, seed=seed, kernel=kernel)

    def step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        with torch.no_grad(), device.autocast(place, precision):
            target = guide(batch).logits
        logits = model(batch).logits
        if task.kind == "classification":
            soft = soft_cross_entropy(logits, target, temperature=temperature)
        else:
            soft = scaled_mse(logits, target, temperature=temperature, scale=regression_scale)
        terms = {"logit": (1.0 - alpha, soft)}
        if alpha:
            terms["label"] = (alpha, hard_label(logits, batch["labels"], kind=task.kind))
        return Loss.of(terms)

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
        select_on=select_on,
        metrics=metrics,
        expected=("logit", "label") if alpha else ("logit",),
    )


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
