"""What a comparison of few seeds on one set of examples can say: intervals, paired tests, corrections, seeds to come.

Two things are left to chance in a score: the seeds of training, and the examples it was scored on. Seeds are few (three
in the papers), examples are hundreds, so each gets the test that suits it:

- seeds: the paired t test over the seeds that both methods have. With n seeds a sign-flip test can't give less than
  2 / 2^n (0.25 with three, above 0.05 up to five), so it would never separate anything in practice; the t test buys its
  power with the assumption that differences are about normal (Dror et al., ACL 2018, section 3). Paired, since a seed
  draws the same few samples, held-out rows or order for both; of methods without a common seed Welch's t test. It
  speaks of new seeds on this data; training sets of another draw vary more (Dietterich, Neural Computation 1998).
- examples: the paired bootstrap, both methods on the same resampled rows, means over seeds (Berg-Kirkpatrick et al.,
  EMNLP 2012, with two sides): it speaks of new examples for these students.

A difference has to hold in both: the larger p counts (an intersection-union test, so that no correction is needed
between the two).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LEVEL = 0.95  # of intervals
POWER = 0.8  # chance to separate two methods that `more_seeds` asks for
MOST_SEEDS = 1000  # it does not count on
QUANTILES = 1000  # of the spread that seeds show, for the power of a t test
CELLS = 4_000_000  # of a block of resampling weights, 16 MB
LEAST_SEEDS = 3  # for an interval over seeds
NOTHING = 1e-12  # a spread below this is rounding


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Of the mean of at least LEAST_SEEDS values, by Student's t; None of fewer."""
    if len(values) < LEAST_SEEDS:
        return None
    half = _t_quantile(len(values)) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return mean - half, mean + half


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t test; None of fewer than two differences, or of equal ones, which tell no spread.

    Equal differences of 0 have p = 1.
    """
    from scipy import special

    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation < NOTHING:
        return 1.0 if abs(mean) < NOTHING else None
    t = abs(mean) / (deviation / len(differences) ** 0.5)
    return float(2 * special.stdtr(len(differences) - 1, -t))


def welch_t(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of Welch's t test, for methods without a common seed; None where one has fewer than two.

    None, too, where neither has a spread, unless the means are equal: p = 1.
    """
    from scipy.stats import ttest_ind_from_stats

    if min(len(a), len(b)) < 2:
        return None
    means, deviations = [statistics.fmean(one) for one in (a, b)], [statistics.stdev(one) for one in (a, b)]
    if max(deviations) < NOTHING:
        return 1.0 if abs(means[0] - means[1]) < NOTHING else None
    found = ttest_ind_from_stats(means[0], deviations[0], len(a), means[1], deviations[1], len(b), equal_var=False)
    return float(found.pvalue)


def corrected(ps: Sequence[float | None], correction: str) -> list[float | None]:
    """p values corrected for as many tests as there are (CORRECTIONS); None stays None, and counts as no test."""
    known = np.asarray([p for p in ps if p is not None])
    found = iter(CORRECTIONS[correction](known) if len(known) else known)
    return [None if p is None else float(next(found)) for p in ps]


def _holm(ps: Array) -> Array:
    """Step-down Bonferroni: the smallest of m times m, the next times m - 1, none below the ones before it."""
    order = np.argsort(ps)
    found = np.empty(len(ps))
    found[order] = np.minimum(1, np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1)))
    return found


def _benjamini_hochberg(ps: Array) -> Array:
    from scipy.stats import false_discovery_control

    found: Array = false_discovery_control(ps)
    return found


CORRECTIONS: dict[str, Callable[[Array], Array]] = {
    "holm": _holm,  # Holm 1979: holds the chance of any false separation
    "bh": _benjamini_hochberg,  # 1995: holds the share of false ones among the separations
    "none": lambda ps: ps,
}


def more_seeds(differences: Sequence[Sequence[float]], alpha: float) -> list[int | None]:
    """About how many seeds more the paired t test needs, at `alpha`, to separate each pair with a chance of POWER.

    differences: of each pair, over the seeds it has. It takes the effect that was seen for the true one, which few
    seeds tell badly. None where there is no effect or no spread to go by; at most MOST_SEEDS.
    """
    effects, rows = [], []
    for row, values in enumerate(differences):
        if len(values) > 1 and (deviation := statistics.stdev(values)) >= NOTHING:
            effect = abs(statistics.fmean(values)) / deviation
            if effect > NOTHING:
                effects.append(effect)
                rows.append(row)
    found: list[int | None] = [None] * len(differences)
    if rows:
        for row, needed in zip(rows, _seeds_needed(np.asarray(effects), alpha), strict=True):
            found[row] = min(max(0, int(needed) - len(differences[row])), MOST_SEEDS)
    return found


def _seeds_needed(effects: Array, alpha: float) -> Array:
    """The least numbers of seeds, from 2 on, at which the power is reached; by bisection over all effects at once."""
    low, high = np.full(len(effects), 1), np.full(len(effects), 2 * MOST_SEEDS)
    while (high - low > 1).any():
        middle = np.maximum((low + high) // 2, 2)
        enough = _power(effects, middle, alpha) >= POWER
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    found: Array = high
    return found


def _power(effects: Array, seeds: Array, alpha: float) -> Array:
    """Of the paired t test at two-sided `alpha`: the noncentral t beyond its quantile, as a mean of normal tails over
    the quantiles of the chi-squared spread. (scipy's noncentral t is nan for large effects with few seeds.)"""
    from scipy import special

    freedom, centre = seeds - 1, effects * np.sqrt(seeds)
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    spread = np.sqrt(2 * special.gammaincinv(freedom[:, None] / 2, at) / freedom[:, None])
    beyond = special.stdtrit(freedom, 1 - alpha / 2)[:, None] * spread
    power: Array = (special.ndtr(centre[:, None] - beyond) + special.ndtr(-centre[:, None] - beyond)).mean(axis=1)
    return power


def _t_quantile(count: int) -> float:
    from scipy import special

    return float(special.stdtrit(count - 1, (1 + LEVEL) / 2))


# the bootstrap -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that several runs were scored on. A set in several languages has one of these for each.

    gold [N]: classes as numbers from 0 on, or numbers to come near to; found [R, N]: what each of R runs said.
    """

    gold: Array
    found: Array

    def __len__(self) -> int:
        return len(self.gold)


def scores(metric: str, tables: Sequence[Rows]) -> Array:
    """The metric of each run [R] on the rows as they are, mean over the tables."""
    found = [_of_metric(metric, rows)(np.ones((1, len(rows)), np.float32))[:, 0] for rows in tables]
    mean: Array = np.mean(found, axis=0)
    return mean


def resampled(metric: str, tables: Sequence[Rows], *, draws: int, seed: int, together: bool) -> Array:
    """The metric of each run on resampled rows [R, draws], mean over the tables; all runs on the same rows.

    together: the tables hold the same examples, translated, and are resampled alike.
    """
    total = np.zeros((len(tables[0].found), draws))
    for number, rows in enumerate(tables):
        score = _of_metric(metric, rows)
        start = 0
        for weights in _weights(len(rows), draws, np.random.default_rng([seed, 0 if together else number])):
            total[:, start : start + len(weights)] += score(weights)
            start += len(weights)
    return total / len(tables)


def _weights(rows: int, draws: int, generator: np.random.Generator) -> Iterator[Array]:
    """How often each row is in each resample [B, N], in blocks."""
    size = max(1, CELLS // rows)
    for start in range(0, draws, size):
        block = min(size, draws - start)
        drawn = generator.integers(0, rows, (block, rows), dtype=np.int32)
        drawn += (np.arange(block, dtype=np.int32) * rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * rows).reshape(block, rows).astype(np.float32)


def mean_over_seeds(found: Array, *, seed: int) -> Array:
    """Draws [B] of the mean over seeds, from scores on resampled examples [S, B], seeds drawn anew for each.

    The mean over these seeds, on other examples, plus that of the drawn seeds' own deviations. Three things are put
    right about the latter. What seeds differ by on one set of examples is partly that each errs on other rows of it;
    resampled examples have that already, so that this part of the variance is taken out. S values drawn from S have a
    variance of (S - 1) / S of what they should. And S - 1 degrees of freedom have heavier tails than the normal
    distribution: the deviations are stretched by the ratio of the quantiles. `tests/test_statistics.py` measures how
    often such an interval of three seeds holds the truth.

    Of fewer than LEAST_SEEDS seeds none are drawn: the interval is of these seeds.
    """
    count, draws = found.shape
    mean: Array = found.mean(axis=0)
    if count < LEAST_SEEDS:
        return mean
    from scipy import special

    of_seeds = found.mean(axis=1)
    total = of_seeds.var(ddof=1)
    by_rows = (found - mean).var(axis=1).mean() * count / (count - 1)
    own = max(0.0, 1 - by_rows / total) if total > NOTHING**2 else 0.0
    heavier = _t_quantile(count) / float(special.ndtri((1 + LEVEL) / 2))
    stretch = (own * count / (count - 1)) ** 0.5 * heavier
    drawn = np.random.default_rng([seed, count]).integers(0, count, (draws, count))
    moved: Array = mean + stretch * (of_seeds - of_seeds.mean())[drawn].mean(axis=1)
    return moved


def percentiles(draws: Array) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def p_of_draws(difference: float, draws: Array) -> float:
    """Two-sided p of a difference, from its draws [B]: how often draws - difference, as under no difference, is as far.

    Never 0: at least 1 / (B + 1).
    """
    as_far = np.abs(draws - difference) >= abs(difference) - NOTHING
    return float((1 + np.count_nonzero(as_far)) / (len(draws) + 1))


# metrics of weighted rows, as kdlab.data.metrics has them: each takes weights [B, N] and gives scores [R, B] ---------

Weighted = Callable[[Array], Array]


def _of_metric(metric: str, rows: Rows) -> Weighted:
    return METRICS[metric](rows)


def _accuracy(rows: Rows) -> Weighted:
    right = (rows.found == rows.gold).astype(np.float32)
    return lambda weights: (right @ weights.T) / np.float32(len(rows))


def _counts(rows: Rows) -> Callable[[Array], tuple[Array, Array, Array]]:
    """Of C classes, by weights [B, N]: right [R, B, C], predicted [R, B, C], gold [B, C]."""
    classes = int(max(rows.gold.max(), rows.found.max())) + 1
    eye = np.eye(classes, dtype=np.float32)
    right = rows.found == rows.gold
    columns = np.concatenate([*(eye[one] for one in rows.found), *(eye[rows.gold] * one[:, None] for one in right)], 1)
    gold = eye[rows.gold]

    def count(weights: Array) -> tuple[Array, Array, Array]:
        both = (weights @ columns).astype(np.float64).reshape(len(weights), 2, len(rows.found), classes)
        predicted, hits = both.transpose(1, 2, 0, 3)
        return hits, predicted, (weights @ gold).astype(np.float64)

    return count


def _f1(rows: Rows) -> Weighted:
    count = _counts(rows)

    def score(weights: Array) -> Array:
        right, predicted, gold = count(weights)
        if right.shape[-1] < 2:
            return np.zeros(right.shape[:-1])
        return _divided(2 * right[..., 1], predicted[..., 1] + gold[..., 1])

    return score


def _macro_f1(rows: Rows) -> Weighted:
    count = _counts(rows)

    def score(weights: Array) -> Array:
        right, predicted, gold = count(weights)
        both = predicted + gold
        return _divided(_divided(2 * right, both).sum(-1), (both > 0).sum(-1))

    return score


def _mcc(rows: Rows) -> Weighted:
    count = _counts(rows)

    def score(weights: Array) -> Array:
        right, predicted, gold = count(weights)
        total = float(len(rows))
        above = right.sum(-1) * total - (predicted * gold).sum(-1)
        below = (total**2 - (predicted**2).sum(-1)) * (total**2 - (gold**2).sum(-1))
        return _divided(above, np.sqrt(np.maximum(below, 0)))

    return score


def _pearson(rows: Rows) -> Weighted:
    gold, found = _centred(rows.gold), np.stack([_centred(one) for one in rows.found])

    def score(weights: Array) -> Array:
        w = weights.astype(np.float64)
        return _correlation(found @ w.T, w @ gold, found**2 @ w.T, w @ gold**2, (found * gold) @ w.T, float(len(gold)))

    return score


def _spearman(rows: Rows) -> Weighted:
    gold, found = _ranker(rows.gold), [_ranker(one) for one in rows.found]

    def score(weights: Array) -> Array:
        of_gold = gold(weights)
        weighted = weights * of_gold
        square = np.einsum("bn,bn->b", weighted, of_gold)
        scored = []
        for ranker in found:
            ranks = ranker(weights)
            together = np.einsum("bn,bn->b", weighted, ranks)
            scored.append(_divided(together, np.sqrt(np.einsum("bn,bn,bn->b", weights, ranks, ranks) * square)))
        return np.stack(scored)

    return score


def _both(rows: Rows) -> Weighted:
    pearson, spearman = _pearson(rows), _spearman(rows)
    return lambda weights: (pearson(weights) + spearman(weights)) / 2


def _ranker(values: Array) -> Weighted:
    """From weights [B, N] to the ranks [B, N] that the values have in each resample, around their mean as shares of N.

    Equal values share the mean of their ranks.
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(places, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    alone = len(starts) == len(values)

    def ranks(weights: Array) -> Array:
        of_value = weights[:, order] if alone else np.add.reduceat(weights[:, order], starts, axis=1)
        found = np.cumsum(of_value, axis=1, dtype=np.float32)  # whole numbers, exact up to 2^24 rows
        found -= of_value / 2
        found /= np.float32(len(values))
        found -= np.float32(0.5)
        return found[:, places]

    return ranks


def _centred(values: Array) -> Array:
    """Around 0 and about as large as 1, so that sums of squares lose nothing."""
    found = values.astype(np.float64) - values.mean()
    scaled: Array = found / (np.abs(found).max() or 1.0)
    return scaled


def _correlation(x: Array, y: Array, xx: Array, yy: Array, xy: Array, total: float) -> Array:
    """From weighted sums; 0 where one side is constant."""
    spread_x, spread_y = total * xx - x**2, total * yy - y**2
    small = 1e-12 * total**2
    together = np.sqrt(np.where((spread_x > small) & (spread_y > small), spread_x * spread_y, 0))
    return _divided(total * xy - x * y, together)


def _divided(above: Array, below: Array) -> Array:
    """0 where below is 0."""
    found: Array = np.divide(above, below, out=np.zeros_like(above, dtype=np.float64), where=below > 0)
    return found


METRICS: dict[str, Callable[[Rows], Weighted]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "mcc": _mcc,
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _both,
}
