"""How often a 95% interval of rlcore.runs.statistics holds the true value, on normal scores whose truth is known.

    python benchmarks/interval_coverage.py                       1,000 repetitions, 10 to 20 minutes on one core
    python benchmarks/interval_coverage.py --repetitions 100     a trial

Scores of a task are normal. With "5 tasks" their means and standard deviations differ, with "5 equal tasks" not.
The true interquartile mean is that of the mixture of the tasks. "percentile" is the interval of rliable, "expanded" the
one that reports show; the standard error of a coverage of 95% over 1,000 repetitions is 0.7%.
"""

from __future__ import annotations

import argparse
import math
from statistics import NormalDist
from typing import Any

import machine
import numpy as np

from rlcore.runs import statistics

NORMAL = NormalDist()
TASKS = {
    "5 tasks": ((0.2, 0.4, 0.6, 0.8, 1.0), (0.1, 0.2, 0.3, 0.2, 0.1)),
    "5 equal tasks": ((0.5,) * 5, (0.2,) * 5),
    "1 task": ((0.5,), (0.2,)),
}
RUNS = (10, 3, 5, 20)
STATISTICS = {
    "interquartile mean": statistics.interquartile_mean,
    "mean": statistics.mean,
    "median": statistics.median,
    "optimality gap": statistics.optimality_gap,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    options = parser.parse_args()
    rows = []
    for runs in RUNS:
        for tasks in TASKS:
            rows.append({"runs": runs, "tasks": tasks, **coverage(tasks, runs, options.repetitions)})
            print(rows[-1], flush=True)
    machine.write("interval_coverage", {"repetitions": options.repetitions, "level": statistics.LEVEL} | {"rows": rows})


def coverage(tasks: str, runs: int, repetitions: int, names: tuple[str, ...] = tuple(STATISTICS)) -> dict[str, Any]:
    """The share of repetitions whose interval holds the truth, by method and statistic."""
    truth, held = truths(tasks), {}
    means, deviations = map(np.array, TASKS[tasks])
    for method in statistics.METHODS:
        rng, hits = np.random.default_rng(0), dict.fromkeys(names, 0)
        for repetition in range(repetitions):
            scores = list((means + deviations * rng.standard_normal((runs, len(means)))).T)
            for name in names:
                low, high = statistics.interval(STATISTICS[name], scores, method, resamples=1000, seed=repetition)
                hits[name] += low <= truth[name] <= high
        held[method] = {name: round(count / repetitions, 4) for name, count in hits.items()}
    return held


def truths(tasks: str) -> dict[str, float]:
    means, deviations = TASKS[tasks]
    return {
        "interquartile mean": true_interquartile_mean(means, deviations),
        "mean": float(np.mean(means)),
        "median": float(np.median(means)),
        "optimality gap": float(np.mean([shortfall(m, s) for m, s in zip(means, deviations, strict=True)])),
    }


def shortfall(mean: float, deviation: float) -> float:
    """E[1 − min(x, 1)] of a normal x."""
    z = (1 - mean) / deviation
    return (1 - mean) * NORMAL.cdf(z) + deviation * NORMAL.pdf(z)


def true_interquartile_mean(means: tuple[float, ...], deviations: tuple[float, ...]) -> float:
    """2 E[x 1(a < x < b)] of a mixture of normals, a and b its quartiles."""
    low, high = (quartile(p, means, deviations) for p in (0.25, 0.75))
    parts = []
    for m, s in zip(means, deviations, strict=True):
        a, b = (low - m) / s, (high - m) / s
        parts.append(m * (NORMAL.cdf(b) - NORMAL.cdf(a)) - s * (NORMAL.pdf(b) - NORMAL.pdf(a)))
    return 2 * math.fsum(parts) / len(parts)


def quartile(p: float, means: tuple[float, ...], deviations: tuple[float, ...]) -> float:
    low, high = -10.0, 10.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        below = np.mean([NORMAL.cdf((middle - m) / s) for m, s in zip(means, deviations, strict=True)])
        low, high = (middle, high) if below < p else (low, middle)
    return low


if __name__ == "__main__":
    main()
