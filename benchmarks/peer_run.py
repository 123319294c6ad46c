"""One run of Stable-Baselines3 or its contrib, as a cell of `rlcore bench`, with the RL Zoo's hyperparameters.

    benchmarks/.venvs/sb3_contrib/bin/python benchmarks/peer_run.py ppo CartPole-v1 --seed=0 --out=DIR

The steps are those of rlcore's preset for the same agent and environment, unless --total-steps says otherwise, so that
both have the same. Evaluation is greedy, on seeds that training has not seen, with normalisation frozen. Suites name
the command, as benchmarks/peers.toml does; `python benchmarks/peers.py sb3_contrib` makes the virtual environment.
"""

from __future__ import annotations

import argparse
import copy
import time
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import peer_cell
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

HERE = Path(__file__).parent
POINTS = 100  # of a learning curve


def main() -> None:
    options = peer_cell.options_of(__doc__, ("ppo", "a2c", "trpo"))
    torch.set_num_threads(1)
    values = tomllib.loads((HERE / "zoo.toml").read_text())[options.algo][options.env_id]
    peer_cell.write(options, trained(options, copy.deepcopy(values), options.total_steps))


def trained(options: argparse.Namespace, values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train and evaluate; the record of the run as `rlcore.runs.results` reads it."""
    algorithm, told = agent_class(options.algo), {**copy.deepcopy(values), "n_timesteps": steps}
    values.pop("n_timesteps")
    normalize, count = values.pop("normalize", False), values.pop("n_envs", 1)
    values = {name: schedule(value) for name, value in values.items()}
    envs = make_vec_env(options.env_id, count, seed=options.seed)
    if normalize:
        envs = VecNormalize(envs, gamma=values.get("gamma", 0.99))
    model = algorithm("MlpPolicy", envs, seed=options.seed, device="cpu", **values)
    log, began = Episodes(), time.perf_counter()
    model.learn(steps, callback=log)
    seconds = time.perf_counter() - began
    return {
        "returns": evaluated(model, envs, options), "steps": model.num_timesteps, "seconds": seconds,
        "total_steps": steps, "hyperparameters": told, "curve": curve(log.rows, steps),
    }  # fmt: skip


def agent_class(name: str) -> Any:
    if name != "trpo":
        return {"ppo": PPO, "a2c": A2C}[name]
    from sb3_contrib import TRPO

    return TRPO


def schedule(value: Any) -> Any:
    """What "lin_x" means: from x to 0 over the run."""
    if not (isinstance(value, str) and value.startswith("lin_")):
        return value
    first = float(value.removeprefix("lin_"))
    return lambda remaining: first * remaining


class Episodes(BaseCallback):
    """Notes step, time and return of each episode that ends in training."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, float, float]] = []
        self.began = time.perf_counter()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.rows.append((self.num_timesteps, time.perf_counter() - self.began, info["episode"]["r"]))
        return True


def evaluated(model: Any, envs: Any, options: argparse.Namespace) -> list[float]:
    """Undiscounted returns of greedy episodes in fresh environments."""
    fresh = make_vec_env(options.env_id, min(options.eval_episodes, 10), seed=1_000_000 + 1000 * options.seed)
    if isinstance(envs, VecNormalize):
        fresh = VecNormalize(fresh, training=False, norm_reward=False)
        fresh.obs_rms = envs.obs_rms
    returns, _ = evaluate_policy(model, fresh, options.eval_episodes, deterministic=True, return_episode_rewards=True)
    return [float(x) for x in returns]


def curve(rows: list[tuple[int, float, float]], steps: int) -> dict[str, list[Any]]:
    """The mean return of the episodes that ended in each of 100 stretches of as many steps."""
    table = np.array(rows, dtype=float).reshape(-1, 3)
    edges = np.linspace(0, max(steps, table[:, 0].max(initial=0)), POINTS + 1)
    columns: dict[str, list[Any]] = {"steps": [], "seconds": [], "returns": []}
    for low, high in pairwise(edges):
        inside = table[(table[:, 0] > low) & (table[:, 0] <= high)]
        until = table[table[:, 0] <= high]
        columns["steps"].append(round(high))
        columns["seconds"].append(float(until[-1, 1]) if len(until) else 0.0)
        columns["returns"].append(float(inside[:, 2].mean()) if len(inside) else None)
    return columns


if __name__ == "__main__":
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    main()
