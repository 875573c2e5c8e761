"""A run that is broken off anywhere and given again leaves what the unbroken run leaves, bit for bit."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import toy
from kdlab.config import LayerFit
from kdlab.engine import checkpoint, loop
from kdlab.engine.loop import Batch, Loss, Progress, Scores, fit
from kdlab.engine.optimizer import BertAdam
from kdlab.models.ema import MovingAverage
from kdlab.stages.steps import LayerStep

OBJECTIVE = {
    **toy.fields_without_fit(LayerFit()),
    "mixup": 1.0,
    "consistency": {"weight": 0.5, "terms": ["attention", "hidden"], "ramp": "linear", "target": "ema", "decay": 0.9},
}
STEPS = 6


class Killed(Exception):
    """The process dies here."""


class Moments:
    """Counts the moments at which a process can die, and dies at one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.names = last, list[str]()

    def pass_by(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) - 1 == self.last:
            raise Killed(name)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Layer distillation with dropout, mix-up and a moving average; the scores make step 4 the best."""
    teacher = toy.encoder(layers=1, seed=5).eval().requires_grad_(False)
    made: list[torch.optim.Optimizer] = []
    build = loop.build_optimizer

    def remember(*args: Any, **named: Any) -> torch.optim.Optimizer:
        made.append(build(*args, **named))
        return made[-1]

    monkeypatch.setattr(loop, "build_optimizer", remember)
    save, rename, save_file = checkpoint.save, os.rename, loop.save_file

    def run(
        out: Path,
        *,
        kill: int | None = None,
        seconds: float = 0.0,
        precision: str = "fp32",
        optimizer: str = "adamw",
        warn: Callable[[str], None] = lambda _: None,
    ) -> dict[str, Any]:
        moments = Moments(kill)
        pupil = toy.encoder(layers=1, dropout=0.2, seed=1)
        layers = LayerStep(teacher, OBJECTIVE, layers=(1, 1), precision=precision, place=torch.device("cpu"))
        layers.average = MovingAverage(pupil, 0.9)

        def step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
            moments.pass_by("step")
            loss = layers(model, batch, progress)
            chance = random.random() + np.random.random() + torch.rand(()).item()  # every generator counts
            return replace(loss, total=loss.total * (1 + 0.1 * chance))

        def evaluate() -> Scores:
            moments.pass_by("before an evaluation")
            score = float(sum(weight.double().abs().sum() for weight in pupil.state_dict().values()))
            moments.pass_by("in an evaluation")
            lines = (out / "metrics.jsonl").read_text().splitlines()
            before = sum("eval/dev/accuracy" in json.loads(line) for line in lines)
            return {"dev": {"accuracy": float(before == 1), "weights": score}}

        def watched_best(tensors: dict[str, Tensor], path: Path) -> None:
            moments.pass_by("before the best weights")
            save_file(tensors, path)
            moments.pass_by("between best weights and checkpoint")

        def watched_save(*args: Any, **named: Any) -> None:
            moments.pass_by("before a checkpoint")
            save(*args, **named)
            moments.pass_by("after a checkpoint")

        def watched_rename(source: Any, target: Any) -> None:
            moments.pass_by("before a checkpoint has its name")
            rename(source, target)
            moments.pass_by("before older checkpoints go")

        monkeypatch.setattr(loop, "save_file", watched_best)
        monkeypatch.setattr(checkpoint, "save", watched_save)
        monkeypatch.setattr(checkpoint.os, "rename", watched_rename)
        for seed in (random.seed, np.random.seed, torch.seed):  # the state before must not matter
            seed()
        context = toy.context(out, seconds=seconds, warn=warn)
        plan = toy.plan(
            epochs=2,
            eval_steps=2,
            precision=precision,
            optimizer=optimizer,
            lr=0.01,
            schedule="linear",
            warmup=0.2,
            select=("dev", "accuracy"),
            expected=tuple(layers.expected()),
        )
        history = fit(
            pupil,
            step,
            toy.batches(6, batch_size=2, micro_batch=2),
            plan,
            context,
            evaluate=evaluate,
            state={"ema": layers.average},
            after_step=lambda: layers.average.update(pupil),
        )
        return {
            "weights": toy.copied(pupil.state_dict()),
            "average": toy.copied(layers.average.state_dict()),
            "optimizer": toy.copied(checkpoint.flat_optimizer(made[-1])),
            "history": asdict(history),
            "facts": context.facts,
            "metrics": (out / "metrics.jsonl").read_bytes(),
            "moments": moments.names,
        }

    return run


def check_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for group in ("weights", "average", "optimizer"):
        assert toy.same(found[group], wanted[group]), group
    for what in ("history", "metrics", "facts"):
        assert found[what] == wanted[what], what


@pytest.mark.parametrize(
    ("precision", "seconds", "every"),
    [
        pytest.param("fp32", 0.0, 1, marks=pytest.mark.slow),
        ("fp32", 1e9, 3),
        ("bf16", 0.0, 7),
        pytest.param("bf16", 1e9, 7, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_and_given_again(
    precision: str, seconds: float, every: int, run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", precision=precision, seconds=seconds)
    assert whole["history"]["selected_step"] == 4 and len(whole["history"]["evaluations"]) == 3
    moments = whole["moments"]
    assert moments.count("step") == STEPS and "between best weights and checkpoint" in moments
    assert moments.count("before a checkpoint") == (5 + 1 if seconds == 0.0 else 3)
    for moment in range(0, len(moments), every):
        out = tmp_path / f"killed-{moment}"
        with pytest.raises(Killed):
            run(out, kill=moment, precision=precision, seconds=seconds)
        again = run(out, precision=precision, seconds=seconds)
        check_same(again, whole)
        if moments[moment] == "step" and moment > 8 and seconds == 0.0:
            assert again["moments"].count("step") < STEPS


def test_bert_adam_continues_too(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", optimizer="bert_adam")
    for moment in (9, 17):
        with pytest.raises(Killed):
            run(tmp_path / str(moment), optimizer="bert_adam", kill=moment)
        check_same(run(tmp_path / str(moment), optimizer="bert_adam"), whole)


def test_killed_again_and_again(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    kills = 0
    while True:
        try:
            found = run(tmp_path / "killed", kill=9 - kills % 3)
        except Killed:
            kills += 1
            continue
        break
    assert kills > 3
    check_same(found, whole)


def test_how_often_checkpoints_are_made_does_not_matter(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    check_same(run(tmp_path / "often", seconds=0.0), run(tmp_path / "never", seconds=1e9))


def test_only_the_newest_checkpoint_and_the_best_weights_stay(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run(tmp_path)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["best-4.safetensors", "checkpoint-6"]
    names = {path.name.rpartition(".")[2] for path in (tmp_path / "work" / "checkpoint-6").iterdir()}
    assert names == {"safetensors", "json"}


def test_torn_checkpoints_are_ignored(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    names = [index for index, name in enumerate(whole["moments"]) if name == "before a checkpoint has its name"]
    with pytest.raises(Killed):
        run(tmp_path / "torn", kill=names[3])
    work = tmp_path / "torn" / "work"
    assert (work / "checkpoint-4.tmp").is_dir()
    for file in (work / "checkpoint-4.tmp").iterdir():
        file.write_bytes(file.read_bytes()[:10])
    (work / "checkpoint-9.tmp").mkdir()
    assert [path.name for path in checkpoint.checkpoints(work)] == ["checkpoint-3"]
    check_same(run(tmp_path / "torn"), whole)


def test_saving_one_step_twice_never_leaves_a_half_removed_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"model": {"weight": torch.ones(2)}}
    checkpoint.save(tmp_path, 3, tensors=tensors, state={"try": 1})
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)  # killed before anything was removed
    checkpoint.save(tmp_path, 3, tensors=tensors, state={"try": 2})
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-3"]
    assert checkpoint.read_state(tmp_path / "checkpoint-3")["try"] == 2


@pytest.mark.parametrize("change", ["threads", "torch", "lost"])
def test_another_environment_is_told(change: str, run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, kill=16)
    folder = checkpoint.latest(tmp_path / "work")
    assert folder is not None
    state = checkpoint.read_state(folder)
    if change == "lost":  # as of a process that did not take part when it was written
        (folder / "rng-0.safetensors").unlink()
        del state["files"]["rng-0.safetensors"]
    else:
        state["environment"][change] = "other"
    (folder / "state.json").write_text(json.dumps(state))
    told: list[str] = []
    run(tmp_path, warn=told.append)
    assert len(told) == 1 and "not bit for bit" in told[0]


def test_the_same_environment_is_not_told(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(Killed):
        run(tmp_path, kill=16, warn=told.append)
    run(tmp_path, warn=told.append)
    assert told == []


def test_selected_weights_that_are_gone_make_the_stage_start_over(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run(tmp_path)
    best = tmp_path / "work" / "best-4.safetensors"
    before = best.read_bytes()
    best.unlink()
    run(tmp_path)
    assert best.read_bytes() == before


def test_random_states_come_back(tmp_path: Path) -> None:
    def draw() -> tuple[Any, ...]:
        normal = random.gauss(0, 1), float(np.random.standard_normal())  # both keep a second number for later
        return *normal, random.random(), float(np.random.random()), torch.rand(3).tolist(), torch.randn(20).tolist()

    checkpoint.seed_everything(3)
    draw()
    checkpoint.save(tmp_path, 1, tensors={}, state={})
    wanted = draw()
    assert draw() != wanted
    assert checkpoint.restore_rng(tmp_path / "checkpoint-1")
    assert draw() == wanted


@pytest.mark.parametrize("name", ["adamw", "fused", "bert_adam"])
def test_optimiser_states_are_flat_tensors(name: str) -> None:
    def new() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)])  # twelve parameters: indices of two digits
        for number, parameter in enumerate(model.parameters()):
            parameter.data.fill_(number)
        if name == "bert_adam":
            return model, BertAdam(model.parameters(), lr=0.1)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=name == "fused")

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for step in range(steps):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 1.0 + number * step)
            optimizer.step()

    model, optimizer = new()
    train(model, optimizer, 3)
    tensors = toy.copied(checkpoint.flat_optimizer(optimizer))
    assert "11.exp_avg" in tensors
    other_model, other = new()
    other_model.load_state_dict(model.state_dict())
    checkpoint.load_optimizer(other, tensors)
    for pair in ((model, optimizer), (other_model, other)):
        train(*pair, 2)
    assert toy.same(other_model.state_dict(), model.state_dict())
    assert toy.same(checkpoint.flat_optimizer(other), checkpoint.flat_optimizer(optimizer))
