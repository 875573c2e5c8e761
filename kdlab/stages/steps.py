"""The training steps of layer distillation: what one optimiser step computes, as named and weighted terms.

A step is called by the loop, `step(model, batch, progress) -> Loss`. `clean` is its objective without mixed inputs,
moving average or change of state, for the curves of train and dev.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdlab.engine import device
from kdlab.engine.loop import Batch, Loss, Progress, Stateful
from kdlab.models.ema import MovingAverage
from kdlab.models.frozen import lowered
from kdlab.models.taps import Tap, Tapped, Views
from kdlab.objectives.layer_map import layer_pairs
from kdlab.objectives.layers import consistency_terms, layer_terms
from kdlab.objectives.logits import hard_label, mixed_label, mixed_soft, soft_label
from kdlab.objectives.mixup import folded_beta
from kdlab.objectives.transport import LayerWeights, transport_terms

Weighted = dict[str, tuple[float, Tensor]]  # name -> weight, one number per example [B]
WITHOUT_KEYS = ("hidden", "embedding", "patient")  # relations that compare states, not scores over keys
APART = ("embedding", "patient")  # relations that no transport map applies to
TEACHER_LOGITS = "teacher_logits"  # in a batch: the teacher's logits of its rows as they are [B, C]


class Guide:
    """A teacher as training asks it: without gradients, at the precision of training or, for curves, at fp32."""

    def __init__(self, teacher: Tapped, precision: str, place: torch.device) -> None:
        self.teacher, self.precision, self.place = teacher, precision, place
        self.quick = lowered(teacher, device.DTYPES.get(precision))

    def __call__(self, batch: Batch, precision: str, **options: Any) -> Views:
        model = self.quick if precision == self.precision else self.teacher
        with torch.no_grad(), device.autocast(self.place, precision):
            views: Views = model(batch, **options)
        return views


class Objective(Protocol):
    """What a trained stage minimises."""

    def __call__(self, model: nn.Module, batch: Batch, progress: Progress) -> Loss: ...

    def clean(self, model: nn.Module, batch: Batch) -> tuple[Loss, Tensor]:
        """The loss of the inputs as they are, and the student's logits [B, C]."""
        ...

    def expected(self) -> list[str]:
        """Names of the terms that the configuration asks for."""
        ...


class LabelStep:
    """Hard labels: cross entropy, or squared error for regression."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        return self.clean(model, batch)[0]

    def clean(self, model: nn.Module, batch: Batch) -> tuple[Loss, Tensor]:
        logits = model(batch).logits
        return Loss.of({"label": (1.0, hard_label(logits, batch["labels"], kind=self.kind))}), logits

    def expected(self) -> list[str]:
        return ["label"]


@dataclass(frozen=True)
class Labels:
    """weight * [(1 - alpha) * soft labels + alpha * hard labels] of one view.

    Soft: tau^2 cross entropy at temperature tau, or ((z_S - z_T) / tau)^2 for regression.
    Source: CR-ILD losses.py:7-19, training_functions.py:99-101.
    """

    weight: float
    alpha: float
    kind: str
    temperature: float
    scale: str  # of a regression: "none" or "tau2"

    @classmethod
    def of(cls, values: Mapping[str, Any], *, weight: float, kind: str) -> Labels:
        """From the fields of `config.LogitFit` or `config.JointFit`."""
        return cls(weight, float(values["alpha"]), kind, float(values["temperature"]), values["regression_scale"])

    @property
    def names(self) -> list[str]:
        """Those that have a weight."""
        shares = (("logit", 1.0 - self.alpha), ("label", self.alpha))
        return [name for name, share in shares if self.weight and share]

    @property
    def soft(self) -> dict[str, Any]:
        return {"kind": self.kind, "temperature": self.temperature, "scale": self.scale}

    def terms(self, logits: Tensor, target: Tensor | None, labels: Tensor) -> Weighted:
        """target: the teacher's logits, if soft labels have a weight."""
        terms: Weighted = {}
        for name in self.names:
            if name == "logit":
                assert target is not None
                terms[name] = (self.weight * (1.0 - self.alpha), soft_label(logits, target, **self.soft))
            else:
                terms[name] = (self.weight * self.alpha, hard_label(logits, labels, kind=self.kind))
        return terms


class LogitStep:
    """The labels of clean inputs, and of mixed ones: `config.LogitFit` without its `Fit`.

    clean * [(1 - alpha) * soft + alpha * hard] + mixed.logit * soft of the mixture + mixed.label * hard of the mixture.
    What the teacher says to clean inputs is in the batch, as TEACHER_LOGITS (at the precision of training, also for the
    curves); where it is not, and for mixed inputs, `teacher` is asked.
    """

    def __init__(
        self, teacher: Tapped | None, values: Mapping[str, Any], *, kind: str, precision: str, place: torch.device
    ) -> None:
        self.guide = None if teacher is None else Guide(teacher, precision, place)
        self.precision = precision
        self.labels = Labels.of(values, weight=float(values["clean"]), kind=kind)
        self.mixed: Mapping[str, Any] = values["mixed"]

    def expected(self) -> list[str]:
        if not self.mixed["mixup"]:
            return self.labels.names
        return [*self.labels.names, *(f"mixed_{name}" for name in ("logit", "label") if self.mixed[name])]

    def __call__(self, model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        lam = folded_beta(progress.rng, self.mixed["mixup"]) if self.mixed["mixup"] else None
        return self.loss(model, batch, lam)[0]

    def clean(self, model: nn.Module, batch: Batch) -> tuple[Loss, Tensor]:
        """A stage of mixed inputs only is followed by its soft labels."""
        labels = self.labels if self.labels.weight else replace(self.labels, weight=1.0, alpha=0.0)
        logits = model(batch).logits
        target = self.target(batch, None, "fp32") if "logit" in labels.names else None
        return Loss.of(labels.terms(logits, target, batch["labels"])), logits

    def target(self, batch: Batch, lam: float | None, precision: str) -> Tensor:
        if lam is None and TEACHER_LOGITS in batch:
            stored: Tensor = batch[TEACHER_LOGITS]
            return stored
        assert self.guide is not None
        return self.guide(batch, precision, lam=lam).logits

    def loss(self, model: nn.Module, batch: Batch, lam: float | None) -> tuple[Loss, Tensor]:
        """The weighted terms, and the logits of the last view [B, C]."""
        terms: Weighted = {}
        from_clean = lam is not None and bool(self.mixed["logit"]) and self.mixed["target"] == "clean"
        wanted = "logit" in self.labels.names or from_clean
        target = self.target(batch, None, self.precision) if wanted else None
        if self.labels.weight:
            logits = model(batch).logits
            terms |= self.labels.terms(logits, target, batch["labels"])
        if lam is not None:
            logits = model(batch, lam=lam).logits
            if self.mixed["logit"]:
                if from_clean:
                    assert target is not None
                    soft = mixed_soft(logits, target, lam=lam, **self.labels.soft)
                else:
                    soft = soft_label(logits, self.target(batch, lam, self.precision), **self.labels.soft)
                terms["mixed_logit"] = (float(self.mixed["logit"]), soft)
            if self.mixed["label"]:
                hard = mixed_label(logits, batch["labels"], lam=lam, kind=self.labels.kind)
                terms["mixed_label"] = (float(self.mixed["label"]), hard)
        return Loss.of(terms), logits


class LayerStep:
    """Inner layers: the layer terms, on mixed inputs if asked for, plus the consistency terms.

    `objective` holds the fields of `config.LayerObjective` that `config.Fit` has not.
    Source: CR-ILD training_functions.py:220-354.
    """

    def __init__(
        self,
        teacher: Tapped,
        objective: Mapping[str, Any],
        *,
        layers: tuple[int, int],
        precision: str,
        place: torch.device,
    ) -> None:
        self.guide = Guide(teacher, precision, place)
        self.objective, self.precision, self.place = objective, precision, place
        self.average: MovingAverage[Tapped] | None = None
        self.relations: list[str] = list(objective["relations"])
        self.consistency: Mapping[str, Any] = objective["consistency"]
        self.pairs = layer_pairs(objective["layer_map"], *layers, pairs=objective["pairs"])
        self.knobs: dict[str, Any] = {
            name: objective[name] for name in ("pad_rows", "relation_divergence", "hidden_divergence", "relation_heads")
        }
        self.held = [name for name in self.consistency["terms"] if name in self.relations]
        self.weights: LayerWeights | None = None
        if objective["layer_map"] == "transport":
            self.transported = [name for name in self.relations if name not in APART]
            self.weights = LayerWeights(self.transported, *layers, separate=objective["transport"]["separate"])
        self.reset_at: int | None = None

    @property
    def consistent(self) -> bool:
        """Whether a consistency term can contribute."""
        return bool(self.consistency["weight"] and self.objective["mixup"] and self.held)

    def expected(self) -> list[str]:
        wanted = [f"consistency_{name}" for name in self.consistency["terms"]] if self.consistency["weight"] else []
        return [*self.relations, *wanted]

    def state(self) -> dict[str, Stateful]:
        """What a checkpoint must keep."""
        found: dict[str, Stateful] = {}
        if self.weights is not None:
            found["transport"] = self.weights
        if self.average is not None:
            found["ema"] = self.average
        return found

    def keep_average(self, model: Tapped) -> None:
        """Make the moving average of `model`, if the consistency target is one."""
        if self.consistent and self.consistency["target"] == "ema":
            self.average = MovingAverage(model, self.consistency["decay"])
            self.average.module.to(self.place)

    def after_step(self, model: Tapped) -> None:
        if self.average is not None:
            self.average.update(model)

    def taps(self, side: int, names: Sequence[str] | None = None) -> list[Tap]:
        """What to tap on one side: 0 the student, 1 the teacher."""
        found = []
        for name in self.relations if names is None else names:
            layers = [0] if name == "embedding" else [pair[side] for pair in self.pairs]
            found += [Tap("hidden" if name in WITHOUT_KEYS else name, layer) for layer in layers]
        return list(dict.fromkeys(found))

    def weight(self, progress: Progress) -> float:
        """Of the consistency terms now: weight * epoch / epochs with epoch counted from 0, or constant."""
        if not self.consistent:
            return 0.0
        ramp = progress.epoch / progress.epochs if self.consistency["ramp"] == "linear" else 1.0
        return float(self.consistency["weight"]) * ramp

    def mix(self, progress: Progress) -> float | None:
        """The share of a row in its mix; None where inputs are not mixed."""
        return folded_beta(progress.rng, self.objective["mixup"]) if self.objective["mixup"] else None

    def __call__(self, model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        self.start_epoch(progress)
        return self.loss(model, batch, self.mix(progress), self.weight(progress), learn=True)

    def start_epoch(self, progress: Progress) -> None:
        if self.weights is None or not self.objective["transport"]["reset_each_epoch"]:
            return
        if progress.step % progress.per_epoch == 0 and self.reset_at != progress.step:
            self.weights.reset()
            self.reset_at = progress.step

    def clean(self, model: nn.Module, batch: Batch) -> tuple[Loss, Tensor]:
        target, views = self.views(model, batch, None, "fp32")
        return Loss.of(self.layer_terms(views, target, batch)), views.logits

    def views(self, model: nn.Module, batch: Batch, lam: float | None, precision: str) -> tuple[Views, Views]:
        """(the teacher's, the student's) on the same input."""
        target = self.guide(batch, precision, taps=self.taps(1), lam=lam)
        return target, model(batch, taps=self.taps(0), lam=lam)

    def loss(
        self, model: nn.Module, batch: Batch, lam: float | None, consistency_weight: float, *, learn: bool = False
    ) -> Loss:
        target, mixed = self.views(model, batch, lam, self.precision)
        terms = self.layer_terms(mixed, target, batch, learn=learn)
        return Loss.of(terms | self.consistency_terms(model, mixed, batch, lam, consistency_weight))

    def layer_terms(self, student: Views, teacher: Views, batch: Batch, *, learn: bool = False) -> Weighted:
        """Each relation by its name. learn: let this batch move the layer weights of a transport map."""
        own = batch["attention_mask"]
        seen = {"union": student.mask, "own": own, "none": None}[self.objective["relation_mask"]]
        masks = {False: seen, True: student.mask if seen is None else seen}  # of scores over keys, of states
        fixed = [name for name in self.relations if self.weights is None or name in APART]
        terms: dict[str, Tensor] = {}
        for name in fixed:
            terms |= layer_terms(
                student,
                teacher,
                relations=[name],
                pairs=self.pairs,
                mask=masks[name in WITHOUT_KEYS],
                normalise=self.objective["normalise"],
                **self.knobs,
            )
        if self.weights is not None:
            terms |= self.carried(student, teacher, masks, batch, learn)
        return {name: (1.0, terms[name]) for name in self.relations}

    def carried(
        self, student: Views, teacher: Views, masks: Mapping[bool, Tensor | None], batch: Batch, learn: bool
    ) -> dict[str, Tensor]:
        """The terms of a transport map; `masks` by whether a relation compares states."""
        assert self.weights is not None
        real = float(batch.get("real", True))
        terms: dict[str, Tensor] = {}
        flows: dict[str, Any] = {}
        distances: dict[str, Any] = {}
        for name in self.transported:
            moved = transport_terms(
                student,
                teacher,
                relations=[name],
                weights=self.weights,
                mask=masks[name in WITHOUT_KEYS],
                reduce=(lambda sums: device.total(sums * real)) if learn else (lambda sums: sums),
                **self.knobs,
            )
            terms |= moved.terms
            flows |= moved.flows
            distances |= moved.distances
        if learn and self.objective["transport"]["update_weights"]:
            self.weights.update(flows, distances)
        return terms

    def consistency_terms(
        self, model: nn.Module, mixed: Views, batch: Batch, lam: float | None, weight: float
    ) -> Weighted:
        if lam is None or weight <= 0.0:
            return {}
        source = model if self.average is None else self.average.module
        with torch.no_grad(), device.autocast(self.place, self.precision):
            clean: Views = source(batch, taps=self.taps(0, self.held))
        own: Tensor = batch["attention_mask"]
        terms: dict[str, Tensor] = {}
        for name in self.held:
            mask = own if name == "hidden" or self.objective["relation_mask"] != "none" else None
            terms |= consistency_terms(mixed, clean, on=[name], pairs=self.pairs, lam=lam, mask=mask, **self.knobs)
        return {name: (weight, values) for name, values in terms.items()}


class JointStep:
    """Inner layers and labels in one stage, from one forward pass of each model.

    layer_weight * (layer and consistency terms) + logit_weight * [(1 - alpha) * soft + alpha * hard]; on mixed inputs
    all of them are of the mixture.
    """

    def __init__(self, layers: LayerStep, values: Mapping[str, Any], *, kind: str) -> None:
        self.layers, self.layer_weight = layers, float(values["layer_weight"])
        self.labels = Labels.of(values, weight=float(values["logit_weight"]), kind=kind)

    def expected(self) -> list[str]:
        return [*self.layers.expected(), *self.labels.names]

    def __call__(self, model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        self.layers.start_epoch(progress)
        return self.loss(model, batch, self.layers.mix(progress), self.layers.weight(progress), learn=True)[0]

    def clean(self, model: nn.Module, batch: Batch) -> tuple[Loss, Tensor]:
        target, views = self.layers.views(model, batch, None, "fp32")
        return Loss.of(self.terms(views, target, batch, self.layers.layer_terms(views, target, batch))), views.logits

    def loss(
        self, model: nn.Module, batch: Batch, lam: float | None, consistency_weight: float, *, learn: bool = False
    ) -> tuple[Loss, Tensor]:
        target, views = self.layers.views(model, batch, lam, self.layers.precision)
        inner = self.layers.layer_terms(views, target, batch, learn=learn)
        inner |= self.layers.consistency_terms(model, views, batch, lam, consistency_weight)
        terms = self.terms(views, target, batch, inner)
        if lam is not None and "label" in terms:
            hard = mixed_label(views.logits, batch["labels"], lam=lam, kind=self.labels.kind)
            terms["label"] = (terms["label"][0], hard)
        return Loss.of(terms), views.logits

    def terms(self, student: Views, teacher: Views, batch: Batch, inner: Weighted) -> Weighted:
        """The terms of the layers and those of the labels, weighted."""
        outer = self.labels.terms(student.logits, teacher.logits, batch["labels"])
        return {name: (self.layer_weight * weight, values) for name, (weight, values) in inner.items()} | outer
