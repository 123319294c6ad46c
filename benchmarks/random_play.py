"""Random play on the classic control tasks: what a normalised score of 0 stands for in reports.

    python benchmarks/random_play.py

The means are also written into rlcore/runs/published.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import machine
import numpy as np

EPISODES = 1000
ENVS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
PUBLISHED = Path(__file__).parent.parent / "rlcore" / "runs" / "published.json"


def main() -> None:
    results = {env_id: random_play(env_id) for env_id in ENVS}
    print(json.dumps(results, indent=1))
    machine.write("random_play", {"episodes": EPISODES, "returns": results})
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    for env_id, result in results.items():
        published["normalization"][env_id]["random"] = round(result["mean"], 2)
    PUBLISHED.write_text(json.dumps(published, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def random_play(env_id: str) -> dict[str, Any]:
    """Returns of actions drawn uniformly, in one environment that is seeded once."""
    env = gymnasium.make(env_id, disable_env_checker=True)
    env.action_space.seed(0)
    env.reset(seed=0)
    returns = []
    for _ in range(EPISODES):
        env.reset()
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return {"mean": float(np.mean(returns)), "standard_error": float(np.std(returns, ddof=1) / EPISODES**0.5)}


if __name__ == "__main__":
    main()
