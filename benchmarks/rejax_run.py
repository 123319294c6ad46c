"""One run of rejax's PPO as a cell of `rlcore bench`, with rejax's own hyperparameters (rejax.toml).

    benchmarks/.venvs/rejax/bin/python benchmarks/rejax_run.py CartPole-v1 --seed=0 --out=DIR

The steps are those of rlcore's preset, unless --total-steps says otherwise. It trains on gymnax's environments in one
compiled program and is evaluated in Gymnasium's, greedily, on the seeds of peer_run.py. The curve is rejax's own
evaluation on the way, of sampled actions; its time and that of compiling are in `seconds`.
"""

from __future__ import annotations

import argparse
import copy
import time
import tomllib
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import peer_cell
from jax import numpy as jnp
from rejax import get_algo

HERE = Path(__file__).parent
POINTS = 20  # of a learning curve


def main() -> None:
    options = peer_cell.options_of(__doc__)
    values = tomllib.loads((HERE / "rejax.toml").read_text())[options.env_id]
    peer_cell.write(options, trained(options, values, options.total_steps))


def trained(options: argparse.Namespace, values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train and evaluate; the record of the run as `rlcore.runs.results` reads it."""
    rollout = values["num_envs"] * values["num_steps"]
    every = max(steps // POINTS // rollout, 1) * rollout
    count = -(-steps // every)
    began = time.perf_counter()
    agent = get_algo("ppo").create(
        env=options.env_id, total_timesteps=count * every, eval_freq=every, skip_initial_evaluation=True,
        **copy.deepcopy(values),
    )  # fmt: skip
    state, (_, returns) = jax.block_until_ready(jax.jit(agent.train)(jax.random.PRNGKey(options.seed)))
    seconds = time.perf_counter() - began
    curve = {
        "steps": [every * (k + 1) for k in range(count)],
        "seconds": [seconds * (k + 1) / count for k in range(count)],
        "returns": [float(x) for x in np.asarray(returns).mean(axis=1)[:count]],
    }
    return {
        "returns": evaluated(agent, state, options), "steps": count * every, "seconds": seconds, "total_steps": steps,
        "hyperparameters": values, "curve": curve,
    }  # fmt: skip


def evaluated(agent: Any, state: Any, options: argparse.Namespace) -> list[float]:
    """Undiscounted returns of greedy episodes in Gymnasium's environment."""
    env = gymnasium.make(options.env_id)

    @jax.jit
    def greedy(obs: jax.Array) -> jax.Array:
        if agent.normalize_observations:
            obs = agent.normalize_obs(state.obs_rms_state, obs)
        return agent.actor.apply(state.actor_ts.params, obs[None], method="_action_dist").mode()[0]

    returns = []
    for episode in range(options.eval_episodes):
        obs, _ = env.reset(seed=1_000_000 + 1000 * options.seed + episode)
        total, over = 0.0, False
        while not over:
            action = np.asarray(greedy(jnp.asarray(obs)))
            if isinstance(env.action_space, gymnasium.spaces.Box):
                action = np.clip(action.reshape(env.action_space.shape), env.action_space.low, env.action_space.high)
            obs, reward, terminated, truncated, _ = env.step(action if action.ndim else int(action))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


if __name__ == "__main__":
    main()
