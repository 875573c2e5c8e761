"""Objectives on inner layers. Shapes: B batch, L length, h heads, d head size, D hidden size.

Every loss promotes half-precision inputs to float32 (float64 stays) and returns one number per example.

Masks [B, L] hold 1 (or True) at tokens and 0 at padding. `pad_rows` says over which query rows an example's
mean is taken:

* "exclude": the valid rows. A result does not depend on the batch's padding; without valid rows it is 0.
* "include": all L rows, padding too. With batches padded to a fixed length this is the official code.

A mask of None means that every key can be seen and every row is valid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlab.errors import ModelError

MASKED = -10000.0  # added to the scores of keys that can't be seen


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


def _check_shapes(student: Tensor, teacher: Tensor, what: str, fix: str) -> None:
    if student.shape != teacher.shape:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ModelError(f"student and teacher {what} differ in shape: {shapes}", fix=fix)


def _mean_over_rows(values: Tensor, mask: Tensor | None, pad_rows: str) -> Tensor:
    """[B, L] -> [B]"""
    if pad_rows not in ("exclude", "include"):
        raise ValueError(f"pad_rows is 'exclude' or 'include', not {pad_rows!r}")
    if mask is None or pad_rows == "include":
        return values.mean(-1)
    rows = mask.to(values.dtype)
    return (values * rows).sum(-1) / rows.sum(-1).clamp(min=1)


def relation(x: Tensor, y: Tensor) -> Tensor:
    """Scaled dot products of all positions, `x y^T / sqrt(d)`: [B, h, L, d] twice -> [B, h, L, L].

    In the input's dtype, as a model computes its own scores.

    Source: CR-ILD training_functions.py:220-231; MiniLMv2 (Wang et al. 2021), section 3.1.
    """
    return torch.matmul(x / math.sqrt(x.shape[-1]), y.transpose(-1, -2))


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

    Source: CR-ILD losses.py:141-163 (Attention_KL: its batch mean, with "include").
    """
    _check_shapes(student, teacher, "relations", "choose models with as many heads, or distil only hidden")
    if mask is not None:
        dtype = torch.promote_types(student.dtype, torch.float32)
        bias = ((1 - mask.to(dtype)) * MASKED)[:, None, None, :]
        student, teacher = student + bias, teacher + bias
    log_student = F.log_softmax(student, dim=-1, dtype=torch.promote_types(student.dtype, torch.float32))
    targets = F.softmax(teacher, dim=-1, dtype=log_student.dtype)
    rows = -(targets * log_student).sum(-1).mean(1)  # [B, L]
    return _mean_over_rows(rows, mask, pad_rows)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None, *, pad_rows: str = "exclude") -> Tensor:
    """Mean squared difference of hidden states over rows and features.

    Args:
        student: [B, L, D], already projected to the teacher's width.
        teacher: [B, L, D].
        mask: [B, L]; None for every row.
        pad_rows: "exclude" or "include", see the module.

    Returns:
        [B]

    Raises:
        ModelError: the two differ in width or length.

    Source: CR-ILD losses.py:37-56 (Hidden_MSE: its batch mean, with "include").
    """
    _check_shapes(student, teacher, "hidden states", "project the student's states to the teacher's width")
    dtype = torch.promote_types(student.dtype, torch.float32)
    rows = (student.to(dtype) - teacher.to(dtype)).square().mean(-1)  # [B, L]
    return _mean_over_rows(rows, mask, pad_rows)


def _term(name: str, x: Tensor, y: Tensor, mask: Tensor | None, pad_rows: str) -> Tensor:
    """The loss of one pair of layers: student's view x, teacher's view y -> [B]."""
    if name == "hidden":
        return hidden_mse(x, y, mask, pad_rows=pad_rows)
    if name != "attention":
        x, y = relation(x, x), relation(y, y)
    return relation_cross_entropy(x, y, mask, pad_rows=pad_rows)


def layer_terms(
    student: LayerViews,
    teacher: LayerViews,
    *,
    relations: Sequence[str],
    pairs_attention: Sequence[tuple[int, int]],
    pairs_hidden: Sequence[tuple[int, int]],
    mask: Tensor | None,
    pad_rows: str,
) -> dict[str, Tensor]:
    """The distillation of inner layers, as named parts; each is summed over the matched layers.

    Args:
        student: views of the (mixed) student forward pass.
        teacher: views of the teacher on the same input; take them under `torch.no_grad`.
        relations: parts wanted, of "attention", "hidden", "query", "key", "value". The last three compare
            self-relations x x^T / sqrt(d).
        pairs_attention: (student layer, teacher layer) for all but "hidden".
        pairs_hidden: the same for "hidden".
        mask: [B, L] for every part; None for no mask. The official code masks "attention" with the un-mixed
            mask and leaves query, key and value without one: call twice for that.
        pad_rows: "exclude" or "include", see the module.

    Returns:
        {name: [B]} in the order of `relations`, unweighted.

    Source: CR-ILD training_functions.py:220-354.
    """
    terms = {}
    for name in relations:
        pairs = pairs_hidden if name == "hidden" else pairs_attention
        of_student, of_teacher = getattr(student, name), getattr(teacher, name)
        losses = [_term(name, of_student[i], of_teacher[j], mask, pad_rows) for i, j in pairs]
        terms[name] = torch.stack(losses).sum(0)
    return terms


def consistency_terms(
    mixed: LayerViews,
    clean: LayerViews,
    *,
    on: Sequence[str],
    pairs_attention: Sequence[tuple[int, int]],
    pairs_hidden: Sequence[tuple[int, int]],
    lam: float,
    mask: Tensor | None,
    pad_rows: str,
) -> dict[str, Tensor]:
    """Holds the student's view of a mixed batch to its views of the two clean ones, in proportion to the mix.

    `lam * L(mixed, clean; mask) + (1 - lam) * L(mixed, clean[reversed]; mask[reversed])`, where L is the loss
    of `layer_terms` and the clean views get no gradient.

    Args:
        mixed: views of the student on the mixed batch.
        clean: views of the student, or of its moving average, on the batch as it is.
        on: parts wanted, of the names of `layer_terms`.
        pairs_attention: the pairs given to `layer_terms`; only their student layers are used, for both sides.
        pairs_hidden: the same for "hidden".
        lam: share of a row in its mix.
        mask: [B, L] of the batch as it is, not the union; None for no mask.
        pad_rows: "exclude" or "include", see the module.

    Returns:
        {"consistency_" + name: [B]}, unweighted: the caller multiplies by weight and ramp.

    Source: CR-ILD training_functions.py:310-318, 347-354.
    """
    mask_reversed = None if mask is None else mask.flip(0)
    terms = {}
    for name in on:
        pairs = pairs_hidden if name == "hidden" else pairs_attention
        losses = []
        for layer, _ in pairs:
            view, target = getattr(mixed, name)[layer], getattr(clean, name)[layer].detach()
            own = _term(name, view, target, mask, pad_rows)
            partner = _term(name, view, target.flip(0), mask_reversed, pad_rows)
            losses.append(lam * own + (1 - lam) * partner)
        terms[f"consistency_{name}"] = torch.stack(losses).sum(0)
    return terms
