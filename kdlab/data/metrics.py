"""The scores of the benchmarks, as numbers in [0, 1] or [-1, 1], never percent."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from kdlab.errors import DataError, TrainingError

Scorer = Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], float]


def _accuracy(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    return float((predictions == labels).mean())


def _f1(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    if max(predictions.max(), labels.max()) > 1:
        raise DataError(
            "f1 is for two classes (class 1 is the positive one), and there are more.",
            where="task.metric",
            fix="Use macro_f1.",
        )
    return float(sk.f1_score(labels, predictions, zero_division=0.0))


def _macro_f1(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    return float(sk.f1_score(labels, predictions, average="macro", zero_division=0.0))


def _mcc(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    return float(sk.matthews_corrcoef(labels, predictions))


def _correlation(function: Callable[..., Any]) -> Scorer:
    def scorer(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return 0.0
        return float(np.nan_to_num(function(predictions, labels)[0]))

    return scorer


_pearson = _correlation(stats.pearsonr)
_spearman = _correlation(stats.spearmanr)


def _pearson_spearman(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    return (_pearson(predictions, labels) + _spearman(predictions, labels)) / 2


CLASSIFICATION: dict[str, Scorer] = {"accuracy": _accuracy, "f1": _f1, "macro_f1": _macro_f1, "mcc": _mcc}
REGRESSION: dict[str, Scorer] = {
    "pearson_spearman": _pearson_spearman,
    "pearson": _pearson,
    "spearman": _spearman,
}


def score(metric: str, predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """One score of `predictions` [N] (class ids or numbers, no logits) against `labels` [N].

    Constant predictions or labels give a correlation of 0. macro_f1 averages over the classes that occur in
    either.
    """
    scorers = CLASSIFICATION | REGRESSION
    if metric not in scorers:
        raise DataError(f"There is no metric {metric!r}. There are: {', '.join(scorers)}.", where="task.metric")
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    assert predictions.shape == labels.shape and predictions.ndim == 1, (predictions.shape, labels.shape)
    if not labels.size:
        raise DataError("There are no rows to score.", where=metric)
    if not np.isfinite(predictions).all():
        raise TrainingError(
            "The predictions to score are not finite.", where=metric, fix="The model has diverged: lower lr."
        )
    if metric in REGRESSION:
        predictions, labels = predictions.astype(np.float64), labels.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about constant input, which has a defined score here
        return scorers[metric](predictions, labels)


def majority(metric: str, train_labels: np.ndarray[Any, Any], dev_labels: np.ndarray[Any, Any], kind: str) -> float:
    """The score of always answering train's most frequent class (ties: the lowest id), or its mean."""
    train_labels, dev_labels = np.asarray(train_labels), np.asarray(dev_labels)
    if kind == "regression":
        constant = np.full(dev_labels.shape, train_labels.mean())
    else:
        constant = np.full(dev_labels.shape, np.bincount(train_labels).argmax())
    return score(metric, constant, dev_labels)
