"""Scores over seeds: train by the command line, evaluate, report interquartile mean and bootstrap interval.

    python benchmarks/scores.py ppo CartPole-v1                    seeds 0 to 9, the preset
    python benchmarks/scores.py ppo CartPole-v1 --seeds 100-104    other seeds
    python benchmarks/scores.py ppo CartPole-v1 -- --num-envs 4    flags after -- go to `rlcore train`

Each seed is one `rlcore train` with 100 greedy evaluation episodes; no seed is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import machine
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algo")
    parser.add_argument("env_id")
    parser.add_argument("--seeds", default="0-9", help="first-last")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--name", help="of the result file (default: scores_ALGO_ENV)")
    parser.add_argument("flags", nargs="*", help="for rlcore train")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    seeds = range(first, last + 1)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        reports = list(pool.map(lambda seed: run(options, seed, Path(folder)), seeds))
    means = np.array([report["mean"] for report in reports])
    low, high = bootstrap_interval(means)
    for report in reports:
        print(f"seed {report['train_seed']:>4}: {report['mean']:8.1f} ± {report['std']:6.1f}")
    print(f"interquartile mean {interquartile_mean(means):.1f}, 95% interval [{low:.1f}, {high:.1f}]")
    env = options.env_id.replace("/", "-")
    machine.write(
        options.name or f"scores_{options.algo}_{env}",
        {
            "algo": options.algo,
            "env_id": options.env_id,
            "flags": options.flags,
            "interquartile_mean": interquartile_mean(means),
            "interval_95": [low, high],
            "min": float(means.min()),
            "training_steps_max": max(report["global_step"] for report in reports),
            "runs": reports,
        },
    )


def run(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """One seed: what `rlcore train` stored as its evaluation, without the single episodes."""
    run_dir = folder / f"seed{seed}"
    command = [sys.executable, "-m", "rlcore", "train", options.algo, options.env_id, "--seed", str(seed)]
    command += ["--run-dir", str(run_dir), "--no-progress", *options.flags]
    start = time.perf_counter()
    harness.run(command, threads=1)  # networks this small gain nothing by a second, and lose by waiting
    report = json.loads((run_dir / "evaluation.json").read_text())
    for key in ("returns", "lengths", "versions", "algo", "env_id"):
        del report[key]
    return {**report, "process_seconds": round(time.perf_counter() - start, 2)}


def interquartile_mean(x: np.ndarray) -> float:
    """Mean of the middle half (Agarwal et al. 2021); the outermost of it count by the share that lies inside."""
    x, n = np.sort(x), len(x)
    edges = np.arange(n + 1) / n
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return float(weight @ x / weight.sum())


def bootstrap_interval(x: np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """95% percentile interval of the interquartile mean over resampled seeds."""
    rng = np.random.default_rng(0)
    draws = [interquartile_mean(rng.choice(x, len(x))) for _ in range(resamples)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
