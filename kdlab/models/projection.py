"""The head whose vectors a contrastive loss compares. It is trained with a model and not published with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.models.surgery import seeded


class ProjectionHead(nn.Module):
    """Linear - ReLU - Linear ("mlp") or one linear map ("linear") from `width` to `size`, then unit length.

    New weights are torch's own for linear maps, drawn from `seed`; the global random state stays as it is.
    Source: MUSC nets.py:238-258.
    """

    def __init__(self, width: int, size: int, kind: str, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            if kind == "mlp":
                self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size))
            elif kind == "linear":
                self.layers = nn.Sequential(nn.Linear(width, size))
            else:
                raise ValueError(f"kind is 'mlp' or 'linear', not {kind!r}")

    def forward(self, states: Tensor) -> Tensor:
        """[B, width] -> [B, size], in fp32 at least."""
        projected: Tensor = self.layers(states)
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)
