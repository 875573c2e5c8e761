"""Linear maps of few rows, on a processor, at the speed of its arithmetic.

A token of 32 texts is 32 rows. For so few, most of a matrix product is spent on bringing the weights into the order in
which the kernel reads them, at every call. `Packed` does that once, with oneDNN: products of 8 to 64 rows by the
weights of GPT-2 take half of the time. Same arithmetic in the same precision; sums are rounded in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LIMIT = 4 << 30  # bytes of weights; those of larger models are not held twice
FEWEST = 4  # rows; to pack for fewer takes as long as they take for several tokens, and one row alone is slower with it


class Packed:
    """A model's linear maps with packed weights. Its weights must not change as long as this is used."""

    def __init__(self, model: nn.Module, *, rows: int) -> None:
        """rows: of most products. Of few, on a device other than a processor, or without oneDNN, the model stays as it
        is.
        """
        found = [module for module in model.modules() if type(module) in (nn.Linear, Conv1D) and _packable(module)]
        size = sum(module.weight.nbytes for module in found)  # type: ignore[operator, union-attr, misc]
        self._forwards: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        if rows < FEWEST or not _available() or size > LIMIT:
            return
        for module in found:
            weight, bias = module.weight, module.bias
            assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
            matrix = weight.detach() if isinstance(module, nn.Linear) else weight.detach().t().contiguous()  # [out, in]
            packed = torch.ops.mkldnn._reorder_linear_weight(matrix, rows)
            whole = None if bias is None else bias.detach()
            self._forwards.append((module, partial(_product, packed, whole, len(matrix))))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Meanwhile the model computes with the packed weights, without gradients."""
        packed = [] if torch.is_autocast_enabled("cpu") else self._forwards
        for module, forward in packed:
            module.forward = forward  # type: ignore[assignment]
        try:
            yield
        finally:
            for module, _ in packed:
                del module.forward


def _available() -> bool:
    enabled: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _packable(module: nn.Module) -> bool:
    weight = module.weight
    assert isinstance(weight, Tensor)
    kinds = (torch.float32, torch.bfloat16)
    return weight.device.type == "cpu" and weight.dtype in kinds and "forward" not in vars(module)


def _product(weight: Tensor, bias: Tensor | None, width: int, input: Tensor) -> Tensor:
    rows = input.reshape(-1, input.shape[-1])
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found.view(*input.shape[:-1], width)
