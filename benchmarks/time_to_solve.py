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
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
    parser.add_argument("--worker", choices=("train", "check"), help=argparse.SUPPRESS)
    parser.add_argument("--run-dirs", nargs="+", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="for rlcore train")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}, but must be at least 1")
    if options.worker:
        WORKERS[options.worker](options)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure_all(options, Path(folder))


def measure_all(options: argparse.Namespace, folder: Path) -> None:
    cold = fill_cache(options, folder) if options.device == "cpu" else None
    repetitions = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        repetitions.append(repeat(options, seed, folder))
        row = repetitions[-1]
        shown = ", ".join(f"{case} {row[case]['seconds']:.2f} s ({row[case]['mean']:.1f})" for case in CASES)
        print(f"seed {seed}: imports {row['imports']['seconds']:.2f} s, {shown}", flush=True)
    summary = {case: summarize(case, repetitions) for case in ("imports", *CASES)}
    report(summary, cold)
    machine.write(
        f"time_to_solve_{ENV_ID}{'_cuda' if options.device == 'cuda' else ''}",
        {"algo": ALGO, "env_id": ENV_ID, "solved_at": SOLVED, "episodes": EPISODES, "device": options.device}
        | {"flags": options.flags, "evaluates_in": "gymnasium's vector implementation; -single: gymnasium.make"}
        | {"cold": cold, "summary": summary, "repetitions": repetitions},
    )


def fill_cache(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Build the programs into the cache of `compiled`; what a first run on a machine takes that asks for them."""
    seed = options.first_seed
    run = timed(train_command(options, seed, folder / "cold", "--compile", "true"), folder / "programs")
    print(f"cold: {run['seconds']:.1f} s, {run['engine']}", flush=True)
    return {"seconds": run["seconds"], "engine": run["engine"]}


def repeat(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """One seed in every case."""
    dirs = {case: folder / f"{case}-{seed}" for case in CASES}
    asked = {"cpu": ((), ()), "cuda": (("--compile", "true"), ("--compile", "false"))}[options.device]
    command = train_command(options, seed, dirs["compiled-single"], *asked[0], "--eval-episodes", "0")
    single = [sys.executable, __file__, "--worker", "train", "--run-dirs", str(dirs["compiled-single"]), "--"]
    row = {
        "seed": seed,
        "imports": timed([sys.executable, "-c", "import torch, gymnasium"], folder / "programs"),
        "compiled": timed(train_command(options, seed, dirs["compiled"], *asked[0]), folder / "programs"),
        "compiled-single": timed([*single, *command[3:]], folder / "programs"),
        "uncompiled": timed(train_command(options, seed, dirs["uncompiled"], *asked[1]), folder / "nothing"),
    }
    for case in ("compiled", "uncompiled"):
        evaluation = json.loads((dirs[case] / "evaluation.json").read_text())
        row[case] |= {key: evaluation[key] for key in ("mean", "training_seconds")}
    for case in CASES:
        if row[case]["engine"].startswith("iterations are compiled programs") == (case == "uncompiled"):
            raise SystemExit(f"the case {case} is not what it should be: '{row[case]['engine']}'")
    apart = [
        sys.executable,
        __file__,
        "--worker",
        "check",
        "--run-dirs",
        str(dirs["compiled"]),
        str(dirs["uncompiled"]),
    ]
    for case, mean in zip(("compiled", "uncompiled"), timed(apart, folder / "programs")["means"], strict=True):
        row[case]["mean_single"] = mean
    row["compiled-single"]["mean"] = row["compiled-single"].pop("means")[0]
    return row


def train_command(options: argparse.Namespace, seed: int, run_dir: Path, *flags: str) -> list[str]:
    command = [sys.executable, "-m", "rlcore", "train", ALGO, ENV_ID, "--seed", str(seed), "--run-dir", str(run_dir)]
    return [*command, "--no-progress", "--device", options.device, *flags, *options.flags]


def timed(command: list[str], cache: Path) -> dict[str, Any]:
    """Run a process to its end: its seconds, how its iterations ran, and the means that it found."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    env |= {"RLCORE_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parent.parent)}
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    seconds = time.perf_counter() - start
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    lines = result.stdout.splitlines()
    found: dict[str, Any] = {"seconds": seconds}
    for line in lines:
        if line.startswith("iterations "):
            found["engine"] = line
        elif line.startswith("["):
            found["means"] = json.loads(line)
    return found


def summarize(case: str, repetitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range of a case, its ratio to the imports of the same repetition, and how many seeds it solved."""
    seconds = [row[case]["seconds"] for row in repetitions]
    ratios = [row[case]["seconds"] / row["imports"]["seconds"] for row in repetitions]
    summary = {
        "seconds_median": statistics.median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        "ratio_to_imports_median": statistics.median(ratios),
        "ratio_to_imports": ratios,
    }
    if "training_seconds" in repetitions[0][case]:
        summary["training_seconds_median"] = statistics.median(row[case]["training_seconds"] for row in repetitions)
    for name, key in (("solved", "mean"), ("solved_single", "mean_single")):
        if key in repetitions[0][case]:
            summary[name] = sum(row[case][key] >= SOLVED for row in repetitions)
            summary[f"{name}_of"] = len(repetitions)
    return summary


def report(summary: dict[str, dict[str, Any]], cold: dict[str, Any] | None) -> None:
    print(f"\n{'case':16}{'median':>9}{'range':>16}{'× imports':>22}{'solved':>10}{'by gymnasium.make':>20}")
    for case, row in summary.items():
        low, high = row["seconds_range"]
        ratios = row["ratio_to_imports"]
        spread = f"{row['ratio_to_imports_median']:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        own = f"{row['solved']} of {row['solved_of']}" if "solved" in row else ""
        other = f"{row['solved_single']} of {row['solved_single_of']}" if "solved_single" in row else ""
        if case == "compiled-single":
            own, other = "", own
        median = f"{row['seconds_median']:.2f} s"
        print(f"{case:16}{median:>9}{f'{low:.2f}-{high:.2f} s':>16}{spread:>22}{own:>10}{other:>20}")
    for case in ("compiled", "uncompiled"):
        print(f"of {case}, training alone: {summary[case]['training_seconds_median']:.2f} s")
    if cold:
        print(f"the first run, which built the programs: {cold['seconds']:.1f} s")


# In processes of their own.


def train_then_check(options: argparse.Namespace) -> None:
    """`rlcore train` without its own evaluation, then that of this file, in one process."""
    from rlcore.cli import main as rlcore

    if code := rlcore(options.flags):
        sys.exit(code)
    check(options)


def check(options: argparse.Namespace) -> None:
    print(json.dumps([judge(run_dir) for run_dir in options.run_dirs]))


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


WORKERS = {"train": train_then_check, "check": check}

if __name__ == "__main__":
    main()
