"""A model that only runs, at half precision."""

from __future__ import annotations

import copy

import torch
from torch import nn

from kdlab.models.taps import Tapped


def lowered(model: Tapped, dtype: torch.dtype | None) -> Tapped:
    """`model` for forward passes under autocast to `dtype` without gradients: the same numbers, bit for bit.

    A copy whose linear layers hold their weights as `dtype`, where autocast would round all of them again in each
    pass. dtype None: `model` itself.
    """
    if dtype is None:
        return model
    found = copy.deepcopy(model).requires_grad_(False)
    for module in found.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
    return found
