"""Scores of runs made into numbers with intervals: against loops, closed forms and rliable."""

import math
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from rlcore.errors import UsageError
from rlcore.runs import statistics

ALL = (statistics.interquartile_mean, statistics.mean, statistics.median, statistics.optimality_gap)
EVEN = [np.random.default_rng(m).normal(m / 4, 0.5, 10) for m in range(5)]
RAGGED = [np.random.default_rng(m).normal(m / 4, 0.5, n) for m, n in enumerate((3, 10, 4, 7))]


# Loops and closed forms.


def by_hand(scores):
    """Interquartile mean, runs counted so often that all tasks weigh the same, a quarter cut off either end."""
    most = math.lcm(*map(len, scores))
    weighed = sorted((float(x), most // len(task)) for task in scores for x in task)
    total, before, kept = most * len(scores), 0, []
    for x, weight in weighed:
        lowest, highest = before + weight <= total / 4, before >= 3 * total / 4
        if not lowest and not highest:
            kept.append((x, weight))
        before += weight
    return sum(x * w for x, w in kept) / sum(w for _, w in kept)


@pytest.mark.parametrize("scores", [EVEN, RAGGED, EVEN[:1], [x[:1] for x in EVEN], [x[:3] for x in EVEN]])
def test_aggregates_are_what_their_equations_say(scores):
    means = [sum(x.tolist()) / len(x) for x in scores]
    short = [sum(1 - min(v, 1) for v in x.tolist()) / len(x) for x in scores]
    assert statistics.interquartile_mean(scores) == pytest.approx(by_hand(scores), abs=1e-12)
    assert statistics.mean(scores) == pytest.approx(sum(means) / len(means), abs=1e-12)
    assert statistics.optimality_gap(scores) == pytest.approx(sum(short) / len(short), abs=1e-12)
    ranked, half = sorted(means), len(means) // 2
    middle = ranked[half] if len(means) % 2 else (ranked[half - 1] + ranked[half]) / 2
    assert statistics.median(scores) == pytest.approx(middle, abs=1e-12)


@pytest.mark.parametrize("scores", [EVEN, RAGGED])
def test_leading_dimensions_are_those_of_resamples(scores):
    many = [np.stack([x, 2 * x, x - 1]) for x in scores]
    for statistic in ALL:
        one_by_one = [statistic([x[b] for x in many]) for b in range(3)]
        np.testing.assert_allclose(statistic(many), one_by_one, rtol=0, atol=1e-12)


def test_the_middle_half():
    assert statistics.interquartile_mean([np.arange(8.0)]) == 3.5
    assert statistics.interquartile_mean([np.array([-1e9, 1.0, 2.0, 1e9])]) == 1.5
    assert statistics.interquartile_mean([np.array([1.0, 2.0, 9.0])]) == 4.0  # nobody lies wholly in a quarter
    long, short = np.zeros(100), np.ones(1)
    assert statistics.interquartile_mean([long, short]) == pytest.approx(2 / 3)  # the one run is half of the weight


def test_profiles_count_runs_above():
    thresholds = np.array([-9.0, 0.0, 0.3, 9.0])
    share = [np.mean([sum(v > t for v in x) / len(x) for x in RAGGED]) for t in thresholds]
    np.testing.assert_allclose(statistics.performance_profile(RAGGED, thresholds), share, atol=1e-12)
    low, high = statistics.profile_interval(RAGGED, thresholds)
    assert low[[0, 3]].tolist() == high[[0, 3]].tolist() == [1, 0]
    assert low[1] < share[1] < high[1] and low[2] < share[2] < high[2]


def test_probability_of_improvement_counts_pairs():
    first, second = [np.array([1.0, 2.0, 3.0]), np.array([5.0])], [np.array([2.0, 0.0]), np.array([5.0, 6.0, 7.0])]
    count = [(0.5 + 1) + 1 + 1 + 1, 0.5]  # 1 > 0, 2 = 2, 2 > 0 and so on
    assert statistics.probability_of_improvement(first, second) == pytest.approx((count[0] / 6 + count[1] / 3) / 2)
    assert statistics.probability_of_improvement(EVEN, EVEN) == pytest.approx(0.5)
    forth, back = (statistics.probability_of_improvement(*pair) for pair in ((EVEN, EVEN[::-1]), (EVEN[::-1], EVEN)))
    assert forth + back == pytest.approx(1)
    low, high = statistics.improvement_interval(EVEN, [x - 0.2 for x in EVEN])
    assert 0 < low < statistics.probability_of_improvement(EVEN, [x - 0.2 for x in EVEN]) < high < 1


def test_quantiles_of_student():
    for p in (0.6, 0.9, 0.975, 0.995):
        assert statistics.student_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-6)
        exact = (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))  # of two degrees of freedom
        assert statistics.student_quantile(p, 2) == pytest.approx(exact, rel=1e-6)
        assert statistics.student_quantile(p, 100_000) == pytest.approx(NormalDist().inv_cdf(p), rel=1e-4)
    assert statistics.student_quantile(0.975, 9) == pytest.approx(2.262157, rel=1e-6)


def test_band_of_curves():
    values = np.array([[1.0, 2.0, math.nan, math.nan], [3.0, 5.0, 7.0, math.nan], [8.0, 5.0, math.nan, math.nan]])
    center, low, high = statistics.student_band(values)
    np.testing.assert_allclose(center, [4, 4, 7, math.nan])
    width = 4.302653 * np.std([1, 3, 8], ddof=1) / math.sqrt(3)
    assert low[0] == pytest.approx(4 - width, rel=1e-6) and high[0] == pytest.approx(4 + width, rel=1e-6)
    assert np.isnan(low[2:]).all() and np.isnan(high[2:]).all()


def test_the_variance_of_resamples_is_that_of_a_mean():
    """s²/n for bootknife, smaller by 1 − 1/n for the plain one."""
    x = np.random.default_rng(0).normal(size=5)
    for method, due in (("expanded", x.var(ddof=1) / 5), ("percentile", x.var() / 5)):
        rng = np.random.default_rng(1)
        drawn = x[statistics._draws(rng, 200_000, 5, method)].mean(1)
        assert drawn.var() == pytest.approx(due, rel=0.02) and drawn.mean() == pytest.approx(x.mean(), abs=0.005)
        counts = statistics._counts(np.random.default_rng(1), 1000, 5, method)
        np.testing.assert_allclose(
            counts @ x / 5, x[statistics._draws(np.random.default_rng(1), 1000, 5, method)].mean(1)
        )


def test_intervals_of_a_mean_are_nearly_those_of_student():
    x = np.random.default_rng(3).normal(size=30)
    low, high = statistics.interval(statistics.mean, [x], resamples=50_000)
    width = statistics.student_quantile(0.975, 29) * x.std(ddof=1) / math.sqrt(30)
    assert low == pytest.approx(x.mean() - width, abs=0.02) and high == pytest.approx(x.mean() + width, abs=0.02)


def test_intervals_are_repeatable_and_of_each_task_by_itself():
    assert statistics.interval(statistics.mean, EVEN, seed=1) == statistics.interval(statistics.mean, EVEN, seed=1)
    apart = [np.full(4, 0.0), np.full(7, 100.0)]  # to mix them would move the mean
    assert statistics.interval(statistics.mean, apart) == (50, 50)
    several = statistics.intervals(ALL, RAGGED)
    assert several == [statistics.interval(statistic, RAGGED) for statistic in ALL]
    assert all(low < statistic(RAGGED) < high for statistic, (low, high) in zip(ALL, several, strict=True))


def test_batches_change_nothing_that_matters(monkeypatch):
    whole = statistics.interval(statistics.mean, EVEN, resamples=4000)
    monkeypatch.setattr(statistics, "LARGEST_BATCH", 500)
    np.testing.assert_allclose(statistics.interval(statistics.mean, EVEN, resamples=4000), whole, atol=0.03)


def test_one_run_has_no_interval():
    single = [np.ones(1), np.ones(3)]
    assert all(map(math.isnan, statistics.interval(statistics.mean, single)))
    assert all(map(math.isnan, statistics.improvement_interval(single, EVEN[:2])))
    assert np.isnan(statistics.profile_interval(single, np.zeros(2))).all()


def test_unknown_methods_are_refused():
    with pytest.raises(UsageError, match="method is 'bca', but may be expanded or percentile"):
        statistics.interval(statistics.mean, EVEN, method="bca")


# Coverage; benchmarks/interval_coverage.py measures it with more repetitions.


def test_95_of_100_intervals_hold_the_truth(monkeypatch):
    """10 runs × 5 tasks, 400 repetitions: the standard error is 1.1%."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import interval_coverage

    held = interval_coverage.coverage("5 tasks", 10, 400, ("interquartile mean",))
    assert 0.92 <= held["expanded"]["interquartile mean"] <= 0.98
    assert held["percentile"]["interquartile mean"] < held["expanded"]["interquartile mean"]
    means, deviations = interval_coverage.TASKS["5 tasks"]
    drawn = [
        np.random.default_rng(m).normal(a, b, 200_000) for m, (a, b) in enumerate(zip(means, deviations, strict=True))
    ]
    for name, truth in interval_coverage.truths("5 tasks").items():
        assert float(interval_coverage.STATISTICS[name](drawn)) == pytest.approx(truth, abs=2e-3), name
    sys.modules.pop("interval_coverage")


# Beside rliable.


def test_numbers_are_those_of_rliable():
    metrics = pytest.importorskip("rliable.metrics")
    for scores in (EVEN, [x[:3] for x in EVEN], [x[:7] for x in EVEN[:2]]):
        matrix = np.stack(scores, 1)
        theirs = (
            metrics.aggregate_iqm, metrics.aggregate_mean, metrics.aggregate_median, metrics.aggregate_optimality_gap,
        )  # fmt: skip
        for ours, other in zip(ALL, theirs, strict=True):
            assert float(ours(scores)) == pytest.approx(float(other(matrix)), abs=1e-12)
        against = [x[::-1] * 0.9 for x in scores]
        assert statistics.probability_of_improvement(scores, against) == pytest.approx(
            metrics.probability_of_improvement(matrix, np.stack(against, 1)), abs=1e-12
        )


def test_percentile_intervals_are_those_of_rliable():
    """Up to the resamples that either draws."""
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    matrix, thresholds = np.stack(EVEN, 1), np.linspace(0, 1, 5)
    np.random.seed(0)
    _, theirs = library.get_interval_estimates({"a": matrix}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000)
    ours = statistics.interval(statistics.interquartile_mean, EVEN, "percentile", resamples=20_000)
    np.testing.assert_allclose(ours, theirs["a"].ravel(), atol=0.03)
    profile, bands = library.create_performance_profile({"a": matrix}, thresholds, reps=500)
    np.testing.assert_allclose(statistics.performance_profile(EVEN, thresholds), profile["a"], atol=1e-12)
    np.testing.assert_allclose(statistics.profile_interval(EVEN, thresholds, "percentile"), bands["a"], atol=0.05)
