"""The training loop: gradients, schedule, evaluation, selection, what it logs and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import toy
from kdlab.config import LayerFit
from kdlab.engine import checkpoint, loop
from kdlab.engine.loop import Batch, Loss, Progress, Scores, Step, fit
from kdlab.engine.metrics_log import MetricsLog
from kdlab.engine.optimizer import rate
from kdlab.errors import KdlabError, TrainingError
from kdlab.objectives.logits import hard_label, soft_cross_entropy
from kdlab.stages.steps import LayerStep

CPU = torch.device("cpu")


class Recorder(torch.optim.SGD):
    """Keeps the gradients and the rate of every step, and changes no weight."""

    made: list[Recorder]

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.gradients: list[list[Tensor]] = []
        self.rates: list[float] = []
        Recorder.made.append(self)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        self.rates.append(group["lr"])
        self.gradients.append([p.grad.clone() for p in group["params"] if p.grad is not None])


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Recorder]]:
    Recorder.made = []
    monkeypatch.setattr(loop, "build_optimizer", lambda model, **named: Recorder(model.parameters(), named["lr"]))
    yield Recorder


def logit_step() -> Step:
    teacher = toy.encoder(layers=2, seed=5)

    def step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        with torch.no_grad():
            target = teacher(batch).logits
        logits = model(batch).logits
        terms = {
            "logit": (0.7, soft_cross_entropy(logits, target, temperature=2.0)),
            "label": (0.3, hard_label(logits, batch["labels"], kind="classification")),
        }
        return Loss.of(terms)

    return step


def layer_step(**changes: Any) -> LayerStep:
    objective = {
        **toy.fields_without_fit(LayerFit()),
        "relations": ["attention", "hidden", "embedding", "patient", "value"],
        "layer_map": "uniform",
        **changes,
    }
    teacher = toy.encoder(layers=2, seed=5).eval()
    return LayerStep(teacher, objective, layers=(1, 2), precision="fp32", place=CPU)


OBJECTIVES: dict[str, Callable[[], Step]] = {
    "label": lambda: toy.label_step,
    "logits": logit_step,
    "layers": layer_step,
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_equal_one_batch(objective: str, tmp_path: Path, recorder: type[Recorder]) -> None:
    """11 rows as batches of 8 and 3, whole and in micro-batches of 3, 3, 2 and 3 rows of unequal lengths."""
    logged = []
    for micro in (0, 3):
        model = toy.encoder(layers=1)
        data = toy.batches(11, batch_size=8, micro_batch=micro)
        context = toy.context(tmp_path / str(micro))
        fit(model, OBJECTIVES[objective](), data, toy.plan(epochs=1, clip=0.0, expected=()), context)
        logged.append(MetricsLog.read(context.out / "metrics.jsonl"))
    whole, split = recorder.made
    assert len(whole.gradients) == len(split.gradients) == 2
    for ours, theirs in zip(whole.gradients, split.gradients, strict=True):
        assert len(ours) == len(theirs) > 10
        assert max(float(gradient.abs().max()) for gradient in ours) > 1e-3
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)
    for one, other in zip(*logged, strict=True):
        assert one.pop("stage") == other.pop("stage")
        assert one == pytest.approx(other, rel=1e-4)
        assert one["examples"] in (8, 3)


def test_the_gradient_is_the_mean_over_examples(tmp_path: Path, recorder: type[Recorder]) -> None:
    model, data = toy.Words(), toy.batches(4)
    fit(model, toy.label_step, data, toy.plan(epochs=1, clip=0.0), toy.context(tmp_path))
    ((batch,),) = data.epoch(0)
    model.zero_grad()
    hard_label(model(batch), batch["labels"], kind="classification").mean().backward()
    wanted = [parameter.grad for parameter in model.parameters()]
    for found, gradient in zip(recorder.made[0].gradients[0], wanted, strict=True):
        torch.testing.assert_close(found, gradient)


def test_clipping_is_to_the_norm_of_the_mean_gradient(tmp_path: Path, recorder: type[Recorder]) -> None:
    norms = []
    for clip in (0.0, 0.05, 1000.0):
        context = toy.context(tmp_path / str(clip))
        fit(toy.Words(), toy.label_step, toy.batches(4), toy.plan(epochs=1, clip=clip), context)
        gradients = recorder.made[-1].gradients[0]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        (point,) = MetricsLog.read(context.out / "metrics.jsonl")
        assert point["grad_norm"] == pytest.approx(norms[0], rel=1e-5)
    assert norms[0] > 0.05
    assert norms[1] == pytest.approx(0.05, rel=1e-3)
    assert norms[2] == pytest.approx(norms[0], rel=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_every_step_has_the_rate_of_the_schedule(schedule: str, tmp_path: Path, recorder: type[Recorder]) -> None:
    plan = toy.plan(epochs=3, schedule=schedule, warmup=0.3, lr=0.5)
    fit(toy.Words(), toy.label_step, toy.batches(18), plan, toy.context(tmp_path))
    wanted = [0.5 * rate(schedule, step=step, steps=15, warmup=0.3) for step in range(15)]
    assert recorder.made[0].rates == pytest.approx(wanted)
    points = MetricsLog.read(tmp_path / "metrics.jsonl")
    assert [point["lr"] for point in points] == pytest.approx(wanted)


# evaluation and selection --------------------------------------------------------------------------------------


class Judge:
    """An evaluation with given scores that remembers the weights it saw."""

    def __init__(self, model: nn.Module, *scores: float) -> None:
        self.model, self.scores = model, scores
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self) -> Scores:
        assert not self.model.training
        self.seen.append(toy.copied(self.model.state_dict()))
        return {"dev": {"accuracy": self.scores[len(self.seen) - 1], "f1": 0.5}, "heldout": {"accuracy": 0.1}}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, [5, 10]),
        ({"eval_steps": 4}, [4, 8, 10]),
        ({"eval_steps": 3, "max_steps": 7}, [3, 6, 7]),
        ({"max_steps": 3}, [3]),
        ({"eval_steps": 100}, [10]),
    ],
)
def test_when_it_is_evaluated(changes: dict[str, Any], wanted: list[int], tmp_path: Path) -> None:
    model = toy.Words()
    judge = Judge(model, *[0.1] * len(wanted))
    history = fit(model, toy.label_step, toy.batches(), toy.plan(**changes), toy.context(tmp_path), evaluate=judge)
    assert [entry["step"] for entry in history.evaluations] == wanted
    assert history.last_step == history.selected_step == wanted[-1]
    points = [point for point in MetricsLog.read(tmp_path / "metrics.jsonl") if "eval/dev/f1" in point]
    assert [point["step"] for point in points] == wanted
    assert points[0]["eval/dev/accuracy"] == 0.1 and points[0]["eval/heldout/accuracy"] == 0.1


def test_training_goes_on_in_training_mode_after_an_evaluation(tmp_path: Path) -> None:
    model, modes = toy.Words(), []

    def step(wrapped: nn.Module, batch: Batch, progress: Progress) -> Loss:
        modes.append(model.training)
        return toy.label_step(wrapped, batch, progress)

    fit(model, step, toy.batches(), toy.plan(eval_steps=3), toy.context(tmp_path), evaluate=Judge(model, *[0.1] * 4))
    assert modes == [True] * 10
    assert not model.training


def test_the_selected_weights_are_those_of_the_best_evaluation(tmp_path: Path) -> None:
    model = toy.Words()
    judge = Judge(model, 0.2, 0.6, 0.5, 0.6)  # the first of two equal ones
    plan = toy.plan(epochs=4, select=("dev", "accuracy"))
    context = toy.context(tmp_path)
    history = fit(model, toy.label_step, toy.batches(), plan, context, evaluate=judge)
    assert (history.selected_step, history.last_step, history.best_score) == (10, 20, 0.6)
    assert toy.same(model.state_dict(), judge.seen[1])
    assert not toy.same(model.state_dict(), judge.seen[3])
    assert context.facts["selected_step"] == 10 and context.facts["steps"] == 20
    assert [path.name for path in context.work.glob("best-*")] == ["best-10.safetensors"]


def test_without_selection_the_last_weights_stay(tmp_path: Path) -> None:
    model = toy.Words()
    judge = Judge(model, 0.9, 0.1)
    history = fit(model, toy.label_step, toy.batches(), toy.plan(), toy.context(tmp_path), evaluate=judge)
    assert history.selected_step == 10 and history.best_score is None
    assert toy.same(model.state_dict(), judge.seen[1])
    assert not list((tmp_path / "work").glob("best-*"))


def test_early_stopping_after_patience_evaluations_without_a_better_score(tmp_path: Path) -> None:
    model = toy.Words()
    judge = Judge(model, 0.3, 0.2, 0.4, 0.4, 0.1, 0.9)
    plan = toy.plan(epochs=6, patience=2, select=("dev", "accuracy"))
    history = fit(model, toy.label_step, toy.batches(), plan, toy.context(tmp_path), evaluate=judge)
    assert history.stopped_early
    assert [entry["step"] for entry in history.evaluations] == [5, 10, 15, 20, 25]
    assert (history.selected_step, history.last_step) == (15, 25)
    assert toy.same(model.state_dict(), judge.seen[2])


def test_no_epochs_leave_the_model_as_it_was(tmp_path: Path) -> None:
    model = toy.Words()
    before = toy.copied(model.state_dict())
    context = toy.context(tmp_path)
    plan = toy.plan(epochs=0, select=("dev", "accuracy"))
    history = fit(model, toy.label_step, toy.batches(), plan, context, evaluate=Judge(model))
    assert (history.last_step, history.selected_step, history.evaluations) == (0, 0, [])
    assert toy.same(model.state_dict(), before)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert context.facts.pop("environment")["device"] == "cpu"
    assert context.facts == {"steps": 0, "selected_step": 0, "trained_tokens": 0}


# what it refuses and warns of ------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    data = toy.batches()
    wrong = 7

    def step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        logits = model(batch)
        extra = logits.sum(-1) * (math.nan if progress.step == wrong else 0.1)
        return Loss.of(
            {"label": (1.0, hard_label(logits, batch["labels"], kind="classification")), "extra": (1.0, extra)}
        )

    model = toy.Words()
    context = toy.context(tmp_path, seconds=0.0)
    with pytest.raises(TrainingError) as caught:
        fit(model, step, data, toy.plan(lr=0.25), context)
    text = str(caught.value)
    rows = next(data.epoch(1, start=2))[0]["index"].tolist()
    for part in (
        "stage 'toy'",
        "step 7 of 10",
        "parts not finite: extra",
        "rate 0.25",
        str(rows),
        "weights are finite",
    ):
        assert part in text
    assert [path.name for path in checkpoint.checkpoints(context.work)] == ["checkpoint-7"]
    kept = checkpoint.read_tensors(context.work / "checkpoint-7", "model")
    assert toy.same(kept, model.state_dict()) and all(tensor.isfinite().all() for tensor in kept.values())

    wrong = -1
    history = fit(toy.Words(), step, data, toy.plan(lr=0.25), context)
    assert history.last_step == 10


def test_weights_that_are_not_finite_are_told_from_a_bad_batch(tmp_path: Path) -> None:
    def step(wrapped: nn.Module, batch: Batch, progress: Progress) -> Loss:
        if progress.step == 2:
            with torch.no_grad():
                wrapped.linear.weight.fill_(math.inf)
        return toy.label_step(wrapped, batch, progress)

    with pytest.raises(TrainingError, match=r"the weights linear\.weight were already not finite"):
        fit(toy.Words(), step, toy.batches(), toy.plan(precision="fp32"), toy.context(tmp_path))


def idle_step(weight: Callable[[Progress], float]) -> Step:
    def step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        terms = {"label": (1.0, hard_label(model(batch), batch["labels"], kind="classification"))}
        if weight(progress) >= 0:
            terms["extra"] = (weight(progress), model(batch).square().mean(-1))
        return Loss.of(terms)

    return step


@pytest.mark.parametrize(
    ("weight", "warned"),
    [
        (lambda progress: -1.0, ["extra"]),  # configured, but never there
        (lambda progress: 0.0, ["extra"]),  # there, but exactly zero
        (lambda progress: 0.1 * progress.epoch / progress.epochs, []),  # a ramp that begins at zero
        (lambda progress: 0.1 * progress.epoch or -1.0, []),  # absent in the first epoch
        (lambda progress: 0.1, []),
    ],
)
def test_idle_terms_are_told_once(weight: Callable[[Progress], float], warned: list[str], tmp_path: Path) -> None:
    told: list[str] = []
    plan = toy.plan(epochs=4, expected=("label", "extra"))
    fit(toy.Words(), idle_step(weight), toy.batches(), plan, toy.context(tmp_path, warn=told.append))
    assert told == [f"the loss term '{name}' is configured but contributes exactly nothing" for name in warned]


def test_a_continued_stage_tells_its_warnings_again(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        if progress.step == 15 and fail:
            raise Stop
        return idle_step(lambda _: 0.0)(model, batch, progress)

    plan, fail = toy.plan(epochs=4), True
    told: list[str] = []
    with pytest.raises(Stop):
        fit(toy.Words(), step, toy.batches(), plan, toy.context(tmp_path, seconds=0.0, warn=told.append))
    fail = False
    again: list[str] = []
    fit(toy.Words(), step, toy.batches(), plan, toy.context(tmp_path, seconds=0.0, warn=again.append))
    assert len(told) == 1 and again == told


# what is written down --------------------------------------------------------------------------------------------


def test_raw_and_weighted_parts_are_logged(tmp_path: Path) -> None:
    fit(
        toy.Words(),
        idle_step(lambda progress: 0.25 if progress.epoch else -1.0),
        toy.batches(),
        toy.plan(),
        toy.context(tmp_path),
    )
    points = MetricsLog.read(tmp_path / "metrics.jsonl")
    assert [point["step"] for point in points] == list(range(1, 11))
    for point in points:
        weighted = sum(value for key, value in point.items() if key.startswith("weighted/"))
        assert point["loss"] == pytest.approx(weighted, rel=1e-6)
        assert ("parts/extra" in point) == (point["step"] > 5)
    assert points[-1]["weighted/extra"] == pytest.approx(0.25 * points[-1]["parts/extra"])


def test_points_are_means_over_the_steps_since_the_last_one(tmp_path: Path) -> None:
    steps = 300
    fit(toy.Words(), toy.label_step, toy.batches(8), toy.plan(epochs=150), toy.context(tmp_path))
    points = MetricsLog.read(tmp_path / "metrics.jsonl")
    assert [point["step"] for point in points] == list(range(3, steps + 1, 3))
    assert {point["examples"] for point in points} == {12}
    assert points[-1]["loss"] < points[0]["loss"]


def test_the_log_has_no_times_and_the_screen_has(tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []
    context = toy.context(tmp_path)
    context.show = lambda point: shown.append(dict(point))
    model = toy.Words()
    fit(model, toy.label_step, toy.batches(), toy.plan(), context, evaluate=Judge(model, 0.5, 0.5))
    points = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not [key for point in points for key in point if "second" in key or "time" in key]
    assert any("tokens_per_second" in point and "seconds_left" in point for point in shown)
    assert {point["stage"] for point in points} == {"toy"}
    data = toy.batches()
    tokens = sum(int(micro["attention_mask"].sum()) for step in data.epoch(0) for micro in step)
    assert context.facts["trained_tokens"] == 2 * tokens == sum(point.get("tokens", 0) for point in points)


def test_fp16_is_refused_where_it_would_be_fp32(tmp_path: Path) -> None:
    with pytest.raises(KdlabError, match="can't train in fp16"):
        fit(toy.Words(), toy.label_step, toy.batches(), toy.plan(precision="fp16"), toy.context(tmp_path))


def test_bf16_trains_and_logs_fp32_losses(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    def step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        views = model(batch)
        inner = model.model.bert.encoder.layer[0].output.dense
        inner.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
        loss = Loss.of({"label": (1.0, hard_label(views.logits, batch["labels"], kind="classification"))})
        assert views.logits.dtype == loss.total.dtype == torch.float32
        return loss

    losses = {}
    for precision in ("fp32", "bf16"):
        model = toy.encoder(layers=1)
        plan = toy.plan(epochs=6, precision=precision, lr=0.003)
        fit(model, step, toy.batches(), plan, toy.context(tmp_path / precision))
        points = MetricsLog.read(tmp_path / precision / "metrics.jsonl")
        losses[precision] = [point["loss"] for point in points]
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.bfloat16 in seen
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert losses["bf16"] != losses["fp32"]
    assert np.mean(losses["bf16"][-5:]) < np.mean(losses["bf16"][:5])
