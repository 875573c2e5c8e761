"""Supervised contrastive loss. Shapes: B examples, V views of each, d width, N examples of other processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

POSITIVES = ("epsilon", "clamp")


def supcon(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    base_temperature: float = 1.0,
    positives: str = "epsilon",
    epsilon: float = 1e-4,
    others: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Pull vectors of one class together and apart from all others.

    Every view of every example is an anchor i. With A_i the candidates (all vectors but the anchor itself) and P_i
    those of them with the anchor's label, it costs

        -(temperature / base_temperature) / n(|P_i|) * sum_{p in P_i} log softmax_{a in A_i}(z_i . z_a / temperature)_p

    An anchor without positives costs 0. Promotes half-precision inputs to float32 (float64 stays).

    Args:
        features: [B, V, d], already of unit length.
        labels: class ids [B]. All different: the views of an example are its only positives (SimCLR).
        temperature: above 0; lower looks more at the nearest vectors.
        base_temperature: only scales the loss.
        positives: n of the number of positives: "epsilon" adds `epsilon` to it, "clamp" makes it at least 1.
        others: further candidates, which are no anchors: features [N, V', d] and labels [N].

    Returns:
        [B], the mean over an example's views; its mean is the mean over anchors.

    Relations: a vector's cost depends on the whole batch, so the losses of micro-batches do not add up to the batch's.

    Source: Khosla et al. 2020 (arXiv 2004.11362), equation 2; MUSC future/modules/losses.py ("epsilon", with which it
    trains) and future/losses.py ("clamp").
    """
    if positives not in POSITIVES:
        raise ValueError(f"positives is 'epsilon' or 'clamp', not {positives!r}")
    if features.dim() != 3:
        raise ValueError(f"features are [examples, views, width], not {list(features.shape)}")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    examples, views, _ = features.shape
    anchors = features.flatten(0, 1)  # [B V, d]
    anchor_labels = labels.repeat_interleave(views)  # [B V]
    candidates, candidate_labels = anchors, anchor_labels
    if others is not None:
        further = others[0].to(features.dtype)
        candidates = torch.cat([anchors, further.flatten(0, 1)])
        candidate_labels = torch.cat([anchor_labels, others[1].repeat_interleave(further.shape[1])])

    itself = torch.eye(len(anchors), len(candidates), dtype=torch.bool, device=features.device)
    alike = (anchor_labels[:, None] == candidate_labels) & ~itself  # [B V, candidates]
    similarity = anchors @ candidates.T / temperature
    log_probability = F.log_softmax(similarity.masked_fill(itself, torch.finfo(similarity.dtype).min), dim=-1)
    count = alike.sum(-1).clamp(min=1) + (epsilon if positives == "epsilon" else 0.0)
    cost = -(temperature / base_temperature) * log_probability.masked_fill(~alike, 0.0).sum(-1) / count
    return cost.view(examples, views).mean(-1)
