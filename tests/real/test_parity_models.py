"""Encoders against numbers recorded from the official CR-ILD code (shared/parity/open/crild).

Tolerance 1e-5 of max(1, largest expected value), as the bundles' README has it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from kdlab.models.ema import MovingAverage
from kdlab.models.encoder import load_encoder
from kdlab.models.taps import Tap, Tapped

pytestmark = pytest.mark.real

MIXED_CASES = [
    f"m{index}/{role}/{view}"
    for index, views in ((0, ("clean", "mix0.7", "mix0.55")), (1, ("clean", "mix0.9")))
    for role, fits in (("teacher", ("",)), ("student", ("", "/fit")))
    for view in (f"{view}{fit}" for view in views for fit in fits)
]


class Bundle:
    """One NAME.json with its NAME.safetensors."""

    def __init__(self, shared: Path, name: str) -> None:
        self.folder = shared / "parity" / "open" / "crild"
        self.tensors = load_file(self.folder / f"{name}.safetensors")
        head = json.loads((self.folder / f"{name}.json").read_text())
        self.cases: dict[str, dict[str, Any]] = {case["id"]: case for case in head["cases"]}

    def inputs(self, case: dict[str, Any]) -> dict[str, Tensor]:
        return {name: self.tensors[key].long() for name, key in case["inputs"].items()}

    def model(self, name: str, attention: str) -> PreTrainedModel:
        config = json.loads((self.folder / name / "config.json").read_text())
        return load_encoder(
            {"path": str(self.folder / name), "head": "official"},
            num_labels=len(config["id2label"]),
            kind="classification",
            labels=None,
            attention=attention,
            seed=0,
        )

    def projection(self, name: str) -> nn.Linear:
        weights = load_file(self.folder / name / "model.safetensors")
        linear = nn.Linear(*reversed(weights["fit_dense.weight"].shape))
        linear.load_state_dict({part: weights[f"fit_dense.{part}"] for part in ("weight", "bias")})
        return linear


def close(got: Tensor, expected: Tensor, what: str) -> None:
    limit = 1e-5 * max(1.0, float(expected.abs().max()))
    assert got.shape == expected.shape, what
    assert float((got - expected).abs().max()) <= limit, what


def test_every_case_of_the_bundle_is_named(shared: Path) -> None:
    assert sorted(Bundle(shared, "model_mixup").cases) == sorted(MIXED_CASES) and len(MIXED_CASES) == 15


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MIXED_CASES)
def test_forward_with_and_without_mixing(shared: Path, name: str, attention: str) -> None:
    bundle = Bundle(shared, "model_mixup")
    case = bundle.cases[name]
    params, expected = case["params"], case["expected_tensors"]
    projection = bundle.projection(params["model"]) if params["is_student"] else None
    tapped = Tapped(bundle.model(params["model"], attention), projection=projection, head="official")
    taps = []
    for key in expected.keys() - {"logits"}:
        kind, index = key.split(".")
        if kind in ("hidden", "fit_hidden"):
            taps.append(Tap("hidden", int(index)))
        else:
            taps.append(Tap({"q": "query", "k": "key", "v": "value"}[kind], int(index) + 1))
    with torch.no_grad():
        views = tapped(bundle.inputs(case), taps=taps, lam=params["lam"])
    shown = {"logits": views.logits}
    for prefix, part in (("q", views.query), ("k", views.key), ("v", views.value)):
        shown |= {f"{prefix}.{layer - 1}": tensor for layer, tensor in part.items()}
    hidden = "fit_hidden" if params["is_student"] else "hidden"
    shown |= {f"{hidden}.{layer}": tensor for layer, tensor in views.hidden.items()}
    assert shown.keys() == expected.keys()
    for key, where in expected.items():
        close(shown[key], bundle.tensors[where], f"{name} {key}")


def official_loss(bundle: Bundle, case: dict[str, Any], student: Tapped, teacher: Tapped) -> Tensor:
    """CR-ILD's first stage with inter-consistency on the last layers (papers.md 1.3), written out."""
    params, batch = case["params"], bundle.inputs(case)
    lam, mask, last = params["lam"], batch["attention_mask"], student.num_layers
    taps = [Tap("attention", last), Tap("hidden", last)]
    mixed = student(batch, taps=taps, lam=lam)
    with torch.no_grad():
        clean = student(batch, taps=taps)
        top = teacher.num_layers
        target = teacher(batch, taps=[Tap("attention", top), Tap("hidden", top)], lam=lam)

    def relation(scores: Tensor, wanted: Tensor, seen: Tensor) -> Tensor:
        unseen = (1.0 - seen)[:, None, None, :] * -10000.0
        return -((wanted + unseen).softmax(-1) * (scores + unseen).log_softmax(-1)).sum(-1).mean()

    scores, states = mixed.attention[last], mixed.hidden[last]
    loss = relation(scores, target.attention[top], mask) + functional.mse_loss(states, target.hidden[top])
    weight = params["w_ic"] * params["epoch"] / params["num_train_epochs"]
    for share, reverse in ((lam, False), (1 - lam, True)):
        wanted, state, seen = clean.attention[last], clean.hidden[last], mask
        if reverse:
            wanted, state, seen = wanted.flip(0), state.flip(0), seen.flip(0)
        loss = loss + weight * share * (relation(scores, wanted, seen) + functional.mse_loss(states, state))
    return loss


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["m0", "m1"])
def test_gradients_flow_through_the_taps(shared: Path, name: str, attention: str) -> None:
    bundle = Bundle(shared, "end2end")
    case = bundle.cases[f"{name}/grad/crild/AH-mixup-ic"]
    params = case["params"]
    student = Tapped(
        bundle.model(params["student"], attention),
        projection=bundle.projection(params["student"]),
        head="official",
    )
    teacher = Tapped(bundle.model(params["teacher"], attention), head="official")
    loss = official_loss(bundle, case, student.train(), teacher)
    loss.backward()
    close(loss.detach(), torch.tensor(case["expected"]["loss"]), "loss")
    without = set(case["expected"]["no_grad_parameters"])
    for key, weight in student.named_parameters():
        official = key.removeprefix("model.").replace("projection.", "fit_dense.")
        if official in without:
            assert weight.grad is None, key
            continue
        assert weight.grad is not None, key
        close(weight.grad, bundle.tensors[case["expected_tensors"][f"grad.{official}"]], key)


def test_moving_average(shared: Path) -> None:
    bundle = Bundle(shared, "optim")
    cases = [case for case in bundle.cases.values() if case["fn"] == "ModelEMA"]
    assert cases
    for case in cases:
        recorded = {name: bundle.tensors[key] for name, key in case["expected_tensors"].items()}
        model = nn.Linear(*reversed(recorded["w0"].shape))
        model.load_state_dict({"weight": recorded["w0"], "bias": recorded["b0"]})
        average = MovingAverage(model, case["params"]["decay"])
        for step in range(case["params"]["steps"]):
            model.load_state_dict({"weight": recorded[f"model_w.{step}"], "bias": recorded[f"model_b.{step}"]})
            average.update(model)
            close(average.module.weight, recorded[f"ema_w.{step}"], f"step {step} weight")
            close(average.module.bias, recorded[f"ema_b.{step}"], f"step {step} bias")
