"""The table of scores in the README, from results/scores_*.json.

    python benchmarks/table.py

The figures it is compared with are those the RL Zoo publishes for Stable-Baselines3 (in its benchmark.md): mean ±
standard deviation over the episodes of one trained agent, after so many training steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ENVS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
ALGOS = ("ppo", "a2c", "trpo", "grpo", "reinforce")
ZOO: dict[tuple[str, str], tuple[float, str, int]] = {
    ("ppo", "CartPole-v1"): (500.0, "500.0 ± 0", 100_000),
    ("ppo", "Acrobot-v1"): (-73.5, "−73.5 ± 18", 1_000_000),
    ("ppo", "MountainCar-v0"): (-110.4, "−110.4 ± 19", 1_000_000),
    ("ppo", "MountainCarContinuous-v0"): (88.3, "88.3 ± 2.6", 20_000),
    ("ppo", "Pendulum-v1"): (-172.2, "−172.2 ± 104", 100_000),
    ("a2c", "CartPole-v1"): (500.0, "500.0 ± 0", 500_000),
    ("a2c", "Acrobot-v1"): (-83.4, "−83.4 ± 17", 500_000),
    ("a2c", "MountainCar-v0"): (-111.3, "−111.3 ± 24", 1_000_000),
    ("a2c", "MountainCarContinuous-v0"): (91.2, "91.2 ± 0.3", 100_000),
    ("a2c", "Pendulum-v1"): (-163.0, "−163.0 ± 103", 1_000_000),
    ("trpo", "CartPole-v1"): (500.0, "500.0 ± 0", 100_000),
    ("trpo", "Acrobot-v1"): (-83.1, "−83.1 ± 19", 100_000),
    ("trpo", "MountainCar-v0"): (-107.3, "−107.3 ± 13", 100_000),
    ("trpo", "MountainCarContinuous-v0"): (92.5, "92.5 ± 0.4", 50_000),
    ("trpo", "Pendulum-v1"): (-174.6, "−174.6 ± 128", 100_000),
}


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
    score = f"[{number(result['interquartile_mean'])}](benchmarks/results/{file}) [{number(low)}, {number(high)}]"
    peer = ZOO.get((algo, env_id))
    published = f"{peer[1]} @ {steps(peer[2])}" if peer else ""
    cells = (env_id, algo, score, number(result["min"]), steps(result["training_steps_max"]), published)
    return f"| {' | '.join(cells)} |"


def number(x: float) -> str:
    return f"{x:.1f}".replace("-", "−")


def steps(count: int) -> str:
    return f"{count / 1e6:.2g}M" if count >= 995_000 else f"{count / 1e3:.0f}k"


if __name__ == "__main__":
    main()
