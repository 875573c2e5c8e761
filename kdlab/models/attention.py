"""Attention on a processor with few passes over its scores: the kernel "kdlab" of transformers' attention interface.

The same function as transformers' "eager", softmax(q k^T * scale + mask) with dropout, then v, forward and backward:

* q is scaled before the product, not the scores after it; mask and softmax work in place.
* Short rows of keys are padded, and hidden, to a whole vector of the processor: torch's softmax takes 17 ns an entry
  over 12 keys and 1.3 ns over 16. For the same reason it runs in fp32 where bf16 is slower (24 keys: 1.7 and 5.5 ns).
* Dropout's mask is drawn by `kdlab.models.dropout`, and is not kept: the backward pass needs the probabilities before
  and after it.

benchmarks/kernels.py compares them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from kdlab.models.dropout import noise

KERNEL = "kdlab"
LANES = 16  # fewer keys are padded to so many
HALF_LANES, LONG = 32, 64  # in bf16, softmax is quick over a multiple of the one, and not slow from the other on


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query, key, value [B,h,L,d], attention_mask [B,1,L or 1,L] to add -> [B,L,h,d].

    The mask gets no gradient. Probabilities are not given out.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    spare = max(0, LANES - key.shape[2])
    if spare:
        key, value = F.pad(key, (0, 0, 0, spare)), F.pad(value, (0, 0, 0, spare))
    share = dropout if module.training else 0.0
    out: Tensor = _Attention.apply(query, key, value, attention_mask, spare, scale, share)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        spare: int,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """spare: keys at the end that are padding of ours. Under autocast the products decide on the dtype."""
        scaled = query * scale
        scores = torch.matmul(scaled, key.transpose(-1, -2))
        dtype = scores.dtype
        if spare:
            scores[..., -spare:] = float("-inf")
        if mask is not None:  # the lowest number of fp32 is an infinity in bf16, and nan where all keys are hidden
            scores[..., : scores.shape[-1] - spare] += mask.clamp(min=torch.finfo(dtype).min).to(dtype)
        width = scores.shape[-1]
        if dtype.itemsize == 2 and width % HALF_LANES and width < LONG:
            shares = torch.softmax(scores.float(), dim=-1).to(dtype)
        else:
            shares = torch.softmax(scores, dim=-1)
        del scores
        dropped = shares * noise(shares.shape, dropout, dtype) if dropout > 0 else shares
        ctx.save_for_backward(scaled.to(dtype), key.to(dtype), value.to(dtype), shares, dropped)
        ctx.scale = scale
        return torch.matmul(dropped, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled, key, value, shares, dropped = ctx.saved_tensors
        gradient = gradients[0]
        of_value = torch.matmul(dropped.transpose(-1, -2), gradient)
        # shares * (x - sum(x * shares)), x = gradient v^T * mask being that of shares, and dropped = shares * mask
        of_scores = torch.matmul(gradient, value.transpose(-1, -2)).mul_(dropped)
        of_scores.addcmul_(shares, of_scores.sum(-1, keepdim=True), value=-1.0)
        of_query = torch.matmul(of_scores, key).mul_(ctx.scale)
        of_key = torch.matmul(of_scores.transpose(-1, -2), scaled)
        return of_query, of_key, of_value, None, None, None, None


AttentionInterface.register(KERNEL, attention)
AttentionMaskInterface.register(KERNEL, eager_mask)
