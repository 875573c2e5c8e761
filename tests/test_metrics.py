"""Scores against values worked out by hand."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from kdlab.data.metrics import CLASSIFICATION, REGRESSION, majority, score
from kdlab.errors import DataError, TrainingError

# 10 rows: 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
LABELS = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
ANSWERS = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", 7 / 10),
        ("f1", 2 * 3 / (2 * 3 + 1 + 2)),
        ("macro_f1", (6 / 9 + 8 / 11) / 2),
        ("mcc", (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))),
    ],
)
def test_two_classes(metric: str, expected: float) -> None:
    assert score(metric, ANSWERS, LABELS) == pytest.approx(expected, abs=1e-12)


def test_macro_f1_of_three_classes() -> None:
    labels, answers = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    assert score("macro_f1", answers, labels) == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3, abs=1e-12)


def test_correlations() -> None:
    labels, answers = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 10.0])
    # deviations: labels -1.5 -.5 .5 1.5 (squares 5); answers -3 -1 -2 6 (50); products 4.5 .5 -1 9 (13)
    pearson = 13 / math.sqrt(5 * 50)
    spearman = 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    assert score("pearson", answers, labels) == pytest.approx(pearson, abs=1e-12)
    assert score("spearman", answers, labels) == pytest.approx(spearman, abs=1e-12)
    assert score("pearson_spearman", answers, labels) == pytest.approx((pearson + spearman) / 2, abs=1e-12)


def test_spearman_shares_the_rank_of_ties() -> None:
    # ranks: labels 1 2 3 4, answers 1.5 1.5 3 4; sums: products 4.5, squares 5 and 4.5
    labels, answers = np.array([1, 2, 3, 4]), np.array([5.0, 5.0, 6.0, 7.0])
    assert score("spearman", answers, labels) == pytest.approx(4.5 / math.sqrt(5 * 4.5), abs=1e-12)


@pytest.mark.parametrize("metric", ["mcc", "pearson", "spearman", "pearson_spearman"])
@pytest.mark.parametrize(("answers", "labels"), [([1, 1, 1], [0, 1, 0]), ([0, 1, 0], [1, 1, 1]), ([1, 1], [1, 1])])
def test_constant_is_zero_and_not_nan(metric: str, answers: list[int], labels: list[int]) -> None:
    assert score(metric, np.array(answers), np.array(labels)) == 0.0


def test_constant_correct_answers_of_one_class() -> None:
    assert score("accuracy", np.array([0, 0]), np.array([0, 0])) == 1.0
    assert score("f1", np.array([0, 0]), np.array([0, 0])) == 0.0


def test_all_metrics_are_exact_on_perfect_answers() -> None:
    labels = np.array([0, 1, 1, 0, 1])
    for metric in [*CLASSIFICATION, *REGRESSION]:
        assert score(metric, labels, labels) == pytest.approx(1.0, abs=1e-12), metric


def test_majority() -> None:
    train, dev = np.array([0, 1, 1, 1]), np.array([1, 1, 0, 0, 0])
    assert majority("accuracy", train, dev, "classification") == 2 / 5
    assert majority("f1", train, dev, "classification") == pytest.approx(4 / 7)
    assert majority("accuracy", np.array([1, 0]), dev, "classification") == 3 / 5
    assert majority("pearson_spearman", np.array([1.0, 2.0]), np.array([0.0, 3.0]), "regression") == 0.0


def test_refused() -> None:
    with pytest.raises(DataError, match="no metric 'rouge'"):
        score("rouge", LABELS, LABELS)
    with pytest.raises(DataError, match="macro_f1"):
        score("f1", np.array([0, 2]), np.array([0, 1]))
    with pytest.raises(DataError, match="no rows"):
        score("accuracy", np.array([]), np.array([]))
    with pytest.raises(TrainingError, match="not finite"):
        score("pearson", np.array([1.0, math.nan]), np.array([1.0, 2.0]))


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("classes", [1, 2, 3, 7])
def test_class_scores_are_those_of_scikit_learn(classes: int) -> None:
    from sklearn import metrics as sk

    rng = np.random.default_rng(classes)
    for _ in range(200):
        size = int(rng.integers(1, 40))
        labels, found = rng.integers(0, classes, size), rng.integers(0, classes, size)
        macro = sk.f1_score(labels, found, average="macro", zero_division=0.0)
        assert score("macro_f1", found, labels) == macro
        assert score("mcc", found, labels) == sk.matthews_corrcoef(labels, found)
        if classes == 2:
            assert score("f1", found, labels) == sk.f1_score(labels, found, zero_division=0.0)


def test_scores_of_classes_import_no_statistics() -> None:
    code = """
import sys
from kdlab.data.metrics import score
score("mcc", [0, 1], [1, 1]), score("f1", [0, 1], [1, 1]), score("macro_f1", [0, 1], [1, 1])
assert not {"sklearn", "pandas", "scipy.stats"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
