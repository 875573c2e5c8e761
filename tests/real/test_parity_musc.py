"""The objective of MUSC against numbers recorded from the official code (shared/parity, musc): all 261 cases.

* supcon 153: both SupConLoss classes 75 each, LabelSmoothingLoss 3
* train_loss 81: every branch of BaselineTuner.train with recorded outputs in place of a model
* model_mix 27: clean and mixed forward passes 5, evaluation 4, three training steps of the eight branches 16, refused 2

What kdlab does not offer as such is made of what it has, so that every number is compared:

* contrast_mode="one" (12): anchors are view 0 alone; the other views are then further candidates (`others`)
* no labels, SimCLR (6): labels that are all different
* a mask in place of labels (6), which is not even symmetric: each row's loss under the labels that its mask row makes
* features of two or four axes (9): given as [B, V, d], as the official code flattens them
* LabelSmoothingLoss (3), which no official script uses: torch's cross_entropy with C / (C - 1) of its `label_smoothing`

What the official code refuses, crashes on or has no number for:

* features of two axes, of the class that it trains with (3): kdlab refuses them too
* raw features at a low temperature (2): officially nan, ln 0 once the largest similarity, a vector's own, is taken off;
  kdlab's is finite, and that of a float64 computation
* BertForSequenceClassification with labels= (2): a NameError; kdlab's losses never go through the model

With mixup and contrast together the official code ignores alpha, beta1 and beta2: those cases get 0.5, 1 and 1.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from kdlab.config import Hardware
from kdlab.context import Context
from kdlab.engine.loop import Loss, Plan, Progress, fit
from kdlab.engine.metrics_log import MetricsLog
from kdlab.models.encoder import load_encoder
from kdlab.models.projection import ProjectionHead
from kdlab.models.taps import Tap, Tapped, Views
from kdlab.objectives.contrastive import supcon
from kdlab.stages import pair_steps
from kdlab.stages.crosslingual import modes
from kdlab.stages.pair_steps import PairStep

pytestmark = pytest.mark.real

TOLERANCE = 1e-5  # relative to max(1, largest expected value)
GRADIENT_TOLERANCE = 1e-6  # absolute: the recorded gradients are small
AFTER_STEPS = 1e-4

Case = dict[str, Any]


class Bundle:
    """The cases of one recorded file and their tensors."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.cases: list[Case] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["cases"]
        self.tensors: dict[str, Tensor] = load_file(folder / f"{name}.safetensors")

    def of(self, wanted: Callable[[Case], bool], count: int) -> list[Case]:
        cases = [case for case in self.cases if wanted(case)]
        assert len(cases) == count, f"{len(cases)} cases, expected {count}"
        return cases

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case["id"] == name)


@pytest.fixture(scope="module")
def load(shared: Path) -> Callable[[str], Bundle]:
    return lambda name: Bundle(shared / "parity" / "open" / "musc", name)


def near(found: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape, what
    limit = tolerance * max(1.0, float(expected.abs().max()))
    assert float((found.detach() - expected).abs().max()) <= limit, what


def test_every_case_has_its_test(load: Callable[[str], Bundle]) -> None:
    counts = {name: Counter(case["fn"] for case in load(name).cases) for name in ("supcon", "train_loss", "model_mix")}
    assert counts == {
        "supcon": {"future.losses.SupConLoss": 75, "future.modules.losses.SupConLoss": 75, "LabelSmoothingLoss": 3},
        "train_loss": {"BaselineTuner.train": 81},
        "model_mix": {
            "BertForSequenceClassification+SupConBERT": 5,
            "BertForSequenceClassification": 2,
            "BaseTrainer._infer_one_loader": 4,
            "BaselineTuner.train": 16,
        },
    }
    assert sorted(case["id"] for case in load("model_mix").cases) == sorted([*FORWARD, *REFUSED, *EVALUATIONS, *RUNS])


# the contrastive loss -----------------------------------------------------------------------------------------------

CLASSES = {  # official class -> its own temperature, and its guard of the number of positives
    "future.losses.SupConLoss": (1.0, "clamp"),
    "future.modules.losses.SupConLoss": (0.3, "epsilon"),
}


def contrast(case: Case) -> bool:
    return case["fn"] in CLASSES


def refused(case: Case) -> bool:
    return "raises" in case["expected"]


def knobs(case: Case) -> dict[str, Any]:
    temperature, positives = CLASSES[case["fn"]]
    params = case["params"]
    return {
        "temperature": params.get("temperature", temperature),
        "base_temperature": params.get("base_temperature", 1.0),
        "positives": positives,
    }


def official(features: Tensor, case: Case, bundle: Bundle) -> Tensor:
    """The loss of a case, of features as they were recorded."""
    inputs = {name: bundle.tensors[key] for name, key in case["inputs"].items() if name != "features"}
    rows = len(features)
    shaped = features.unsqueeze(1) if features.dim() == 2 else features.flatten(2)  # [B, V, d]
    labels = inputs.get("labels", torch.arange(rows))
    if "mask" in inputs:
        each = [torch.arange(1, rows + 1) * (inputs["mask"][row] == 0) for row in range(rows)]  # 0: a positive
        return torch.stack([supcon(shaped, each[row], **knobs(case))[row] for row in range(rows)]).mean()
    if case["params"].get("contrast_mode") == "one":
        return supcon(shaped[:, :1], labels, others=(shaped[:, 1:], labels), **knobs(case)).mean()
    return supcon(shaped, labels, **knobs(case)).mean()


def test_contrast(load: Callable[[str], Bundle]) -> None:
    bundle = load("supcon")
    cases = bundle.of(lambda case: contrast(case) and "loss" in case["expected"], 145)
    assert sum("mask" in case["inputs"] for case in cases) == 6
    assert sum(case["params"].get("contrast_mode") == "one" for case in cases) == 12
    assert sum("labels" not in case["inputs"] and "mask" not in case["inputs"] for case in cases) == 6
    assert sum(bundle.tensors[case["inputs"]["features"]].dim() != 3 for case in cases) == 9
    gradients = 0
    for case in cases:
        features = bundle.tensors[case["inputs"]["features"]].clone().requires_grad_()
        loss = official(features, case, bundle)
        near(loss, torch.tensor(case["expected"]["loss"]), case["id"])
        for name, key in case.get("expected_tensors", {}).items():
            assert name == "grad.features"
            loss.backward()
            assert features.grad is not None
            difference = (features.grad - bundle.tensors[key]).abs().max()
            assert difference <= GRADIENT_TOLERANCE, f"{case['id']}: gradient off by {difference}"
            gradients += 1
    assert gradients == 45


def test_contrast_that_the_official_code_refuses(load: Callable[[str], Bundle]) -> None:
    bundle = load("supcon")
    for case in bundle.of(lambda case: contrast(case) and refused(case), 3):
        features, labels = (bundle.tensors[case["inputs"][name]] for name in ("features", "labels"))
        assert case["fn"] == "future.modules.losses.SupConLoss" and features.dim() == 2
        with pytest.raises(ValueError, match="examples, views, width"):
            supcon(features, labels, **knobs(case))


def test_contrast_that_is_officially_not_finite(load: Callable[[str], Bundle]) -> None:
    bundle = load("supcon")
    for case in bundle.of(lambda case: "nonfinite" in case["expected"], 2):
        features = bundle.tensors[case["inputs"]["features"]].clone().requires_grad_()
        loss = official(features, case, bundle)
        loss.backward()
        assert features.grad is not None and features.grad.isfinite().all()
        torch.testing.assert_close(loss.double(), official(features.double(), case, bundle), rtol=1e-5, atol=0)


def test_label_smoothing(load: Callable[[str], Bundle]) -> None:
    bundle = load("supcon")
    for case in bundle.of(lambda case: case["fn"] == "LabelSmoothingLoss", 3):
        logits, labels = (bundle.tensors[case["inputs"][name]] for name in ("logits", "labels"))
        classes = case["params"]["classes"]  # officially the others' share is split among the others only
        smoothing = case["params"]["smoothing"] * classes / (classes - 1)
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        near(loss, torch.tensor(case["expected"]["loss"]), case["id"])


# the objective --------------------------------------------------------------------------------------------------------


def objective(params: Mapping[str, Any]) -> dict[str, Any]:
    """kdlab's fields of a recorded configuration."""
    both = params["use_mix"] and params["use_supcon"]
    temperature, positives = CLASSES[params.get("supcon", "future.modules.losses.SupConLoss")]
    assert params["supcon_temperature"] == temperature
    return {
        "alpha": 0.5 if both else params["alpha"],
        "mixup": 1.0 if params["use_mix"] else 0.0,
        "mixed_source": 1.0 if both else params["beta1"],
        "mixed_target": 1.0 if both else params["beta2"],
        "contrast": {
            "weight": params["lam"] if params["use_supcon"] else 0.0,
            "temperature": temperature,
            "base_temperature": 1.0,
            "positives": positives,
            "epsilon": 1e-4,
        },
        "normalise_terms": False,
    }


def fix_ratios(monkeypatch: pytest.MonkeyPatch, ratios: list[float]) -> list[float]:
    """Let the recorded ratios be drawn, in order; what is left of them."""
    left = list(ratios)
    monkeypatch.setattr(pair_steps, "beta_ratio", lambda rng, alpha: left.pop(0))
    return left


class Recorded(nn.Module):
    """Gives out recorded logits and vectors, a call's views one after the other."""

    def __init__(self, leaves: Mapping[str, Tensor], calls: list[str]) -> None:
        super().__init__()
        self.leaves, self.calls = leaves, list(calls)

    def forward(self, batch: Mapping[str, Tensor], *, lam: Any = None) -> Views:
        views = len(lam) if isinstance(lam, list) else 1
        names = [self.calls.pop(0) for _ in range(views)]
        logits, projected = (
            torch.cat([self.leaves[f"{name}.{part}"] for name in names]) for part in ("logits", "feats")
        )
        return Views(logits, {}, {}, {}, {}, {}, batch["attention_mask"], projected)


PROGRESS = Progress(0, 1, 0, 1, 1, None)  # type: ignore[arg-type]


def pair_losses(case: Case, leaves: Mapping[str, Tensor], golds: list[Tensor], *, fused: bool) -> list[Loss]:
    """One loss for each of the golds, each a language's batch of its own."""
    params = case["params"]
    model = Recorded(leaves, params["forward_calls_in_order"])
    step = PairStep(objective(params), paired=params["paired"], fused=fused)
    losses = []
    for labels in golds:
        rows = torch.ones(len(labels) * (2 if params["paired"] else 1), 3, dtype=torch.int64)
        batch = {"input_ids": rows, "attention_mask": rows, "labels": labels, "share": 1.0, "languages_share": 1.0}
        losses.append(step(model, batch, PROGRESS))
    assert not model.calls
    return losses


def leaves_of(bundle: Bundle, case: Case) -> dict[str, Tensor]:
    prefix = case["inputs"]["set"]
    return {
        key.removeprefix(prefix): tensor.clone().requires_grad_()
        for key, tensor in bundle.tensors.items()
        if key.startswith(prefix) and tensor.is_floating_point()
    }


def golds_of(bundle: Bundle, case: Case) -> list[Tensor]:
    names = case["inputs"]["golds_per_language"]
    return [bundle.tensors[case["inputs"]["set"] + name] for name in ([names] if isinstance(names, str) else names)]


@pytest.mark.parametrize("fused", [True, False])
def test_loss_of_every_branch(load: Callable[[str], Bundle], fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, compared = load("train_loss"), 0
    branches: Counter[tuple[bool, bool, bool]] = Counter()
    for case in bundle.of(lambda case: "languages" not in case["id"], 75):
        params, leaves = case["params"], leaves_of(bundle, case)
        left = fix_ratios(monkeypatch, params["mix_ratios_in_order"])
        (loss,) = pair_losses(case, leaves, golds_of(bundle, case), fused=fused)
        assert not left and params["n_languages"] == 1
        value = loss.total / loss.count
        near(value, torch.tensor(case["expected"]["losses"][0]), case["id"])
        value.backward()
        branches[params["paired"], params["use_mix"], params["use_supcon"]] += 1
        recorded = {name.removeprefix("loss0.grad."): key for name, key in case.get("expected_tensors", {}).items()}
        if not recorded:
            continue
        for name, leaf in leaves.items():
            if name in recorded:
                assert leaf.grad is not None, f"{case['id']}: no gradient of {name}"
                difference = (leaf.grad - bundle.tensors[recorded[name]]).abs().max()
                assert difference <= GRADIENT_TOLERANCE, f"{case['id']}: gradient of {name} off by {difference}"
                compared += 1
            else:  # officially none; here 0 where a view's vectors run along without being used
                assert leaf.grad is None or not leaf.grad.any(), f"{case['id']}: gradient of {name}"
        assert recorded.keys() <= leaves.keys()
    assert len(branches) == 8 and compared == sum(len(case.get("expected_tensors", {})) for case in bundle.cases) == 54


def test_loss_of_several_languages(load: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load("train_loss")
    for case in bundle.of(lambda case: case["id"].endswith("/two-languages"), 3):
        left = fix_ratios(monkeypatch, case["params"]["mix_ratios_in_order"])
        losses = pair_losses(case, leaves_of(bundle, case), golds_of(bundle, case), fused=True)
        units = sum(float(loss.count) for loss in losses)
        assert not left and units == case["params"]["n_languages"] == 2
        for loss, expected in zip(losses, case["expected"]["losses"], strict=True):
            near(loss.total / units, torch.tensor(expected), case["id"])


def test_a_language_that_has_run_out_still_counts(load: Callable[[str], Bundle]) -> None:
    """x has two batches and y one: x alone in the second step counts for a half."""
    bundle = load("train_loss")
    for case in bundle.of(lambda case: case["id"].endswith("one-exhausted"), 3):
        leaves, (golds, golds2) = leaves_of(bundle, case), golds_of(bundle, case)
        step = PairStep(objective(case["params"]), paired=False)
        model = Recorded(leaves, case["params"]["forward_calls_in_order"])
        expected = iter(case["expected"]["losses"])
        for present, labels in ((2, [golds, golds2]), (1, [golds2])):
            languages = {"share": 1.0, "languages_share": case["params"]["n_languages"] / present}
            losses = []
            for given in labels:
                rows = torch.ones(len(given), 3, dtype=torch.int64)
                losses.append(
                    step(model, {"input_ids": rows, "attention_mask": rows, "labels": given, **languages}, PROGRESS)
                )
            units = sum(float(loss.count) for loss in losses)
            assert units == 2
            for loss in losses:
                near(loss.total / units, torch.tensor(next(expected)), case["id"])
        assert next(expected, None) is None


# models ---------------------------------------------------------------------------------------------------------------

FORWARD = ["m0/forward/clean", "m0/forward/mix0.7", "m0/forward/mix0.25", "m1/forward/clean", "m1/forward/mix0.5"]
REFUSED = ["m0/forward/labels", "m1/forward/labels"]
EVALUATIONS = [f"m{index}/eval/{kind}" for index in (0, 1) for kind in ("single", "pair-summed")]
RUNS = [
    f"m{index}/train3/{texts}/{branch}"
    for index in (0, 1)
    for texts in ("paired", "unpaired")
    for branch in ("plain", "supcon", "mix", "mix+supcon")
]


def tapped(bundle: Bundle, case: Case, attention: str = "eager") -> Tapped:
    params = case["params"]
    config = json.loads((bundle.folder / params["encoder"] / "config.json").read_text(encoding="utf-8"))
    model = load_encoder(
        {"path": str(bundle.folder / params["encoder"])},
        num_labels=config["num_labels"],
        kind="classification",
        labels=None,
        attention=attention,
        seed=0,
    )
    if params.get("head") is None:
        return Tapped(model)
    prefix = f"in/{case['id'].split('/')[0]}/head."
    weights = {key.removeprefix(prefix): value for key, value in bundle.tensors.items() if key.startswith(prefix)}
    head = ProjectionHead(config["hidden_size"], len(weights["2.bias"]), params["head"], seed=0)
    head.layers.load_state_dict(weights)
    return Tapped(model, contrast=head)


def inputs_of(bundle: Bundle, case: Case) -> dict[str, Tensor]:
    return {name: bundle.tensors[key] for name, key in case["inputs"].items()}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FORWARD)
def test_forward_with_and_without_mixing(load: Callable[[str], Bundle], name: str, attention: str) -> None:
    bundle = load("model_mix")
    case = bundle.case(name)
    model, batch = tapped(bundle, case, attention), inputs_of(bundle, case)
    recorded = {what: bundle.tensors[key] for what, key in case["expected_tensors"].items()}
    taps = [Tap("hidden", layer) for layer in range(model.num_layers + 1)]
    twice = {key: torch.cat([value, value]) for key, value in batch.items()}
    lam = case["params"]["mix_ratio"]
    with torch.no_grad():
        views, both = model(batch, taps=taps, lam=lam), model(twice, taps=taps, lam=[None, lam])
    assert views.projected is not None and both.projected is not None
    last, rows = model.num_layers, len(views.logits)
    for found in (
        (views.logits, views.projected, views.hidden),
        (both.logits[rows:], both.projected[rows:], {layer: state[rows:] for layer, state in both.hidden.items()}),
    ):
        logits, projected, hidden = found
        shown = {"logits": logits, "projected": projected, "cls": hidden[last][:, 0]}
        shown |= {f"hidden.{layer}": state for layer, state in hidden.items()}
        assert shown.keys() == recorded.keys()
        for what, expected in recorded.items():
            near(shown[what], expected, f"{name} {what}")


@pytest.mark.parametrize("name", REFUSED)
def test_the_official_models_own_loss_does_not_run(load: Callable[[str], Bundle], name: str) -> None:
    """kdlab's labels are no input of the model."""
    bundle = load("model_mix")
    assert "NameError" in bundle.case(name)["expected"]["raises"]
    case = bundle.case(name.replace("labels", "clean"))
    labels = bundle.tensors[f"in/{name.split('/')[0]}/single.golds"]
    step = PairStep(objective(RUN_PARAMS), paired=False)
    loss, logits = step.clean(tapped(bundle, case), {**inputs_of(bundle, case), "labels": labels})
    near(logits, bundle.tensors[case["expected_tensors"]["logits"]], name)
    near(loss.total / loss.count, functional.cross_entropy(logits, labels).detach(), name)


RUN_PARAMS = {
    "use_mix": False,
    "use_supcon": False,
    "alpha": 0.5,
    "beta1": 1.0,
    "beta2": 1.0,
    "lam": 0.1,
    "supcon_temperature": 0.3,
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation_with_one_view_and_with_two(load: Callable[[str], Bundle], name: str) -> None:
    bundle = load("model_mix")
    case = bundle.case(name)
    model, batch = tapped(bundle, case), inputs_of(bundle, case)
    golds = batch.pop("golds")
    recorded = {what: bundle.tensors[key] for what, key in case["expected_tensors"].items()}
    with torch.no_grad():
        if case["params"]["paired"]:
            first, second = (model({key: value[:, view] for key, value in batch.items()}).logits for view in (0, 1))
            near(first, recorded.pop("logits_view0"), name)
            near(second, recorded.pop("logits_view1"), name)
            views = {"original": first.numpy(), "translated": second.numpy()}
            logits, golds = torch.from_numpy(modes(views, ensemble="logits", share=0.5)["both"]), golds[:, 0]
            near(logits, recorded.pop("logits_sum"), name)
        else:
            logits = model(batch).logits
            near(logits, recorded.pop("logits"), name)
    assert not recorded and golds.tolist() == case["expected"]["golds"]
    answers = logits.argmax(-1)
    assert answers.tolist() == case["expected"]["predictions"]
    assert float((answers == golds).float().mean()) == pytest.approx(case["expected"]["accuracy"])


class InFileOrder:
    """The recorded rows, `batch_size` at a time; of pairs the texts first, then their translations."""

    def __init__(self, bundle: Bundle, case: Case) -> None:
        self.size, self.steps = case["params"]["batch_size"], case["params"]["steps"]
        self.paired, self.rows = case["params"]["paired"], inputs_of(bundle, case)

    def __len__(self) -> int:
        return int(self.steps)

    def epoch(self, k: int, start: int = 0) -> Iterator[list[dict[str, Any]]]:
        for step in range(start, self.steps):
            batch = {name: value[step * self.size : (step + 1) * self.size] for name, value in self.rows.items()}
            labels = batch.pop("golds")
            if self.paired:
                assert torch.equal(labels[:, 0], labels[:, 1])
                batch, labels = {name: torch.cat(value.unbind(1)) for name, value in batch.items()}, labels[:, 0]
            yield [{**batch, "labels": labels, "share": 1.0, "languages_share": 1.0}]


def recorded_name(name: str, *, with_head: bool) -> str:
    """The official name of a parameter of `Tapped`."""
    if name.startswith("contrast.layers."):
        return name.replace("contrast.layers", "head")
    return name.replace("model", "encoder", 1) if with_head else name.removeprefix("model.")


@pytest.mark.parametrize("name", RUNS)
def test_three_steps_through_the_loop(
    load: Callable[[str], Bundle], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load("model_mix")
    case = bundle.case(name)
    params, expected = case["params"], case["expected"]
    left = fix_ratios(monkeypatch, params["mix_ratios_in_order"])
    student = tapped(bundle, case)
    step = PairStep(objective(params), paired=params["paired"])
    plan = Plan(
        epochs=1,
        lr=1e-3,
        warmup=0.0,
        schedule="constant",
        optimizer="adamw",  # without decay it is Adam
        weight_decay=0.0,
        clip=0.0,
        eval_steps=0,
        patience=0,
        seed=0,
        precision="fp32",
        expected=tuple(step.expected()),
    )
    warnings: list[str] = []
    hardware = Hardware(name="cpu", device="cpu")
    context = Context(out=tmp_path, stage="student", hardware=hardware, warn=warnings.append)
    context.work.mkdir()
    fit(student, step, InFileOrder(bundle, case), plan, context)

    points = MetricsLog.read(tmp_path / "metrics.jsonl")
    assert len(points) == params["steps"] == 3 and not left and not warnings
    losses, norms = ([point[key] for point in points] for key in ("loss", "grad_norm"))
    assert losses[0] == pytest.approx(expected["losses"][0], rel=TOLERANCE)
    assert norms[0] == pytest.approx(expected["grad_norms"][0], rel=TOLERANCE)
    assert losses == pytest.approx(expected["losses"], rel=AFTER_STEPS)
    assert norms == pytest.approx(expected["grad_norms"], rel=AFTER_STEPS)
    with_head = params["head"] is not None
    trained = {recorded_name(key, with_head=with_head): value for key, value in student.named_parameters()}
    assert len(case["expected_tensors"]) == (3 if not with_head else 7 if name.startswith("m0") else 5)
    for key, tensor in case["expected_tensors"].items():
        near(trained[key.removeprefix("param.")], bundle.tensors[tensor], f"{name} {key}", AFTER_STEPS)
