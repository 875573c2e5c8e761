"""Dropout as quick as the arithmetic around it, on a processor.

torch draws the mask of a CPU dropout one number after the other on one core (`aten::bernoulli_`): a quarter of a
training step of a small encoder. `quick_dropout` puts numpy's generators in its place for the length of a forward pass,
in every model of transformers, the attention's dropout included where its kernel calls it ("eager" and "kdlab" do, sdpa
draws its own). On other devices nothing changes.

Same law: each element is dropped on its own with probability p, and what is kept is divided by 1 - p. p is rounded to a
multiple of 2^-16 (0.1 becomes 0.1000061) for mask and divisor alike. Other draws than torch's: a run has another stream
of random numbers than one before, as with another seed. The masks depend on torch's random state alone, so a checkpoint
of it continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlab.models.instead import Instead

STEPS = 1 << 16  # of probability


def quick_dropout(model: nn.Module, place: torch.device) -> AbstractContextManager[Any]:
    """For a forward pass of `model` on `place`: quick masks if it trains on a processor, else as it is."""
    return Instead(nn.functional.dropout, _asked) if model.training and place.type == "cpu" else nullcontext()


def dropout(values: Tensor, p: float) -> Tensor:
    """`torch.nn.functional.dropout` in training, of values on a processor."""
    return values * noise(values.shape, p, values.dtype) if p > 0 else values


def noise(shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
    """What dropout multiplies with: 0 with probability p, else 1 / (1 - p). Drawn from torch's random state."""
    dropped = min(round(p * STEPS), STEPS)
    size = int(np.prod(shape))
    if dropped == STEPS:
        return torch.zeros(tuple(shape), dtype=dtype)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    kept = _words(size, seed).ge_(dropped - STEPS // 2)  # int16: 1 where the element is kept
    scale = torch.tensor(STEPS / (STEPS - dropped), dtype=dtype)
    if dtype.itemsize == kept.itemsize:  # the bits of `scale`, or none
        return kept.mul_(int(scale.view(torch.int16))).view(dtype).view(*shape)
    return kept.to(dtype).mul_(scale).view(*shape)


def _words(size: int, seed: int) -> Tensor:
    """`size` random numbers of 16 bits. (Two threads that share the work were not quicker.)"""
    return torch.from_numpy(np.random.SFC64(seed).random_raw(-(-size // 4))).view(torch.int16)[:size]


def _asked(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """The signature of `torch.nn.functional.dropout`."""
    assert not inplace, "no model of transformers drops in place"
    return dropout(input, p) if training else input
