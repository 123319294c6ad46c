"""What a policy with memory learns where one without cannot: PPO on the tasks of rlcore/envs/memory_tasks.py.

    python benchmarks/memory.py                                            all rows: task × policy × seeds 0 to 4
    python benchmarks/memory.py --tasks Repeat4 TMaze --policies gru       some
    python benchmarks/memory.py --seeds 0-0 --total-steps 50000            a trial; such rows are made anew later
    python benchmarks/memory.py --jobs 2                                   as many rows at a time, one thread each

A row is one training, all compiled on the native task, and 100 greedy episodes whose seeds no training is near. Each
task has its own hyperparameters and steps, the same for all policies but where `Task.own` says so; no seed is left out.
Rows that are in the result file already, of the same hyperparameters and steps, are left out: what was interrupted goes
on. RLCORE_RESULTS names another folder for results.

A seed counts as solved from the task's bar on: 95% of the best return there is, as are the 475 of CartPole-v1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import harness
import machine

NAME = "memory"
EPISODES, EVALUATION_SEED = 100, 1_000_000
COMMON = dict(num_steps=128, num_minibatches=4, update_epochs=4, learning_rate=1e-3, ent_coef=0.01)


@dataclass(frozen=True)
class Task:
    """A row of the table: what the task is worth, how long it is trained on, and with what beside `COMMON`.

    Attributes:
        best: the largest return there is.
        memoryless: what is the most without memory, where that is known.
        bar: the return from which on a seed has solved it.
        sequence_length: steps through which gradients go back, and that a transformer sees.
        work: further hyperparameters.
        own: what is otherwise for one policy alone, hyperparameters and total_steps.
    """

    env_id: str
    best: float
    memoryless: float | None
    bar: float
    total_steps: int
    sequence_length: int
    work: dict[str, Any]
    own: dict[str, dict[str, Any]] = field(default_factory=dict)


# An answer changes nothing of what comes after it: γ = 0.
ANSWERS = dict(num_envs=16, gamma=0.0, learning_rate=3e-3)
# Sixteen symbols in order are much for a state of 64 numbers that begins by forgetting.
MUCH = dict(num_envs=64, memory_size=128, handing_on=True, total_steps=2_000_000)
TASKS = {
    "Repeat1": Task("rlcore/Repeat1-v0", 32, 8, 30.4, 200_000, 32, ANSWERS),
    "Repeat4": Task("rlcore/Repeat4-v0", 32, 8, 30.4, 400_000, 32, ANSWERS),
    "Repeat16": Task("rlcore/Repeat16-v0", 32, 8, 30.4, 300_000, 64, ANSWERS, {"gru": MUCH, "lstm": MUCH}),
    "TMaze": Task("rlcore/TMaze-v0", 1, 0.5, 0.95, 500_000, 64, dict(num_envs=16, gamma=0.98)),
    "CartPoleNoVel": Task(
        "rlcore/CartPoleNoVel-v1", 500, None, 475, 500_000, 32, dict(num_envs=8, norm_obs=True),
        {"lstm": dict(learning_rate=5e-4, total_steps=1_000_000)},
    ),
}  # fmt: skip
POLICIES = {
    "feedforward": {},
    **{memory: {"memory": memory, "memory_size": 64} for memory in ("gru", "lstm", "transformer")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", default="0-4", help="first-last")
    parser.add_argument("--total-steps", type=int, help="in the place of the table's")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    path = machine.RESULTS / f"{NAME}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    todo = missing(rows, options.tasks, options.policies, range(first, last + 1), options.total_steps)
    one_at_a_time = threading.Lock()

    def measure(row: dict[str, Any]) -> None:
        result = {**row, **measured(row)}
        with one_at_a_time:
            rows[key(row)] = result
            print(f"{key(row):28}{told(result)}", flush=True)
            store(rows)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(measure, todo))
    report(summarize(rows))


def missing(
    rows: dict[str, Any], tasks: list[str], policies: list[str], seeds: range, total_steps: int | None = None
) -> list[dict[str, Any]]:
    """The rows that are asked for and not there, or there with other settings."""
    asked = [
        {"task": task, "policy": policy, "seed": seed, "settings": settings(task, policy, total_steps)}
        for seed, task, policy in itertools.product(seeds, tasks, policies)
    ]
    return [row for row in asked if rows.get(key(row), {}).get("settings") != row["settings"]]


def key(row: dict[str, Any]) -> str:
    return f"{row['task']} {row['policy']} {row['seed']}"


def settings(task: str, policy: str, total_steps: int | None = None) -> dict[str, Any]:
    """All that decides about a row beside its seed."""
    row, memory = TASKS[task], POLICIES[policy]
    sequences = {"sequence_length": row.sequence_length} if memory else {}
    sequences |= {"memory_context": row.sequence_length} if policy == "transformer" else {}
    work = {**COMMON, **row.work, **memory, **sequences, **row.own.get(policy, {})}
    steps = work.pop("total_steps", row.total_steps)
    return {"env_id": row.env_id, "total_steps": total_steps or steps, "hyperparameters": work}


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate in a process of its own; the seconds of all of it, and of which commit it is."""
    start = time.perf_counter()
    result = harness.worker(__file__, {"seed": row["seed"], **row["settings"]}, threads=1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=harness.ROOT, capture_output=True, text=True)
    return {**result, "process_seconds": round(time.perf_counter() - start, 2), "commit": commit.stdout.strip()}


def told(row: dict[str, Any]) -> str:
    return f"{row['mean']:8.2f} ± {row['std']:6.2f} after {row['global_step']:,} steps, {row['train_seconds']:.1f} s"


def store(rows: dict[str, Any]) -> None:
    tasks = {name: asdict(task) for name, task in TASKS.items()}
    rows = {name: rows[name] for name in sorted(rows)}
    machine.write(
        NAME,
        {"algo": "ppo", "episodes": EPISODES, "evaluation_seed": EVALUATION_SEED, "tasks": tasks}
        | {"summary": summarize(rows), "rows": rows},
    )


def summarize(rows: dict[str, Any]) -> dict[str, Any]:
    """What the seeds of a task and policy got, how many of them solved it, and how long they trained."""
    summary = {}
    for task, policy in itertools.product(TASKS, POLICIES):
        found = [row for row in rows.values() if (row["task"], row["policy"]) == (task, policy)]
        if not found:
            continue
        means = [row["mean"] for row in found]
        summary[f"{task} {policy}"] = {
            "mean": statistics.mean(means),
            "min": min(means),
            "max": max(means),
            "solved": sum(mean >= TASKS[task].bar for mean in means),
            "seeds": sorted(row["seed"] for row in found),
            "train_seconds_median": statistics.median(row["train_seconds"] for row in found),
        }
    return summary


def report(summary: dict[str, Any]) -> None:
    cells = [["task", "policy", "mean (lowest to highest seed)", "solved", "s a seed"]]
    for name, row in summary.items():
        spread = f"{row['mean']:.2f} ({row['min']:.2f} to {row['max']:.2f})"
        solved = f"{row['solved']} of {len(row['seeds'])}"
        cells.append([*name.split(), spread, solved, f"{row['train_seconds_median']:.1f}"])
    harness.table(cells)


# In a process of its own.


def train(seed: int, env_id: str, total_steps: int, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    import torch

    import rlcore
    from rlcore.networks import GRU, LSTM

    torch.set_num_threads(1)
    if hyperparameters.pop("handing_on", False):
        kind, size = {"gru": GRU, "lstm": LSTM}[hyperparameters["memory"]], hyperparameters.pop("memory_size")
        hyperparameters["memory"] = lambda in_features: kind(in_features, size).handing_on()
    agent = rlcore.PPO(env_id, seed=seed, device="cpu", backend="native", compile=True, **hyperparameters)
    start = time.perf_counter()
    agent.learn(total_steps=total_steps)
    seconds = time.perf_counter() - start - agent.seconds["prepare"]  # which is long where programs are compiled
    evaluation = agent.evaluate(episodes=EPISODES, seed=EVALUATION_SEED)
    return {
        "mean": evaluation.mean, "std": evaluation.std, "global_step": agent.global_step,
        "train_seconds": round(seconds, 2), "prepare_seconds": round(agent.seconds["prepare"], 2),
    }  # fmt: skip


if __name__ == "__main__":
    harness.start(main, train)
