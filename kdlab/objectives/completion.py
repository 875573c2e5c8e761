"""The loss of a completion: what a student that generates is trained on."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each target token, -log softmax(logits)[target], in fp32.

    The mean over a batch's target tokens is the loss of transformers' models and of the official code; papers.md 2.2:
    L = -(1/|c|) sum_t log p(c_t | prompt, c_<t).

    Args:
        logits: [N, V] at the positions that predict them.
        targets: [N] token ids.

    Returns:
        [N], one number per token.
    """
    return functional.cross_entropy(logits.float(), targets, reduction="none")
