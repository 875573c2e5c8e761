"""The scores of the benchmarks, as numbers in [0, 1] or [-1, 1], never percent.

Classes are counted here, and scipy.stats is imported for correlations alone: it and scikit-learn take a fifth of the
time in which a run starts. `tests/test_metrics.py` holds the scores to scikit-learn's, bit by bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

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
    found = _f1_of_classes(predictions, labels)
    return float(found[1]) if len(found) > 1 else 0.0


def _macro_f1(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    found = _f1_of_classes(predictions, labels)
    return float(found[~np.isnan(found)].mean())


def _mcc(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    right, predicted, gold = _counts(predictions, labels)
    total = float(len(labels))
    below = (total**2 - predicted @ predicted) * (total**2 - gold @ gold)
    return float((right.sum() * total - gold @ predicted) / np.sqrt(below)) if below else 0.0


def _f1_of_classes(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[C]; nan where a class is in neither."""
    right, predicted, gold = _counts(predictions, labels)
    both = predicted + gold
    found: np.ndarray[Any, Any] = np.divide(2 * right, both, out=np.full(len(both), np.nan), where=both > 0)
    return found


def _counts(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """How many rows of each class are right, predicted and labelled so [C], as floats."""
    classes = int(max(predictions.max(), labels.max())) + 1
    kinds = (labels[predictions == labels], predictions, labels)
    return [np.bincount(kind, minlength=classes).astype(np.float64) for kind in kinds]


def _correlation(name: str) -> Scorer:
    def scorer(predictions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return 0.0
        from scipy import stats

        return float(np.nan_to_num(getattr(stats, name)(predictions, labels)[0]))

    return scorer


_pearson = _correlation("pearsonr")
_spearman = _correlation("spearmanr")


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
