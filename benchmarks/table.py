"""The table of scores in docs/pages/benchmarks.md, from what `rlcore bench classic` left in results/classic.

    python benchmarks/table.py

The figures it is compared with are those the RL Zoo publishes for Stable-Baselines3 (in its benchmark.md), which
rlcore/runs/published.json has: mean ± standard deviation over the episodes of one trained agent, after so many training
steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlcore.runs.statistics import interquartile_mean, interval

RESULTS = Path(__file__).parent / "results" / "classic" / "results.jsonl"
ENVS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
ALGOS = ("ppo", "a2c", "trpo", "grpo", "reinforce")
PUBLISHED = Path(__file__).parent.parent / "rlcore" / "runs" / "published.json"


def main() -> None:
    cells = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    print("| environment | agent | interquartile mean [95% interval] | worst of 10 seeds | steps | RL Zoo @ steps |")
    print("| --- | --- | --- | --- | --- | --- |")
    for env_id in ENVS:
        for algo in ALGOS:
            print(row(algo, env_id, [cell for cell in cells if (cell["agent"], cell["env_id"]) == (algo, env_id)]))


def row(algo: str, env_id: str, runs: list[dict[str, Any]]) -> str:
    scores = np.array([np.mean(run["returns"]) for run in runs])
    low, high = interval(interquartile_mean, [scores])
    score = f"{number(interquartile_mean([scores]))} [{number(low)}, {number(high)}]"
    entries = json.loads(PUBLISHED.read_text(encoding="utf-8"))["scores"][env_id].get(algo, [])
    peer = next((entry for entry in entries if entry["source"] == "RL Zoo"), None)
    published = f"{number(peer['score'])} ± {peer['std']:g} @ {steps(peer['steps'])}" if peer else ""
    trained = steps(max(run["steps"] for run in runs))
    return f"| {' | '.join((env_id, algo, score, number(scores.min()), trained, published))} |"


def number(x: float) -> str:
    return f"{x:.1f}".replace("-", "−")


def steps(count: int) -> str:
    return f"{count / 1e6:.2g}M" if count >= 995_000 else f"{count / 1e3:.0f}k"


if __name__ == "__main__":
    main()
