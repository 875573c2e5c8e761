"""Exponential moving average of a model's weights (CR-ILD's optional consistency target, modules/ema.py)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class MovingAverage(Generic[M]):
    """Keeps `module`, a copy of a model in eval mode and without gradients, as an average of its weights.

    update: average = decay * average + (1 - decay) * weight; integer buffers are copied.
    The official decay is 0.999.
    """

    def __init__(self, model: M, decay: float = 0.999) -> None:
        self.decay = decay
        self.module: M = deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: M) -> None:
        """Take one step towards the weights of `model`, which has the same structure as at the start."""
        current = model.state_dict()
        for name, average in self.module.state_dict().items():
            if average.is_floating_point():
                average.mul_(self.decay).add_(current[name], alpha=1 - self.decay)
            else:
                average.copy_(current[name])

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(state)
