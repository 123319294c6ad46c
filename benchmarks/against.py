"""Is this checkout as fast as another commit? Both take turns, row by row of docs/pages/speed.md.

    python benchmarks/against.py 2e745ff                     every row, three repetitions
    python benchmarks/against.py HEAD --rows a2c grpo        some rows
    python benchmarks/against.py 2e745ff --jobs 2            as many rows at a time, each on a core of its own

A row is an agent, an environment and a way of running; a repetition is a fresh process per side, of which the ratio is
taken. The other commit is unpacked beside this one and has its own folder of compiled programs, so that the first
repetition also tells how long it takes to be ready with nothing built. Rows that are in the result file already, from
the same two commits, are left out: what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import machine

PPO = dict(num_steps=128, num_minibatches=4, update_epochs=4, learning_rate=2.5e-4, ent_coef=0.01)
# Whole episodes: steps per second follow their length, which rounding would part once the policy has learned.
SAME_EPISODES = dict(learning_rate=1e-9)
TASKS = {
    "ppo": ("PPO", "CartPole-v1", {"num_envs": 4, **PPO}),
    "ppo64": ("PPO", "CartPole-v1", {"num_envs": 64, **PPO}),
    "acrobot": ("PPO", "Acrobot-v1", {"num_envs": 4, **PPO}),
    "pendulum": ("PPO", "Pendulum-v1", {"num_envs": 4, **PPO}),
    "mountaincar": ("PPO", "MountainCar-v0", {"num_envs": 4, **PPO}),
    "a2c": ("A2C", "CartPole-v1", {}),
    "grpo": ("GRPO", "CartPole-v1", SAME_EPISODES),
    "reinforce": ("REINFORCE", "CartPole-v1", SAME_EPISODES),
    "trpo": ("TRPO", "CartPole-v1", {}),
}
WAYS = {
    "python": dict(compile=False),
    "python-sync": dict(compile=False, backend="sync"),
    "recorded": dict(compile="record"),
    "compiled": dict(compile=True, backend="native"),
}
WARM_UP = 3  # iterations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="to compare with")
    parser.add_argument("--rows", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time per repetition and side")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="rows measured at a time, each on a core of its own")
    options = parser.parse_args()
    other = _git("rev-parse", "--short", options.commit)
    name = f"against_{other}"
    path = machine.RESULTS / f"{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    todo = [f"{row} {way}" for row, way in itertools.product(options.rows, options.ways)]
    todo = [row for row in todo if row not in rows]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        unpack(other, Path(folder) / "other")
        cores = list(os.sched_getaffinity(0))

        def measure(numbered: tuple[int, str]) -> None:
            i, row = numbered
            rows[row] = compare(row, Path(folder), cores[i % options.jobs], options)
            print(f"{row:24}{told(rows[row])}", flush=True)
            machine.write(name, {"other": other, "seconds": options.seconds, "rows": dict(sorted(rows.items()))})

        list(pool.map(measure, enumerate(todo)))


def compare(row: str, folder: Path, core: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns; steps per second, seconds to the end of the first iteration, and the median ratio."""
    sides = {"other": folder / "other", "this": harness.ROOT}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(options.repetitions):
        for side, root in sides.items():
            task = {"row": row, "seconds": options.seconds, "core": core}
            cache = folder / f"programs of {side}"
            settings = {"PYTHONPATH": str(root), "TORCHINDUCTOR_CACHE_DIR": str(folder / f"kernels-of-{side}")}
            found[side].append(harness.worker(__file__, task, cache=cache, **settings))
    ratios = [t["steps_per_second"] / o["steps_per_second"] for t, o in zip(found["this"], found["other"], strict=True)]
    commit = _git("rev-parse", "--short", "HEAD")
    return {"commit": commit, "ratio": sorted(ratios)[len(ratios) // 2], "ratios": ratios, **found}


def told(row: dict[str, Any]) -> str:
    speeds = {side: max(x["steps_per_second"] for x in row[side]) for side in ("this", "other")}
    ready = {side: row[side][0]["ready_seconds"] for side in ("this", "other")}
    return (
        f"{row['ratio']:.3f} ({min(row['ratios']):.3f}-{max(row['ratios']):.3f})   best {speeds['this']:,.0f} against "
        f"{speeds['other']:,.0f} steps/s   first ready after {ready['this']:.1f} against {ready['other']:.1f} s"
    )


def train(row: str, seconds: float, core: int) -> dict[str, float]:
    """Train by what is public in both commits."""
    import torch

    import rlcore

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {core})
    task, way = row.split()
    kind, env_id, work = TASKS[task]
    start = time.perf_counter()
    agent = getattr(rlcore, kind)(env_id, seed=1, device="cpu", **work, **WAYS[way])
    iterations = agent.iterations(harness.FAR)
    next(iterations)
    ready = time.perf_counter() - start
    for _ in range(WARM_UP):
        next(iterations)
    start, first = time.perf_counter(), agent.global_step
    while time.perf_counter() - start < seconds:
        next(iterations)
    elapsed = time.perf_counter() - start
    return {"steps_per_second": (agent.global_step - first) / elapsed, "ready_seconds": ready}


def unpack(commit: str, folder: Path) -> None:
    """A commit's files in a folder."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=harness.ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=harness.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"no such commit: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    harness.start(main, train)
