"""Mixing a batch with itself reversed. Shapes: B batch, L length.

Row b's partner is row B-1-b of the same forward pass, so these functions couple the rows of a batch.
Source: CR-ILD modeling.py:1137-1157 (embeddings), training_functions.py (ratio).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def mix(x: Tensor, lam: float) -> Tensor:
    """`lam * x + (1 - lam) * x[reversed]` along the first axis. Any shape [B, ...]."""
    return lam * x + (1 - lam) * x.flip(0)


def union(mask: Tensor) -> Tensor:
    """Positions [B, L] where a row or its partner has a token; `mask` is of bool or whole numbers 0 and 1."""
    return mask | mask.flip(0)


def folded_beta(rng: np.random.Generator, alpha: float) -> float:
    """A mixing ratio max(b, 1 - b), b ~ Beta(alpha, alpha): in [0.5, 1], so a row outweighs its partner."""
    draw = float(rng.beta(alpha, alpha))
    return max(draw, 1 - draw)
