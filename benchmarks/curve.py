"""The learning curve of a run folder as a result file: its config, its games in 40 bins of steps, its evaluation.

    python benchmarks/curve.py RUN                                  writes results/curve_ALGO_ENV_seedS.json
    python benchmarks/curve.py RUN --published "PPO, RL Zoo: 20.99 at 10M steps" --random-episodes 100

The single games are too many to commit; each bin has their number and the mean, lowest and highest return.
"""

from __future__ import annotations

import argparse
import csv
import json
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import machine
import numpy as np

import rlcore
from rlcore.agents.evaluation import play_episodes
from rlcore.envs import VectorAdapter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--bins", type=int, default=40)
    parser.add_argument("--published", action="append", default=[], help="what others report, with its source")
    parser.add_argument("--random-episodes", type=int, default=100, help="episodes of random play to compare with")
    parser.add_argument("--trained-at", help="commit of the code that trained, where it is not the present one")
    options = parser.parse_args()
    config = tomllib.loads((options.run / "config.toml").read_text())
    with open(options.run / "episodes.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    file = options.run / "evaluation.json"
    evaluation = json.loads(file.read_text()) if file.exists() else None
    seed = config["hyperparameters"]["seed"]
    curve = binned(rows, options.bins)
    for point in curve:
        print(f"{point['step']:12,} {point['mean']:10.2f} ({point['episodes']})")
    env = config["env_id"].replace("/", "-")
    machine.write(
        f"curve_{config['algo']}_{env}_seed{seed}",
        {"config": config, "trained_at_commit": options.trained_at}
        | {"random_play": random_play(config["env_id"], options.random_episodes)}
        | {"published": options.published, "seconds": float(rows[-1]["seconds"]), "curve": curve}
        | {"evaluation": evaluation},
    )


def random_play(env_id: str, episodes: int) -> dict[str, float]:
    """Returns of actions drawn uniformly, a number of episodes fixed in advance in each of 8 environments."""
    envs = VectorAdapter(rlcore.make_vec(env_id, 8))
    choices, rng = envs.action_spec.nvec[0], np.random.default_rng(0)

    def actor(obs: Any, deterministic: bool) -> np.ndarray:
        return rng.integers(0, choices, 8)

    result = play_episodes(actor, envs, episodes, 12345, False, 1_000_000)
    envs.close()
    return {"episodes": episodes, "mean": result.mean, "std": result.std}


def binned(rows: list[dict[str, str]], bins: int) -> list[dict[str, float]]:
    """Games in bins of equal numbers of steps; empty bins are left out."""
    steps, returns = (np.array([float(row[name]) for row in rows]) for name in ("global_step", "return"))
    edges = np.linspace(0, steps.max(), bins + 1)
    curve = []
    for low, high in pairwise(edges):
        chosen = returns[(steps > low) & (steps <= high)]
        if len(chosen):
            curve.append(
                {"step": int(high), "episodes": len(chosen), "mean": float(chosen.mean())}
                | {"min": float(chosen.min()), "max": float(chosen.max())}
            )
    return curve


if __name__ == "__main__":
    main()
