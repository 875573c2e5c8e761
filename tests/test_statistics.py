"""Intervals, paired tests, corrections, the bootstrap: by hand, and against scipy, statsmodels and our own metrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from kdlab.data import metrics
from kdlab.report import statistics as tests
from kdlab.report.statistics import Rows

Array = np.ndarray[Any, Any]


# over seeds


def test_the_interval_over_seeds_is_students() -> None:
    # mean 2, deviation 1, quantile 4.3027 with 2 degrees of freedom: 4.3027 / sqrt(3) = 2.4841
    low, high = tests.t_interval([1.0, 2.0, 3.0]) or (0, 0)
    assert (low, high) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    assert tests.t_interval([1.0, 2.0]) is None


@pytest.mark.parametrize("differences", [[1.0, 2.0, 3.0], [0.02, -0.01, 0.005, 0.03], [0.1, 0.2]])
def test_the_paired_test_is_scipys(differences: list[float]) -> None:
    assert tests.paired_t(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_the_paired_test_by_hand() -> None:
    # t = 2 / (1 / sqrt(3)) = sqrt(12); with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14)
    assert tests.paired_t([1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(12 / 14))


def test_differences_without_spread_can_not_be_tested() -> None:
    assert tests.paired_t([0.1]) is None
    assert tests.paired_t([0.3, 0.1 + 0.2, 0.3]) is None  # equal but for rounding
    assert tests.paired_t([0.0, 0.0, 0.0]) == 1.0


@pytest.mark.parametrize(("a", "b"), [([0.5, 0.6], [0.7, 0.72, 0.9]), ([0.3, 0.31], [0.1, 0.4])])
def test_the_test_without_common_seeds_is_scipys(a: list[float], b: list[float]) -> None:
    assert tests.welch_t(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)


def test_without_common_seeds_and_without_spread_there_is_no_test() -> None:
    assert tests.welch_t([0.1], [0.2, 0.3]) is None
    assert tests.welch_t([0.1, 0.1], [0.2, 0.2]) is None and tests.welch_t([0.1, 0.1], [0.1, 0.1]) == 1.0


def test_corrections() -> None:
    assert tests.corrected([0.01, None, 0.04, 0.03], "holm") == pytest.approx([0.03, None, 0.06, 0.06])
    assert tests.corrected([0.01, 0.04, 0.03], "none") == pytest.approx([0.01, 0.04, 0.03])
    assert tests.corrected([None], "holm") == [None] and tests.corrected([], "bh") == []


@pytest.mark.parametrize(("name", "theirs"), [("holm", "holm"), ("bh", "fdr_bh")])
def test_corrections_are_those_of_statsmodels(name: str, theirs: str) -> None:
    ps = np.random.default_rng(0).random(40) ** 3
    assert tests.corrected(list(ps), name) == pytest.approx(multipletests(ps, method=theirs)[1])


@pytest.mark.parametrize("differences", [[1.0, 2.0, 3.0], [0.01, 0.03, -0.01], [0.02, -0.01, 0.01, 0.0, 0.015]])
def test_seeds_to_come_are_those_of_the_power_of_the_t_test(differences: list[float]) -> None:
    effect = abs(np.mean(differences)) / np.std(differences, ddof=1)
    needed = math.ceil(TTestPower().solve_power(effect_size=effect, alpha=0.05, power=0.8))
    assert tests.more_seeds([differences], 0.05) == [max(0, needed - len(differences))]


def test_seeds_to_come_where_there_is_nothing_to_go_by() -> None:
    found = tests.more_seeds([[0.1], [], [0.1, 0.1, 0.1], [0.1, -0.1], [1.0, 1.0001, 1.0002], [0.1001, -0.1, 0]], 0.05)
    assert found[:4] == [None, None, None, None]  # too few, no spread, no difference
    assert found[4:] == [0, tests.MOST_SEEDS]
    assert tests.more_seeds([], 0.05) == []


def test_two_seeds_do_not_separate_all_that_looks_large() -> None:
    """p = 0.052 of a difference nine times its spread; the power of two seeds at 0.05 / 6 is 0.13, of three 0.84."""
    differences = [0.5989, 0.5080]
    assert tests.more_seeds([differences], 0.05 / 6) == [1]
    draw = np.random.default_rng(0)
    effect = np.mean(differences) / np.std(differences, ddof=1)
    samples = effect + draw.normal(size=(20_000, 3))
    t = samples.mean(axis=1) / samples.std(axis=1, ddof=1) * 3**0.5
    p = 2 * stats.t.sf(np.abs(t), 2)
    assert np.mean(p < 0.05 / 6) == pytest.approx(0.84, abs=0.02)


def test_a_stricter_level_asks_for_more_seeds() -> None:
    lenient, strict = (tests.more_seeds([[0.01, 0.03, -0.01]], alpha)[0] for alpha in (0.05, 0.005))
    assert lenient is not None and strict is not None and strict > lenient > 0


# over examples


def rows(metric: str, number: int, *, seed: int = 0, runs: int = 3) -> Rows:
    """Random answers; of a metric for numbers with ties in both."""
    draw = np.random.default_rng(seed)
    if metric in metrics.REGRESSION:
        gold: Array = draw.integers(0, 12, number) / 2
        found: Array = np.round(gold + draw.normal(size=(runs, number)) * 3, 1)
    else:
        classes = 2 if metric == "f1" else 4
        gold = draw.integers(0, classes, number)
        found = np.where(draw.random((runs, number)) < 0.4, gold, draw.integers(0, classes, (runs, number)))
    return Rows(gold, found)


@pytest.mark.parametrize("metric", tests.METRICS)
def test_scores_are_those_of_the_metrics(metric: str) -> None:
    table = rows(metric, 150)
    wanted = [metrics.score(metric, found, table.gold) for found in table.found]
    assert tests.scores(metric, [table]) == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize("metric", tests.METRICS)
@pytest.mark.parametrize("number", [6, 40])
def test_every_resample_is_scored_as_the_rows_it_is_made_of(metric: str, number: int) -> None:
    """Of few rows some resamples lack a class or are constant."""
    table = rows(metric, number)
    found = tests.resampled(metric, [table], draws=20, seed=7, together=False)
    (weights,) = tests._weights(number, 20, np.random.default_rng([7, 0]))
    assert (weights.sum(1) == number).all()
    for draw in range(20):
        chosen = np.repeat(np.arange(number), weights[draw].astype(int))
        wanted = [metrics.score(metric, one[chosen], table.gold[chosen]) for one in table.found]
        assert found[:, draw] == pytest.approx(wanted, abs=5e-6), draw


@pytest.mark.parametrize("metric", ["mcc", "pearson", "spearman", "macro_f1"])
def test_constant_answers_have_a_score(metric: str) -> None:
    gold = rows(metric, 30).gold
    table = Rows(gold, np.full((1, 30), gold[0]))
    found = tests.resampled(metric, [table], draws=50, seed=0, together=False)
    assert np.isfinite(found).all()
    if metric != "macro_f1":
        assert (found == 0).all()


def test_blocks_of_weights_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As memory allows, resamples are drawn in blocks; all are there, and all runs see the same rows."""
    table = rows("accuracy", 50)
    monkeypatch.setattr(tests, "CELLS", 50 * 7)
    found = tests.resampled("accuracy", [table], draws=60, seed=7, together=False)
    assert found.shape == (3, 60) and (found > 0).all()
    same = Rows(table.gold, np.stack([table.found[0], table.found[0]]))
    pair = tests.resampled("accuracy", [same], draws=60, seed=7, together=False)
    assert (pair[0] == pair[1]).all()


def test_the_interval_of_an_accuracy_is_that_of_the_binomial() -> None:
    right = np.array([1] * 280 + [0] * 120)
    draws = tests.resampled("accuracy", [Rows(np.ones(400, int), right[None])], draws=4000, seed=0, together=False)
    low, high = tests.percentiles(draws[0])
    assert (low, high) == pytest.approx(tuple(stats.binom(400, 0.7).ppf([0.025, 0.975]) / 400), abs=0.004)


def test_languages_of_the_same_examples_are_resampled_together() -> None:
    """Rows that are right or wrong in all languages alike: each language more tells nothing new."""
    right = np.array([1] * 60 + [0] * 40)
    tables = [Rows(np.ones(100, int), right[None])] * 4
    apart, together = (
        tests.resampled("accuracy", tables, draws=2000, seed=0, together=together).std() for together in (False, True)
    )
    assert together == pytest.approx(math.sqrt(0.24 / 100), rel=0.06)
    assert apart == pytest.approx(math.sqrt(0.24 / 400), rel=0.06)


def test_p_by_hand() -> None:
    # around 0 the draws are 0, 0, 0.1, -0.1; two of four are as far as 0.1, and one is added to both
    assert tests.p_of_draws(0.1, np.array([0.1, 0.1, 0.2, 0.0])) == pytest.approx(3 / 5)
    assert tests.p_of_draws(0.0, np.array([0.1, -0.1])) == 1.0
    assert tests.p_of_draws(0.5, np.full(999, 0.5)) == pytest.approx(1 / 1000)


def test_two_seeds_are_taken_as_they_are() -> None:
    found = np.array([[0.1, 0.2, 0.3], [0.3, 0.4, 0.5]])
    assert tests.mean_over_seeds(found, seed=0) == pytest.approx([0.2, 0.3, 0.4])


@pytest.mark.parametrize("count", [3, 5, 10])
def test_without_doubt_about_examples_seeds_have_about_students_interval(count: int) -> None:
    scores = np.random.default_rng(count).normal(0.6, 0.02, count)
    draws = tests.mean_over_seeds(np.repeat(scores[:, None], 4000, 1), seed=0)
    low, high = tests.percentiles(draws)
    lower, upper = tests.t_interval(list(scores)) or (0.0, 0.0)
    assert high - low == pytest.approx(upper - lower, rel=0.25)


def simulated(
    draw: np.random.Generator, *, spread: float, shift: float = 0.0, seeds: int = 3, number: int = 120
) -> Array:
    """Whether each answer is right [S, N]: rows differ in difficulty, seeds in ability; 0.7 + shift on average."""
    easy = 0.7 + 0.25 * draw.uniform(-1, 1, number)
    able = draw.normal(0, spread, (seeds, 1))
    return (draw.random((seeds, number)) < np.clip(easy + able + shift, 0, 1)).astype(int)


@pytest.mark.parametrize("spread", [0.0, 0.03, 0.1])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(spread: float) -> None:
    """Over 300 experiments of three seeds on 120 examples; standard error of the coverage 0.013."""
    draw = np.random.default_rng(1)
    hits = 0
    for number in range(300):
        found = simulated(draw, spread=spread)
        table = Rows(np.ones(found.shape[1], int), found)
        draws = tests.resampled("accuracy", [table], draws=300, seed=number, together=False)
        low, high = tests.percentiles(tests.mean_over_seeds(draws, seed=number))
        hits += low <= 0.7 <= high
    assert 0.91 <= hits / 300 <= 0.98


def test_methods_that_are_alike_are_rarely_separated() -> None:
    draw = np.random.default_rng(2)
    separated = 0
    for number in range(300):
        found = np.concatenate([simulated(draw, spread=0.03), simulated(draw, spread=0.03)])
        draws = tests.resampled("accuracy", [Rows(np.ones(120, int), found)], draws=200, seed=number, together=False)
        over_seeds = (found[:3] - found[3:]).mean(1)
        of_seeds = tests.paired_t(list(over_seeds))
        of_examples = tests.p_of_draws(over_seeds.mean(), draws[:3].mean(0) - draws[3:].mean(0))
        separated += of_seeds is not None and max(of_seeds, of_examples) < 0.05
    assert separated / 300 < 0.08
