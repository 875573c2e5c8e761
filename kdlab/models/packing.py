"""Linear maps without gradients, on a processor, with weights in the order in which oneDNN's kernel reads them.

Other kernels bring the weights into their order at every call. For few rows that is most of a product: a token of 32
texts is 32 rows, and products of 8 to 64 rows by the weights of GPT-2 take half of the time once the weights are packed
(`Packed`, for a model that writes). For many rows the kernel itself is the quicker one: a forward pass of an encoder
gives a tenth more tokens a second in fp32 and as many or a tenth more in bf16 (`packed_linears`, for teachers and
prediction; benchmarks/kernels.py measures it). Same arithmetic in the same precision; sums are rounded in another
order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.pytorch_utils import Conv1D

from kdlab.models.instead import Instead

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
        self._forwards: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        if rows < FEWEST or not may_be_packed(model):
            return
        for module in filter(_packable, _linears(model)):
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


def may_be_packed(model: nn.Module) -> bool:
    """Whether its linear weights are few enough to be held twice."""
    return sum(module.weight.nbytes for module in _linears(model)) <= LIMIT  # type: ignore[operator, union-attr, misc]


def _linears(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]


@cache
def available(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type here: bf16 needs instructions that not every processor has."""
    if dtype not in SOME or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        _pack(torch.zeros(16, 16, dtype=dtype), FEWEST)
    except (AttributeError, RuntimeError):
        return False
    return True


def _packable(module: nn.Module) -> bool:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.device.type == "cpu" and available(weight.dtype) and "forward" not in vars(module)


def _pack(matrix: Tensor, rows: int) -> Tensor:
    """matrix: [out, in]. rows: of most products."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix, rows)
    return found


def _flops(rows: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Of a product with packed weights, which torch does not count by itself."""
    return 2 * rows[0] * rows[1] * out_shape[1]


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)


def _product(weight: Tensor, bias: Tensor | None, width: int, input: Tensor) -> Tensor:
    rows = input.reshape(-1, input.shape[-1])
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found.view(*input.shape[:-1], width)


def packed_linears(tokens: Tensor) -> AbstractContextManager[Any]:
    """For a forward pass of a model that is only asked: products of many rows by frozen weights, on a processor.

    Weights are packed once for each type that they are multiplied in, and kept as long as they live; those that are not
    frozen are left to torch, and changes of torch's own are seen (`.data` and fused optimisers make others). Whether a
    product is one of these depends on its shape and type alone, so that a run can be repeated bit for bit.

    tokens: of any shape, one element for each row of most products.
    """
    wanted = tokens.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    enough = tokens.numel() >= min(SOME.values())
    return Instead(nn.functional.linear, _linear) if wanted and enough else nullcontext()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The signature of `torch.nn.functional.linear`."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    if not _suits(input, weight, dtype):
        return nn.functional.linear(input, weight, bias)
    return _product(_kept(weight, dtype), None if bias is None else bias.to(dtype), len(weight), input.to(dtype))


def _suits(input: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the product, of this type, is quicker with the weight packed, and the weight may be kept packed."""
    if weight.requires_grad or weight.is_inference() or not (weight.dim() == 2 and input.numel() and weight.numel()):
        return False
    autocast = torch.is_autocast_enabled("cpu")
    alike = {input.dtype, weight.dtype} <= SOME.keys() if autocast else input.dtype == weight.dtype
    return alike and available(dtype) and input.numel() // input.shape[-1] >= SOME[dtype]


# weight -> (its changes, its address, the type), what was packed then
_held: MutableMapping[Tensor, tuple[Any, Tensor]] = WeakTensorKeyDictionary()  # type: ignore[no-untyped-call]


def _kept(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The packed form of a weight, made where there is none or the weight has changed."""
    version = (weight._version, weight.data_ptr(), dtype)
    found = _held.get(weight)
    if found is None or found[0] != version:
        found = _held[weight] = (version, _pack(weight.to(dtype), MANY))
    return found[1]
