"""kdlab.models.dropout: the law of torch's dropout, from numpy's generators."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from kdlab.models import dropout as quick
from kdlab.models.dropout import dropout, noise, quick_dropout
from toy import encoder

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_noise_is_zero_or_the_inverse_of_what_is_kept(p: float, dtype: torch.dtype) -> None:
    found = noise((7, 1001), p, dtype)
    assert found.shape == (7, 1001) and found.dtype == dtype
    kept = torch.tensor(1 / (1 - round(p * 65536) / 65536), dtype=dtype)
    assert set(found.unique().tolist()) == {0.0, kept.item()}
    # as torch rounds it, but for p's own rounding
    native = F.dropout(torch.ones(1000, dtype=dtype), p).max()
    torch.testing.assert_close(kept, native, rtol=2 * torch.finfo(dtype).eps + 1e-4, atol=0)


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_each_element_is_dropped_on_its_own_with_probability_p(p: float) -> None:
    size = 1 << 22
    gone = (noise((size,), p, torch.float32) == 0).double()
    error = 5 * math.sqrt(p * (1 - p) / size)
    assert abs(gone.mean().item() - p) < error
    for lag in (1, 2, 3, 4, 64, 1 << 20):  # neighbours, lanes of a word, rows
        both = (gone[:-lag] * gone[lag:]).mean().item()
        assert abs(both - p * p) < 5 * math.sqrt(p * p / (size - lag)), lag
    lanes = gone.view(-1, 4).mean(0)
    assert (lanes - p).abs().max().item() < 2 * error


def test_values_and_gradients_are_those_of_torch_with_the_same_mask() -> None:
    values = torch.randn(5, 33, requires_grad=True)
    state = torch.get_rng_state()
    dropped = dropout(values, 0.25)  # a multiple of 2^-16: no rounding of p
    torch.set_rng_state(state)
    kept = noise(values.shape, 0.25, values.dtype) > 0
    torch.testing.assert_close(dropped, values * kept / 0.75)
    (gradient,) = torch.autograd.grad(dropped.sum(), values)
    torch.testing.assert_close(gradient, kept / 0.75)


def test_masks_follow_from_torchs_random_state() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        found.append((noise((1001,), 0.5, torch.float32), noise((10,), 0.5, torch.float32), torch.rand(1)))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
    again = noise((1001,), 0.5, torch.float32)
    assert not torch.equal(again, found[0][0]), "two calls draw two masks"


def test_nothing_and_everything_can_be_dropped() -> None:
    values = torch.ones(9)
    assert torch.equal(dropout(values, 0.0), values)
    assert torch.equal(dropout(values, 1.0), torch.zeros(9))


def test_a_model_of_transformers_uses_it_everywhere_while_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    real = quick.noise

    def counted(shape: torch.Size, p: float, dtype: torch.dtype) -> torch.Tensor:
        calls.append(tuple(shape))
        return real(shape, p, dtype)

    monkeypatch.setattr(quick, "noise", counted)
    native: list[object] = []
    monkeypatch.setattr(torch, "dropout", lambda *given, **named: native.append(given))
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, attn_implementation="eager")
    model = GPT2LMHeadModel(config).train()
    ids = torch.arange(10).view(2, 5)
    with quick_dropout(model, CPU):
        model(input_ids=ids)
    # embeddings; in each layer the attention's shares, its output and that of the feed-forward part
    assert calls == [(2, 5, 8), *[(2, 2, 5, 5), (2, 5, 8), (2, 5, 8)] * 2] and not native
    calls.clear()
    with quick_dropout(model.eval(), CPU):
        model(input_ids=ids)
    assert not calls


def test_a_tapped_encoder_trains_with_it_and_repeats_itself() -> None:
    model = encoder(dropout=0.3).train()
    batch = {"input_ids": torch.arange(12).view(3, 4) % 8, "attention_mask": torch.ones(3, 4, dtype=torch.long)}
    torch.manual_seed(1)
    first = model(batch).logits
    second = model(batch).logits
    torch.manual_seed(1)
    assert torch.equal(model(batch).logits, first) and not torch.equal(first, second)
