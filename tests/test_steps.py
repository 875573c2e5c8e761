"""The training steps of layer distillation: which terms, from which views, with which weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import toy
from kdlab.config import Consistency, JointFit, LayerFit, LogitFit, Mixed, Transport
from kdlab.engine import device
from kdlab.engine.loop import Progress
from kdlab.models.frozen import lowered
from kdlab.models.taps import Tap, Tapped
from kdlab.objectives.logits import hard_label, soft_cross_entropy
from kdlab.stages.steps import TEACHER_LOGITS, Guide, JointStep, LayerStep, LogitStep

CPU = torch.device("cpu")
PLACED: dict[str, Any] = {"precision": "fp32", "place": CPU}


@pytest.fixture
def teacher() -> Tapped:
    return toy.encoder(layers=4, seed=5).eval().requires_grad_(False)


@pytest.fixture
def student() -> Tapped:
    return toy.encoder(layers=2, seed=2)


@pytest.fixture
def batch() -> dict[str, Any]:
    (found,) = next(toy.batches(seed=1).epoch(0))
    return found


def at(step: int, *, per_epoch: int = 5, epochs: int = 4, seed: int = 0) -> Progress:
    rng = np.random.default_rng([seed, step])
    return Progress(step, per_epoch * epochs, step // per_epoch, epochs, per_epoch, rng)


def layer_step(teacher: Tapped, fit: LayerFit) -> LayerStep:
    return LayerStep(teacher, toy.fields_without_fit(fit), layers=(2, 4), **PLACED)


def logit_step(teacher: Tapped, **values: Any) -> LogitStep:
    return LogitStep(teacher, toy.fields_without_fit(LogitFit(**values)), kind="classification", **PLACED)


def gradients(model: Tapped) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# relations and maps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_map", ["last", "uniform", "skip", "top", "last_to_all", "pairs", "transport"])
def test_every_layer_map_gives_a_gradient_to_the_layers_it_names(
    layer_map: str, teacher: Tapped, student: Tapped, batch: dict[str, Any]
) -> None:
    step = layer_step(
        teacher,
        LayerFit(relations=["hidden"], layer_map=layer_map, pairs=["1-3"] if layer_map == "pairs" else []),
    )
    loss = step(student, batch, at(0))
    loss.total.backward()
    found = gradients(student)
    second = any("encoder.layer.1." in name and grad.abs().sum() > 0 for name, grad in found.items())
    assert any("encoder.layer.0." in name and grad.abs().sum() > 0 for name, grad in found.items())
    assert second == (layer_map not in ("skip", "top", "pairs"))
    assert loss.parts["hidden"].item() > 0


KEYED, STATES = ("attention", "query", "key", "value"), ("hidden", "embedding", "patient")


@pytest.mark.parametrize(
    ("relation", "divergence"),
    [(name, found) for name in KEYED for found in ("kl", "mse", "l1")]
    + [(name, found) for name in STATES for found in ("mse", "l1")],
)
def test_every_relation_under_every_divergence(
    relation: str, divergence: str, teacher: Tapped, student: Tapped, batch: dict[str, Any]
) -> None:
    keyed = relation in KEYED
    named = {"relation_divergence" if keyed else "hidden_divergence": divergence}
    step = layer_step(teacher, LayerFit(relations=[relation], layer_map="uniform", **named))
    loss = step(student, batch, at(0))
    assert step.expected() == [relation] and loss.weights == {relation: 1.0}
    loss.total.backward()
    assert float(torch.stack([grad.abs().sum() for grad in gradients(student).values()]).sum()) > 0
    other = layer_step(teacher, LayerFit(relations=[relation], layer_map="uniform"))
    same = torch.equal(other(student, batch, at(0)).parts[relation], loss.parts[relation])
    assert same == (divergence == ("kl" if keyed else "mse"))


def test_relation_heads_let_head_counts_differ(student: Tapped, batch: dict[str, Any]) -> None:
    config = toy.encoder(layers=4, hidden=32, seed=3).eval()
    config.num_heads = 4  # the same weights, read as four heads
    step = layer_step(config, LayerFit(relations=["query", "key", "value"], relation_heads=8))
    loss = step(student, batch, at(0))
    assert set(loss.parts) == {"query", "key", "value"} and all(part > 0 for part in loss.parts.values())


def test_normalise_is_the_length_of_patient_vectors(teacher: Tapped, student: Tapped, batch: dict[str, Any]) -> None:
    values = {}
    for normalise in (True, False):
        step = layer_step(teacher, LayerFit(relations=["patient"], layer_map="uniform", normalise=normalise))
        values[normalise] = step(student, batch, at(0)).parts["patient"].item() / 4
    student.eval()
    taps = layer_step(teacher, LayerFit(relations=["patient"], layer_map="uniform"))
    ours = student(batch, taps=taps.taps(0)).hidden
    theirs = teacher(batch, taps=taps.taps(1)).hidden
    pairs = [(ours[1][:, 0], theirs[2][:, 0]), (ours[2][:, 0], theirs[4][:, 0])]
    plain = torch.stack([(a - b).square().mean() for a, b in pairs]).mean()
    scaled = [[x / x.norm(dim=-1, keepdim=True) for x in pair] for pair in pairs]
    unit = torch.stack([(a - b).square().mean() for a, b in scaled])
    assert values[False] == pytest.approx(plain.item(), rel=1e-5)
    assert values[True] == pytest.approx(unit.mean().item(), rel=1e-5)


def test_clean_is_fp32_whatever_training_is(teacher: Tapped, student: Tapped, batch: dict[str, Any]) -> None:
    """On both sides: else the curves would hold the teacher's rounding."""
    placed = {"precision": "bf16", "place": CPU}
    half = LayerStep(teacher, toy.fields_without_fit(LayerFit()), layers=(2, 4), **placed)
    assert half.clean(student, batch)[0].total == layer_step(teacher, LayerFit()).clean(student, batch)[0].total
    values = toy.fields_without_fit(LogitFit())
    logits = LogitStep(teacher, values, kind="classification", **placed).clean(student, batch)[0].total
    assert logits == logit_step(teacher).clean(student, batch)[0].total


def test_clean_is_the_objective_without_mixing_or_consistency(
    teacher: Tapped, student: Tapped, batch: dict[str, Any]
) -> None:
    fit = LayerFit(mixup=1.0, consistency=Consistency(weight=0.5, ramp="constant"))
    loss, logits = layer_step(teacher, fit).clean(student, batch)
    plain = layer_step(teacher, LayerFit())(student, batch, at(0))
    assert loss.total.item() == plain.total.item() and set(loss.parts) == {"attention", "hidden"}
    assert torch.equal(logits, student(batch).logits)


# transport -------------------------------------------------------------------------------------------------------


def transported(**values: Any) -> LayerFit:
    return LayerFit(
        relations=["attention", "hidden", "embedding"],
        layer_map="transport",
        relation_divergence="mse",
        transport=Transport(**values),
    )


def weights(step: LayerStep) -> np.ndarray[Any, Any]:
    assert step.weights is not None
    return np.concatenate([np.concatenate(step.weights.weights(name)) for name in ("attention", "hidden")])


def test_layer_weights_move_with_each_training_step_only(
    teacher: Tapped, student: Tapped, batch: dict[str, Any]
) -> None:
    step = layer_step(teacher, transported())
    assert weights(step).tolist() == [*[0.5] * 2, *[0.25] * 4] * 2
    step.clean(student, batch)
    step.loss(student, batch, None, 0.0)
    assert weights(step).tolist() == [*[0.5] * 2, *[0.25] * 4] * 2
    loss = step(student, batch, at(0))
    moved = weights(step)
    assert not np.allclose(moved, [*[0.5] * 2, *[0.25] * 4] * 2)
    assert step.expected() == list(loss.parts) == ["attention", "hidden", "embedding"]
    step(student, batch, at(1))
    assert not np.array_equal(weights(step), moved)
    still = layer_step(teacher, transported(update_weights=False))
    still(student, batch, at(0))
    assert weights(still).tolist() == [*[0.5] * 2, *[0.25] * 4] * 2


def test_layer_weights_start_anew_with_an_epoch_if_asked(
    teacher: Tapped, student: Tapped, batch: dict[str, Any]
) -> None:
    step = layer_step(teacher, transported(reset_each_epoch=True))
    step(student, batch, at(0))
    first = weights(step)
    for number in range(1, 5):
        step(student, batch, at(number))
    assert not np.array_equal(weights(step), first)
    step(student, batch, at(5))
    assert np.array_equal(weights(step), first)
    step(student, batch, at(5))  # the second micro-batch of the same step goes on
    assert not np.array_equal(weights(step), first)


def test_layer_weights_are_part_of_the_checkpoint(teacher: Tapped, student: Tapped, batch: dict[str, Any]) -> None:
    step, other = layer_step(teacher, transported()), layer_step(teacher, transported())
    step(student, batch, at(0))
    (name,) = step.state()
    other.state()[name].load_state_dict(step.state()[name].state_dict())
    assert np.array_equal(weights(other), weights(step)) and name == "transport"
    assert torch.equal(step(student, batch, at(1)).total, other(student, batch, at(1)).total)


def test_a_phantom_batch_has_no_say_in_the_transport(
    teacher: Tapped, student: Tapped, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without rows of its own adds nothing to the sums, and moves its weights as the others do."""
    of_others: list[Tensor] = []
    monkeypatch.setattr(device, "total", lambda values: of_others.append(values.clone()) or values)
    real = layer_step(teacher, transported())
    real(student, batch, at(0))
    there, own = iter(of_others[:]), []
    monkeypatch.setattr(device, "total", lambda values: own.append(values.clone()) or values + next(there))
    phantom = layer_step(teacher, transported())
    phantom(student, {**batch, "real": False}, at(0))
    assert len(own) == len(of_others) and all(not values.any() for values in own)
    assert np.array_equal(weights(phantom), weights(real))


# logits ----------------------------------------------------------------------------------------------------------


def test_mixed_logits_against_the_teachers_own_mixture(teacher: Tapped, student: Tapped, batch: dict[str, Any]) -> None:
    step = logit_step(teacher, alpha=1.0, mixed=Mixed(mixup=1.0, logit=0.7, label=0.3))
    lam = 0.8
    loss, _ = step.loss(student, batch, lam)
    assert step.expected() == list(loss.parts) == ["label", "mixed_logit", "mixed_label"]
    assert loss.weights == {"label": 1.0, "mixed_logit": 0.7, "mixed_label": 0.3}
    mixture, target = student(batch, lam=lam).logits, teacher(batch, lam=lam).logits
    labels = batch["labels"]
    soft = soft_cross_entropy(mixture, target, temperature=2.0)
    hard = lam * hard_label(mixture, labels, kind="classification")
    hard = hard + (1 - lam) * hard_label(mixture, labels.flip(0), kind="classification")
    assert loss.parts["mixed_logit"].item() == pytest.approx(soft.sum().item(), rel=1e-6)
    assert loss.parts["mixed_label"].item() == pytest.approx(hard.sum().item(), rel=1e-6)
    clean = hard_label(student(batch).logits, labels, kind="classification").sum()
    assert loss.parts["label"].item() == pytest.approx(clean.item(), rel=1e-6)


def test_mixed_logits_against_a_mixture_of_clean_answers(
    teacher: Tapped, student: Tapped, batch: dict[str, Any]
) -> None:
    step = logit_step(teacher, clean=0.0, mixed=Mixed(mixup=1.0, target="clean"))
    lam = 0.6
    loss, _ = step.loss(student, batch, lam)
    mixture, target = student(batch, lam=lam).logits, teacher(batch).logits
    own = soft_cross_entropy(mixture, target, temperature=2.0)
    partner = soft_cross_entropy(mixture, target.flip(0), temperature=2.0)
    assert step.expected() == list(loss.parts) == ["mixed_logit"]
    assert loss.total.item() == pytest.approx((lam * own + (1 - lam) * partner).sum().item(), rel=1e-6)
    followed, _ = step.clean(student, batch)
    assert followed.weights == {"logit": 1.0}
    of_labels = logit_step(teacher, clean=0.0, alpha=1.0, mixed=Mixed(mixup=1.0))
    assert of_labels.expected() == ["mixed_logit"]
    assert of_labels.clean(student, batch)[0].weights == {"logit": 1.0}  # what is trained, not the hard labels


def test_the_teacher_runs_only_where_it_is_asked(
    teacher: Tapped, student: Tapped, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float | None] = []
    forward = Tapped.forward

    def watched(model: Tapped, batch: Any, **options: Any) -> Any:
        if model is teacher:
            asked.append(options.get("lam"))
        return forward(model, batch, **options)

    monkeypatch.setattr(Tapped, "forward", watched)
    logit_step(teacher, alpha=1.0, mixed=Mixed(mixup=1.0)).loss(student, batch, 0.7)
    assert asked == [0.7]
    asked.clear()
    logit_step(teacher, alpha=1.0, mixed=Mixed(mixup=1.0, target="clean")).loss(student, batch, 0.7)
    assert asked == [None]


@pytest.mark.parametrize(
    ("values", "lam"),
    [
        ({}, None),
        ({"alpha": 0.3, "temperature": 3.0}, None),
        ({"clean": 0.0, "mixed": Mixed(mixup=1.0, target="clean")}, 0.7),
        ({"mixed": Mixed(mixup=1.0, logit=0.5, label=0.2, target="clean")}, 0.7),
    ],
)
def test_logits_that_come_with_the_batch_are_the_teachers_own(
    values: dict[str, Any], lam: float | None, teacher: Tapped, student: Tapped, batch: dict[str, Any]
) -> None:
    """Without a teacher: the loss, its gradients and the curves are those with one."""
    values = toy.fields_without_fit(LogitFit(**values))
    alone = LogitStep(None, values, kind="classification", **PLACED)
    asking = LogitStep(teacher, values, kind="classification", **PLACED)
    brought = {**batch, TEACHER_LOGITS: teacher(batch).logits}
    found = []
    for step, rows in ((asking, batch), (alone, brought)):
        loss, logits = step.loss(student, rows, lam)
        loss.total.backward()
        found.append(({"total": loss.total, "logits": logits, **loss.parts}, gradients(student)))
        student.zero_grad()
        assert loss.weights and step.clean(student, rows)[0].total == asking.clean(student, batch)[0].total
    assert all(toy.same(*pair) for pair in zip(*found, strict=True))


def test_mixtures_are_asked_of_the_teacher_although_the_batch_holds_its_logits(
    teacher: Tapped, student: Tapped, batch: dict[str, Any]
) -> None:
    brought = {**batch, TEACHER_LOGITS: teacher(batch).logits}
    step = logit_step(teacher, mixed=Mixed(mixup=1.0))
    assert step.loss(student, brought, 0.7)[0].total == step.loss(student, batch, 0.7)[0].total


def test_a_mixture_is_drawn_from_the_step_alone(teacher: Tapped, student: Tapped, batch: dict[str, Any]) -> None:
    step = logit_step(teacher, clean=0.0, mixed=Mixed(mixup=1.0))
    first, again, other = (step(student, batch, at(number)).total.item() for number in (3, 3, 4))
    assert first == again != other


# both in one stage -----------------------------------------------------------------------------------------------


def test_joint_is_the_weighted_sum_of_both(teacher: Tapped, student: Tapped, batch: dict[str, Any]) -> None:
    fit = JointFit(layer_weight=3.0, logit_weight=0.5, alpha=0.25)
    step = JointStep(layer_step(teacher, fit), toy.fields_without_fit(fit), kind="classification")
    loss = step(student, batch, at(0))
    layers = layer_step(teacher, LayerFit())(student, batch, at(0))
    logits = logit_step(teacher, alpha=0.25)(student, batch, at(0))
    wanted = 3.0 * layers.total + 0.5 * logits.total
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert loss.weights == {"attention": 3.0, "hidden": 3.0, "logit": 0.375, "label": 0.125}
    loss.total.backward()
    found = gradients(student)
    student.zero_grad()
    wanted.backward()
    for name, grad in gradients(student).items():
        assert torch.allclose(found[name], grad, atol=1e-6), name


def test_joint_on_mixed_inputs_uses_the_mixture_everywhere(
    teacher: Tapped, student: Tapped, batch: dict[str, Any]
) -> None:
    fit = JointFit(mixup=1.0, alpha=0.5, consistency=Consistency(weight=0.2, ramp="constant"))
    step = JointStep(layer_step(teacher, fit), toy.fields_without_fit(fit), kind="classification")
    loss, logits = step.loss(student, batch, 0.7, 0.2)
    assert torch.equal(logits, student(batch, lam=0.7).logits)
    target = teacher(batch, lam=0.7).logits
    assert loss.parts["logit"].item() == pytest.approx(
        soft_cross_entropy(logits, target, temperature=2.0).sum().item(), rel=1e-6
    )
    labels = batch["labels"]
    own, partner = (hard_label(logits, y, kind="classification") for y in (labels, labels.flip(0)))
    assert loss.parts["label"].item() == pytest.approx((0.7 * own + 0.3 * partner).sum().item(), rel=1e-6)
    assert loss.weights["consistency_hidden"] == pytest.approx(0.1)
    assert set(step.expected()) == set(loss.parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_teacher_of_lowered_weights_gives_the_same_bits_under_autocast(dtype: torch.dtype) -> None:
    teacher = toy.encoder(layers=3, seed=4).eval()
    ids = torch.arange(12).view(3, 4) % 7 + 1
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    taps = [Tap("hidden", 0), Tap("hidden", 3), Tap("attention", 2), Tap("value", 3)]
    quick = lowered(teacher, dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        whole, low = teacher(batch, taps=taps, lam=0.7), quick(batch, taps=taps, lam=0.7)
    assert whole.logits.dtype == dtype and torch.equal(low.logits, whole.logits)
    for part in ("hidden", "attention", "value"):
        for layer, values in getattr(whole, part).items():
            assert torch.equal(getattr(low, part)[layer], values), (part, layer)
    assert teacher.model.classifier.weight.dtype == torch.float32, "the teacher itself stays as it is"
    assert lowered(teacher, None) is teacher


def test_a_guide_runs_at_the_precision_asked_for() -> None:
    teacher = toy.encoder(layers=2, seed=4).eval()
    ids = torch.arange(8).view(2, 4) % 7 + 1
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    guide = Guide(teacher, "bf16", torch.device("cpu"))
    assert guide(batch, "bf16").logits.dtype == torch.bfloat16
    assert torch.equal(guide(batch, "fp32").logits, teacher(batch).logits)
    assert not guide(batch, "fp32").logits.requires_grad
