"""Optimisers, their parameter groups, and the rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

FUSED_DEVICES = frozenset({"cpu", "cuda"})
LATE = 1e9  # steps after which 1 - beta^step is 1 in every float


def _is_normalisation(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in at most two groups: with decay, then without.

    Biases and the weights of LayerNorm and RMSNorm modules don't decay. Order: as the model registers them; a
    shared parameter counts once, where it comes first; an empty group is left out.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            exempt = name == "bias" or _is_normalisation(module)
            (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class BertAdam(torch.optim.Optimizer):
    """The Adam of the original BERT and of CR-ILD (optimization.py), which differs from AdamW in four points.

    1. The running averages are not corrected for their start at 0.
    2. `eps` is 1e-6. As in AdamW it is added to the root, not under it.
    3. Every parameter's gradient is clipped on its own to the norm `max_norm`, in place.
    4. Its state is the tensors `exp_avg` and `exp_avg_sq` and no step count.

    Decay is decoupled, as in AdamW: `rate * weight_decay * parameter`. The rate is set from outside, by
    `set_rate`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_norm: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_norm": max_norm}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient. Returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        if group["max_norm"] > 0:  # by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_
            scales = torch._foreach_add(torch._foreach_norm(gradients), 1e-6)
            torch._foreach_reciprocal_(scales)
            torch._foreach_mul_(scales, group["max_norm"])
            torch._foreach_clamp_max_(scales, 1.0)
            if bool((torch.stack(scales) < 1.0).any()):  # rarely, after a clip of the whole; one question to a GPU
                torch._foreach_mul_(gradients, scales)
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            gradients,
            [self.state[parameter]["exp_avg"] for parameter in parameters],
            [self.state[parameter]["exp_avg_sq"] for parameter in parameters],
            [],
            # so late that the corrections for the start are 1
            [torch.full((), LATE, device=parameter.device) for parameter in parameters],
            fused={parameter.device.type for parameter in parameters} <= FUSED_DEVICES,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def build_optimizer(
    model: nn.Module, *, name: str, lr: float, weight_decay: float, fused: bool
) -> torch.optim.Optimizer:
    """The optimiser `name` over the model's trainable parameters, grouped by `parameter_groups`.

    Args:
        name: "adamw" (torch, betas 0.9 and 0.999, eps 1e-8) or "bert_adam" (`BertAdam`).
        lr: rate until `set_rate` changes it.
        fused: use torch's fused AdamW where all parameters are on a device that has one (cpu, cuda).
    """
    groups = parameter_groups(model, weight_decay)
    if name == "bert_adam":
        return BertAdam(groups, lr, weight_decay=weight_decay)
    if name != "adamw":
        raise ValueError(f"the optimiser is 'adamw' or 'bert_adam', not {name!r}")
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    use_fused = fused and devices <= FUSED_DEVICES
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=use_fused or None)


def rate(schedule: str, *, step: int, steps: int, warmup: float) -> float:
    """Factor of the peak rate at a step counted from 0.

    With x = step / steps: x / warmup while x < warmup; from there "constant" stays at 1, "linear" falls to 0
    at x = 1, and "cosine" falls to 0 along half a cosine wave. So the first step of a warm-up has factor 0
    and changes nothing but the optimiser's running averages.

    Args:
        schedule: "linear", "cosine" or "constant".
        step: 0 .. steps - 1.
        steps: optimiser steps of the whole training.
        warmup: share of the steps, 0 to 1.

    Source: CR-ILD optimization.py (warmup_linear, warmup_cosine, warmup_constant).
    """
    x = step / steps
    if x < warmup:
        return x / warmup
    if schedule == "constant" or warmup >= 1:
        return 1.0
    past = min((x - warmup) / (1 - warmup), 1.0)  # share of the time after the warm-up
    if schedule == "linear":
        return 1 - past
    if schedule == "cosine":
        return (1 + math.cos(math.pi * past)) / 2
    raise ValueError(f"the schedule is 'linear', 'cosine' or 'constant', not {schedule!r}")


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
