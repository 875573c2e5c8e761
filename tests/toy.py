"""Small models, data and runs of the training loop for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from kdlab.config import Fit, Hardware
from kdlab.context import Context
from kdlab.data.batches import Batches, EncodedSplit
from kdlab.engine.loop import Batch, Loss, Plan, Progress
from kdlab.models.encoder import load_encoder
from kdlab.models.taps import Tapped
from kdlab.objectives.logits import hard_label

VOCABULARY, CLASSES = 30, 3


def rows(count: int, *, seed: int = 0, longest: int = 9) -> EncodedSplit:
    """Random rows of 2 to `longest` tokens; the label is a function of the first token, so it can be learnt."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, VOCABULARY, rng.integers(2, longest + 1)).tolist() for _ in range(count)]
    columns = {
        "id": pa.array(range(count), pa.int64()),
        "input_ids": pa.array(ids, pa.list_(pa.int32())),
        "label": pa.array([tokens[0] % CLASSES for tokens in ids], pa.int64()),
    }
    return EncodedSplit(pa.table(columns))


def batches(count: int = 20, *, batch_size: int = 4, seed: int = 0, **changes: Any) -> Batches:
    named = {"shuffle": True, "pad_token_id": 0, **changes}
    return Batches(rows(count), batch_size=batch_size, seed=seed, **named)


def encoder(*, layers: int = 2, hidden: int = 16, dropout: float = 0.0, seed: int = 0) -> Tapped:
    """A BERT of two heads, with weights large enough that outputs differ."""
    config = {
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.2,
    }
    spec = {"init": "random", "config": config}
    model = load_encoder(spec, num_labels=CLASSES, kind="classification", labels=None, attention="eager", seed=seed)
    return Tapped(model)


class Words(nn.Module):
    """The mean of word vectors, and a linear map: the smallest classifier of texts."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator))
        self.linear = nn.Linear(8, CLASSES)
        with torch.no_grad():
            self.linear.weight.normal_(generator=generator)
            self.linear.bias.zero_()

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (self.table[batch["input_ids"]] * mask).sum(1) / mask.sum(1)
        logits: Tensor = self.linear(mean)
        return logits


def label_step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
    found = model(batch)
    logits = found if isinstance(found, Tensor) else found.logits
    return Loss.of({"label": (1.0, hard_label(logits, batch["labels"], kind="classification"))})


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "epochs": 2,
        "lr": 0.01,
        "warmup": 0.0,
        "schedule": "constant",
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "clip": 1.0,
        "eval_steps": 0,
        "patience": 0,
        "seed": 7,
        "precision": "fp32",
        "expected": ("label",),
    }
    return Plan(**{**values, **changes})


def context(out: Path, *, seconds: float = 1e9, warn: Callable[[str], None] = lambda _: None) -> Context:
    """A stage's context in the folder `out`; a checkpoint at least every `seconds`."""
    (out / "work").mkdir(parents=True, exist_ok=True)
    hardware = Hardware(name="cpu", device="cpu", checkpoint_seconds=seconds)
    return Context(out=out, stage="toy", hardware=hardware, warn=warn)


def fields_without_fit(fit: Fit) -> dict[str, Any]:
    """A stage's objective as the plan hands it over: all that says what is learnt, not how it is trained."""
    return {name: value for name, value in asdict(fit).items() if name not in {item.name for item in fields(Fit)}}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether two groups of tensors are equal bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
