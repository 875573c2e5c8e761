"""What tests/test_distributed.py runs in every process of a distributed job: `two_processes.py FOLDER`."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import toy
from kdlab import cli
from kdlab.config import Contrast, LayerFit, PairFit
from kdlab.engine import device, loop
from kdlab.engine.loop import Batch, Loss, Progress, Scores, fit
from kdlab.models.ema import MovingAverage
from kdlab.models.projection import ProjectionHead
from kdlab.models.taps import Tapped
from kdlab.objectives.logits import soft_cross_entropy
from kdlab.stages import pair_steps
from kdlab.stages.encoder import parameters_without_gradient
from kdlab.stages.pair_steps import PairStep
from kdlab.stages.steps import LayerStep

CASES = ("label", "logits", "layers")
RUN = ("task=demo/nli", "model=tiny", "debug=fast", "tracking=none", "hardware=cpu")


class Killed(Exception):
    pass


def layer_step(*, mixup: float, target: str = "student") -> LayerStep:
    weight = 0.5 if mixup else 0.0
    objective = {
        **toy.fields_without_fit(LayerFit()),
        "mixup": mixup,
        "consistency": {
            "weight": weight,
            "terms": ["attention", "hidden"],
            "ramp": "constant",
            "target": target,
            "decay": 0.9,
        },
    }
    teacher = toy.encoder(layers=2, seed=5).eval().requires_grad_(False)
    return LayerStep(teacher, objective, layers=(1, 2), precision="fp32", place=torch.device("cpu"))


def logit_step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
    target = torch.stack([batch["index"] % 3 == label for label in range(3)], -1).float()
    return Loss.of({"logit": (1.0, soft_cross_entropy(model(batch).logits, target, temperature=2.0))})


def descend() -> None:
    """Train by plain descent from now on."""
    loop.build_optimizer = lambda model, **named: torch.optim.SGD(  # type: ignore[assignment]
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=named["lr"]
    )


def uncoupled(case: str, out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Five batches of 4, 4 and 1 rows (the other process then has none), micro-batches of 1, plain descent."""
    world = device.World.current()
    model = toy.encoder(layers=1, seed=2)
    step = {"label": toy.label_step, "logits": logit_step, "layers": layer_step(mixup=0.0)}[case]
    descend()
    data = toy.batches(9, batch_size=4, micro_batch=1, rank=world.rank, world=world.size)
    plan = toy.plan(epochs=2, max_steps=5, lr=0.1, clip=1.0, expected=())
    batch = toy.rows(2).collate(torch.arange(2).numpy(), pad_token_id=0, width=9)
    progress = Progress(0, 1, 0, 1, 1, torch.Generator())  # type: ignore[arg-type]
    with device.frozen(parameters_without_gradient(model, lambda: step(model, batch, progress).total)):
        history = fit(model, step, data, plan, toy.context(out))
    return toy.copied(model.state_dict()), asdict(history)


class Pairs:
    """Steps of 5, 3 and 1 texts with their translations; of the last one the other process has none."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return 3

    def batch(self, numbers: list[int]) -> Batch:
        mine = numbers[self.rank :: self.world]
        chosen = np.array(mine or numbers[:1])
        batch = toy.rows(18).collate(np.concatenate([chosen, chosen + 9]), pad_token_id=0, width=9)
        share = len(mine) / len(numbers)
        labels = batch["labels"][: len(chosen)]
        return {**batch, "labels": labels, "share": share, "languages_share": share, "real": bool(mine)}

    def epoch(self, k: int, start: int = 0) -> Iterator[list[Batch]]:
        for numbers in ([0, 1, 2, 3, 4], [5, 6, 7], [8])[start:]:
            yield [self.batch(numbers)]


def pair_student() -> Tapped:
    model = toy.encoder(layers=1, seed=2)
    model.contrast = ProjectionHead(16, 6, "mlp", 1)
    return model


def pair_step(*, mixup: float) -> PairStep:
    objective = PairFit(alpha=0.3, mixup=mixup, contrast=Contrast(weight=0.4))
    return PairStep(toy.fields_without_fit(objective), paired=True)


def contrasted(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Labels and contrast of pairs without mixing, plain descent."""
    world = device.World.current()
    descend()
    model, step = pair_student(), pair_step(mixup=0.0)
    plan = toy.plan(epochs=2, lr=0.1, clip=1.0, expected=tuple(step.expected()))
    history = fit(model, step, Pairs(world.rank, world.size), plan, toy.context(out))
    return toy.copied(model.state_dict()), asdict(history)


def mixed_gradients(w: float, v: float) -> dict[str, torch.Tensor]:
    """Of the whole objective on the first five pairs, summed over the processes; each mixes its own rows."""
    world = device.World.current()
    draw, drawn = pair_steps.beta_ratio, [w, v]
    pair_steps.beta_ratio = lambda rng, alpha: drawn.pop(0)  # type: ignore[assignment]
    model, (batch,) = pair_student(), next(Pairs(world.rank, world.size).epoch(0))
    progress = Progress(0, 1, 0, 1, 1, torch.Generator())  # type: ignore[arg-type]
    torch.autograd.backward(pair_step(mixup=1.0)(model, batch, progress).total)
    pair_steps.beta_ratio = draw
    return {name: device.total(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def coupled(out: Path, *, target: str, kill: int | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Mixed inputs, dropout, consistency, selection of the second of three evaluations."""
    world = device.World.current()
    model = toy.encoder(layers=1, seed=2, dropout=0.1)
    layers = layer_step(mixup=1.0, target=target)
    state = {}
    if target == "ema":
        layers.average = state["ema"] = MovingAverage(model, 0.9)

    def step(wrapped: nn.Module, batch: Batch, progress: Progress) -> Loss:
        if progress.step == kill:
            raise Killed
        return layers(wrapped, batch, progress)

    def evaluate() -> Scores:
        assert world.first
        lines = (out / "metrics.jsonl").read_text().splitlines()
        before = sum("eval/dev/accuracy" in json.loads(line) for line in lines)
        return {"dev": {"accuracy": [0.3, 0.6, 0.5][before]}}

    def after_step() -> None:
        if layers.average is not None:
            layers.average.update(model)

    data = toy.batches(12, batch_size=4, rank=world.rank, world=world.size)
    plan = toy.plan(epochs=3, select=("dev", "accuracy"), expected=())
    batch = toy.rows(2).collate(torch.arange(2).numpy(), pad_token_id=0, width=9)
    idle = parameters_without_gradient(model, lambda: layers.loss(model, batch, None, 0.0).total)
    with device.frozen(idle):
        context = toy.context(out, seconds=0.0)
        history = fit(model, step, data, plan, context, evaluate=evaluate, state=state, after_step=after_step)
    return toy.copied(model.state_dict()), asdict(history)


def fine_tune(folder: Path) -> None:
    """The whole command, without layer distillation."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    assert cli.main(["train", "method=ft", *RUN]) == 0


def main(folder: Path) -> None:
    world = device.World.current()
    torch.set_num_threads(1)
    gc.freeze()  # each training ends with a collection, which need not walk the libraries
    build = loop.build_optimizer
    found = {case: uncoupled(case, folder / case) for case in CASES}
    found["contrast"] = contrasted(folder / "contrast")
    loop.build_optimizer = build  # type: ignore[assignment]
    save_file(mixed_gradients(0.37, 0.81), folder / f"mixed-gradients-{world.rank}.safetensors")
    for target in ("student", "ema"):
        found[f"{target}-whole"] = coupled(folder / f"{target}-whole", target=target)
        for kill in (4, 7):
            name = f"{target}-killed-{kill}"
            try:
                coupled(folder / name, target=target, kill=kill)
            except Killed:
                found[name] = coupled(folder / name, target=target)
    for name, (weights, history) in found.items():
        save_file(weights, folder / f"{name}-{world.rank}.safetensors")
        (folder / f"{name}-{world.rank}.json").write_text(json.dumps(history))
    fine_tune(folder / "ft")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
