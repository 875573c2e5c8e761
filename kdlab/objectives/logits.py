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
