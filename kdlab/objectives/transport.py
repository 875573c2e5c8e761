"""Many-to-many matching of layers by optimal transport. Shapes: B batch, S student layers, T teacher layers.

Every layer has a weight; the weights of each side sum to 1. The cheapest way to carry the student's weight to the
teacher's, where a pair of layers costs its distance, says how much each pair counts: the flow F [S, T]. The loss is
`sum_ij F_ij d_ij` with F held constant.

Source: BERT-EMD (Li et al. 2020); CR-ILD losses.py:165-321.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdlab.objectives.layers import LayerViews, PairDistance

LEAST_COST = 1e-8  # of a layer, relative to its side's dearest: bounds how unequal the weights can become
ROUNDING = 1e-12  # flows below this are left over by the solver


def transport_plan(distance: np.ndarray, student_weights: np.ndarray, teacher_weights: np.ndarray) -> np.ndarray:
    """The flow F >= 0 of least cost `sum_ij F_ij distance_ij` whose row sums are the student's weights.

    Its column sums are the teacher's weights. Exact (network simplex), with at most S + T - 1 entries above 0. Where
    several plans cost the same, e.g. as all distances are equal, it is one of them, always the same.

    Distances that are not finite have no cheapest plan. Each pair then counts the product of its weights, so that the
    loss is not finite either and the training loop reports it.

    Args:
        distance: [S, T] float64, at least 0.
        student_weights: [S] float64, at least 0, sum 1 to rounding.
        teacher_weights: [T] the same.

    Returns:
        [S, T] float64
    """
    if not np.isfinite(distance).all():
        return np.outer(student_weights, teacher_weights)
    import ot  # here, since it imports every tensor library that it finds

    scale = distance.max() or 1.0  # the solver's tolerance is absolute
    flow: np.ndarray = ot.emd(student_weights, teacher_weights, distance / scale)
    return np.where(flow < ROUNDING, 0.0, flow)


class LayerWeights:
    """The layer weights of each relation, float64; equal at first.

    A checkpoint keeps them (`engine.loop.Stateful`). Without `update` they stay as they are.

    names: of the relations. With separate=False all of them share the mean of their weights after each update, also
    those that an update does not name, as in the official code.
    """

    def __init__(self, names: Sequence[str], student_layers: int, teacher_layers: int, *, separate: bool) -> None:
        self.names, self.separate = tuple(names), separate
        self.student_layers, self.teacher_layers = student_layers, teacher_layers
        self.reset()

    def reset(self) -> None:
        """Make all weights equal again."""
        self._student = {name: np.full(self.student_layers, 1 / self.student_layers) for name in self.names}
        self._teacher = {name: np.full(self.teacher_layers, 1 / self.teacher_layers) for name in self.names}

    def weights(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(student [S], teacher [T]) of one relation."""
        return self._student[name], self._teacher[name]

    def update(self, flows: Mapping[str, np.ndarray], distances: Mapping[str, np.ndarray]) -> None:
        """Move weight to the layers that cost less. Call it once a step, with all relations of that step.

        `c_i = sum_j F_ij D_ij / w_i` is what a unit of layer i's weight cost; the new weight is `sum(c) / c_i`, scaled
        to sum 1. The same for the teacher's layers over columns. A cost below 1e-8 of the dearest counts as that, so
        that a layer that costs nothing takes nearly all the weight but leaves some to the others; if no layer costs
        anything, weights become equal. Then the mean over relations, unless they are separate.

        Args:
            flows: relation name -> F [S, T], with the present weights as row and column sums.
            distances: relation name -> D [S, T].

        Source: CR-ILD losses.py:176-204. There a cost of 0 makes all weights NaN.
        """
        for name, flow in flows.items():
            if not np.isfinite(distances[name]).all():
                continue  # nor is the loss, so training stops here
            cost = flow * distances[name]
            self._student[name] = _towards_cheap(cost.sum(1), self._student[name])
            self._teacher[name] = _towards_cheap(cost.sum(0), self._teacher[name])
        if not self.separate:
            for side in (self._student, self._teacher):
                mean = np.mean([side[name] for name in self.names], axis=0)
                side.update({name: mean for name in self.names})

    def state_dict(self) -> dict[str, Tensor]:
        sides = (("student", self._student), ("teacher", self._teacher))
        return {f"{name}.{side}": torch.tensor(of[name]) for name in self.names for side, of in sides}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self.names:
            self._student[name] = state[f"{name}.student"].cpu().numpy().copy()
            self._teacher[name] = state[f"{name}.teacher"].cpu().numpy().copy()


def _towards_cheap(cost: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """New weights, from what each layer cost in all and its present weight: [n] twice -> [n]."""
    each = cost / weights
    dearest = each.max()
    if dearest == 0:
        return np.full_like(weights, 1 / len(weights))
    inverse = dearest / np.maximum(each, LEAST_COST * dearest)
    return np.asarray(inverse / inverse.sum())


class Transported(NamedTuple):
    """What a transport gives: the losses, and what `LayerWeights.update` needs."""

    terms: dict[str, Tensor]  # relation name -> [B]
    flows: dict[str, np.ndarray]  # relation name -> [S, T]
    distances: dict[str, np.ndarray]  # relation name -> [S, T], batch means


def transport_terms(
    student: LayerViews,
    teacher: LayerViews,
    *,
    relations: Sequence[str],
    weights: LayerWeights,
    mask: Tensor | None,
    pad_rows: str,
    relation_divergence: str = "kl",
    hidden_divergence: str = "mse",
    relation_heads: int = 0,
    reduce: Callable[[Tensor], Tensor],
) -> Transported:
    """The distillation of inner layers where every student layer may learn from every teacher layer.

    Each relation by itself: D_ij, the batch mean of the distance of student layer i and teacher layer j; F, the plan
    of least cost for D and the relation's layer weights; the loss of an example b, `sum_ij F_ij d_ij[b]`. F depends on
    all examples of the batch but has no gradient. With "kl" distances contain the teacher's entropy: that changes no
    plan, but an update of the weights moves less.

    Args:
        student: views of all layers of the student, from 1.
        teacher: views of all layers of the teacher on the same input; take them under `torch.no_grad`.
        relations: parts wanted, of "attention", "hidden", "query", "key", "value"; all are known to `weights`.
        weights: read, not changed; the caller updates them.
        mask, pad_rows, relation_divergence, hidden_divergence, relation_heads: as for `layers.layer_terms`. The
            official code: no mask, "include", "mse", "mse", 0.
        reduce: given sums over this process's rows [S * T + 1], the last their number, returns those over all
            processes. Called once per relation.

    Returns:
        the terms, unweighted, in the order of `relations`; the flows and distances of each.

    Source: BERT-EMD (Li et al. 2020); CR-ILD losses.py:165-321 (EMD_Loss, its batch mean).
    """
    ours, theirs = range(1, weights.student_layers + 1), range(1, weights.teacher_layers + 1)
    found = Transported({}, {}, {})
    for name in relations:
        if name not in ("attention", "hidden", "query", "key", "value"):
            raise ValueError(f"there is no transport of {name!r}")
        of_student, of_teacher = getattr(student, name), getattr(teacher, name)
        pair = PairDistance(
            name,
            {i: of_student[i] for i in ours},
            {j: of_teacher[j] for j in theirs},
            mask,
            pad_rows=pad_rows,
            relation_divergence=relation_divergence,
            hidden_divergence=hidden_divergence,
            relation_heads=relation_heads,
        )
        with torch.no_grad():
            losses = torch.stack([pair(i, j) for i in ours for j in theirs])  # [S * T, B]
            sums = reduce(torch.cat([losses.sum(1), losses.new_tensor([losses.shape[1]])]))
        distance = (sums[:-1] / sums[-1]).cpu().double().numpy().reshape(len(ours), len(theirs))
        flow = transport_plan(distance, *weights.weights(name))
        carried = [(i, j) for i in ours for j in theirs if flow[i - 1, j - 1] > 0]
        found.terms[name] = torch.stack([float(flow[i - 1, j - 1]) * pair(i, j) for i, j in carried]).sum(0)
        found.flows[name], found.distances[name] = flow, distance
    return found
