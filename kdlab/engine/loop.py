"""The only training loop of the project.

    history = fit(model, step, batches, plan, context, evaluate=...)

A method gives it `step(model, micro_batch, progress) -> Loss`, where `model` is the wrapped model. The loop sums
over micro-batches and processes and divides once by the summed count, so that two micro-batches equal one batch and
two processes equal one, on gradients, for every objective whose examples are not coupled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdlab import interruption
from kdlab.context import Context
from kdlab.engine import checkpoint, device
from kdlab.engine.compiling import compile_layers
from kdlab.engine.feed import feed
from kdlab.engine.metrics_log import MetricsLog
from kdlab.engine.optimizer import build_optimizer, rate, set_rate
from kdlab.engine.recompute import recomputed
from kdlab.engine.tables import TableGradients, values
from kdlab.errors import TrainingError

CURVE_POINTS = (
    4,
    20,
)  # of a stage's curves, about: an epoch each, but so many at least, if it has the steps, and at most

Batch = Mapping[str, Any]
Scores = Mapping[str, Mapping[str, float]]  # split -> metric -> score


@dataclass(frozen=True)
class Loss:
    """What a step hands to the loop."""

    total: Tensor  # [] sum over units, keeps its gradient
    count: Tensor  # [] units in this micro-batch: examples, target tokens, anchors
    parts: dict[str, Tensor]  # [] detached sums of the named terms, unweighted
    weights: dict[str, float]  # of each part in the total

    @classmethod
    def of(cls, terms: Mapping[str, tuple[float, Tensor]]) -> Loss:
        """From named terms: weight and one number per unit, [B] examples or [N] target tokens."""
        some = next(iter(terms.values()))[1]
        total = torch.stack([weight * values.sum() for weight, values in terms.values()]).sum()
        parts = {name: values.detach().sum() for name, (_, values) in terms.items()}
        weights = {name: weight for name, (weight, _) in terms.items()}
        return cls(total, torch.tensor(float(len(some)), device=some.device), parts, weights)


@dataclass(frozen=True)
class Progress:
    """Where training is: `step` and `epoch` count from 0. `rng` depends on seed, step, process and micro-batch only."""

    step: int
    steps: int
    epoch: int
    epochs: int
    per_epoch: int  # optimiser steps
    rng: np.random.Generator


class Step(Protocol):
    def __call__(self, model: nn.Module, batch: Batch, progress: Progress) -> Loss: ...


class Steps(Protocol):
    """An epoch's optimiser steps, each a list of micro-batches; order is a pure function of seed and epoch."""

    def __len__(self) -> int: ...

    def epoch(self, k: int, start: int = 0) -> Any: ...


class Stateful(Protocol):
    """What a method keeps between steps: a moving average, transport weights. Tensors only."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train; the fields of `config.Fit` with what the run adds."""

    epochs: int
    lr: float
    warmup: float
    schedule: str
    optimizer: str
    weight_decay: float
    clip: float
    eval_steps: int
    patience: int
    seed: int
    precision: str
    max_steps: int | None = None
    select: tuple[str, str] | None = None  # (split, metric) that chooses the checkpoint; None: the last one
    expected: tuple[str, ...] = ()  # parts that the configuration asks for
    attention: str | None = None  # kernel of the model; None: that of the table in `engine.device`


@dataclass
class History:
    """What happened: every evaluation, and which one was chosen."""

    evaluations: list[dict[str, Any]] = field(default_factory=list)  # {"step", "scores"}
    curves: list[dict[str, Any]] = field(default_factory=list)  # {"step", "epoch", "losses", "scores"}, by split
    selected_step: int = 0
    last_step: int = 0
    best_score: float | None = None
    stale: int = 0  # evaluations since the best one
    stopped_early: bool = False


def fit(
    model: nn.Module,
    step: Step,
    batches: Steps,
    plan: Plan,
    context: Context,
    *,
    evaluate: Callable[[], Scores] | None = None,
    follow: Callable[[], Mapping[str, Any]] | None = None,
    state: Mapping[str, Stateful] | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> History:
    """Train `model` in place, from the last checkpoint below `context.work` if there is one.

    evaluate: scores of the model as it is, to select by. follow: its losses and scores on samples of train and dev,
    taken before the first step and then at even distances; they select nothing.
    Afterwards the model holds the selected weights. Raises `TrainingError` when a loss is not finite.
    """
    target = device.pick_device(context.hardware)
    accelerator = device.accelerator(target, plan.precision)
    checkpoint.seed_everything(plan.seed)
    model.to(accelerator.device).train()
    compile_layers(model, context.hardware.compile)
    optimizer = build_optimizer(
        model,
        name=plan.optimizer,
        lr=plan.lr,
        weight_decay=plan.weight_decay,
        fused=True,
    )
    wrapped, prepared = device.prepare(accelerator, model, optimizer)
    trainer = _Trainer(model, wrapped, optimizer, prepared, accelerator, batches, plan, context, dict(state or {}))
    trainer.resume()

    with recomputed(model, wanted=context.hardware.recompute), interruption.deferred():
        if follow is not None and trainer.step == 0:
            trainer.follow(follow)
        if trainer.pending:
            trainer.look(follow, evaluate)
        while trainer.running:
            for micro_batches in trainer.rest_of_epoch():
                trainer.train_step(micro_batches, step)
                after_step()
                trainer.log_if_due()
                trainer.look(follow, evaluate)
                trainer.save_if_due()
                if not trainer.running:
                    break
    history = trainer.finish()
    accelerator.free_memory()
    return history


class _Trainer:
    """The state of one `fit`: what a checkpoint holds, and the verbs of the loop."""

    def __init__(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        prepared: Any,
        accelerator: Any,
        batches: Steps,
        plan: Plan,
        context: Context,
        state: dict[str, Stateful],
    ) -> None:
        self.model, self.wrapped, self.optimizer, self.prepared = model, wrapped, optimizer, prepared
        self.accelerator, self.batches, self.plan, self.context = accelerator, batches, plan, context
        self.extra = state
        self.world = device.World.current()
        self.tables = TableGradients(model, accelerator.device, processes=self.world.size)
        self.per_epoch = len(batches)
        self.steps = self.per_epoch * plan.epochs
        if plan.max_steps is not None:
            self.steps = min(self.steps, plan.max_steps)
        self.step = 0
        self.history = History()
        self.sums: dict[str, float] = {}  # since the last logged point
        self.seen: dict[str, float] = {}  # part -> sum of absolute values over the whole stage
        self.warned: list[str] = []  # texts, kept so that a continued stage tells them again
        self.tokens = 0
        self.log_every = max(1, min(50, self.steps // 100))
        self.log = MetricsLog(context.out / "metrics.jsonl") if self.world.first else None
        self.saved_at = self.logged_at = time.monotonic()
        self.saved_step = 0
        self.pending = False  # whether a signal broke off what follows on the last step
        self.wide = torch.float32 if accelerator.device.type == "mps" else torch.float64  # mps has no float64
        self.step_seconds = 0.0

    @property
    def running(self) -> bool:
        return self.step < self.steps and not self.history.stopped_early

    @property
    def best_weights(self) -> Path:
        return self.context.work / f"best-{self.history.selected_step}.safetensors"

    @property
    def epoch(self) -> int:
        return self.step // self.per_epoch

    def rest_of_epoch(self) -> Any:
        steps = self.batches.epoch(self.epoch, start=self.step % self.per_epoch)
        return feed(steps, self.accelerator.device)

    # one optimiser step ----------------------------------------------------------------------------------------

    def train_step(self, micro_batches: Sequence[Batch], step: Step) -> None:
        factor = rate(self.plan.schedule, step=self.step, steps=self.steps, warmup=self.plan.warmup)
        set_rate(self.optimizer, self.plan.lr * factor)
        self.prepared.zero_grad()
        names: list[str] = []
        sums: list[Tensor] = []
        weights: dict[str, float] = {}
        for number, micro in enumerate(micro_batches):
            batch = {key: _move(value, self.accelerator.device) for key, value in micro.items()}
            real = float(micro.get("real", True))
            rng = np.random.default_rng([self.plan.seed, self.step, self.world.rank, number])
            progress = Progress(self.step, self.steps, self.epoch, self.plan.epochs, self.per_epoch, rng)
            together = nullcontext() if number == len(micro_batches) - 1 else self.accelerator.no_sync(self.wrapped)
            with together:
                loss = step(self.wrapped, batch, progress)
                self.accelerator.backward(loss.total * real)
            names, weights = list(loss.parts), loss.weights
            rows = loss.count.new_tensor(len(batch["attention_mask"]))
            masks = [mask.sum() for name, mask in batch.items() if name.endswith("attention_mask")]
            counted = [loss.total.detach(), loss.count, rows, torch.stack(masks).sum(), *loss.parts.values()]
            sums.append(torch.stack([value.to(self.wide) for value in counted]) * real)
        total, count, examples, seen, *found = device.total(torch.stack(sums).sum(0)).tolist()
        parts = dict(zip(names, found, strict=True))
        if not np.isfinite(total):
            raise self.not_finite(total / count, {name: value / count for name, value in parts.items()}, micro_batches)

        norm = self.divide_and_clip(self.world.size / count)
        if self.accelerator.scaler is None and not np.isfinite(norm):
            raise self.not_finite(total / count, {"gradient": norm}, micro_batches)
        self.prepared.step()
        self.tables.clear()
        self.step += 1
        means = {name: value / count for name, value in parts.items()}
        self.remember(total / count, means, weights, norm, int(examples), int(seen))

    def divide_and_clip(self, factor: float) -> float:
        """Turn summed gradients into the mean over units and clip them; returns the norm before clipping."""
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.prepared)
        self.tables.gather()
        gradients = [values(p.grad) for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) * factor
        if self.plan.clip > 0:
            factor *= min(1.0, self.plan.clip / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        torch._foreach_mul_(gradients, factor)
        self.tables.spread()
        return norm

    def not_finite(self, loss: float, parts: Mapping[str, float], micro_batches: Sequence[Batch]) -> TrainingError:
        bad = [name for name, value in parts.items() if not np.isfinite(value)] or ["total"]
        weights_bad = [name for name, value in self.model.named_parameters() if not torch.isfinite(value).all()]
        rows = (
            [int(row) for batch in micro_batches for row in batch["index"]][:8] if "index" in micro_batches[0] else []
        )
        cause = (
            f"the weights {weights_bad[0]} were already not finite: an earlier step was too large"
            if weights_bad
            else "the weights are finite, so the forward pass of this batch overflowed"
        )
        rate_now = self.optimizer.param_groups[0]["lr"]
        return TrainingError(
            f"the loss of stage '{self.context.stage}' is {loss} at step {self.step} of {self.steps}: {cause}\n"
            f"  parts not finite: {', '.join(bad)}; learning rate {rate_now:.3g}; first rows of the batch: {rows}",
            where=str(self.context.out),
            fix="lower the learning rate or raise warmup"
            + ("" if self.plan.precision == "fp32" else ", or use precision=fp32")
            + "; what was trained before is kept in the last checkpoint",
        )

    # what is written down --------------------------------------------------------------------------------------

    def remember(
        self,
        loss: float,
        parts: Mapping[str, float],
        weights: Mapping[str, float],
        norm: float,
        examples: int,
        tokens: int,
    ) -> None:
        point = {
            "loss": loss,
            "grad_norm": norm,
            "steps": 1.0,
            "examples": float(examples),
            "tokens": float(tokens),
        }
        for name, value in parts.items():
            point[f"parts/{name}"] = value
            point[f"weighted/{name}"] = value * weights[name]
            point[f"count/{name}"] = 1.0
            self.seen[name] = self.seen.get(name, 0.0) + abs(value * weights[name])
        self.tokens += tokens
        for key, value in point.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def log_if_due(self) -> None:
        if self.step % self.log_every and self.step != self.steps:
            return
        self.warn_of_idle_parts()
        now = time.monotonic()
        seconds, self.logged_at = now - self.logged_at, now
        taken = self.sums["steps"]
        self.step_seconds = seconds / taken if seconds > 0 else self.step_seconds
        point: dict[str, Any] = {
            "step": self.step,
            "steps": self.steps,
            "epoch": self.step / self.per_epoch,
            "loss": self.sums["loss"] / taken,
            "grad_norm": self.sums["grad_norm"] / taken,
            "lr": self.optimizer.param_groups[0]["lr"],
            "examples": int(self.sums["examples"]),
            "tokens": int(self.sums["tokens"]),
        }
        for key, value in self.sums.items():
            group, _, name = key.partition("/")
            if group in ("parts", "weighted"):
                point[key] = value / self.sums[f"count/{name}"]
        self.write(point, tokens_per_second=self.sums["tokens"] / max(seconds, 1e-9))
        self.sums = {}

    def write(self, point: dict[str, Any], **times: float) -> None:
        """Log a point; figures of time go to the screen and to tracking, not into the reproducible log."""
        if self.log is None:
            return
        point = {"stage": self.context.stage, **point}
        self.log.append(point)
        left = self.step_seconds * (self.steps - self.step)
        live = {**point, **times, "seconds_left": left}
        self.context.track(live)
        self.context.show(live)

    def warn_of_idle_parts(self) -> None:
        absent = [name for name in self.plan.expected if name not in self.seen]
        ramp_over = self.step >= min(2 * self.per_epoch, self.steps)
        idle = [name for name, value in self.seen.items() if value == 0.0] + absent if ramp_over else []
        for name in idle:
            self.warn(f"the loss term '{name}' is configured but contributes exactly nothing")

    def warn(self, text: str) -> None:
        """Warn once in a stage."""
        if text not in self.warned:
            self.warned.append(text)
            self.context.warn(text)

    # evaluation and selection ----------------------------------------------------------------------------------

    def look(self, follow: Callable[[], Mapping[str, Any]] | None, evaluate: Callable[[], Scores] | None) -> None:
        """What is due after a step. A signal breaks it off, since it may take minutes: it is due again afterwards."""
        try:
            if follow is not None and self.curve_due():
                self.follow(follow)
            if evaluate is not None and self.evaluation_due():
                self.evaluate(evaluate)
        except interruption.Interrupted:
            self.pending = True
            self.save(reason="signal")
            self.tell_of_stop()
            raise
        self.pending = False

    def breakable(self) -> AbstractContextManager[None]:
        """Around an evaluation; of processes that train together, all others wait for it."""
        return interruption.immediate() if self.world.size == 1 else nullcontext()

    def curve_due(self) -> bool:
        wanted = min(max(self.plan.epochs, CURVE_POINTS[0]), CURVE_POINTS[1])
        every = -(-self.steps // wanted)
        return self.step % every == 0 or self.step == self.steps

    def follow(self, follow: Callable[[], Mapping[str, Any]]) -> None:
        if not self.world.first or any(point["step"] == self.step for point in self.history.curves):
            return
        self.model.eval()
        with self.breakable():
            found = follow()
        self.model.train()
        epoch = self.step / self.per_epoch
        self.history.curves.append({"step": self.step, "epoch": epoch, **found})
        losses = {f"curve/{split}/loss": value for split, value in found["losses"].items()}
        self.write({"step": self.step, "steps": self.steps, "epoch": epoch, **losses})

    def evaluation_due(self) -> bool:
        every = self.plan.eval_steps or self.per_epoch
        return self.step % every == 0 or self.step == self.steps

    def evaluate(self, evaluate: Callable[[], Scores]) -> None:
        stop = 0
        if self.world.first:
            self.model.eval()
            with self.breakable():
                scores = {split: dict(metrics) for split, metrics in evaluate().items()}
            self.history.evaluations.append({"step": self.step, "scores": scores})
            self.write(
                {
                    "step": self.step,
                    "steps": self.steps,
                    "epoch": self.step / self.per_epoch,
                    **{f"eval/{s}/{m}": value for s, metrics in scores.items() for m, value in metrics.items()},
                }
            )
            stop = int(self.select(scores))
        self.history.stopped_early = bool(device.share(stop))
        self.model.train()
        self.save(reason="evaluation")

    def select(self, scores: Scores) -> bool:
        """Keep the weights if they are the best so far; True if training should stop early."""
        if self.plan.select is None:
            return False
        split, metric = self.plan.select
        score = scores[split][metric]
        if self.history.best_score is None or score > self.history.best_score:
            self.history.best_score, self.history.selected_step, self.history.stale = score, self.step, 0
            save_file(_contiguous(self.model.state_dict()), self.context.work / f"best-{self.step}.safetensors")
            return False
        self.history.stale += 1
        return 0 < self.plan.patience <= self.history.stale

    # checkpoints -----------------------------------------------------------------------------------------------

    def save_if_due(self) -> None:
        due = time.monotonic() - self.saved_at >= self.context.hardware.checkpoint_seconds
        reason = device.share(interruption.asked() or int(due))  # no signal that asks to stop has the number 1
        if reason and self.saved_step != self.step and (self.running or reason > 1):
            self.save(reason="time" if reason == 1 else "signal")
        if reason > 1:
            self.tell_of_stop()
            raise interruption.Interrupted(reason)

    def tell_of_stop(self) -> None:
        self.context.note(f"stopped at step {self.step} of {self.steps}, with a checkpoint")

    def save(self, *, reason: str) -> None:
        tensors = {
            "model": _contiguous(self.model.state_dict()),
            "optimizer": checkpoint.flat_optimizer(self.optimizer),
        }
        for name, part in self.extra.items():
            tensors[f"extra-{name}"] = part.state_dict()
        offset = 0 if self.log is None else self.log.offset()
        state = {
            "history": asdict(self.history),
            "sums": self.sums,
            "seen": self.seen,
            "warned": self.warned,
            "tokens": self.tokens,
            "offset": offset,
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "environment": self.environment(),
            "reason": reason,
            "pending": self.pending,
        }
        best = self.best_weights
        beside = {best: best.stat().st_size} if best.exists() else {}
        if self.log is not None and offset:
            beside[self.log.path] = offset
        checkpoint.save(self.context.work, self.step, tensors=tensors, state=state, beside=beside)
        if self.world.first:
            for old in self.context.work.glob("best-*.safetensors"):
                if old != best:
                    old.unlink()
        self.saved_at, self.saved_step = time.monotonic(), self.step

    def environment(self) -> dict[str, Any]:
        """What bit-exact continuation depends on besides the checkpoint."""
        return {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "threads": torch.get_num_threads(),
            "device": str(self.accelerator.device.type),
            "processes": self.world.size,
            "attention": self.plan.attention or device.attention_kernel(self.context.hardware),
            "fused": bool(self.optimizer.defaults.get("fused")),
            "compile": self.context.hardware.compile,
        }

    def resume(self) -> None:
        folder = checkpoint.newest(self.context.work, self.context.note)
        if folder is None:
            if self.log is not None:
                self.log.cut(0)
            return
        state = checkpoint.read_state(folder)
        self.model.load_state_dict(checkpoint.read_tensors(folder, "model"))
        checkpoint.load_optimizer(self.optimizer, checkpoint.read_tensors(folder, "optimizer"))
        for name, part in self.extra.items():
            part.load_state_dict(checkpoint.read_tensors(folder, f"extra-{name}"))
        self.history = History(**state["history"])
        self.sums, self.seen = state["sums"], state["seen"]
        self.step, self.tokens = int(state["step"]), int(state["tokens"])
        self.saved_step = self.step
        self.pending = bool(state.get("pending"))  # one of another version may not say
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.log is not None:
            self.log.cut(int(state["offset"]))
        same = checkpoint.restore_rng(folder) and state["environment"] == self.environment()
        self.context.note(f"continues at step {self.step} of {self.steps}")
        for text in state["warned"]:
            self.warn(text)
        if not same:
            self.warn(
                f"the checkpoint was made under {state['environment']}, this is {self.environment()}: "
                "training continues, but not bit for bit as the unbroken run"
            )

    def finish(self) -> History:
        history = self.history
        history.last_step = self.step
        if self.plan.select is None or history.best_score is None:
            history.selected_step = self.step
        history.selected_step = device.share(history.selected_step)  # only the first process evaluates
        if history.selected_step != self.step:
            self.model.load_state_dict(load_file(_found(self.best_weights)))
        device.wait()  # until all have read it: the first process removes it with `work`
        self.tables.close()
        self.context.facts.update(steps=self.step, selected_step=history.selected_step, trained_tokens=self.tokens)
        self.context.facts["environment"] = self.environment()
        self.model.eval()
        return history


def _found(path: Path) -> Path:
    if not path.exists():
        raise TrainingError(
            f"the selected weights are gone: {path.name}",
            where=str(path.parent),
            fix="remove that folder and give the command again: the stage starts over",
        )
    return path


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _move(value: Any, target: torch.device) -> Any:
    return value.to(target, non_blocking=True) if isinstance(value, Tensor) else value
