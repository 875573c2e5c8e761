"""kdlab.models.attention: the kernel "kdlab" gives what transformers' "eager" gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kdlab.models import attention as kernels
from kdlab.models.attention import KERNEL, attention
from kdlab.models.dropout import noise
from test_taps import tiny

QUICK = ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert"]  # the others have eager only


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    scores = query @ key.transpose(-1, -2) * scale
    shares = (scores if mask is None else scores + mask).softmax(-1)
    return ((shares if kept is None else shares * kept) @ value).transpose(1, 2)


def alike(found: torch.Tensor, expected: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    """The same values, and the same gradients of the inputs, in double precision."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    outer = torch.randn_like(found)
    gradients = (torch.autograd.grad(values, inputs, outer) for values in (found, expected))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 5, 16, 23, 40])
def test_output_and_gradients_in_double_precision(length: int, masked: bool) -> None:
    torch.manual_seed(length)
    query, key, value = (torch.randn(2, 3, length, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.zeros(2, 1, 1, length, dtype=torch.float64)
    mask[1, :, :, length // 2 + 1 :] = torch.finfo(torch.float64).min
    given = mask if masked else None
    found, none = attention(torch.nn.Module(), query, key, value, given, scaling=0.3)
    expected = reference(query, key, value, given, 0.3, None)
    assert none is None and found.is_contiguous()
    alike(found, expected, (query, key, value))


def test_dropout_is_that_of_the_probabilities() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 33, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    module = torch.nn.Module().train()
    torch.manual_seed(5)
    found, _ = attention(module, query, key, value, None, dropout=0.25)
    torch.manual_seed(5)
    kept = noise((2, 3, 33, 33), 0.25, torch.float64)
    expected = reference(query, key, value, None, 0.5, kept)
    alike(found, expected, (query, key, value))
    still, _ = attention(module.eval(), query, key, value, None, dropout=0.25)
    torch.testing.assert_close(still, reference(query, key, value, None, 0.5, None))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", QUICK)
def test_models_give_the_logits_and_gradients_of_eager(name: str, precision: str) -> None:
    torch.manual_seed(3)
    ids = torch.randint(5, 20, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    found = []
    for kernel in ("eager", KERNEL):
        model = tiny(name, kernel)
        assert model.config._attn_implementation == kernel
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = model(input_ids=ids, attention_mask=mask).logits
        logits.float().square().sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((logits.float().detach(), torch.cat(gradients)))
    (logits, gradient), (ours, our_gradient) = found
    bound = 2e-5 if precision == "fp32" else 0.05
    assert (ours - logits).norm() < bound * logits.norm()
    assert (our_gradient - gradient).norm() < bound * gradient.norm() and gradient.norm() > 0


def test_padded_keys_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    softmax = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, **how: widths.append(x.shape[-1]) or softmax(x, **how))
    query, key, value = (torch.randn(1, 1, 5, 4) for _ in range(3))
    found, _ = attention(torch.nn.Module(), query, key, value, None)
    assert widths == [kernels.LANES]
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value).transpose(1, 2))


def test_a_saved_model_names_no_kernel_of_ours(tmp_path: Path) -> None:
    tiny("bert", KERNEL).save_pretrained(tmp_path)
    assert KERNEL not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
