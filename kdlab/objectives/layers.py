"""Objectives on inner layers. Shapes: B batch, L length, h heads, d head size, D hidden size, n matched layers.

Every loss promotes half-precision inputs to float32 (float64 stays) and returns one number per example.

Masks [B, L] hold 1 (or True) at tokens and 0 at padding. `pad_rows` says over which rows an example's mean is taken:

* "exclude": the valid rows. A result does not depend on the batch's padding; without valid rows it is 0.
* "include": all L rows, padding too. With batches padded to a fixed length this is the official code.

A mask of None means that every key can be seen and every row is valid. `power` is "mse", the square of a difference,
or "l1", its absolute value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlab.errors import ModelError

MASKED = -10000.0  # added to the scores of keys that can't be seen
FLOOR = -100.0  # scores as low as this count as 0 in `relation_distance`


class LayerViews(Protocol):
    """What is read from a forward pass, by layer: hidden 0..n (0: embedding output), the others 1..n."""

    @property
    def hidden(self) -> Mapping[int, Tensor]: ...  # [B, L, D]

    @property
    def attention(self) -> Mapping[int, Tensor]: ...  # [B, h, L, L] scores before softmax and mask

    @property
    def query(self) -> Mapping[int, Tensor]: ...  # [B, h, L, d]

    @property
    def key(self) -> Mapping[int, Tensor]: ...  # [B, h, L, d]

    @property
    def value(self) -> Mapping[int, Tensor]: ...  # [B, h, L, d]


def _promote(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_shapes(student: Tensor, teacher: Tensor, what: str, fix: str) -> None:
    if student.shape != teacher.shape:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ModelError(f"student and teacher {what} differ in shape: {shapes}", fix=fix)


def _check_relations(student: Tensor, teacher: Tensor) -> None:
    fix = "choose models with as many heads, or distil query, key or value with relation_heads, or only hidden"
    _check_shapes(student, teacher, "relations", fix)


def _check_states(student: Tensor, teacher: Tensor) -> None:
    _check_shapes(student, teacher, "hidden states", "project the student's states to the teacher's width")


def _power(difference: Tensor, power: str) -> Tensor:
    if power == "mse":
        return difference.square()
    if power == "l1":
        return difference.abs()
    raise ValueError(f"power is 'mse' or 'l1', not {power!r}")


def _mean_over_rows(values: Tensor, mask: Tensor | None, pad_rows: str) -> Tensor:
    """[B, L] -> [B]"""
    if pad_rows not in ("exclude", "include"):
        raise ValueError(f"pad_rows is 'exclude' or 'include', not {pad_rows!r}")
    if mask is None or pad_rows == "include":
        return values.mean(-1)
    rows = mask.to(values.dtype)
    return (values * rows).sum(-1) / rows.sum(-1).clamp(min=1)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Promoted scores [B, h, L, L] with -10000 added to masked keys."""
    scores = _promote(scores)
    return scores if mask is None else scores + ((1 - mask.to(scores.dtype)) * MASKED)[:, None, None, :]


def _shares(scores: Tensor, mask: Tensor | None) -> Tensor:
    return F.softmax(_masked(scores, mask), dim=-1)


def _log_shares(scores: Tensor, mask: Tensor | None) -> Tensor:
    return F.log_softmax(_masked(scores, mask), dim=-1)


def _kept(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores with those of masked keys, and those of -100 or less, set to 0."""
    return F.threshold(_masked(scores, mask), FLOOR, 0.0)


def _cross_entropy(log_student: Tensor, teacher: Tensor, mask: Tensor | None, pad_rows: str) -> Tensor:
    """log_shares and shares [B, h, L, L] -> [B]"""
    _check_relations(log_student, teacher)
    rows = -(teacher * log_student).sum(-1).mean(1)  # [B, L]
    return _mean_over_rows(rows, mask, pad_rows)


def _scores_apart(student: Tensor, teacher: Tensor, mask: Tensor | None, power: str, pad_rows: str) -> Tensor:
    """Kept scores [B, h, L, L] twice -> [B]"""
    _check_relations(student, teacher)
    values = _power(student - teacher, power).mean(1)  # [B, L, L]
    if mask is None or pad_rows == "include":
        return _mean_over_rows(values.mean(-1), mask, pad_rows)
    keys = mask.to(values.dtype).sum(-1, keepdim=True).clamp(min=1)  # [B, 1]
    return _mean_over_rows(values.sum(-1) / keys, mask, pad_rows)


def relation(x: Tensor, y: Tensor) -> Tensor:
    """Scaled dot products of all positions, `x y^T / sqrt(d)`: [B, h, L, d] twice -> [B, h, L, L].

    In the input's dtype, as a model computes its own scores.

    Source: CR-ILD training_functions.py:220-231; MiniLMv2 (Wang et al. 2021), section 3.1.
    """
    return torch.matmul(x / math.sqrt(x.shape[-1]), y.transpose(-1, -2))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split vectors into another number of heads: [B, h, L, d] -> [B, heads, L, h * d / heads].

    The vectors of all heads are joined, head after head, and cut anew. So relations of models with different numbers
    of heads, and different widths, become alike in shape.

    Raises:
        ModelError: the width h * d is not a multiple of `heads`.

    Source: MiniLMv2 (Wang et al. 2021), section 3.1, relation heads.
    """
    batch, own, length, size = x.shape
    if own * size % heads:
        raise ModelError(
            f"a width of {own * size} can't be split into {heads} relation heads",
            fix="set relation_heads to a number that divides the widths of both models",
        )
    return x.transpose(1, 2).reshape(batch, length, heads, -1).transpose(1, 2)


def relation_cross_entropy(
    student: Tensor, teacher: Tensor, mask: Tensor | None, *, pad_rows: str = "exclude"
) -> Tensor:
    """Cross entropy of the student's relation rows against the teacher's, both softmax-normalised over keys.

    `mean_{head, row i} -sum_j softmax(teacher_i)_j * log_softmax(student_i)_j`, with -10000 added to masked
    keys on both sides. The teacher's entropy is not subtracted.

    Args:
        student: scores before softmax [B, h, L, L], without mask.
        teacher: the same of the teacher.
        mask: [B, L], of keys and of query rows; None for no mask.
        pad_rows: "exclude" or "include", see the module.

    Returns:
        [B]

    Raises:
        ModelError: the two differ in heads or positions.

    Source: CR-ILD losses.py:141-163 (Attention_KL: its batch mean, with "include"); MiniLM (Wang et al. 2020) has it
    of attention scores and of values.
    """
    return _cross_entropy(_log_shares(student, mask), _shares(teacher, mask), mask, pad_rows)


def relation_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None, *, power: str, pad_rows: str = "exclude"
) -> Tensor:
    """Mean squared or absolute difference of raw relation scores over heads, rows and keys.

    With -10000 added to masked keys; then scores of -100 or less count as 0, each on its own side.

    Args:
        student: scores before softmax [B, h, L, L], without mask.
        teacher: the same of the teacher.
        mask: [B, L], of keys and of query rows; None for no mask.
        power: "mse" or "l1".
        pad_rows: "include": the mean of all L * L entries; "exclude": of valid rows and valid keys.

    Returns:
        [B]

    Raises:
        ModelError: the two differ in heads or positions.

    Source: CR-ILD losses.py (Attention_MSE and Attention_MAE: their batch mean, with "include").
    """
    return _scores_apart(_kept(student, mask), _kept(teacher, mask), mask, power, pad_rows)


def hidden_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None, *, power: str, pad_rows: str = "exclude"
) -> Tensor:
    """Mean squared or absolute difference of hidden states over rows and features.

    Args:
        student: [B, L, D], already projected to the teacher's width.
        teacher: [B, L, D].
        mask: [B, L]; None for every row.
        power: "mse" or "l1".
        pad_rows: "exclude" or "include", see the module.

    Returns:
        [B]

    Raises:
        ModelError: the two differ in width or length.

    Source: CR-ILD losses.py:37-56 (Hidden_MSE and Hidden_MAE: their batch mean, with "include").
    """
    _check_states(student, teacher)
    rows = _power(_promote(student) - _promote(teacher), power).mean(-1)  # [B, L]
    return _mean_over_rows(rows, mask, pad_rows)


def patient_distance(student: Tensor, teacher: Tensor, *, power: str, normalise: bool) -> Tensor:
    """Mean squared or absolute difference of the [CLS] vectors of all matched layers.

    Args:
        student: [B, n, D], already projected to the teacher's width.
        teacher: [B, n, D].
        power: "mse" or "l1".
        normalise: scale every vector to length 1 first.

    Returns:
        [B] mean over n and D. The paper sums over D and layers: n * D times as much.

    Raises:
        ModelError: the two differ in width or number.

    Source: PKD (Sun et al. 2019), equation 7; CR-ILD losses.py:21-35 (PKD_Loss: its batch mean).
    """
    _check_states(student, teacher)
    student, teacher = _promote(student), _promote(teacher)
    if normalise:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return _power(student - teacher, power).mean((1, 2))


class PairDistance:
    """The distance in one relation of any student layer and any teacher layer; what each layer needs is done once.

    name: "attention", "hidden", or "query", "key", "value" as self-relations x x^T / sqrt(d).
    student, teacher: views by layer, as `LayerViews` has them; all that are given are made ready.
    relation_divergence: of all names but "hidden": "kl", "mse" or "l1". hidden_divergence: "mse" or "l1".
    relation_heads: split query, key, value into so many heads; 0: as they are.
    """

    def __init__(
        self,
        name: str,
        student: Mapping[int, Tensor],
        teacher: Mapping[int, Tensor],
        mask: Tensor | None,
        *,
        pad_rows: str,
        relation_divergence: str = "kl",
        hidden_divergence: str = "mse",
        relation_heads: int = 0,
    ) -> None:
        self.mask, self.pad_rows = mask, pad_rows
        self.states = name == "hidden"
        self.power = hidden_divergence if self.states else relation_divergence

        def ready(x: Tensor, of_scores: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
            if self.states:
                return x
            if name != "attention":
                x = split_heads(x, relation_heads) if relation_heads else x
                x = relation(x, x)
            return of_scores(x, mask)

        of_scores = (_log_shares, _shares) if self.power == "kl" else (_kept, _kept)
        self.student = {layer: ready(x, of_scores[0]) for layer, x in student.items()}
        self.teacher = {layer: ready(x, of_scores[1]) for layer, x in teacher.items()}

    def __call__(self, student_layer: int, teacher_layer: int) -> Tensor:
        """[B]: `hidden_distance`, `relation_cross_entropy` or `relation_distance`."""
        x, y = self.student[student_layer], self.teacher[teacher_layer]
        if self.states:
            return hidden_distance(x, y, self.mask, power=self.power, pad_rows=self.pad_rows)
        if self.power == "kl":
            return _cross_entropy(x, y, self.mask, self.pad_rows)
        return _scores_apart(x, y, self.mask, self.power, self.pad_rows)


def layer_terms(
    student: LayerViews,
    teacher: LayerViews,
    *,
    relations: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    mask: Tensor | None,
    pad_rows: str,
    relation_divergence: str = "kl",
    hidden_divergence: str = "mse",
    relation_heads: int = 0,
    normalise: bool = True,
) -> dict[str, Tensor]:
    """The distillation of inner layers, as named parts.

    * "attention", "hidden": scores and hidden states of the matched layers.
    * "query", "key", "value": their self-relations x x^T / sqrt(d).
    * "embedding": hidden state 0 with hidden state 0, whatever the pairs.
    * "patient": the hidden states' row 0, [CLS], of all matched layers, one mean over them.

    All but the last two are summed over the pairs.

    Args:
        student: views of the (mixed) student forward pass.
        teacher: views of the teacher on the same input; take them under `torch.no_grad`.
        relations: parts wanted.
        pairs: (student layer, teacher layer), from 1.
        mask: [B, L] for every part; None for no mask. The official code masks "attention" with the un-mixed
            mask and leaves query, key and value without one: call twice for that.
        pad_rows: "exclude" or "include", see the module.
        relation_divergence: of attention, query, key, value: "kl", "mse" or "l1".
        hidden_divergence: of hidden, embedding, patient: "mse" or "l1".
        relation_heads: query, key, value: split into so many heads; 0: the model's own.
        normalise: patient: scale vectors to length 1.

    Returns:
        {name: [B]} in the order of `relations`, unweighted.

    Source: CR-ILD training_functions.py:220-354; MiniLM (Wang et al. 2020), MiniLMv2 (Wang et al. 2021) for value
    relations and relation heads.
    """
    terms = {}
    for name in relations:
        if name == "patient":
            ours = torch.stack([student.hidden[i][:, 0] for i, _ in pairs], dim=1)  # [B, n, D]
            theirs = torch.stack([teacher.hidden[j][:, 0] for _, j in pairs], dim=1)
            terms[name] = patient_distance(ours, theirs, power=hidden_divergence, normalise=normalise)
            continue
        kind, matched = ("hidden", [(0, 0)]) if name == "embedding" else (name, pairs)
        of_student, of_teacher = getattr(student, kind), getattr(teacher, kind)
        distance = PairDistance(
            kind,
            {i: of_student[i] for i, _ in matched},
            {j: of_teacher[j] for _, j in matched},
            mask,
            pad_rows=pad_rows,
            relation_divergence=relation_divergence,
            hidden_divergence=hidden_divergence,
            relation_heads=relation_heads,
        )
        terms[name] = torch.stack([distance(i, j) for i, j in matched]).sum(0)
    return terms


def consistency_terms(
    mixed: LayerViews,
    clean: LayerViews,
    *,
    on: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    lam: float,
    mask: Tensor | None,
    pad_rows: str,
    relation_divergence: str = "kl",
    hidden_divergence: str = "mse",
    relation_heads: int = 0,
) -> dict[str, Tensor]:
    """Holds the student's view of a mixed batch to its views of the two clean ones, in proportion to the mix.

    `lam * L(mixed, clean; mask) + (1 - lam) * L(mixed, clean[reversed]; mask[reversed])`, where L is the distance
    of `PairDistance` and the clean views get no gradient; summed over the student's matched layers, each once.

    Args:
        mixed: views of the student on the mixed batch.
        clean: views of the student, or of its moving average, on the batch as it is.
        on: parts wanted: "attention", "hidden", "query", "key" or "value".
        pairs: the pairs given to `layer_terms`; only their student layers are used, for both sides.
        lam: share of a row in its mix.
        mask: [B, L] of the batch as it is, not the union; None for no mask.
        pad_rows, relation_divergence, hidden_divergence, relation_heads: as for `layer_terms`.

    Returns:
        {"consistency_" + name: [B]}, unweighted: the caller multiplies by weight and ramp.

    Source: CR-ILD training_functions.py:310-318, 347-354.
    """
    mask_reversed = None if mask is None else mask.flip(0)
    layers = {i for i, _ in pairs}
    terms = {}
    for name in on:
        of_mixed, of_clean = getattr(mixed, name), getattr(clean, name)
        views = {i: of_mixed[i] for i in layers}
        own = {i: of_clean[i].detach() for i in layers}
        losses = []
        for share, target, seen in (
            (lam, own, mask),
            (1 - lam, {i: x.flip(0) for i, x in own.items()}, mask_reversed),
        ):
            distance = PairDistance(
                name,
                views,
                target,
                seen,
                pad_rows=pad_rows,
                relation_divergence=relation_divergence,
                hidden_divergence=hidden_divergence,
                relation_heads=relation_heads,
            )
            losses += [share * distance(i, i) for i in layers]
        terms[f"consistency_{name}"] = torch.stack(losses).sum(0)
    return terms
