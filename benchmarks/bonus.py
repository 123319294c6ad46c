"""What an exploration bonus finds that plain PPO does not: sparse tasks, equal budgets, the same seeds.

    python benchmarks/bonus.py                                   every task, seeds 0 to 4
    python benchmarks/bonus.py --tasks MountainCar-v0 --seeds 100-102 --name trial

PPO and random network distillation (benchmarks/plugins/rnd) learn with the same hyperparameters, which were chosen on
seeds 100 to 106; what the bonus adds are its own. A run is a process, trains on native environments with recorded
operations, and ends with 100 greedy episodes. No seed is left out. Runs that the result file has already, with the same
settings, are not made again: what was interrupted goes on. Runs with other settings are dropped from it.

Mountain Car is no task that PPO cannot learn: its preset, which normalises rewards too and goes through each rollout
ten times, solves it. Here are hyperparameters with which it hardly ever sees the goal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import harness
import machine

PLUGIN = Path(__file__).parent / "plugins" / "rnd"
EPISODES, EVAL_SEED = 100, 1_000_000
COMMON = dict(num_envs=16, num_steps=64, num_minibatches=4, update_epochs=4, learning_rate=1e-3, clip_vloss=False)
DEEP_SEA = {
    "total_steps": 100_000, "reached_above": 0.5, "solved_at": 0.9,
    "common": COMMON, "bonus": {"predictor_share": 0.25},
}  # fmt: skip
# By environment: a return that only an episode with the goal in it has, one that counts as solved, and hyperparameters
# of both agents and of the bonus alone.
TASKS: dict[str, dict[str, Any]] = {
    "MountainCar-v0": {
        "total_steps": 100_000, "reached_above": -200, "solved_at": -150,
        "common": {**COMMON, "norm_obs": True}, "bonus": {"ext_coef": 1.0, "bonus_coef": 30.0},
    },
    "rlcore/DeepSea10-v0": DEEP_SEA,
    "rlcore/DeepSea20-v0": {**DEEP_SEA, "total_steps": 200_000},
}  # fmt: skip
KEYS = ("env_id", "agent", "seed")
LISTS = ("seeds", "means", "last_hundreds", "firsts")
AGENTS = ("ppo", "rnd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", default="0-4", help="first-last")
    parser.add_argument("--name", default="bonus", help="of the result file")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    path = machine.RESULTS / f"{options.name}.json"
    runs = [run for run in stored(path) if run["task"] == task_of(*(run["task"][key] for key in KEYS))]
    for env_id, agent, seed in itertools.product(options.tasks, AGENTS, range(first, last + 1)):
        task = task_of(env_id, agent, seed)
        if any(run["task"] == task for run in runs):
            continue
        runs.append({"task": task, **harness.worker(__file__, task)})
        print(f"{env_id:22}{agent:5}{told(runs[-1])}", flush=True)
        write(options.name, runs)
    write(options.name, runs)
    report(summary(runs))


def stored(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def write(name: str, runs: list[dict[str, Any]]) -> None:
    machine.write(name, {"episodes": EPISODES, "summary": summary(runs), "runs": runs})


def task_of(env_id: str, agent: str, seed: int) -> dict[str, Any]:
    """All that a run depends on."""
    task = TASKS[env_id]
    hyperparameters = {**task["common"], **(task["bonus"] if agent == "rnd" else {})}
    settings = {key: task[key] for key in ("total_steps", "reached_above", "solved_at")}
    return {"env_id": env_id, "agent": agent, "seed": seed, **settings, "hyperparameters": hyperparameters}


def told(run: dict[str, Any]) -> str:
    first = run["first_reached"]
    when = "never" if first is None else f"first at step {first:,}"
    mean = f"{run['mean']:8.2f} ({run['last_hundred']:.2f} in training)"
    return f"seed {run['task']['seed']}: {mean}, goal reached {when}, {run['seconds']:.0f} s"


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By environment and agent: how many seeds reached the goal in training, how many solve the task, mean returns
    of greedy episodes and of the last hundred in training."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run["task"]["seed"]):
        task = run["task"]
        row = found.setdefault(task["env_id"], {}).setdefault(task["agent"], {name: [] for name in LISTS})
        row["seeds"].append(task["seed"])
        row["means"].append(run["mean"])
        row["firsts"].append(run["first_reached"])
        row["last_hundreds"].append(run["last_hundred"])
        row |= {"total_steps": task["total_steps"], "median": statistics.median(row["means"])}
        row["reached"] = sum(first is not None for first in row["firsts"])
        row["solved"] = sum(mean >= task["solved_at"] for mean in row["means"])
    return found


def report(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    rows = [["task", "agent", "greedy return", "worst", "best", "in training", "goal reached by", "solved by"]]
    for env_id, agents in found.items():
        for agent, row in agents.items():
            medians = row["median"], min(row["means"]), max(row["means"]), statistics.median(row["last_hundreds"])
            figures = [f"{x:.2f}" for x in medians]
            counts = [f"{row[key]} of {len(row['seeds'])}" for key in ("reached", "solved")]
            rows.append([env_id, agent, *figures, *counts])
    harness.table(rows)


# In a process of its own.


def work(
    env_id: str, agent: str, seed: int, total_steps: int, reached_above: float, solved_at: float,
    hyperparameters: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Train and judge one agent."""
    sys.path.insert(0, str(PLUGIN))
    import deep_sea  # noqa: F401  makes its tasks known
    from rlcore_rnd import RND

    from rlcore import PPO

    kind = {"ppo": PPO, "rnd": RND}[agent]
    settings = dict(seed=seed, device="cpu", backend="native", compile="record")
    learner, first, start = kind(env_id, **settings, **hyperparameters), None, time.perf_counter()
    returns: list[float] = []
    for _, episodes in learner.iterations(total_steps):
        returns += episodes.returns
        reached = [s for s, x in zip(episodes.step, episodes.returns, strict=True) if x > reached_above]
        first = min(reached, default=None) if first is None else first
    seconds = time.perf_counter() - start
    result = learner.evaluate(EPISODES, seed=EVAL_SEED + seed)
    return {
        "mean": result.mean, "std": result.std, "min": float(result.returns.min()), "max": float(result.returns.max()),
        "first_reached": first, "last_hundred": statistics.mean(returns[-100:]), "steps": learner.global_step,
        "how": learner.engine.how, "seconds": round(seconds, 2),
    }  # fmt: skip


if __name__ == "__main__":
    harness.start(main, work)
