"""The stages that train and judge encoders: layers, logits, vet, evaluate, measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import toy
from kdlab.config import LayerFit, LogitFit, Mixed
from kdlab.context import Context
from kdlab.data.metrics import score
from kdlab.engine import checkpoint, device, loop
from kdlab.engine.loop import Progress
from kdlab.engine.metrics_log import MetricsLog
from kdlab.errors import DataError, ModelError, TrainingError
from kdlab.models.ema import MovingAverage
from kdlab.models.encoder import save_student
from kdlab.models.taps import Tap, Tapped
from kdlab.stages import distill, evaluate, steps
from kdlab.stages import teacher_logits as teaching
from kdlab.stages.distill import distill_layers, distill_logits
from kdlab.stages.encoder import TaskData, follower, new_model, predict, saved_model
from kdlab.stages.finetune import finetune
from kdlab.stages.prepare import prepare
from kdlab.stages.steps import TEACHER_LOGITS, LabelStep, LayerStep
from kdlab.stages.teacher_logits import SPLITS, TaughtData, teacher_logits
from kdlab.stages.tokenise import tokenise

CPU = torch.device("cpu")
FIT = {
    "epochs": 2,
    "lr": 0.01,
    "batch_size": 16,
    "warmup": 0.1,
    "schedule": "linear",
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "clip": 1.0,
    "drop_last": False,
    "eval_steps": 0,
    "patience": 0,
}
CONSISTENCY = {
    "weight": 0.5,
    "terms": ["attention", "hidden"],
    "ramp": "linear",
    "target": "student",
    "decay": 0.5,
}
OBJECTIVE = {**toy.fields_without_fit(LayerFit()), "mixup": 1.0, "consistency": CONSISTENCY}
LOGITS = toy.fields_without_fit(LogitFit())
COMMON = {"pad_to_max": False, "seed": 3, "precision": "fp32", "max_steps": None}


def spec(layers: int, *, hidden: int = 16, heads: int = 2) -> dict[str, Any]:
    config = {
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.2,
    }
    return {"init": "random", "config": config, "head": "stock"}


def encoded(folder: Path, **source: Any) -> Path:
    data, tokens = toy.context(folder / "data"), toy.context(folder / "tokens")
    named = {"heldout": 0.2, "few": None, "imbalance": None, "noise": None, "dev_limit": None, "seed": 0}
    prepare(data, **named, **source)
    tokenise(tokens, data=data.out, tokenizer={"kind": "words"}, max_length=32, partner=None)
    return tokens.out


@pytest.fixture(scope="module")
def nli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(
        tmp_path_factory.mktemp("nli"),
        source={"demo": "nli", "config": None},
        splits={"train": "train", "dev": "validation"},
        text=["premise", "hypothesis"],
        label="label",
        labels=["entailment", "neutral", "contradiction"],
        kind="classification",
        rows=48,
    )


@pytest.fixture(scope="module")
def similarity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("similarity")
    rng = np.random.default_rng(0)
    words = ["the", "a", "cat", "dog", "bird", "sat", "ran", "sang", "loudly", "here", "there"]
    for name, count in (("train", 40), ("dev", 12)):
        lines = [
            f"{' '.join(rng.choice(words, rng.integers(2, 9)))} {name} {row},{row / count:.3f}" for row in range(count)
        ]
        (folder / f"{name}.csv").write_text("\n".join(["text,score", *lines]) + "\n")
    return encoded(
        folder / "out",
        source={"path": str(folder), "config": None},
        splits={"train": "train", "dev": "dev"},
        text=["text"],
        label="score",
        labels=None,
        kind="regression",
        rows=None,
    )


def test_a_model_with_another_vocabulary(nli: Path, tmp_path: Path) -> None:
    task = TaskData(nli)
    model = {**spec(1), "path": str(tmp_path), "config": {}}
    for size in (task.highest_token + 1, task.highest_token):
        (tmp_path / "config.json").write_text(json.dumps({**spec(1)["config"], "vocab_size": size}))
        if size > task.highest_token:  # tokens that no batch holds do no harm
            new_model(model, task, seed=1, kernel="eager")
    with pytest.raises(ModelError, match=f"hold token {task.highest_token}, and the model knows {size} tokens"):
        new_model(model, task, seed=1, kernel="eager")


def untrained(folder: Path, data: Path, model: dict[str, Any], *, seed: int = 9) -> Path:
    """A teacher that was never trained, as an artifact."""
    task = TaskData(data)
    made = new_model(model, task, seed=seed, kernel="eager")
    save_student(made.model, task.tokenizer, folder / "model")
    return folder


@pytest.fixture(scope="module")
def teacher(nli: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("teacher"), nli, spec(4))


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the layer stage hands to `train`, and what the optimiser gets."""
    seen: dict[str, Any] = {}
    train, build = distill.train, loop.build_optimizer

    def watched_train(context: Context, model: Tapped, step: Any, *rest: Any, **named: Any) -> Any:
        seen.update(model=model, step=step, start=toy.copied(model.state_dict()))
        return train(context, model, step, *rest, **named)

    def watched_build(model: nn.Module, **named: Any) -> torch.optim.Optimizer:
        optimizer = build(model, **named)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        seen["trained"] = {name for name, p in model.named_parameters() if id(p) in trained}
        return optimizer

    monkeypatch.setattr(distill, "train", watched_train)
    monkeypatch.setattr(loop, "build_optimizer", watched_build)
    return seen


def layers(out: Path, nli: Path, teacher: Path, *, seconds: float = 1e9, **changes: Any) -> Context:
    context = toy.context(out, seconds=seconds)
    context.curves = changes.pop("curves", 0)
    named: dict[str, Any] = {"student": spec(2), "fit": FIT, "objective": OBJECTIVE, "forward_rows": 16, **COMMON}
    distill_layers(context, data=nli, teacher=teacher, **{**named, **changes})
    return context


# one step of layer distillation ------------------------------------------------------------------------------------


def layer_step(**changes: Any) -> LayerStep:
    guide = toy.encoder(layers=4, seed=5).eval().requires_grad_(False)
    return LayerStep(guide, {**OBJECTIVE, **changes}, layers=(2, 4), precision="fp32", place=CPU)


def test_taps_of_the_last_layer_and_of_uniform_layers() -> None:
    last, uniform = layer_step(), layer_step(layer_map="uniform")
    assert last.taps(0) == [Tap("attention", 2), Tap("hidden", 2)]
    assert last.taps(1) == [Tap("attention", 4), Tap("hidden", 4)]
    attention = [Tap("attention", 1), Tap("attention", 2)]
    assert uniform.taps(0, ["attention"]) == attention
    assert sorted(tap.layer for tap in uniform.taps(0) if tap.name == "hidden") == [1, 2]
    assert sorted(tap.layer for tap in uniform.taps(1) if tap.name == "hidden") == [2, 4]
    states = layer_step(layer_map="uniform", relations=["hidden", "embedding", "patient"])
    assert states.taps(1) == [Tap("hidden", layer) for layer in (2, 4, 0)]
    assert sorted(tap.layer for tap in uniform.taps(1) if tap.name == "attention") == [2, 4]


@pytest.mark.parametrize(
    ("changes", "consistent", "expected"),
    [
        ({}, True, ["attention", "hidden", "consistency_attention", "consistency_hidden"]),
        ({"relations": ["hidden"]}, True, ["hidden", "consistency_attention", "consistency_hidden"]),
        ({"relations": ["value"]}, False, ["value", "consistency_attention", "consistency_hidden"]),
        ({"consistency": {**CONSISTENCY, "weight": 0.0}}, False, ["attention", "hidden"]),
        ({"mixup": 0.0}, False, ["attention", "hidden", "consistency_attention", "consistency_hidden"]),
    ],
)
def test_expected_names_what_was_asked_for(changes: dict[str, Any], consistent: bool, expected: list[str]) -> None:
    step = layer_step(**changes)
    assert step.consistent is consistent
    assert step.expected() == expected


def at(epoch: int, *, epochs: int = 4) -> Progress:
    return Progress(epoch * 10, epochs * 10, epoch, epochs, 10, np.random.default_rng(epoch))


def test_the_ramp_counts_epochs_from_zero() -> None:
    assert [layer_step().weight(at(epoch)) for epoch in range(4)] == [0.0, 0.125, 0.25, 0.375]
    constant = layer_step(consistency={**CONSISTENCY, "ramp": "constant"})
    assert [constant.weight(at(epoch)) for epoch in range(4)] == [0.5] * 4


def test_parts_and_weights_follow_the_ramp() -> None:
    step, model = layer_step(), toy.encoder(layers=2, seed=2)
    (batch,) = next(toy.batches().epoch(0))
    first, third = step(model, batch, at(0)), step(model, batch, at(2))
    assert first.weights == {"attention": 1.0, "hidden": 1.0}
    assert third.weights == {
        "attention": 1.0,
        "hidden": 1.0,
        "consistency_attention": 0.25,
        "consistency_hidden": 0.25,
    }
    wanted = sum(third.weights[name] * part.item() for name, part in third.parts.items())
    assert third.total.item() == pytest.approx(wanted, rel=1e-6)
    assert all(part.item() > 0 for part in third.parts.values())


def test_the_clean_view_gets_no_gradient_and_comes_from_the_target() -> None:
    """At lambda 1 the mixed view is the clean one, so the student's own hidden state costs nothing."""
    (batch,) = next(toy.batches().epoch(0))
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])  # else the union of the masks shows more
    model = toy.encoder(layers=2, seed=2)
    step = layer_step(relations=["hidden"])
    assert step.loss(model, batch, 1.0, 0.5).parts["consistency_hidden"].item() == 0.0

    average = MovingAverage(toy.encoder(layers=2, seed=4), 0.5)
    step.average = average
    loss = step.loss(model, batch, 1.0, 0.5)
    assert loss.parts["consistency_hidden"].item() > 0.0
    loss.total.backward()
    assert all(parameter.grad is None for parameter in average.module.parameters())
    assert all(parameter.grad is None for parameter in step.guide.teacher.parameters())
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("which", ["union", "own", "none"])
def test_which_mask_each_term_sees(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: dict[str, Any] = {}
    terms, consistency = steps.layer_terms, steps.consistency_terms

    def watch(original: Callable[..., Any], key: str) -> Callable[..., Any]:
        def call(*views: Any, mask: Any, **named: Any) -> Any:
            masks[named[key][0] + ("" if key == "relations" else " clean")] = mask
            return original(*views, mask=mask, **named)

        return call

    monkeypatch.setattr(steps, "layer_terms", watch(terms, "relations"))
    monkeypatch.setattr(steps, "consistency_terms", watch(consistency, "on"))
    (batch,) = next(toy.batches(seed=1).epoch(0))
    layer_step(relation_mask=which).loss(toy.encoder(layers=2), batch, 0.7, 0.5)
    own = batch["attention_mask"]
    union = own | own.flip(0)
    assert not torch.equal(own, union)
    relation = {"union": union, "own": own, "none": None}[which]
    wanted = {
        "attention": relation,
        "hidden": union if which == "none" else relation,
        "attention clean": None if which == "none" else own,
        "hidden clean": own,
    }
    for name, mask in wanted.items():
        assert (masks[name] is None) if mask is None else torch.equal(masks[name], mask), name


# the stage of layers ---------------------------------------------------------------------------------------------


def test_layers_train_what_the_loss_reaches_and_leave_the_rest(
    nli: Path, teacher: Path, tmp_path: Path, captured: dict[str, Any]
) -> None:
    context = layers(tmp_path, nli, teacher)
    model, start, trained = captured["model"], captured["start"], captured["trained"]
    idle = {name for name, _ in model.named_parameters()} - trained
    assert idle == {f"model.{part}" for part in ("bert.pooler.dense.weight", "bert.pooler.dense.bias")} | {
        "model.classifier.weight",
        "model.classifier.bias",
    }
    assert all(parameter.requires_grad for parameter in model.parameters())
    saved = load_file(tmp_path / "model" / "model.safetensors")
    moved = {f"model.{name}" for name, tensor in saved.items() if not torch.equal(tensor, start[f"model.{name}"])}
    still = trained - moved
    assert moved <= trained
    assert all("key.bias" in name for name in still)  # softmax does not see it
    assert context.facts["selected_step"] == context.facts["steps"] > 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["evaluations"] == []
    assert not (tmp_path / "projection.safetensors").exists()


def test_attention_alone_leaves_the_last_feed_forward_out(
    nli: Path, teacher: Path, tmp_path: Path, captured: dict[str, Any]
) -> None:
    layers(tmp_path, nli, teacher, objective={**OBJECTIVE, "relations": ["attention"]})
    trained = captured["trained"]
    last = {name.partition("encoder.layer.1.")[2] for name in trained if "encoder.layer.1." in name}
    assert last == {f"attention.self.{part}.{kind}" for part in ("query", "key") for kind in ("weight", "bias")}
    assert any("encoder.layer.0.output.dense" in name for name in trained)
    parts = {key for point in MetricsLog.read(tmp_path / "metrics.jsonl") for key in point if "/" in key}
    assert parts == {f"{group}/{n}" for group in ("parts", "weighted") for n in ("attention", "consistency_attention")}


@pytest.mark.parametrize(("width", "always"), [(16, False), (24, False), (16, True)])
def test_the_projection(width: int, always: bool, nli: Path, tmp_path: Path, captured: dict[str, Any]) -> None:
    guide = untrained(tmp_path / "teacher", nli, spec(2, hidden=width))
    objective = {**OBJECTIVE, "projection": "always" if always else "auto"}
    layers(tmp_path / "out", nli, guide, objective=objective)
    file = tmp_path / "out" / "projection.safetensors"
    wanted = always or width != 16
    assert file.exists() is wanted
    if wanted:
        found = load_file(file)
        assert found["weight"].shape == (width, 16) and found["bias"].shape == (width,)
        start = captured["start"]["projection.weight"]
        assert not torch.equal(found["weight"], start)
        assert float(start.std()) == pytest.approx(0.02, rel=0.2)
        assert not captured["start"]["projection.bias"].any()
        assert {"projection.weight", "projection.bias"} <= captured["trained"]
    assert not [name for name in load_file(tmp_path / "out" / "model" / "model.safetensors") if "projection" in name]
    saved_model(tmp_path / "out" / "model", kernel="eager")


def test_the_moving_average_is_in_the_checkpoint(
    nli: Path, teacher: Path, tmp_path: Path, captured: dict[str, Any]
) -> None:
    objective = {**OBJECTIVE, "consistency": {**CONSISTENCY, "target": "ema"}}
    context = layers(tmp_path, nli, teacher, objective=objective, seconds=0.0)
    (folder,) = checkpoint.checkpoints(context.work)
    average, model = checkpoint.read_tensors(folder, "extra-ema"), checkpoint.read_tensors(folder, "model")
    assert average.keys() == model.keys()
    name = "model.bert.encoder.layer.0.output.dense.weight"
    start = captured["start"][name]
    assert 0 < float((average[name] - start).norm()) < float((model[name] - start).norm())
    points = MetricsLog.read(tmp_path / "metrics.jsonl")
    assert points[-1]["parts/consistency_hidden"] > 0


def test_rows_of_one_forward_pass_are_a_value_and_not_placement(nli: Path, teacher: Path, tmp_path: Path) -> None:
    weights = {}
    for name, rows, micro in (("one", 16, 0), ("other", 16, 4), ("halves", 8, 0)):
        context = toy.context(tmp_path / name)
        context.hardware.micro_batch = micro
        distill_layers(
            context,
            data=nli,
            teacher=teacher,
            student=spec(2),
            fit=FIT,
            objective=OBJECTIVE,
            forward_rows=rows,
            **{**COMMON, "max_steps": 2},
        )
        weights[name] = load_file(context.out / "model" / "model.safetensors")
    assert toy.same(weights["one"], weights["other"])
    assert not toy.same(weights["one"], weights["halves"])


def test_curves_follow_train_and_dev_and_change_nothing(nli: Path, teacher: Path, tmp_path: Path) -> None:
    """Dropout, mix-up and a moving average go on as if nobody had looked."""
    objective = {**OBJECTIVE, "consistency": {**CONSISTENCY, "target": "ema"}}
    for rows in (0, 8):
        layers(tmp_path / str(rows), nli, teacher, objective=objective, curves=rows)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("0", "8")]
    assert toy.same(*weights)
    history = json.loads((tmp_path / "8" / "history.json").read_text())
    assert json.loads((tmp_path / "0" / "history.json").read_text())["curves"] == []
    curves, steps = history["curves"], history["last_step"]
    assert steps == 6 and [point["step"] for point in curves] == [0, 2, 4, 6]  # four points at least
    assert curves[0]["epoch"] == 0.0 and curves[-1]["epoch"] == 2.0
    assert all(point["losses"].keys() == {"train", "dev"} and point["scores"] == {} for point in curves)
    assert curves[-1]["losses"]["train"] < curves[0]["losses"]["train"]
    logged = [point for point in MetricsLog.read(tmp_path / "8" / "metrics.jsonl") if "curve/dev/loss" in point]
    assert [point["curve/dev/loss"] for point in logged] == [point["losses"]["dev"] for point in curves]


def test_a_follower_goes_where_the_model_has_gone(nli: Path) -> None:
    """The loop moves a model to its device after the follower was made."""
    task, model = TaskData(nli), new_model(spec(1), TaskData(nli), seed=1, kernel="eager")
    places: list[str] = []

    class Watched(LabelStep):
        def clean(self, model: nn.Module, batch: Any) -> Any:
            places.append(batch["input_ids"].device.type)
            raise StopIteration

    follow = follower(
        model,
        Watched("classification"),
        {"train": (task, "train")},
        rows=4,
        batch_size=4,
        pad_to_max=False,
        scored=True,
    )
    model.to("meta")
    with pytest.raises(StopIteration):
        follow()
    assert places == ["meta"]


def test_curves_of_a_labelled_stage_have_scores(nli: Path, teacher: Path, tmp_path: Path) -> None:
    logits(tmp_path, nli, teacher, curves=1000)
    history = json.loads((tmp_path / "history.json").read_text())
    last, judged = history["curves"][-1], history["evaluations"][-1]
    assert last["step"] == judged["step"]
    assert last["scores"]["dev"] == judged["scores"]["dev"]  # all rows of dev
    assert set(last["scores"]) == {"train", "dev"} and set(last["scores"]["train"]) == set(judged["scores"]["dev"])


def test_curves_of_a_supplement_are_of_its_rows(nli: Path, teacher: Path, tmp_path: Path) -> None:
    """Train and dev are the task's in any case; what is trained on is followed beside them."""
    texts = encoded(
        tmp_path / "texts",
        source={"demo": "nli", "config": None},
        splits={"train": "validation", "dev": "test"},
        text=["premise", "hypothesis"],
        label="label",
        labels=["entailment", "neutral", "contradiction"],
        kind="classification",
        rows=20,
    )
    plain, other = tmp_path / "plain", tmp_path / "other"
    layers(plain, nli, teacher, curves=8)
    layers(other, nli, teacher, curves=8, supplement=texts)
    first = [json.loads((folder / "history.json").read_text())["curves"][0]["losses"] for folder in (plain, other)]
    assert first[0] == {name: first[1][name] for name in ("train", "dev")}
    assert first[1].keys() == {"train", "dev", "supplement"}
    model = load_file(other / "model" / "model.safetensors")
    assert not toy.same(model, load_file(plain / "model" / "model.safetensors"))
    assert model["classifier.weight"].shape[0] == 3


def test_a_teacher_before_fine_tuning(nli: Path, teacher: Path, tmp_path: Path) -> None:
    """`base` and its seed make the very model that the fine-tuning starts from."""
    untouched = untrained(tmp_path / "teacher", nli, spec(4), seed=9)
    layers(tmp_path / "from_artifact", nli, untouched)
    context = toy.context(tmp_path / "from_values")
    named: dict[str, Any] = {"student": spec(2), "fit": FIT, "objective": OBJECTIVE, "forward_rows": 16, **COMMON}
    distill_layers(context, data=nli, base=spec(4), base_seed=9, **named)
    found = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("from_artifact", "from_values")]
    assert toy.same(*found)


# the stage of logits -----------------------------------------------------------------------------------------------


def logits(out: Path, data: Path, teacher: Path | None = None, **changes: Any) -> list[dict[str, Any]]:
    named: dict[str, Any] = {
        "student": spec(2),
        "fit": FIT,
        "metric": "accuracy",
        "select_on": "heldout",
        **COMMON,
    }
    objective = {**LOGITS, **{name: changes.pop(name) for name in LOGITS if name in changes}}
    context = toy.context(out)
    context.curves = changes.pop("curves", 0)
    context.hardware.micro_batch = changes.pop("micro_batch", 0)
    distill_logits(context, data=data, teacher=teacher, objective=objective, **{**named, **changes})
    return MetricsLog.read(out / "metrics.jsonl")


@pytest.mark.parametrize("native", [True, False, None])
def test_bf16_on_a_processor_that_does_not_compute_in_it_is_said(
    native: bool | None, nli: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "native_bf16", lambda: native)
    told: list[str] = []
    context = toy.context(tmp_path)
    context.note = told.append
    named = {**COMMON, "max_steps": 1, "precision": "bf16"}
    finetune(context, data=nli, model=spec(1), fit=FIT, metric="accuracy", select_on="last", **named)
    assert ["precision=fp32 is quicker here" in text for text in told] == [True] * (native is False)


def test_logits_continue_with_the_student_of_the_layers(nli: Path, teacher: Path, tmp_path: Path) -> None:
    layers(tmp_path / "layers", nli, teacher)
    before = load_file(tmp_path / "layers" / "model" / "model.safetensors")
    fit = {**FIT, "epochs": 0}
    logits(tmp_path / "same", nli, teacher, student=None, layers=tmp_path / "layers", fit=fit)
    assert toy.same(load_file(tmp_path / "same" / "model" / "model.safetensors"), before)
    logits(tmp_path / "more", nli, teacher, student=None, layers=tmp_path / "layers")
    after = load_file(tmp_path / "more" / "model" / "model.safetensors")
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_alpha_mixes_hard_labels_in(nli: Path, teacher: Path, tmp_path: Path) -> None:
    once = {"max_steps": 1}
    found = {}
    for alpha in (0.0, 0.25, 1.0):
        found[alpha] = logits(tmp_path / str(alpha), nli, teacher, alpha=alpha, **once)[0]
    soft = found[0.0]["loss"]
    assert not [key for key in found[0.0] if "label" in key]
    mixed = found[0.25]
    assert mixed["parts/logit"] == pytest.approx(soft) and mixed["weighted/logit"] == pytest.approx(0.75 * soft)
    assert mixed["weighted/label"] == pytest.approx(0.25 * mixed["parts/label"])
    assert mixed["loss"] == pytest.approx(0.75 * soft + 0.25 * found[1.0]["loss"])


@pytest.mark.parametrize(("scale", "factor"), [("none", 0.25), ("tau2", 1.0)])
def test_regression(scale: str, factor: float, similarity: Path, tmp_path: Path) -> None:
    guide = untrained(tmp_path / "teacher", similarity, spec(2), seed=1)
    named = {"metric": "pearson_spearman", "regression_scale": scale, "alpha": 0.5}
    points = logits(tmp_path / "out", similarity, guide, **named)
    first = points[0]
    assert first["parts/label"] > 0 and first["parts/logit"] > 0
    at_once = logits(tmp_path / "other", similarity, guide, **{**named, "temperature": 1.0})[0]
    assert first["parts/logit"] == pytest.approx(factor * at_once["parts/logit"], rel=1e-5)
    scores = [point for point in points if "eval/dev/pearson" in point]
    assert scores and all(-1 <= point["eval/heldout/pearson_spearman"] <= 1 for point in scores)


# the teacher's logits, stored ---------------------------------------------------------------------------------------


def taught(
    out: Path,
    data: Path,
    teacher: Path,
    *,
    eval_batch: int = 64,
    seconds: float = 1e9,
    note: Callable[[str], None] = lambda _: None,
    **values: Any,
) -> Path:
    """The stage's artifact."""
    context = toy.context(out, seconds=seconds)
    context.note = note
    context.hardware.eval_batch = eval_batch
    teacher_logits(context, data=data, teacher=teacher, **{"pad_to_max": False, "precision": "fp32", **values})
    return out


def test_stored_logits_are_what_the_teacher_says(nli: Path, teacher: Path, tmp_path: Path) -> None:
    task, model = TaskData(nli), saved_model(teacher / "model", kernel="eager")
    out = taught(tmp_path, nli, teacher, eval_batch=5)
    for name in SPLITS:
        split, stored = task.split(name), load_file(out / f"{name}.safetensors")
        assert stored["logits"].dtype == torch.float32 and stored["ids"].tolist() == split.ids.tolist()
        found = predict(model, task, split, batch_size=8, pad_to_max=True)
        np.testing.assert_allclose(stored["logits"], found, atol=1e-5)
    half = load_file(taught(tmp_path / "half", nli, teacher, precision="bf16") / "train.safetensors")["logits"]
    exact = load_file(out / "train.safetensors")["logits"]
    assert not torch.equal(half, exact) and torch.allclose(half, exact, atol=0.05)


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 0), (1, 3), (2, 0), (3, 2)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_each_row_of_a_batch_has_its_own_logits(
    world: int, micro_batch: int, drop_last: bool, nli: Path, teacher: Path, tmp_path: Path
) -> None:
    """Whoever runs it, phantoms too."""
    out = taught(tmp_path, nli, teacher)
    task = TaughtData(nli, out)
    stored = load_file(out / "train.safetensors")["logits"]
    named = {"batch_size": 8, "seed": 1, "shuffle": True, "drop_last": drop_last, "micro_batch": micro_batch}
    seen, phantoms = list[int](), 0
    for rank in range(world):
        batches = task.batches(task.split("train"), **named, world=device.World(rank, world))
        for batch in [one for step in batches.epoch(2) for one in step]:
            assert torch.equal(batch[TEACHER_LOGITS], stored[batch["index"]])
            seen += batch["index"].tolist() if batch["real"] else []
            phantoms += not batch["real"]
    whole = len(stored) - len(stored) % 8 if drop_last else len(stored)
    assert len(seen) == len(set(seen)) == whole and bool(phantoms) == (world == 3 and micro_batch == 2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch": 3},
        {"pad_to_max": True},
        {"fit": {**FIT, "drop_last": True}, "alpha": 0.4},
        {"clean": 0.0, "mixed": vars(Mixed(mixup=1.0, target="clean")), "forward_rows": 8},
    ],
)
def test_training_on_stored_logits_is_that_beside_the_teacher(
    changes: dict[str, Any], nli: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = taught(tmp_path / "stored", nli, teacher, pad_to_max=changes.get("pad_to_max", False))
    first = logits(tmp_path / "asked", nli, teacher, curves=8, **changes)
    opened: list[Path] = []
    monkeypatch.setattr(distill, "saved_model", lambda folder, **_: opened.append(folder))
    second = logits(tmp_path / "read", nli, teacher_logits=stored, curves=8, **changes)
    assert opened == [] and [point.keys() for point in first] == [point.keys() for point in second]
    for ours, theirs in zip(first, second, strict=True):
        assert {k: v for k, v in ours.items() if k != "stage"} == pytest.approx(
            {k: v for k, v in theirs.items() if k != "stage"}, rel=1e-4, abs=1e-6
        )
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("asked", "read")]
    for name, value in weights[0].items():
        if not name.endswith("key.bias"):  # softmax hides it: its gradient is rounding, which Adam blows up
            assert torch.allclose(value, weights[1][name], atol=1e-4), name


def test_stored_logits_of_a_regression(similarity: Path, tmp_path: Path) -> None:
    guide = untrained(tmp_path / "teacher", similarity, spec(2), seed=1)
    stored = taught(tmp_path / "stored", similarity, guide)
    assert load_file(stored / "train.safetensors")["logits"].shape == (len(TaskData(similarity).split("train")), 1)
    named = {"metric": "pearson_spearman", "alpha": 0.5, "curves": 8}
    first = logits(tmp_path / "asked", similarity, guide, **named)
    second = logits(tmp_path / "read", similarity, teacher_logits=stored, **named)
    assert [one["loss"] for one in first if "loss" in one] == pytest.approx(
        [one["loss"] for one in second if "loss" in one], rel=1e-4
    )


def test_the_teacher_that_was_killed_goes_on(
    nli: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = taught(tmp_path / "whole", nli, teacher, eval_batch=4)
    read = list[int]()
    keep = teaching._keep

    def killed(path: Path, logits: np.ndarray, done: int) -> None:
        keep(path, logits, done)
        read.append(done)
        if len(read) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(teaching, "_keep", killed)
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "parts", nli, teacher, eval_batch=4, seconds=0.0)
    parts = taught(tmp_path / "parts", nli, teacher, eval_batch=4, seconds=0.0)
    rows = [len(TaskData(nli).split(name)) for name in SPLITS]
    assert read == [min(at, count) for count in rows for at in range(4, count + 4, 4)]
    for name in SPLITS:
        assert toy.same(*(load_file(folder / f"{name}.safetensors") for folder in (whole, parts)))
    monkeypatch.undo()
    third = taught(tmp_path / "parts", nli, teacher, eval_batch=3)  # all is there; nothing is read anew
    assert toy.same(load_file(third / "dev.safetensors"), load_file(whole / "dev.safetensors"))


def test_progress_is_told(nli: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "SHOWN_EVERY", -1.0)
    told: list[str] = []
    taught(tmp_path, nli, teacher, note=told.append)
    counts = [f"{name} {count}/{count}" for name in SPLITS for count in [len(TaskData(nli).split(name))]]
    assert [line.split(":")[0].strip() for line in told] == [f"toy {count}" for count in counts]


def test_logits_of_other_data_are_refused(nli: Path, similarity: Path, teacher: Path, tmp_path: Path) -> None:
    stored = taught(tmp_path / "stored", nli, teacher)
    with pytest.raises(DataError, match=r"of other data: \d+ rows of 3 logits, and train has \d+ of 1"):
        TaughtData(similarity, stored).split("train")
    held = load_file(stored / "train.safetensors")
    save_file({**held, "ids": held["ids"].flip(0).contiguous()}, stored / "train.safetensors")
    with pytest.raises(DataError, match="or other rows"):
        logits(tmp_path / "out", nli, teacher_logits=stored)
    assert TEACHER_LOGITS not in TaughtData(nli, stored).split("heldout").extra


# prediction, scores, vet, measurement ----------------------------------------------------------------------------


def test_predictions_are_in_the_order_of_the_rows(similarity: Path, tmp_path: Path) -> None:
    task = TaskData(similarity)
    model = saved_model(untrained(tmp_path, similarity, spec(2)) / "model", kernel="eager")
    split = task.split("dev")
    assert list(split.lengths) != sorted(split.lengths, reverse=True)
    model.train()
    found = predict(model, task, split, batch_size=5, pad_to_max=False)
    assert model.training
    model.eval()
    with torch.no_grad():
        single = np.concatenate([model(task.rows(split, [row])).logits.numpy() for row in range(len(split))])
    np.testing.assert_allclose(found, single, atol=1e-5)
    padded = predict(model, task, split, batch_size=64, pad_to_max=True)
    np.testing.assert_allclose(found, padded, atol=1e-5)


def test_predictions_are_fp32_although_training_is_not(nli: Path, teacher: Path) -> None:
    task, model = TaskData(nli), saved_model(teacher / "model", kernel="eager")
    split = task.split("dev")
    before = predict(model, task, split, batch_size=8, pad_to_max=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    device.prepare(device.accelerator(CPU, "bf16"), model, optimizer)
    batch = task.rows(split, [0, 1])
    wrapped = model.eval()(batch).logits
    assert not torch.equal(wrapped, Tapped.forward(model, batch).logits)  # the wrapped forward is bf16
    assert np.array_equal(predict(model, task, split, batch_size=8, pad_to_max=False), before)


def test_evaluation_of_the_published_model(nli: Path, teacher: Path, tmp_path: Path) -> None:
    context = toy.context(tmp_path)
    evaluate.evaluate(context, model=teacher, data=nli, pad_to_max=False)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores == context.facts["scores"] and scores.keys() == {"dev", "heldout"}
    task = TaskData(nli)
    lines = [json.loads(line) for line in (tmp_path / "predictions-dev.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == task.split("dev").ids.tolist()
    assert task.labels is not None
    found = np.array([task.labels.index(line["prediction"]) for line in lines])
    assert found.tolist() == [int(np.argmax(line["logits"])) for line in lines]
    assert scores["dev"]["macro_f1"] == score("macro_f1", found, task.split("dev").labels)


@pytest.mark.parametrize(
    ("teacher_score", "weak", "says"),
    [
        (0.61, "stop", None),
        (0.6, "stop", "error"),
        (0.2, "stop", "error"),
        (0.6, "warn", "warning"),
        (0.7, "warn", None),
    ],
)
def test_vet(teacher_score: float, weak: str, says: str | None, tmp_path: Path) -> None:
    for folder, name, value in (
        ("scores", "scores.json", {"dev": {"f1": teacher_score}}),
        ("data", "facts.json", {"majority": {"dev": {"f1": 0.6}}}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(json.dumps(value))
    told: list[str] = []
    context = toy.context(tmp_path / "out", warn=told.append)
    named = {"scores": tmp_path / "scores", "data": tmp_path / "data", "metric": "f1", "on_weak": weak}
    if says == "error":
        with pytest.raises(TrainingError, match=f"{teacher_score:.4f}.*0.6000") as caught:
            evaluate.vet(context, **named)
        assert "method.weak_teacher=warn" in str(caught.value)
    else:
        evaluate.vet(context, **named)
    assert len(told) == (says == "warning")
    assert json.loads((context.out / "vet.json").read_text()) == {
        "metric": "f1",
        "teacher": teacher_score,
        "majority": 0.6,
    }


def test_measured_figures(nli: Path, teacher: Path, tmp_path: Path) -> None:
    student = untrained(tmp_path / "student", nli, spec(2))
    figures = {}
    for name, model in (("teacher", teacher), ("student", student)):
        context = toy.context(tmp_path / f"{name}-out")
        evaluate.measure(context, model=model, data=nli, machine={"processor": "this"})
        figures[name] = json.loads((context.out / "figures.json").read_text())
        loaded = saved_model(model / "model", kernel="eager")
        assert figures[name]["parameters"] == sum(parameter.numel() for parameter in loaded.parameters())
        assert figures[name]["bytes"] == (model / "model" / "model.safetensors").stat().st_size
        assert figures[name]["latency_ms"] > 0 and figures[name]["tokens_per_example"] > 2
        assert figures[name]["machine"] == {"processor": "this"}
    assert figures["teacher"]["parameters"] > figures["student"]["parameters"]
    assert figures["teacher"]["flops_per_example"] > 1.5 * figures["student"]["flops_per_example"] > 0


def test_a_fine_tuned_model_is_published_as_selected(nli: Path, tmp_path: Path) -> None:
    context = toy.context(tmp_path)
    finetune(
        context,
        data=nli,
        model=spec(1),
        fit={**FIT, "epochs": 3},
        metric="accuracy",
        select_on="heldout",
        **COMMON,
    )
    history = json.loads((tmp_path / "history.json").read_text())
    best = max(entry["scores"]["heldout"]["accuracy"] for entry in history["evaluations"])
    chosen = next(entry for entry in history["evaluations"] if entry["step"] == history["selected_step"])
    assert chosen["scores"]["heldout"]["accuracy"] == best == history["best_score"]
    judged = toy.context(tmp_path / "judged")
    evaluate.evaluate(judged, model=tmp_path, data=nli, pad_to_max=False)
    assert judged.facts["scores"]["heldout"] == chosen["scores"]["heldout"]
    assert judged.facts["scores"]["dev"] == chosen["scores"]["dev"]
