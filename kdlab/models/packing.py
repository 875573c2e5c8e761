"""Linear maps without gradients, on a processor, with weights in the order in which oneDNN's kernel reads them.

Other kernels bring the weights into their order at every call. For few rows that is most of a product: a token of 32
texts is 32 rows, and products of 8 to 64 rows by the weights of GPT-2 take half of the time once the weights are packed
(`Packed`, for a model that writes). For many rows the kernel itself is the quicker one: a forward pass of an encoder
gives a tenth more tokens a second in fp32, and up to a sixteenth in bf16 (`packed_linears`, for teachers, evaluation
and prediction; benchmarks/kernels.py measures it). Same arithmetic in the same precision; sums are rounded in another
order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import register_flop_formula
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.pytorch_utils import Conv1D

LIMIT = 4 << 30  # bytes of weights; those of larger models are not held twice
FEWEST = 4  # rows; to pack for fewer takes as long as they take for several tokens, and one row alone is slower with it
MANY = 1024  # rows that frozen weights are packed for
SOME = {torch.float32: 64, torch.bfloat16: 512}  # rows from which on a product with packed weights is the quicker one


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
            whole = None if bias is None else bias.detach()
            self._forwards.append((module, partial(_product, _pack(matrix, rows), whole, len(matrix))))

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
    return weight.device.type == "cpu" and weight.dtype in SOME and "forward" not in vars(module)


def _pack(matrix: Tensor, rows: int) -> Tensor:
    """matrix: [out, in]. rows: of most products."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix, rows)
    return found


def _flops(rows: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Of a product with packed weights, which torch does not count by itself."""
    return 2 * rows[0] * rows[1] * out_shape[1]


if _available():
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)


def _product(weight: Tensor, bias: Tensor | None, width: int, input: Tensor) -> Tensor:
    rows = input.reshape(-1, input.shape[-1])
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found.view(*input.shape[:-1], width)


def packed_linears(model: nn.Module, tokens: Tensor) -> AbstractContextManager[Any]:
    """For a forward pass of `model`: without gradients on a processor, products of many rows by packed frozen weights.

    They are packed once, and kept as long as the weights live and do not change. (To pack weights that train for each
    pass costs what it saves.) Whether a product is one of these depends on its shape and type alone, so that a run can
    be repeated bit for bit. tokens: of any shape, one element for each row of most products.
    """
    if tokens.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or not _available():
        return nullcontext()
    some = next(model.parameters())
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else some.dtype
    enough = dtype in SOME and tokens.numel() >= SOME[dtype]
    return _Packing() if enough and not some.requires_grad else nullcontext()


class _Packing(TorchFunctionMode):
    """Answers calls of `torch.nn.functional.linear`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The signature of `torch.nn.functional.linear`."""
    halved = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if halved else input.dtype
    rows = input.numel() // input.shape[-1]
    alike = {input.dtype, weight.dtype} <= SOME.keys() if halved else input.dtype == weight.dtype
    packed = None
    if alike and dtype in SOME and rows >= SOME[dtype] and not weight.requires_grad:
        packed = _kept.packed(weight, dtype)
    if packed is None:
        return nn.functional.linear(input, weight, bias)
    return _product(packed, None if bias is None else bias.to(dtype), len(weight), input.to(dtype))


class _Held(NamedTuple):
    version: tuple[int, int, torch.dtype]  # of the weight: changes, address, type of its products
    packed: Tensor
    size: int  # bytes


class _Kept:
    """The packed forms of frozen weights, up to `LIMIT`."""

    def __init__(self) -> None:
        self.held: MutableMapping[Tensor, _Held] = WeakTensorKeyDictionary()  # type: ignore[no-untyped-call]

    def packed(self, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """None: there is no room for it, or nothing says when it changes."""
        if weight.is_inference():
            return None
        version = (weight._version, weight.data_ptr(), dtype)
        found = self.held.get(weight)
        if found is None or found.version != version:
            self.held.pop(weight, None)
            size = weight.numel() * dtype.itemsize
            if size + sum(other.size for other in self.held.values()) > LIMIT:
                return None
            found = self.held[weight] = _Held(version, _pack(weight.to(dtype), MANY), size)
        return found.packed


_kept = _Kept()
