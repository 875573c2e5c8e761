"""What the stages that train or run an encoder share: opening data, loading models, predicting, scoring."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from kdlab.artifacts import write_json
from kdlab.context import Context
from kdlab.data.batches import Batches, EncodedSplit, Rows, open_encoded
from kdlab.data.metrics import CLASSIFICATION, REGRESSION, score
from kdlab.engine import device
from kdlab.engine.loop import History, Plan, Scores, Stateful, Steps, fit
from kdlab.errors import ModelError
from kdlab.models.encoder import load_encoder, load_saved, save_student
from kdlab.models.taps import Tapped, Views
from kdlab.stages.steps import Objective

CURVE_SEED = 0  # of the rows that curves are drawn from: the same for every run

logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def try_weights(**values: Any) -> None:
    """Load what a stage is going to start from, and let go of it. Raises what `load_encoder` raises."""
    for spec in (values.get("model"), values.get("student")):
        if spec is not None and spec.get("init") == "pretrained":
            load_encoder(spec, num_labels=2, kind="classification", labels=None, attention="eager", seed=0)


class TaskData:
    """A tokenised task: its splits, labels and tokenizer."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.folder = folder
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.labels: list[str] | None = facts["labels"]
        self.kind = "classification" if self.labels else "regression"
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        self.max_length: int = facts["max_length"]

    @property
    def num_labels(self) -> int:
        return len(self.labels) if self.labels else 1

    def split(self, name: str) -> EncodedSplit:
        return open_encoded(self.folder, name)

    @property
    def metrics(self) -> list[str]:
        """Every metric that fits the task."""
        if self.kind == "regression":
            return list(REGRESSION)
        return [name for name in CLASSIFICATION if name != "f1" or self.num_labels == 2]

    @property
    def highest_token(self) -> int:
        """The largest id that a batch can hold."""
        found = [self.split(path.stem).highest_token for path in self.folder.glob("*.arrow")]
        return max(int(self.tokenizer.pad_token_id), *found)

    def splits(self, *, labelled: bool) -> list[str]:
        """Names of the evaluation splits there are: heldout, dev, test and the task's further sets."""
        names = [path.stem for path in sorted(self.folder.glob("*.arrow")) if path.stem != "train"]
        return [name for name in names if not labelled or self.split(name).labelled]

    @property
    def sample(self) -> str:
        """Name of a split to measure a model on: dev, else train; of several languages the first one's."""
        names = sorted(path.stem for path in self.folder.glob("*.arrow"))
        found = [name for kind in ("dev", "train") for name in names if name.partition(".")[0] == kind]
        return found[0]

    def rows(self, split: EncodedSplit, numbers: Sequence[int], *, pad_to_max: bool = False) -> dict[str, Any]:
        """One batch of the given rows."""
        chosen = np.asarray(numbers)
        width = self.max_length if pad_to_max else int(split.lengths[chosen].max())
        return split.collate(chosen, pad_token_id=self.tokenizer.pad_token_id, width=width)

    def batches(
        self,
        split: Rows,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool = False,
        pad_to_max: bool = False,
        micro_batch: int = 0,
        world: device.World | None = None,
    ) -> Batches:
        world = world or device.World()
        return Batches(
            split,
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            pad_token_id=self.tokenizer.pad_token_id,
            pad_to=self.max_length if pad_to_max else None,
            rank=world.rank,
            world=world.size,
            micro_batch=micro_batch,
        )


def new_model(spec: Mapping[str, Any], data: TaskData, *, seed: int, kernel: str) -> Tapped:
    """The model that a specification describes; `init: cut` keeps the named layers of the pre-trained base."""
    config = dict(spec.get("config", {}))
    if not spec.get("id") and not spec.get("path"):  # made of its configuration, cut or whole
        config |= {"vocab_size": len(data.tokenizer), "pad_token_id": data.tokenizer.pad_token_id}
    model = load_encoder(
        {**spec, "config": config},
        num_labels=data.num_labels,
        kind=data.kind,
        labels=data.labels,
        attention=kernel,
        seed=seed,
    )
    if data.highest_token >= model.config.vocab_size:
        raise ModelError(
            f"the texts hold token {data.highest_token}, and the model knows {model.config.vocab_size} tokens",
            where=str(spec.get("path") or spec.get("id")),
            fix="check that tokenizer.json belongs to these weights",
        )
    return Tapped(model, head=spec["head"])


def saved_model(folder: Path, *, kernel: str) -> Tapped:
    model, head = load_saved(folder, kernel)
    return Tapped(model, head=head)


def predict(
    model: Tapped,
    data: TaskData,
    split: EncodedSplit,
    *,
    batch_size: int,
    pad_to_max: bool,
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """Logits [N, C] in the order of the split's rows, at fp32 without dropout.

    classes: those of the model in its own order; the columns get the order of the data's.
    """
    batches = data.batches(split, batch_size=batch_size, seed=0, shuffle=False, pad_to_max=pad_to_max)
    logits = read_batches(model, batches, rows=len(split), width=data.num_labels)
    if classes is None:
        return logits
    assert data.labels is not None and sorted(classes) == sorted(data.labels), (classes, data.labels)
    return logits[:, [list(classes).index(name) for name in data.labels]]


def read_batches(model: Tapped, batches: Batches, *, rows: int, width: int) -> np.ndarray:
    """Logits [rows, width] in the order of the rows, at fp32 without dropout."""
    place = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits = np.zeros((rows, width), dtype=np.float32)
    with torch.no_grad():
        for (batch,) in batches.epoch(0):
            # The class's own forward: accelerate may have wrapped the instance's in autocast.
            found = Tapped.forward(model, on(place, batch)).logits
            logits[batch["index"].numpy()] = found.float().cpu().numpy()
    model.train(was_training)
    return logits


def on(place: torch.device, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a batch on a device."""
    return {key: value.to(place) for key, value in batch.items() if isinstance(value, torch.Tensor)}


def answers(logits: np.ndarray, kind: str) -> np.ndarray:
    """Class ids [N], or scores [N] for regression."""
    return logits.argmax(-1) if kind == "classification" else logits[:, 0]


def evaluator(
    model: Tapped, data: TaskData, *, splits: Sequence[str], first: str, batch_size: int, pad_to_max: bool
) -> Callable[[], Scores]:
    """A function that scores the model as it is now on each split, by every metric of the task, `first` before all."""
    metrics = [first, *(metric for metric in data.metrics if metric != first)]

    def evaluate() -> Scores:
        scores: dict[str, dict[str, float]] = {}
        for name in splits:
            split = data.split(name)
            found = answers(predict(model, data, split, batch_size=batch_size, pad_to_max=pad_to_max), data.kind)
            scores[name] = {metric: score(metric, found, split.labels) for metric in metrics}
        return scores

    return evaluate


def follower(
    model: Tapped,
    objective: Objective,
    samples: Mapping[str, tuple[TaskData, str]],
    *,
    rows: int,
    batch_size: int,
    pad_to_max: bool,
    scored: bool,
) -> Callable[[], dict[str, Any]]:
    """A function that gives the objective's mean loss, and scores, on `rows` fixed rows of each sample.

    samples: by name, the data and its split. scored: whether the model's logits are answers already.
    """
    drawn = {}
    for name, (data, split_name) in samples.items():
        split = data.split(split_name)
        chosen = np.random.default_rng(CURVE_SEED).permutation(len(split))[:rows]
        chosen = chosen[np.argsort(-split.lengths[chosen], kind="stable")]
        drawn[name] = (data, split, [chosen[at : at + batch_size] for at in range(0, len(chosen), batch_size)])

    class Plain(torch.nn.Module):
        """The model without what accelerate put around it: fp32."""

        def forward(self, batch: Mapping[str, torch.Tensor], **options: Any) -> Views:
            return Tapped.forward(model, batch, **options)

    plain = Plain()

    @torch.no_grad()
    def follow() -> dict[str, Any]:
        losses: dict[str, float] = {}
        scores: dict[str, dict[str, float]] = {}
        place = next(model.parameters()).device
        for name, (data, split, batches) in drawn.items():
            total, count = 0.0, 0.0
            logits = []
            for numbers in batches:
                batch = on(place, data.rows(split, numbers.tolist(), pad_to_max=pad_to_max))
                loss, answer = objective.clean(plain, batch)
                total, count = total + float(loss.total), count + float(loss.count)
                logits.append(answer.float().cpu().numpy())
            losses[name] = total / count
            if scored:
                found = answers(np.concatenate(logits), data.kind)
                labels = split.labels[np.concatenate(batches)]
                scores[name] = {metric: score(metric, found, labels) for metric in data.metrics}
        return {"losses": losses, "scores": scores}

    return follow


def train(
    context: Context,
    model: Tapped,
    objective: Objective,
    data: TaskData,
    *,
    fit_values: Mapping[str, Any],
    seed: int,
    precision: str,
    max_steps: int | None,
    pad_to_max: bool,
    select_on: str | None,
    metric: str | None = None,
    texts: TaskData | None = None,
    state: Mapping[str, Stateful] | None = None,
    after_step: Callable[[], None] = lambda: None,
    forward_rows: int | None = None,
) -> History:
    """Train on the task's training rows and leave `model/`, `history.json` and `metrics.jsonl` in the artifact.

    texts: train on its rows in place of the task's. select_on: the split whose `metric` chooses the checkpoint, "last"
    to keep the last one, or None for a stage without labels, which is not scored.
    """
    source = data if texts is None else texts
    batches = source.batches(
        source.split("train"),
        batch_size=fit_values["batch_size"],
        seed=seed,
        shuffle=True,
        drop_last=fit_values["drop_last"],
        pad_to_max=pad_to_max,
        micro_batch=context.hardware.micro_batch if forward_rows is None else forward_rows,
        world=device.World.current(),
    )
    size = context.hardware.eval_batch
    evaluate, follow = None, None
    if select_on is not None:
        splits = [name for name in ("heldout", "dev") if name in data.splits(labelled=True)]
        first = metric or data.metrics[0]
        evaluate = evaluator(model, data, splits=splits, first=first, batch_size=size, pad_to_max=pad_to_max)
    if context.curves:
        samples = {"train": (data, "train"), "dev": (data, "dev")}
        follow = follower(
            model,
            objective,
            samples if texts is None else {**samples, "supplement": (texts, "train")},
            rows=context.curves,
            batch_size=size,
            pad_to_max=pad_to_max,
            scored=select_on is not None,
        )
    return fit_model(
        context,
        model,
        objective,
        batches,
        tokenizer=data.tokenizer,
        fit_values=fit_values,
        seed=seed,
        precision=precision,
        max_steps=max_steps,
        select=None if select_on in (None, "last") or metric is None else (str(select_on), metric),
        evaluate=evaluate,
        follow=follow,
        state=state,
        after_step=after_step,
    )


def fit_model(
    context: Context,
    model: Tapped,
    objective: Objective,
    batches: Steps,
    *,
    tokenizer: PreTrainedTokenizerBase,
    fit_values: Mapping[str, Any],
    seed: int,
    precision: str,
    max_steps: int | None,
    select: tuple[str, str] | None,
    evaluate: Callable[[], Scores] | None,
    follow: Callable[[], Mapping[str, Any]] | None,
    state: Mapping[str, Stateful] | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> History:
    """Run the loop and leave `model/`, `history.json` and `metrics.jsonl` in the artifact.

    fit_values: the fields of `config.Fit`. select: (split, metric) of `evaluate` that chooses the checkpoint; None: the
    last one.
    """
    if precision == "bf16" and device.pick_device(context.hardware).type == "cpu" and device.native_bf16() is False:
        context.note("this processor does not compute in bf16 and is very slow at it: precision=fp32 is quicker here")
    plan = Plan(
        **{name: value for name, value in fit_values.items() if name not in ("batch_size", "drop_last")},
        seed=seed,
        precision=precision,
        max_steps=max_steps,
        select=select,
        expected=tuple(objective.expected()),
    )
    history = fit(
        model, objective, batches, plan, context, evaluate=evaluate, follow=follow, state=state, after_step=after_step
    )
    if device.World.current().first:
        save_student(model.model, tokenizer, context.out / "model")
        write_json(context.out / "history.json", asdict(history))
    return history


def parameters_without_gradient(model: nn.Module, run: Callable[[], torch.Tensor]) -> list[nn.Parameter]:
    """The trainable parameters that `run`'s scalar does not depend on, found by one backward pass."""
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(run())
    idle = [p for p in model.parameters() if p.requires_grad and p.grad is None]
    model.zero_grad(set_to_none=True)
    return idle
