"""Random play on classic control, Box2D and MuJoCo: what a normalised score of 0 stands for in reports.

    python benchmarks/random_play.py

The environments are those of rlcore/runs/published.json, into which the means are written, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import machine
import numpy as np

EPISODES = 1000
PUBLISHED = Path(__file__).parent.parent / "rlcore" / "runs" / "published.json"


def main() -> None:
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    results = {env_id: random_play(env_id) for env_id in published["normalization"]}
    print(json.dumps(results, indent=1))
    machine.write("random_play", {"episodes": EPISODES, "returns": results})
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
