"""The table of scores in docs/pages/benchmarks.md, from results/scores_*.json.

    python benchmarks/table.py

The figures it is compared with are those the RL Zoo publishes for Stable-Baselines3 (in its benchmark.md), which
rlcore/runs/published.json has: mean ± standard deviation over the episodes of one trained agent, after so many training
steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ENVS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
ALGOS = ("ppo", "a2c", "trpo", "grpo", "reinforce")
PUBLISHED = Path(__file__).parent.parent / "rlcore" / "runs" / "published.json"


def main() -> None:
    print("| environment | agent | interquartile mean [95% interval] | worst of 10 seeds | steps | RL Zoo @ steps |")
    print("| --- | --- | --- | --- | --- | --- |")
    for env_id in ENVS:
        for algo in ALGOS:
            path = RESULTS / f"scores_{algo}_{env_id}.json"
            if path.exists():
                print(row(algo, env_id, json.loads(path.read_text()), path.name))


def row(algo: str, env_id: str, result: dict[str, Any], file: str) -> str:
    low, high = result["interval_95"]
    score = f"[{number(result['interquartile_mean'])}](../../benchmarks/results/{file}) [{number(low)}, {number(high)}]"
    entries = json.loads(PUBLISHED.read_text(encoding="utf-8"))["scores"][env_id].get(algo, [])
    peer = next((entry for entry in entries if entry["source"] == "RL Zoo"), None)
    published = f"{number(peer['score'])} ± {peer['std']:g} @ {steps(peer['steps'])}" if peer else ""
    cells = (env_id, algo, score, number(result["min"]), steps(result["training_steps_max"]), published)
    return f"| {' | '.join(cells)} |"


def number(x: float) -> str:
    return f"{x:.1f}".replace("-", "−")


def steps(count: int) -> str:
    return f"{count / 1e6:.2g}M" if count >= 995_000 else f"{count / 1e3:.0f}k"


if __name__ == "__main__":
    main()
