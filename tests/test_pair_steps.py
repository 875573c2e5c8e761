"""The step on texts and translations: every formula written out again, from one forward pass a view."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import toy
from kdlab.config import Contrast, PairFit
from kdlab.engine.loop import Loss, Progress, fit
from kdlab.engine.metrics_log import MetricsLog
from kdlab.models.projection import ProjectionHead
from kdlab.models.taps import Tapped, Views
from kdlab.objectives.mixup import beta_ratio
from kdlab.stages import pair_steps
from kdlab.stages.pair_steps import PairStep, term_weights
from test_taps import CONFIGS, WIDTH, batch_for, kind_of, tiny

W, V = 0.37, 0.81  # the ratios of source and target
CLASSES = 3


def values(*, weight: float = 0.0, head: str = "mlp", **changes: Any) -> dict[str, Any]:
    return toy.fields_without_fit(PairFit(contrast=Contrast(weight=weight, head=head), **changes))


def student(*, size: int = 5, dropout: float = 0.0) -> Tapped:
    model = toy.encoder(layers=2, seed=2, dropout=dropout)
    model.contrast = ProjectionHead(16, size, "mlp", 1)
    return model


def tokens(rows: int, *, seed: int = 0) -> dict[str, Tensor]:
    batch = toy.rows(rows, seed=seed).collate(np.arange(rows), pad_token_id=0, width=9)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def pairs(rows: int = 5, *, paired: bool = True, share: float = 1.0, languages_share: float = 1.0) -> dict[str, Any]:
    labels = torch.tensor([0, 1, 0, 2, 1, 1, 2, 0])[:rows]
    return {
        **tokens(2 * rows if paired else rows),
        "labels": labels,
        "share": share,
        "languages_share": languages_share,
    }


def at(step: int = 0, seed: int = 0) -> Progress:
    return Progress(step, 10, 0, 1, 10, np.random.default_rng([seed, step]))


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratios W and V in turn."""
    drawn = [W, V] * 50
    monkeypatch.setattr(pair_steps, "beta_ratio", lambda rng, alpha: drawn.pop(0))


# the formulas -----------------------------------------------------------------------------------------------------


def cut(batch: Mapping[str, Any], rows: slice) -> dict[str, Tensor]:
    return {name: batch[name][rows] for name in ("input_ids", "attention_mask")}


def cross(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy."""
    return -torch.stack([row.log_softmax(-1)[label] for row, label in zip(logits, labels, strict=True)]).mean()


def crossed(logits: Tensor, y: Tensor, w: float) -> Tensor:
    return w * cross(logits, y) + (1 - w) * cross(logits, y.flip(0))


def contrasted(views: Sequence[Tensor], y: Tensor, temperature: float = 0.3, guard: float = 1e-4) -> Tensor:
    """papers.md 3.2, anchor by anchor."""
    vectors, labels = torch.cat(list(views)), torch.cat([y] * len(views))
    costs = []
    for i in range(len(vectors)):
        scores = {a: vectors[i] @ vectors[a] / temperature for a in range(len(vectors)) if a != i}
        total = torch.stack(list(scores.values())).exp().sum().log()
        logs = [score - total for a, score in scores.items() if labels[a] == labels[i]]
        costs.append(-temperature * sum(logs, torch.zeros(())) / (len(logs) + guard))
    return torch.stack(costs).mean()


def paired_loss(model: Tapped, batch: Mapping[str, Any], of: Mapping[str, Any]) -> Tensor:
    y, rows = batch["labels"], len(batch["labels"])
    s, t = cut(batch, slice(0, rows)), cut(batch, slice(rows, None))
    source, target = model(s), model(t)
    lam, a = of["contrast"]["weight"], of["alpha"]
    if not of["mixup"]:
        label = a * cross(source.logits, y) + (1 - a) * cross(target.logits, y)
        return (1 - lam) * label + lam * contrasted([source.projected, target.projected], y)
    b1, b2 = of["mixed_source"], of["mixed_target"]
    source_mix, target_mix = model(s, lam=W), model(t, lam=V)
    label = a * (cross(source.logits, y) + b1 * crossed(source_mix.logits, y, W))
    label = label + (1 - a) * (cross(target.logits, y) + b2 * crossed(target_mix.logits, y, V))
    z_s, z_t, z_sm, z_tm = (views.projected for views in (source, target, source_mix, target_mix))
    with_source = W * contrasted([z_sm, z_t], y) + (1 - W) * contrasted([z_sm, z_t.flip(0)], y.flip(0))
    with_target = V * contrasted([z_s, z_tm], y) + (1 - V) * contrasted([z_s.flip(0), z_tm], y.flip(0))
    return (1 - lam) * label + lam * (contrasted([z_s, z_t], y) + b1 * with_source + b2 * with_target)


def unpaired_loss(model: Tapped, batch: Mapping[str, Any], of: Mapping[str, Any]) -> Tensor:
    y, lam = batch["labels"], of["contrast"]["weight"]
    plain = model(batch)
    if not of["mixup"]:
        return (1 - lam) * cross(plain.logits, y) + lam * contrasted([plain.projected], y)
    mixed = model(batch, lam=W)
    contrast = W * contrasted([plain.projected, mixed.projected], y)
    contrast = contrast + (1 - W) * contrasted([plain.projected.flip(0), mixed.projected], y.flip(0))
    return (1 - lam) * (cross(plain.logits, y) + crossed(mixed.logits, y, W)) + lam * contrast


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_gradients(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    moved = {name for name, grad in theirs.items() if grad.abs().max() > 0}
    assert moved and moved <= ours.keys() and ours.keys() - theirs.keys() == set()
    for name, expected in theirs.items():
        limit = tolerance * max(1.0, float(expected.abs().max()))
        assert float((ours.get(name, torch.zeros(())) - expected).abs().max()) <= limit, name


OBJECTIVES: dict[str, dict[str, Any]] = {
    "labels": {"alpha": 0.3},
    "mixup": {"alpha": 0.3, "mixup": 1.0, "mixed_source": 0.6, "mixed_target": 1.7},
    "supcon": {"alpha": 0.3, "weight": 0.4},
    "musc": {"mixup": 1.0, "weight": 0.1},
    "musc with weights": {"alpha": 0.3, "mixup": 1.0, "mixed_source": 0.6, "mixed_target": 1.7, "weight": 0.4},
}
TERMS = {
    "labels": ["label_source", "label_target"],
    "mixup": ["label_source", "label_target", "mixed_source", "mixed_target"],
    "supcon": ["label_source", "label_target", "contrast"],
    "musc": [
        *("label_source", "label_target", "mixed_source", "mixed_target"),
        *("contrast", "contrast_mixed_source", "contrast_mixed_target"),
    ],
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rows", [5, 1])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.usefixtures("fixed")
def test_the_loss_of_pairs_is_the_formula(name: str, rows: int, fused: bool) -> None:
    model, batch, of = student(), pairs(rows), values(**OBJECTIVES[name])
    step = PairStep(of, paired=True, fused=fused)
    loss = step(model, batch, at())
    assert step.expected() == list(loss.parts) == TERMS[name.split(" ")[0]]
    assert loss.weights == step.weights and loss.count.item() == 1.0
    found = gradients(model, loss.total)
    expected = paired_loss(model, batch, of)
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-6)
    same_gradients(found, gradients(model, expected))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.usefixtures("fixed")
def test_the_loss_of_texts_alone_is_the_formula(name: str, fused: bool) -> None:
    """alpha, mixed_source and mixed_target have no meaning there."""
    model, batch, of = student(), pairs(paired=False), values(**OBJECTIVES[name])
    step = PairStep(of, paired=False, fused=fused)
    loss = step(model, batch, at())
    terms = {"labels": ["label"], "mixup": ["label", "mixed"], "supcon": ["label", "contrast"]}
    assert step.expected() == list(loss.parts) == terms.get(name, ["label", "mixed", "contrast_mixed"])
    found = gradients(model, loss.total)
    expected = unpaired_loss(model, batch, of)
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-6)
    same_gradients(found, gradients(model, expected))


def test_weights_by_hand() -> None:
    musc = term_weights(values(mixup=1.0, weight=0.1), paired=True)
    labels = dict.fromkeys(TERMS["musc"][:4], 0.45)
    assert musc == pytest.approx({**labels, **dict.fromkeys(TERMS["musc"][4:], 0.1)})
    # labels sum to 2 (1 - 0.1), contrast to 3 * 0.1: scaled to 0.9 and 0.1
    scaled = term_weights(values(mixup=1.0, weight=0.1, normalise_terms=True), paired=True)
    assert scaled == pytest.approx({name: 0.225 if name in labels else 0.1 / 3 for name in musc})
    # labels 0.3, 0.7, 0.3 * 0.6, 0.7 * 1.7, together 2.37
    mixup = values(alpha=0.3, mixup=1.0, mixed_source=0.6, mixed_target=1.7)
    assert term_weights(mixup, paired=True) == pytest.approx(
        {"label_source": 0.3, "label_target": 0.7, "mixed_source": 0.18, "mixed_target": 1.19}
    )
    scaled = term_weights({**mixup, "normalise_terms": True}, paired=True)
    assert scaled == pytest.approx(
        {
            "label_source": 0.3 / 2.37,
            "label_target": 0.7 / 2.37,
            "mixed_source": 0.18 / 2.37,
            "mixed_target": 1.19 / 2.37,
        }
    )
    alone = term_weights(values(mixup=1.0, weight=0.1, normalise_terms=True), paired=False)
    assert alone == pytest.approx({"label": 0.45, "mixed": 0.45, "contrast_mixed": 0.1})
    assert term_weights(values(normalise_terms=True), paired=False) == {"label": 1.0}


@pytest.mark.usefixtures("fixed")
def test_other_knobs_of_the_contrast_reach_it() -> None:
    model, batch = student(), pairs()
    of = values(weight=0.4)
    of["contrast"] |= {"temperature": 0.7, "base_temperature": 0.7, "positives": "clamp"}
    found = PairStep(of, paired=True)(model, batch, at()).parts["contrast"]
    s, t = (model(cut(batch, rows)).projected for rows in (slice(0, 5), slice(5, 10)))
    expected = contrasted([s, t], batch["labels"], temperature=0.7, guard=0.0) / 0.7
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)


# which views run ----------------------------------------------------------------------------------------------------


class Seen(nn.Module):
    """A model that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, Any]] = []
        self.ids: list[Tensor] = []

    def forward(self, batch: Mapping[str, Tensor], *, lam: Any = None) -> Views:
        rows = len(batch["input_ids"])
        self.calls.append((rows, lam))
        self.ids.append(batch["input_ids"])
        drawn = torch.randn(rows, 4)
        return Views(drawn[:, :CLASSES], {}, {}, {}, {}, {}, batch["attention_mask"], drawn)


@pytest.mark.parametrize(
    ("of", "parts", "lams"),
    [
        ({}, "st", [None, None]),
        ({"alpha": 0.0}, "t", [None]),
        ({"alpha": 1.0}, "s", [None]),
        ({"alpha": 0.0, "mixup": 1.0}, "tt", [None, W]),
        ({"mixup": 1.0}, "stst", [None, None, W, V]),
        ({"mixup": 1.0, "mixed_source": 0.0}, "stt", [None, None, W]),
        ({"mixup": 1.0, "mixed_target": 0.0, "weight": 0.1}, "sts", [None, None, W]),
        ({"alpha": 0.0, "weight": 0.1}, "st", [None, None]),
        ({"mixup": 1.0, "weight": 0.1}, "stst", [None, None, W, V]),
    ],
)
@pytest.mark.usefixtures("fixed")
def test_only_views_with_a_weight_run(of: dict[str, Any], parts: str, lams: list[float | None]) -> None:
    batch, model = pairs(), Seen()
    PairStep(values(**of), paired=True)(model, batch, at())
    assert model.calls == [(5 * len(parts), lams)]
    source, target = batch["input_ids"].split(5)
    assert torch.equal(model.ids[0], torch.cat([source if part == "s" else target for part in parts]))


def test_contrast_without_a_head_is_our_mistake() -> None:
    model = toy.encoder()
    with pytest.raises(AssertionError, match="needs a model with a head"):
        PairStep(values(weight=0.1), paired=True)(model, pairs(), at())
    assert PairStep(values(), paired=True)(model, pairs(), at()).total > 0


def test_segments_go_with_their_rows() -> None:
    """A tiny bert knows two segments: a step without them gives another loss."""
    model, batch = student(), pairs()
    with_segments = batch | {"token_type_ids": (torch.arange(9) > 3).long().expand(10, 9) * batch["attention_mask"]}
    totals = {}
    for name, given in (("without", batch), ("with", with_segments)):
        steps = [PairStep(values(), paired=True, fused=fused) for fused in (True, False)]
        fused, apart = (step(model, given, at()).total.item() for step in steps)
        assert fused == pytest.approx(apart, rel=1e-5)
        totals[name] = fused
    assert totals["with"] != pytest.approx(totals["without"], rel=1e-4)


def test_each_view_has_its_own_dropout() -> None:
    model = student(dropout=0.5).train()
    step = PairStep(values(mixup=1.0), paired=True)
    seen = step.run(model, pairs(), {"source_mix": 1.0, "target_mix": 1.0})
    assert not torch.allclose(seen["source"].logits, seen["source_mix"].logits)


# ratios -------------------------------------------------------------------------------------------------------------


def test_ratios_are_not_folded() -> None:
    draws = [beta_ratio(np.random.default_rng(seed), 1.0) for seed in range(400)]
    assert min(draws) < 0.02 and max(draws) > 0.98
    assert abs(sum(draws) / 400 - 0.5) < 0.05 and abs(float(np.var(draws)) - 1 / 12) < 0.01  # uniform
    narrow = [beta_ratio(np.random.default_rng(seed), 8.0) for seed in range(400)]
    assert float(np.var(narrow)) == pytest.approx(1 / (4 * 17), rel=0.3)  # of Beta(8, 8)


def test_ratios_come_from_the_steps_own_generator() -> None:
    step = PairStep(values(mixup=1.0, weight=0.1), paired=True)
    seen = []
    for progress in (at(3), at(3), at(4)):
        model = Seen()
        step(model, pairs(), progress)
        seen.append(model.calls[0][1])
    rng = np.random.default_rng([0, 3])
    assert seen[0] == seen[1] == [None, None, rng.beta(1.0, 1.0), rng.beta(1.0, 1.0)]
    assert seen[2] != seen[0] and seen[0][2] != seen[0][3]


# shares -------------------------------------------------------------------------------------------------------------


def test_total_count_and_parts_are_shares() -> None:
    model = student()
    whole = PairStep(values(weight=0.1), paired=True)(model, pairs(), at())
    part = PairStep(values(weight=0.1), paired=True)(model, pairs(share=0.25, languages_share=0.5), at())
    assert part.count.item() == 0.5 and part.weights == whole.weights
    assert part.total.item() == pytest.approx(whole.total.item() / 4)
    for name, value in part.parts.items():
        assert value.item() == pytest.approx(whole.parts[name].item() / 4) and not value.requires_grad
    weighted = sum(weight * whole.parts[name].item() for name, weight in whole.weights.items())
    assert whole.total.item() == pytest.approx(weighted)


def rows_of(batch: Mapping[str, Any], rows: list[int], of: int) -> dict[str, Any]:
    """These pairs of a batch of `of`, as a micro-batch."""
    both = [*rows, *(of + row for row in rows)]
    share = len(rows) / of
    return {
        **{name: batch[name][both] for name in ("input_ids", "attention_mask")},
        "labels": batch["labels"][rows],
        "share": share,
        "languages_share": share,
    }


def test_micro_batches_are_one_batch_where_nothing_is_coupled() -> None:
    model, batch, step = student(), pairs(8), PairStep(values(alpha=0.3), paired=True)
    expected = gradients(model, step(model, batch, at()).total)
    losses: list[Loss] = [step(model, rows_of(batch, rows, 8), at()) for rows in ([0, 1, 2, 3, 4], [5, 6], [7])]
    assert math.isclose(sum(loss.count.item() for loss in losses), 1.0)
    same_gradients(gradients(model, torch.stack([loss.total for loss in losses]).sum()), expected)


class Steps:
    """Two languages with the first having a batch more than the second."""

    def __init__(self) -> None:
        first, second, third = (
            pairs(4, languages_share=1.0),
            pairs(6, languages_share=1.0),
            pairs(3, languages_share=2.0),
        )
        self.steps = [[first, second], [third]]

    def __len__(self) -> int:
        return 2

    def epoch(self, k: int, start: int = 0) -> Any:
        return iter(self.steps[start:])


def test_the_loop_gives_the_mean_over_languages_trained(tmp_path: Any) -> None:
    """4 rows weigh as much as 6, and a language that is left alone counts half: as in the official code."""
    model, data, step = student(), Steps(), PairStep(values(), paired=True)
    expected = [sum(paired_loss(model, batch, values()).item() for batch in batches) / 2 for batches in data.steps]
    plan = toy.plan(epochs=1, lr=0.0, weight_decay=0.0, clip=0.0, expected=tuple(step.expected()))
    fit(model, step, data, plan, toy.context(tmp_path))
    points = MetricsLog.read(tmp_path / "metrics.jsonl")
    assert [point["loss"] for point in points] == pytest.approx(expected, rel=1e-5)
    for point in points:
        assert point["weighted/label_source"] + point["weighted/label_target"] == pytest.approx(point["loss"], rel=1e-5)


# clean --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [True, False])
def test_clean_is_the_cross_entropy_of_texts_as_they_are(paired: bool) -> None:
    model, batch = student(), {**tokens(4), "labels": torch.tensor([0, 1, 2, 1])}
    loss, logits = PairStep(values(mixup=1.0, weight=0.1), paired=paired).clean(model, batch)
    assert torch.equal(logits, model(batch).logits) and loss.count.item() == 4.0 and list(loss.parts) == ["label"]
    assert (loss.total / 4).item() == pytest.approx(cross(logits, batch["labels"]).item(), rel=1e-6)


# all architectures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("fixed")
def test_one_pass_is_four_for_every_architecture(name: str) -> None:
    lengths = (9, 4, 6, 7, 5, 8, 3, 9)
    batch = {
        **batch_for(name, lengths=lengths),
        "labels": torch.tensor([0, 2, 0, 1]),
        "share": 1.0,
        "languages_share": 1.0,
    }
    if kind_of(name) in ("distilbert", "mpnet", "roberta", "modernbert"):
        batch.pop("token_type_ids")
    model = Tapped(tiny(name), contrast=ProjectionHead(WIDTH, 6, "mlp", 1))
    of = values(mixup=1.0, weight=0.1)
    views, found = [], []
    for fused in (True, False):
        step = PairStep(of, paired=True, fused=fused)
        views.append(step.run(model, batch, {"source_mix": W, "target_mix": V}))
        found.append(gradients(model, step(model, batch, at()).total))
    for view, together in views[0].items():
        apart = views[1][view]
        torch.testing.assert_close(together.logits, apart.logits, rtol=1e-5, atol=1e-5)
        assert together.projected is not None and apart.projected is not None
        torch.testing.assert_close(together.projected, apart.projected, rtol=1e-5, atol=1e-5)
    assert list(views[0]) == list(views[1]) == ["source", "target", "source_mix", "target_mix"]
    assert any(key.startswith("contrast.") for key in found[0])
    same_gradients(found[0], found[1])
