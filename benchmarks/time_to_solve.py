"""Seconds from the start of a process to a policy that solves CartPole-v1, against the time of the imports alone.

    python benchmarks/time_to_solve.py                         ten fresh seeds from 1000 on
    python benchmarks/time_to_solve.py --seeds 3 --first-seed 2000
    python benchmarks/time_to_solve.py --device cuda
    python benchmarks/time_to_solve.py -- --total-steps 60000  flags after -- go to rlcore train

Solved means a mean return of at least 475 over 100 greedy episodes. Each measured time is that of a whole process,
from start to exit: interpreter, imports, compiled programs taken from the disk, training with the preset, writing the
run folder, and 100 evaluation episodes. In each repetition, one after the other:

    imports         python -c "import torch, gymnasium"
    compiled        rlcore train ppo CartPole-v1, with the compiled programs in the disk cache
    compiled-single the same, but the evaluation is done on 100 environments of gymnasium.make, by a loop of this file
    uncompiled      rlcore train ppo CartPole-v1 with an empty disk cache: so short a run is then not compiled, but
                    runs its recorded operations one by one (on CUDA, as Python)

What `rlcore train` evaluates with is gymnasium's own too, the vector implementation that it registers for CartPole-v1;
only training uses the native twin. So `compiled` and `compiled-single` differ in which of gymnasium's two
implementations judges. Apart from all measured times, the policies of `compiled` and `uncompiled` are judged by that
loop as well, on other seeds. The cache is filled by one run beforehand, whose time is reported as the cold time. On
CUDA there is no disk cache: `compiled` captures CUDA graphs in each process, and for `uncompiled` Python is asked for.

OMP_NUM_THREADS is taken out of the environment, so that `rlcore train` chooses its threads as it does for a user.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import machine
import numpy as np

ALGO, ENV_ID, SOLVED, EPISODES = "ppo", "CartPole-v1", 475.0, 100
CASES = ("compiled", "compiled-single", "uncompiled")
CHECK_SEED = 1_000_000  # of the episodes of gymnasium.make; no training seed is near


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("flags", nargs="*", help="for rlcore train")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}, but must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        measure_all(options, Path(folder))


def measure_all(options: argparse.Namespace, folder: Path) -> None:
    cold = fill_cache(options, folder) if options.device == "cpu" else None

    def measure(case: str, repetition: int) -> dict[str, Any]:
        return run_case(case, options, options.first_seed + repetition, folder)

    rows = harness.alternate(("imports", *CASES), options.seeds, measure, told)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for case in ("compiled", "uncompiled"):
        dirs = [str(run_dir(folder, case, seed)) for seed in seeds]
        for row, mean in zip(rows[case], harness.worker(__file__, {"run_dirs": dirs}), strict=True):
            row["mean_single"] = mean
    repetitions = [{"seed": seed, **{case: rows[case][k] for case in rows}} for k, seed in enumerate(seeds)]
    summary = {case: summarize(case, repetitions) for case in rows}
    report(summary, cold)
    machine.write(
        f"time_to_solve_{ENV_ID}{'_cuda' if options.device == 'cuda' else ''}",
        {"algo": ALGO, "env_id": ENV_ID, "solved_at": SOLVED, "episodes": EPISODES, "device": options.device}
        | {"flags": options.flags, "evaluates_in": "gymnasium's vector implementation; -single: gymnasium.make"}
        | {"cold": cold, "summary": summary, "repetitions": repetitions},
    )


def told(row: dict[str, Any]) -> str:
    return f"{row['seconds']:6.2f} s" + (f", mean return {row['mean']:.1f}" if "mean" in row else "")


def fill_cache(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Build the programs into the cache of `compiled`; what a first run on a machine takes that asks for them."""
    command = train_command(options, options.first_seed, folder / "cold", "--compile", "true")
    found = timed([sys.executable, "-m", "rlcore", *command], folder / "programs")
    print(f"cold: {found['seconds']:.1f} s, {found['engine']}", flush=True)
    return found


def run_dir(folder: Path, case: str, seed: int) -> Path:
    return folder / f"{case}-{seed}"


def run_case(case: str, options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """One seed in one case."""
    if case == "imports":
        return timed([sys.executable, "-c", "import torch, gymnasium"], folder / "programs")
    compiles, where = case != "uncompiled", run_dir(folder, case, seed)
    flags = ["--compile", str(compiles).lower()] if options.device == "cuda" else []
    cache = folder / ("programs" if compiles else "nothing")
    if case == "compiled-single":
        train = train_command(options, seed, where, *flags, "--eval-episodes", "0")
        row = timed(harness.worker_command(__file__, {"run_dirs": [str(where)], "train": train}), cache)
        row["mean"] = row.pop("means")[0]
    else:
        row = timed([sys.executable, "-m", "rlcore", *train_command(options, seed, where, *flags)], cache)
        evaluation = json.loads((where / "evaluation.json").read_text())
        row |= {key: evaluation[key] for key in ("mean", "training_seconds")}
    if row["engine"].startswith("iterations: compiled programs") != compiles:
        raise SystemExit(f"the case {case} is not what it should be: '{row['engine']}'")
    return row


def train_command(options: argparse.Namespace, seed: int, run_dir: Path, *flags: str) -> list[str]:
    command = ["train", ALGO, ENV_ID, "--seed", str(seed), "--run-dir", str(run_dir), "--no-progress"]
    return [*command, "--device", options.device, *flags, *options.flags]


def timed(command: list[str], cache: Path) -> dict[str, Any]:
    """Run a process to its end: its seconds, how its iterations ran, and the means that it found."""
    start = time.perf_counter()
    lines = harness.run(command, threads=None, cache=cache).splitlines()
    found: dict[str, Any] = {"seconds": time.perf_counter() - start}
    for line in lines:
        if line.startswith("iterations: "):
            found["engine"] = line
        elif line.startswith("["):
            found["means"] = json.loads(line)
    return found


def summarize(case: str, repetitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range of a case, its ratio to the imports of the same repetition, and how many seeds it solved."""
    seconds = [row[case]["seconds"] for row in repetitions]
    ratios = harness.ratios(seconds, [row["imports"]["seconds"] for row in repetitions])
    summary = {
        "seconds_median": statistics.median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        **harness.with_median("ratio_to_imports", ratios),
    }
    if "training_seconds" in repetitions[0][case]:
        summary["training_seconds_median"] = statistics.median(row[case]["training_seconds"] for row in repetitions)
    for name, key in (("solved", "mean"), ("solved_single", "mean_single")):
        if key in repetitions[0][case]:
            summary[name] = sum(row[case][key] >= SOLVED for row in repetitions)
            summary[f"{name}_of"] = len(repetitions)
    return summary


def report(summary: dict[str, dict[str, Any]], cold: dict[str, Any] | None) -> None:
    cells = [["case", "median", "range", "× imports", "solved", "by gymnasium.make"]]
    for case, row in summary.items():
        low, high = row["seconds_range"]
        own = f"{row['solved']} of {row['solved_of']}" if "solved" in row else ""
        other = f"{row['solved_single']} of {row['solved_single_of']}" if "solved_single" in row else ""
        if case == "compiled-single":
            own, other = "", own
        times = f"{row['seconds_median']:.2f} s", f"{low:.2f} to {high:.2f} s"
        cells.append([case, *times, harness.spread(row["ratio_to_imports"]), own, other])
    harness.table(cells)
    for case in ("compiled", "uncompiled"):
        print(f"of {case}, training alone: {summary[case]['training_seconds_median']:.2f} s")
    if cold:
        print(f"the first run, which built the programs: {cold['seconds']:.1f} s")


# In processes of their own.


def work(run_dirs: list[str], train: list[str] | None = None) -> list[float]:
    """Judge the policies of runs, after `rlcore train` in the same process where its arguments are given."""
    from rlcore.cli import main as rlcore

    if train and (code := rlcore(train)):
        sys.exit(code)
    return [judge(Path(run_dir)) for run_dir in run_dirs]


def judge(run_dir: Path) -> float:
    """Mean greedy return of a run's policy in environments made one by one."""
    import gymnasium

    from rlcore.runs.train import open_agent

    agent, _ = open_agent(run_dir, device="cpu")
    return float(play([gymnasium.make(ENV_ID) for _ in range(EPISODES)], agent.act, CHECK_SEED).mean())


def play(envs: list[Any], act: Any, seed: int) -> np.ndarray:
    """Returns of one greedy episode in each single environment; they step in turn, so that one look at the network
    serves all."""
    obs = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
    returns, running = np.zeros(len(envs)), np.ones(len(envs), dtype=bool)
    while running.any():
        actions = act(obs, deterministic=True)
        for i in np.flatnonzero(running):
            obs[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
            returns[i] += reward
            running[i] = not (terminated or truncated)
    return returns


if __name__ == "__main__":
    harness.start(main, work)
