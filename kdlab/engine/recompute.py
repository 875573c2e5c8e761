"""Less memory for more time: the backward pass computes each Transformer layer's inside once more.

Between the passes only what enters a layer is kept. The second computation is the first one again, bit for bit: torch
puts its random state and autocast back, and what stands in for torch's functions (quick dropout) does so both times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from kdlab.engine.compiling import transformer_layers


@contextmanager
def recomputed(model: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Inside, if `wanted`, every Transformer layer of `model` that trains is computed twice."""
    layers = list(transformer_layers(model)) if wanted else []
    for layer in layers:
        layer.forward = partial(_twice, layer, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class has its own


def _twice(layer: nn.Module, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*args, **named)
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _inside(modes)), **named)


@contextmanager
def _inside(modes: Sequence[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as around:
        for mode in modes:
            around.enter_context(mode)
        yield
