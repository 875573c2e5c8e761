"""The stages' own steps and the loop, on the official tiny models: gradients, and six steps with BertAdam.

Golden numbers: shared/parity/open/crild/end2end, all of its 20 cases.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdlab.config import Hardware
from kdlab.context import Context
from kdlab.engine.loop import Plan, Progress, Step, fit
from kdlab.engine.metrics_log import MetricsLog
from kdlab.models.encoder import load_encoder
from kdlab.models.taps import Tapped
from kdlab.stages import distill, steps

pytestmark = pytest.mark.real

OBJECTS = {"A": "attention", "H": "hidden", "Q": "query", "K": "key", "V": "value", "P": "patient"}
GRADIENTS = [
    f"m{model}/grad/{case}"
    for model in (0, 1)
    for case in (
        "tinybert/AH-l2l",
        "tinybert/AH-last",
        "tinybert/QKV-last",
        "tinybert/P-l2l",
        "crild/AH-mixup-ic",
        "crild/QKV-mixup",
        "kd",
        "emd",
    )
]
RUNS = [f"m{model}/train6/{case}" for model in (0, 1) for case in ("crild/AH-mixup-ic", "kd")]


class Bundle:
    def __init__(self, shared: Path) -> None:
        self.folder = shared / "parity" / "open" / "crild"
        self.tensors = load_file(self.folder / "end2end.safetensors")
        content = json.loads((self.folder / "end2end.json").read_text())
        self.cases = {case["id"]: case for case in content["cases"]}

    def model(self, name: str) -> Tapped:
        config = json.loads((self.folder / name / "config.json").read_text())
        weights = load_file(self.folder / name / "model.safetensors")
        model = load_encoder(
            {
                "path": str(self.folder / name),
                "head": "official",
                "config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            },
            num_labels=len(config["id2label"]),
            kind="classification",
            labels=None,
            attention="eager",
            seed=0,
        )
        projection = None
        if "fit_dense.weight" in weights:
            projection = nn.Linear(*reversed(weights["fit_dense.weight"].shape))
            projection.load_state_dict({part: weights[f"fit_dense.{part}"] for part in ("weight", "bias")})
        return Tapped(model, projection=projection, head="official")

    def batch(self, case: dict[str, Any]) -> dict[str, Tensor]:
        return {name: self.tensors[key].long() for name, key in case["inputs"].items()}


@pytest.fixture(scope="module")
def bundle(shared: Path) -> Bundle:
    return Bundle(shared)


def layer_step(teacher: Tapped, student: Tapped, params: dict[str, Any]) -> steps.LayerStep:
    relations = [OBJECTS[letter] for letter in params["distill_object"]]
    transport = params.get("mode") == "EMD"
    uniform = params.get("hidden_l2l", False)
    if transport or (uniform and "hidden" in relations):
        relations.append("embedding")
    consistent = params.get("use_ic_att", True) and params.get("use_mixup", True)
    objective = {
        "relations": relations,
        "layer_map": "transport" if transport else "uniform" if uniform else "last",
        "pairs": [],
        "relation_divergence": "mse" if transport else "kl",
        "hidden_divergence": "mse",
        "relation_heads": 0,
        "normalise": True,
        "relation_mask": "own" if "attention" in relations and not transport else "none",
        "pad_rows": "include",
        "projection": "always",
        "mixup": 1.0,
        "consistency": {
            "weight": params["w_ic"] if consistent else 0.0,
            "ramp": "linear",
            "terms": ["attention", "hidden"],
            "target": "student",
            "decay": 0.999,
        },
        "transport": {"update_weights": True, "separate": True, "reset_each_epoch": True},
    }
    depths = (distill.depth(student), distill.depth(teacher))
    return steps.LayerStep(teacher, objective, layers=depths, precision="fp32", place=torch.device("cpu"))


def logit_step(teacher: Tapped) -> steps.LogitStep:
    values = {
        "temperature": 2.0,
        "alpha": 0.0,
        "regression_scale": "none",
        "clean": 1.0,
        "mixed": {"mixup": 0.0, "logit": 1.0, "label": 0.0, "target": "mixed"},
    }
    return steps.LogitStep(teacher, values, kind="classification", precision="fp32", place=torch.device("cpu"))


def official(name: str) -> str:
    """The official name of a parameter of `Tapped`."""
    if name.startswith("projection."):
        return name.replace("projection", "fit_dense")
    return name.removeprefix("model.")


def test_every_case_of_the_bundle_is_named(bundle: Bundle) -> None:
    assert sorted(bundle.cases) == sorted(GRADIENTS + RUNS) and len(bundle.cases) == 20


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_of_every_parameter(bundle: Bundle, name: str) -> None:
    case = bundle.cases[name]
    params, batch = case["params"], bundle.batch(case)
    teacher = bundle.model(params["teacher"]).eval()
    student = bundle.model(params["student"]).train()
    if name.endswith("/kd"):
        loss, _ = logit_step(teacher).loss(student, batch, None)
    else:
        step = layer_step(teacher, student, params)
        progress = Progress(0, 1, params["epoch"], params["num_train_epochs"], 1, None)  # type: ignore[arg-type]
        lam = max(params["lam"], 1 - params["lam"]) if params["use_mixup"] else None
        loss = step.loss(student, batch, lam, step.weight(progress))
    value = loss.total / loss.count
    value.backward()

    assert float(value.detach()) == pytest.approx(case["expected"]["loss"], rel=1e-5)
    untouched = sorted(official(key) for key, p in student.named_parameters() if p.grad is None)
    assert untouched == sorted(case["expected"]["no_grad_parameters"])
    compared = 0
    for key, parameter in student.named_parameters():
        expected = case["expected_tensors"].get(f"grad.{official(key)}")
        if expected is not None:
            assert parameter.grad is not None, key
            torch.testing.assert_close(parameter.grad, bundle.tensors[expected], rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared == len(case["expected_tensors"])


class SameBatch:
    """Every optimiser step is the same batch; two steps an epoch, as in the recorded runs."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 2

    def epoch(self, k: int, start: int = 0) -> Iterator[list[dict[str, Any]]]:
        for _ in range(start, 2):
            yield [self.batch]


@pytest.mark.parametrize("name", RUNS)
def test_six_steps_with_the_official_optimiser(
    bundle: Bundle, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = bundle.cases[name]
    params = case["params"]
    teacher, student = bundle.model(params["teacher"]).eval(), bundle.model(params["student"])
    if name.endswith("/kd"):
        step: Step = logit_step(teacher)
    else:
        step = layer_step(teacher, student, params)
        draws = iter(max(draw, 1 - draw) for draw in params["beta_draws"])
        monkeypatch.setattr(steps, "folded_beta", lambda rng, alpha: next(draws))
    plan = Plan(
        epochs=params["num_train_epochs"],
        lr=1e-3,
        warmup=0.1,
        schedule="linear",
        optimizer="bert_adam",
        weight_decay=0.01,
        clip=1.0,
        eval_steps=0,
        patience=0,
        seed=0,
        precision="fp32",
    )
    context = Context(out=tmp_path, stage="layers", hardware=Hardware(name="cpu", device="cpu"))
    context.work.mkdir()
    fit(student, step, SameBatch(bundle.batch(case)), plan, context)

    points = MetricsLog.read(tmp_path / "metrics.jsonl")
    expected = case["expected"]
    assert [point["loss"] for point in points] == pytest.approx(expected["losses"], rel=1e-4)
    assert [point["grad_norm"] for point in points] == pytest.approx(expected["grad_norms_before_clip"], rel=1e-4)
    trained = {official(key): value for key, value in student.named_parameters()}
    assert case["expected_tensors"]
    for key, tensor in case["expected_tensors"].items():
        found = trained[key.removeprefix("param.")].detach()
        torch.testing.assert_close(found, bundle.tensors[tensor], rtol=1e-4, atol=1e-4)
