"""Straightforward training steps that do what the authors' released code does, on stock models of transformers.

Batches are padded to the task's maximum length; attention is eager; queries, keys, values and hidden states of every
layer are returned, and the relations of every layer computed again, whatever the loss then looks at; each view
is a forward pass of its own; the optimiser goes through the parameters one by one. Nothing is slower than that on
purpose. A step is forward, backward, clipping, optimiser and zeroing of gradients.

Shapes: B batch, L length, h heads, d head size, D hidden size, C classes.
Sources: jongwooko/CR-ILD training_functions.py, losses.py, modeling.py, optimization.py; jongwooko/MUSC
future/baseline_trainer.py, future/modules/losses.py, nets.py. The code is ours; so is autocast, for steps in bf16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from kdlab.engine import device

Batch = Mapping[str, Tensor]
CPU = torch.device("cpu")
TEMPERATURE = 2.0  # of distilled logits
CONSISTENCY = 0.1  # weight of the consistency terms at the end of their ramp
CONTRAST = 0.1  # lambda of MUSC
SUPCON_TEMPERATURE, SUPCON_EPSILON = 0.3, 1e-4
MASKED = -10000.0


class Read(NamedTuple):
    """All that the official models return."""

    logits: Tensor  # [B, C]
    hidden: list[Tensor]  # layers + 1, [B, L, D]
    queries: list[Tensor]  # layers, [B, h, L, d]
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def relations(self) -> list[Tensor]:
        """Scores before softmax of every layer, computed anew [B, h, L, L]. Source: training_functions.py:220-231."""
        return [relation(query, key) for query, key in zip(self.queries, self.keys, strict=True)]


class Reader(nn.Module):
    """A stock BERT classifier that shows all its layers and takes mixed inputs.

    fit_dense: a student's linear map, which all its hidden states go through (modeling.py:1131-1134).
    """

    def __init__(self, model: PreTrainedModel, *, student: bool = False) -> None:
        super().__init__()
        self.model = model
        width = model.config.hidden_size
        self.fit_dense = nn.Linear(width, width) if student else None

    def forward(self, batch: Batch, lam: float | None = None) -> Read:
        """lam: mix embedding outputs, lam * E + (1 - lam) * E of the reversed batch, under the union of the masks."""
        mask = batch["attention_mask"]
        seen: dict[str, list[Tensor]] = {"query": [], "key": [], "value": []}
        with ExitStack() as hooks:
            if lam is not None:
                mask = torch.maximum(mask, mask.flip(0))
                hooks.callback(embeddings(self.model).register_forward_hook(_mix(lam)).remove)
            for number in range(self.model.config.num_hidden_layers):
                attention = self.model.base_model.get_submodule(f"encoder.layer.{number}.attention.self")
                for name, found in seen.items():
                    module = attention.get_submodule(name)
                    hooks.callback(module.register_forward_hook(lambda _, __, out, kept=found: kept.append(out)).remove)
            read = self.model(input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=True)
        hidden = list(read.hidden_states)
        if self.fit_dense is not None:
            hidden = [self.fit_dense(states) for states in hidden]
        heads = self.model.config.num_attention_heads
        split = {
            name: [states.view(*states.shape[:2], heads, -1).transpose(1, 2) for states in found]
            for name, found in seen.items()
        }
        return Read(read.logits, hidden, split["query"], split["key"], split["value"])


def embeddings(model: PreTrainedModel) -> nn.Module:
    """The module that puts out the complete embedding output."""
    return model.base_model.get_submodule("embeddings")


def _mix(lam: float) -> Any:
    return lambda _module, _args, output: lam * output + (1 - lam) * output.flip(0)


def relation(x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y.transpose(-1, -2)) / math.sqrt(x.shape[-1])


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy over keys, the mean over batch, heads and all rows, padded ones too. Source: losses.py:141-163."""
    hidden_keys = ((1 - mask.float()) * MASKED)[:, None, None, :]
    target = F.softmax(teacher.float() + hidden_keys, dim=-1)
    return -(target * F.log_softmax(student.float() + hidden_keys, dim=-1)).sum(-1).mean()


def hidden_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Source: losses.py:37-56."""
    return F.mse_loss(student.float(), teacher.float())


def soft_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Source: losses.py:7-19."""
    target = F.softmax(teacher.float() / TEMPERATURE, dim=-1)
    return -(target * F.log_softmax(student.float() / TEMPERATURE, dim=-1)).sum(-1).mean() * TEMPERATURE**2


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction that clips each tensor. Source: optimization.py, its loop over parameters."""

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["next_m"], state["next_v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                torch.nn.utils.clip_grad_norm_(parameter, 1.0)
                state["next_m"].mul_(0.9).add_(parameter.grad, alpha=0.1)
                state["next_v"].mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
                update = state["next_m"] / (state["next_v"].sqrt() + 1e-6)
                if group["weight_decay"] > 0:
                    update += group["weight_decay"] * parameter
                parameter.add_(update, alpha=-group["lr"])


class Distillation:
    """A step of the family of CR-ILD; each kind of step has its own `loss`."""

    def __init__(self, student: Reader, teacher: Reader | None, precision: str, *, lr: float = 3e-5) -> None:
        self.student, self.teacher, self.precision = student.train(), teacher, precision
        if teacher is not None:
            teacher.eval()
        plain = ("bias", "LayerNorm.weight")
        named = list(student.named_parameters())
        groups = [
            {"params": [p for name, p in named if not name.endswith(plain)], "weight_decay": 0.01},
            {"params": [p for name, p in named if name.endswith(plain)], "weight_decay": 0.0},
        ]
        self.optimizer = BertAdam(groups, lr, 0.01)

    def loss(self, batch: Batch, lam: float) -> Tensor:
        raise NotImplementedError

    def __call__(self, batch: Batch, lam: float = 0.7) -> Tensor:
        """lam: the share of a row in its mix, where inputs are mixed; it decides on no amount of work."""
        with device.autocast(CPU, self.precision):
            loss = self.loss(batch, lam)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def guide(self, batch: Batch, lam: float | None = None) -> Read:
        assert self.teacher is not None
        with torch.no_grad():
            read: Read = self.teacher(batch, lam)
        return read


class FineTuning(Distillation):
    def loss(self, batch: Batch, lam: float) -> Tensor:
        return F.cross_entropy(self.student(batch).logits.float(), batch["labels"])


class LogitKd(Distillation):
    """Source: training_functions.py:99-101."""

    def loss(self, batch: Batch, lam: float) -> Tensor:
        return soft_loss(self.student(batch).logits, self.guide(batch).logits)


class TinyBert(Distillation):
    """Relations and hidden states of uniformly mapped layers, embeddings included (`--attention_l2l --hidden_l2l`)."""

    def loss(self, batch: Batch, lam: float) -> Tensor:
        teacher, student = self.guide(batch), self.student(batch)
        targets, relations = teacher.relations, student.relations
        stride = len(targets) // len(relations)
        loss = hidden_loss(student.hidden[0], teacher.hidden[0])
        for layer, scores in enumerate(relations, start=1):
            loss = loss + relation_loss(scores, targets[layer * stride - 1], batch["attention_mask"])
            loss = loss + hidden_loss(student.hidden[layer], teacher.hidden[layer * stride])
        return loss


class CrIld(Distillation):
    """The last layer on mixed inputs, held consistent with the student's own clean ones.

    Source: training_functions.py:220-354.
    """

    def loss(self, batch: Batch, lam: float) -> Tensor:
        mask = batch["attention_mask"]
        teacher, student = self.guide(batch, lam), self.student(batch, lam)
        with torch.no_grad():
            clean = self.student(batch)
            own = clean.relations[-1]
        scores, targets = student.relations[-1], teacher.relations[-1]
        loss = relation_loss(scores, targets, mask) + hidden_loss(student.hidden[-1], teacher.hidden[-1])
        for share, states, relations, seen in (
            (lam, clean.hidden[-1], own, mask),
            (1 - lam, clean.hidden[-1].flip(0), own.flip(0), mask.flip(0)),
        ):
            held = relation_loss(scores, relations, seen) + hidden_loss(student.hidden[-1], states)
            loss = loss + CONSISTENCY * share * held
        return loss


def supcon(features: Tensor, labels: Tensor) -> Tensor:
    """features: [B, 2, P] of unit length. Source: MUSC future/modules/losses.py."""
    anchors = torch.cat(features.unbind(1))
    alike = (labels[:, None] == labels[None, :]).float().repeat(2, 2)
    others = 1 - torch.eye(len(anchors))
    alike = alike * others
    scores = anchors @ anchors.T / SUPCON_TEMPERATURE
    scores = scores - scores.max(dim=1, keepdim=True).values.detach()
    log_share = scores - torch.log((torch.exp(scores) * others).sum(1, keepdim=True))
    return -SUPCON_TEMPERATURE * ((alike * log_share).sum(1) / (alike.sum(1) + SUPCON_EPSILON)).mean()


class Musc:
    """A step of MUSC: for each language four forward passes and one backward pass, then Adam.

    head: from the last layer's [CLS] vector [B, D] to [B, P]. Source: baseline_trainer.py:98-251, nets.py:48-82.
    """

    def __init__(self, student: Reader, head: nn.Module, precision: str, *, lr: float = 1e-5) -> None:
        self.student, self.head, self.precision = student.train(), head.train(), precision
        self.optimizer = torch.optim.Adam([*student.parameters(), *head.parameters()], lr)

    def __call__(self, languages: Sequence[tuple[Batch, Batch]], ratios: tuple[float, float] = (0.3, 0.7)) -> Tensor:
        """languages: source texts and their translations, with the labels in both. Returns the mean loss."""
        losses = []
        for source, target in languages:
            loss = self.loss(source, target, ratios) / len(languages)
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.stack(losses).sum()

    def view(self, batch: Batch, lam: float | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, C], and projected vectors [B, P]."""
        mask = batch["attention_mask"]
        with ExitStack() as hooks, device.autocast(CPU, self.precision):
            model = self.student.model
            if lam is not None:
                mask = torch.maximum(mask, mask.flip(0))
                hooks.callback(embeddings(model).register_forward_hook(_mix(lam)).remove)
            read = model(input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=True)
            projected = self.head(read.hidden_states[-1][:, 0])
        return read.logits.float(), F.normalize(projected.float(), dim=-1)

    def loss(self, source: Batch, target: Batch, ratios: tuple[float, float]) -> Tensor:
        """ratios: of the mixed source texts and of the mixed translations."""
        labels, (w, v) = source["labels"], ratios
        partners = labels.flip(0)
        s, z_s = self.view(source)
        t, z_t = self.view(target)
        s_mixed, z_s_mixed = self.view(source, w)
        t_mixed, z_t_mixed = self.view(target, v)

        def mixed(logits: Tensor, share: float) -> Tensor:
            return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, partners)

        def pair(x: Tensor, y: Tensor, of: Tensor) -> Tensor:
            return supcon(torch.stack([x, y], dim=1), of)

        label = 0.5 * (F.cross_entropy(s, labels) + mixed(s_mixed, w) + F.cross_entropy(t, labels) + mixed(t_mixed, v))
        contrast = pair(z_s, z_t, labels)
        contrast = contrast + w * pair(z_s_mixed, z_t, labels) + (1 - w) * pair(z_s_mixed, z_t.flip(0), partners)
        contrast = contrast + v * pair(z_s, z_t_mixed, labels) + (1 - v) * pair(z_s.flip(0), z_t_mixed, partners)
        return (1 - CONTRAST) * label + CONTRAST * contrast
