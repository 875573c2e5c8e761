"""The training step on a text and its translation: hard labels, mixed views and contrast, from one forward pass.

With y the labels, y' and z' those of the reversed batch, s and t the source-language texts and their translations, s_m
and t_m the same mixed by ratios w and v, a = alpha, b1 = mixed_source, b2 = mixed_target, l = contrast.weight, and
CE*_x = w CE(x, y) + (1 - w) CE(x, y'), a step minimises the mean over rows of

    (1 - l) {a [CE(s, y) + b1 CE*_s_m] + (1 - a) [CE(t, y) + b2 CE*_t_m]}
    + l {SC([z_s, z_t], y) + b1 (w SC([z_s_m, z_t], y) + (1 - w) SC([z_s_m, z_t'], y'))
                           + b2 (v SC([z_s, z_t_m], y) + (1 - v) SC([z_s', z_t_m], y'))}

without what is mixed if mixup is 0, and without SC if l is 0. Texts x that have no translation beside them:

    (1 - l) {CE(x, y) + CE*_x_m} + l {w SC([z_x, z_x_m], y) + (1 - w) SC([z_x', z_x_m], y')}, or l SC([z_x], y) unmixed.

Source: MUSC future/baseline_trainer.py:98-251; departures from it are 4 and 6 of `kdlab.methods.crosslingual`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdlab.engine import device
from kdlab.engine.loop import Batch, Loss, Progress
from kdlab.models.taps import Views
from kdlab.objectives.contrastive import supcon
from kdlab.objectives.logits import hard_label, mixed_label
from kdlab.objectives.mixup import beta_ratio

PAIRED = {  # term -> the views that it needs
    "label_source": ("source",),
    "label_target": ("target",),
    "mixed_source": ("source_mix",),
    "mixed_target": ("target_mix",),
    "contrast": ("source", "target"),
    "contrast_mixed_source": ("source_mix", "target"),
    "contrast_mixed_target": ("source", "target_mix"),
}
UNPAIRED = {
    "label": ("text",),
    "mixed": ("text_mix",),
    "contrast": ("text",),
    "contrast_mixed": ("text", "text_mix"),
}
PARTS = {"source": 0, "target": 1, "source_mix": 0, "target_mix": 1, "text": 0, "text_mix": 0}  # of a batch's rows
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
KNOBS = ("temperature", "base_temperature", "positives", "epsilon")  # of the contrastive loss
Vectors = Mapping[str, Tensor]  # view -> [B, P]


class Seen(NamedTuple):
    """One view's forward pass."""

    logits: Tensor  # [B, C]
    projected: Tensor | None  # [B, P]


def term_weights(values: Mapping[str, Any], *, paired: bool) -> dict[str, float]:
    """The weight of each term that has one; `values` are the fields of `config.PairFit` that `config.Fit` has not."""
    contrast = float(values["contrast"]["weight"])
    label, mixes = 1.0 - contrast, bool(values["mixup"])
    if paired:
        alpha = float(values["alpha"])
        source, target = (float(values[name]) * mixes for name in ("mixed_source", "mixed_target"))
        labels = {
            "label_source": label * alpha,
            "label_target": label * (1.0 - alpha),
            "mixed_source": label * alpha * source,
            "mixed_target": label * (1.0 - alpha) * target,
        }
        contrasts = {
            "contrast": contrast,
            "contrast_mixed_source": contrast * source,
            "contrast_mixed_target": contrast * target,
        }
    else:
        labels = {"label": label, "mixed": label * mixes}
        contrasts = {"contrast": contrast * (not mixes), "contrast_mixed": contrast * mixes}
    if values["normalise_terms"]:
        labels, contrasts = _summing_to(label, labels), _summing_to(contrast, contrasts)
    return {name: weight for name, weight in (labels | contrasts).items() if weight}


def _summing_to(whole: float, weights: Mapping[str, float]) -> dict[str, float]:
    given = sum(weights.values())
    return {name: weight * whole / given if given else 0.0 for name, weight in weights.items()}


class PairStep:
    """Class labels of texts and their translations (paired), or of texts alone.

    values: the fields of `config.PairFit` that `config.Fit` has not. fused: False runs one forward pass a view.

    A batch is of one language: token tensors [2B, L], first the texts and then their translations, or [B, L] if not
    paired; labels [B]; `share`, its rows over those of its language's batch in all micro-batches and processes; and
    `languages_share`, which is share * languages trained on / languages in this optimiser step. The loop's division
    then gives the sum of the languages' means over the number of languages trained on, also where some of them have run
    out of rows, as in the official code (baseline_trainer.py:90-97, 232-251).

    Contrast needs a model with a head for it (`Tapped.contrast`). It couples the rows of a forward pass; where several
    processes share a batch, their rows are candidates too, and the anchors are each one's own.
    """

    def __init__(self, values: Mapping[str, Any], *, paired: bool, fused: bool = True) -> None:
        self.paired, self.fused = paired, fused
        self.mixup = float(values["mixup"])
        self.contrast = {name: values["contrast"][name] for name in KNOBS}
        self.weights = term_weights(values, paired=paired)
        table = PAIRED if paired else UNPAIRED
        self.needs = {name: table[name] for name in self.weights}
        needed = {view for views in self.needs.values() for view in views}
        self.views = [view for view in PARTS if view in needed]

    def expected(self) -> list[str]:
        return list(self.weights)

    def __call__(self, model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        ratios = {view: beta_ratio(progress.rng, self.mixup) for view in self.views if view.endswith("_mix")}
        terms = self.terms(self.run(model, batch, ratios), batch["labels"], ratios, real=batch.get("real", True))
        loss = Loss.of({name: (self.weights[name], values) for name, values in terms.items()})
        factor = batch["share"] / len(batch["labels"])
        return replace(
            loss,
            total=loss.total * factor,
            count=torch.full_like(loss.count, batch["languages_share"]),
            parts={name: part * factor for name, part in loss.parts.items()},
        )

    def clean(self, model: nn.Module, batch: Batch) -> tuple[Loss, Tensor]:
        """The cross entropy of texts as they are: tokens [B, L], labels [B]."""
        logits = model(batch).logits
        return Loss.of({"label": (1.0, hard_label(logits, batch["labels"], kind="classification"))}), logits

    def run(self, model: nn.Module, batch: Batch, ratios: Mapping[str, float]) -> dict[str, Seen]:
        """Every view that has a weight, each with its own dropout."""
        lams = [ratios.get(view) for view in self.views]
        texts = 2 if self.paired else 1
        tokens = {name: batch[name].chunk(texts) for name in TOKENS if name in batch}
        inputs = [{name: tensors[PARTS[view]] for name, tensors in tokens.items()} for view in self.views]
        if not self.fused:
            found = [model(part, lam=lam) for part, lam in zip(inputs, lams, strict=True)]
            return {view: Seen(of.logits, of.projected) for view, of in zip(self.views, found, strict=True)}
        whole: Views = model({name: torch.cat([part[name] for part in inputs]) for name in tokens}, lam=lams)
        count = len(lams)
        projected = [None] * count if whole.projected is None else whole.projected.chunk(count)
        return dict(zip(self.views, map(Seen, whole.logits.chunk(count), projected), strict=True))

    def terms(
        self, seen: Mapping[str, Seen], labels: Tensor, ratios: Mapping[str, float], *, real: bool
    ) -> dict[str, Tensor]:
        """Each term by its name, one number per row [B]. real: False for a phantom micro-batch."""
        groups = self.groups(seen, labels, real=real)
        terms: dict[str, Tensor] = {}
        for name, views in self.needs.items():
            if name.startswith("contrast"):
                terms[name] = self.contrasted(views, groups, ratios)
            elif views[0] in ratios:
                logits = seen[views[0]].logits
                terms[name] = mixed_label(logits, labels, lam=ratios[views[0]], kind="classification")
            else:
                terms[name] = hard_label(seen[views[0]].logits, labels, kind="classification")
        return terms

    def groups(self, seen: Mapping[str, Seen], labels: Tensor, *, real: bool) -> list[tuple[Vectors, Tensor]]:
        """The projected vectors and labels of this process, then those of each other one."""
        used = {view for name, views in self.needs.items() if name.startswith("contrast") for view in views}
        vectors = {view: found for view in self.views if view in used and (found := seen[view].projected) is not None}
        assert vectors.keys() == used, "contrast needs a model with a head for it"
        if not vectors:
            return []
        everywhere = device.gather(torch.stack(list(vectors.values()), dim=1), real=real)
        others = [dict(zip(vectors, theirs.unbind(1), strict=True)) for theirs in everywhere]
        return [(vectors, labels), *zip(others, device.gather(labels, real=real), strict=True)]

    def contrasted(
        self, views: Sequence[str], groups: Sequence[tuple[Vectors, Tensor]], ratios: Mapping[str, float]
    ) -> Tensor:
        """SC of these views; with a mixed one among them, of its rows' labels and of their partners', by its ratio."""
        lam = next((ratios[view] for view in views if view in ratios), None)
        own = self.supcon([(torch.stack([of[view] for view in views], dim=1), labels) for of, labels in groups])
        if lam is None:
            return own
        reversed_groups = []
        for of, labels in groups:
            partners = [of[view] if view in ratios else of[view].flip(0) for view in views]
            reversed_groups.append((torch.stack(partners, dim=1), labels.flip(0)))
        return lam * own + (1 - lam) * self.supcon(reversed_groups)

    def supcon(self, groups: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        (features, labels), *others = groups
        if not others:
            return supcon(features, labels, **self.contrast)
        further = torch.cat([theirs for theirs, _ in others]), torch.cat([found for _, found in others])
        return supcon(features, labels, **self.contrast, others=further)
