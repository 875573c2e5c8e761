"""Objectives on the model's answer. Shapes: B batch, C classes.

Every function promotes half-precision inputs to float32 (float64 stays) and returns one number per example.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _promote(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def soft_cross_entropy(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Cross entropy of the student against the teacher's softened distribution.

    `temperature^2 * -sum_c softmax(teacher / temperature)_c * log_softmax(student / temperature)_c`. The
    teacher's entropy is not subtracted, so the least value is not 0; the gradient is that of the KL.

    Args:
        student: logits [B, C].
        teacher: logits [B, C].
        temperature: above 0; higher is softer.

    Returns:
        [B]

    Source: Hinton, Vinyals, Dean 2015, section 2; CR-ILD losses.py:7-19 (its batch mean).
    """
    targets = F.softmax(_promote(teacher) / temperature, dim=-1)
    return temperature**2 * -(targets * F.log_softmax(_promote(student) / temperature, dim=-1)).sum(-1)


def scaled_mse(student: Tensor, teacher: Tensor, *, temperature: float, scale: str = "none") -> Tensor:
    """Squared distance of two regression outputs, each divided by the temperature.

    Args:
        student: [B, 1].
        teacher: [B, 1].
        temperature: above 0.
        scale: "none" as in the official code, so gradients shrink with temperature^2; "tau2" undoes that.

    Returns:
        [B]

    Source: CR-ILD losses.py:13-14 (its batch mean).
    """
    if scale not in ("none", "tau2"):
        raise ValueError(f"scale is 'none' or 'tau2', not {scale!r}")
    factor = 1.0 if scale == "tau2" else temperature**-2
    return factor * (_promote(student) - _promote(teacher)).square().squeeze(-1)


def hard_label(student: Tensor, labels: Tensor, *, kind: str) -> Tensor:
    """Cross entropy with the class ids, or squared error to the target values.

    Args:
        student: logits [B, C]; regression: [B, 1].
        labels: class ids [B] (int64), or target values [B] (float).
        kind: "classification" or "regression".

    Returns:
        [B]
    """
    student = _promote(student)
    if kind == "classification":
        return F.cross_entropy(student, labels, reduction="none")
    if kind == "regression":
        return (student.squeeze(-1) - labels.to(student.dtype)).square()
    raise ValueError(f"kind is 'classification' or 'regression', not {kind!r}")


def soft_label(student: Tensor, teacher: Tensor, *, kind: str, temperature: float, scale: str = "none") -> Tensor:
    """The teacher's answer as target: `soft_cross_entropy`, or `scaled_mse` for regression.

    Args:
        student: logits [B, C]; regression: [B, 1].
        teacher: the same of the teacher.
        kind: "classification" or "regression".
        temperature: above 0.
        scale: of a regression loss: "none" or "tau2".

    Returns:
        [B]
    """
    if kind == "classification":
        return soft_cross_entropy(student, teacher, temperature=temperature)
    if kind == "regression":
        return scaled_mse(student, teacher, temperature=temperature, scale=scale)
    raise ValueError(f"kind is 'classification' or 'regression', not {kind!r}")


def mixed_label(student: Tensor, labels: Tensor, *, lam: float, kind: str) -> Tensor:
    """Hard labels of a mixed batch: `lam * hard(y) + (1 - lam) * hard(y[reversed])`.

    Args:
        student: logits of the mixed batch [B, C]; regression: [B, 1].
        labels: of the batch as it is [B].
        lam: share of a row in its mix.
        kind: "classification" or "regression".

    Returns:
        [B]

    Source: mix-up (Zhang et al. 2018); MixKD (Liang et al. 2021), its term of mixed labels.
    """
    own = hard_label(student, labels, kind=kind)
    return lam * own + (1 - lam) * hard_label(student, labels.flip(0), kind=kind)


def mixed_soft(
    student: Tensor, teacher: Tensor, *, lam: float, kind: str, temperature: float, scale: str = "none"
) -> Tensor:
    """Soft labels of a mixed batch, out of those of its two clean ones.

    `lam * soft(z_S(mix), z_T) + (1 - lam) * soft(z_S(mix), z_T[reversed])`, with `soft` as in `soft_label`.

    Args:
        student: logits of the mixed batch [B, C]; regression: [B, 1].
        teacher: the teacher's logits of the batch as it is.
        lam: share of a row in its mix.
        kind, temperature, scale: as for `soft_label`.

    Returns:
        [B]

    Source: reconstructed. CR-ILD names it (training_functions.py:61, 96, mode MixCons) without a definition.
    """
    own = soft_label(student, teacher, kind=kind, temperature=temperature, scale=scale)
    partner = soft_label(student, teacher.flip(0), kind=kind, temperature=temperature, scale=scale)
    return lam * own + (1 - lam) * partner
