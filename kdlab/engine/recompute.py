"""Less memory for more time: the backward pass computes each Transformer layer's inside once more.

Between the passes only what enters a layer is kept. The second computation is the first one again, bit for bit: torch
puts its random state and autocast back, and masks are drawn by `kdlab.models.dropout` in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdlab.engine.compiling import transformer_layers
from kdlab.models.dropout import quick_dropout


@contextmanager
def recomputed(model: nn.Module, place: torch.device, *, wanted: bool) -> Iterator[None]:
    """Inside, if `wanted`, every Transformer layer of `model` that trains on `place` is computed twice."""
    layers = list(transformer_layers(model)) if wanted else []
    for layer in layers:
        layer.forward = partial(_twice, layer, layer.forward, place)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class has its own


def _twice(layer: nn.Module, forward: Callable[..., Any], place: torch.device, *args: Any, **named: Any) -> Any:
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*args, **named)

    def around() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), quick_dropout(layer, place)  # the first time the caller has it around all layers

    return checkpoint(forward, *args, use_reentrant=False, context_fn=around, **named)
