"""How much of a row is in its mix. The mixing itself is in `models.taps`, behind the embedding block.

Row b's partner is row B-1-b of the same forward pass, so mixing couples the rows of a batch.
Source: CR-ILD training_functions.py (ratio), modeling.py:1137-1157 (mixing).
"""

from __future__ import annotations

import numpy as np


def beta_ratio(rng: np.random.Generator, alpha: float) -> float:
    """A mixing ratio b ~ Beta(alpha, alpha) in [0, 1], uniform for alpha 1: either row may outweigh the other.

    Source: MUSC future/baseline_trainer.py:98-251 (alpha 1, a draw for each batch and view).
    """
    return float(rng.beta(alpha, alpha))


def folded_beta(rng: np.random.Generator, alpha: float) -> float:
    """A mixing ratio max(b, 1 - b), b ~ Beta(alpha, alpha): in [0.5, 1], so a row outweighs its partner.

    A batch's set of mixtures is the same for b and 1 - b: a row mixed with b is its partner mixed with 1 - b.
    """
    draw = beta_ratio(rng, alpha)
    return max(draw, 1 - draw)
