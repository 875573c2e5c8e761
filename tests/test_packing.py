"""Products with packed weights are the products of torch, and never of weights that have changed."""

from __future__ import annotations

import gc
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

import toy
from kdlab.models import packing
from kdlab.models.packing import packed_linears

SOME, SOME_HALVES = packing.SOME[torch.float32], packing.SOME[torch.bfloat16]
DTYPES = [dtype for dtype in packing.SOME if packing.available(dtype)]
pytestmark = pytest.mark.skipif(torch.float32 not in DTYPES, reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nothing is held yet."""
    found = WeakTensorKeyDictionary()
    monkeypatch.setattr(packing, "_held", found)
    return found


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of weights that were packed."""
    seen: list[tuple[int, ...]] = []
    real = packing._pack

    def spy(matrix: torch.Tensor, rows: int) -> torch.Tensor:
        seen.append(tuple(matrix.shape))
        return real(matrix, rows)

    monkeypatch.setattr(packing, "_pack", spy)
    return seen


def asked(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), packed_linears(inputs[0][..., 0]):
        found: torch.Tensor = model(*inputs)
    return found


def linear(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 80, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(SOME_HALVES, 48), (4, 256, 48), (2, 3, 700, 48)])
def test_the_product_is_torchs(bias: bool, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    model, rows = linear(bias=bias, dtype=dtype), torch.randn(shape).to(dtype)
    with torch.no_grad():
        found, wanted = asked(model, rows), model(rows)
    assert found.shape == wanted.shape and found.dtype == dtype
    exact = rows.double() @ model.weight.double().T + (model.bias.double() if bias else 0)
    assert float((found - exact).abs().max()) <= 4 * torch.finfo(dtype).eps * float(exact.abs().max())
    assert float((found - exact).abs().max()) <= 1.5 * float((wanted - exact).abs().max())


@pytest.mark.skipif(torch.bfloat16 not in DTYPES, reason="this processor has no instructions for bf16")
def test_under_autocast_it_is_rounded_as_torch_rounds(packs: list[tuple[int, ...]]) -> None:
    model, rows = linear(), torch.randn(SOME_HALVES, 48)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found, wanted = asked(model, rows), model(rows)
    assert found.dtype == wanted.dtype == torch.bfloat16 and packs == [(80, 48)]
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


def test_frozen_weights_are_packed_once_and_for_many_rows(packs: list[tuple[int, ...]]) -> None:
    model = linear()
    asked(model, torch.randn(SOME - 1, 48))
    assert packs == []
    for rows in (SOME, SOME + 1, SOME):
        asked(model, torch.randn(rows, 48))
    assert len(packs) == 1


def test_weights_that_train_and_passes_with_gradients_are_left_to_torch(packs: list[tuple[int, ...]]) -> None:
    half = nn.Sequential(linear(), nn.Linear(80, 8))  # the first frozen, the second not
    model, rows = half[1], torch.randn(SOME, 48)
    asked(half, rows)
    assert packs == [(80, 48)]
    asked(model, torch.randn(SOME, 80))
    with packed_linears(rows[:, 0]):
        half(rows).sum().backward()
    assert packs == [(80, 48)] and model.weight.grad is not None


def test_other_types_are_left_to_torch(packs: list[tuple[int, ...]]) -> None:
    assert asked(linear(dtype=torch.float64), torch.randn(SOME, 48, dtype=torch.float64)).dtype == torch.float64
    asked(linear(dtype=torch.bfloat16), torch.randn(SOME_HALVES - 1, 48).bfloat16())
    with pytest.raises(RuntimeError, match="dtype"):
        asked(linear(), torch.randn(SOME_HALVES, 48).bfloat16())
    with torch.inference_mode():
        asked(linear(), torch.randn(SOME, 48))
    double = linear(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 as it is
        assert asked(double, torch.randn(SOME_HALVES, 48, dtype=torch.float64)).dtype == torch.float64
    assert packs == []


@pytest.mark.parametrize("how", ["in place", "loaded", "replaced", "another type"])
def test_a_change_of_frozen_weights_is_seen(how: str) -> None:
    model, rows = linear(), torch.randn(SOME, 48)
    asked(model, rows)
    if how == "in place":
        model.weight.mul_(2.0)
    elif how == "loaded":
        model.load_state_dict({name: 2.0 * value for name, value in model.state_dict().items()})
    elif how == "replaced":
        model.weight.data = 2.0 * model.weight.data
    else:
        model, rows = model.to(torch.bfloat16), rows.bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(asked(model, rows), model(rows))


def test_what_is_held_goes_with_the_weights(held: Any) -> None:
    model = linear()
    asked(model, torch.randn(SOME, 48))
    assert len(held) == 1
    del model
    gc.collect()
    assert len(held) == 0


def test_a_large_model_is_not_held_twice(packs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.encoder(layers=2)
    linears = sum(module.weight.nbytes for module in model.modules() if isinstance(module, nn.Linear))
    batch = {"input_ids": torch.ones(8, 16, dtype=torch.long), "attention_mask": torch.ones(8, 16, dtype=torch.long)}
    for limit, packed in ((linears, True), (linears - 1, False)):
        packs.clear()
        monkeypatch.setattr(packing, "LIMIT", limit)
        with torch.no_grad():
            model.freeze()(batch)
        assert bool(packs) == packed


def test_models_that_train_are_not_packed_and_those_that_are_only_asked_agree(packs: list[tuple[int, ...]]) -> None:
    model = toy.encoder(layers=2).eval()
    batch = {
        "input_ids": torch.randint(1, toy.VOCABULARY, (8, 16)),
        "attention_mask": torch.ones(8, 16, dtype=torch.long),
    }
    with torch.no_grad():
        wanted = model(batch).logits
        copy = deepcopy(model).eval().requires_grad_(False)  # a moving average: it changes
        copy(batch)
        assert packs == []
        torch.testing.assert_close(model.freeze()(batch).logits, wanted)
    assert packs and not any(weight.requires_grad for weight in model.parameters()) and not model.training


def test_without_the_instructions_for_bf16_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What oneDNN says on a processor with AVX2 alone."""
    real = packing._pack

    def refuses(matrix: torch.Tensor, rows: int) -> torch.Tensor:
        if matrix.dtype == torch.bfloat16:
            raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw")
        return real(matrix, rows)

    monkeypatch.setattr(packing, "_pack", refuses)
    packing.available.cache_clear()
    try:
        assert packing.available(torch.float32) and not packing.available(torch.bfloat16)
        model, rows = linear(dtype=torch.bfloat16), torch.randn(SOME_HALVES, 48).bfloat16()
        with torch.no_grad():
            assert torch.equal(asked(model, rows), model(rows))
            with packing.Packed(model, rows=8).used():
                assert torch.equal(model(rows), asked(model, rows))
    finally:
        packing.available.cache_clear()


def test_its_operations_are_counted_as_torchs() -> None:
    model, rows = linear(), torch.randn(SOME, 48)
    with FlopCounterMode(display=False) as ours:
        asked(model, rows)
    with FlopCounterMode(display=False) as torchs, torch.no_grad():
        model(rows)
    assert ours.get_total_flops() == torchs.get_total_flops() == 2 * SOME * 48 * 80
