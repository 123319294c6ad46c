"""What a run costs beside training: progress, TensorBoard, checkpoints, the CSV of episodes, the check for NaN.

    python benchmarks/run_features.py                          PPO on CartPole-v1, 4 and 1,024 environments × 128 steps
    python benchmarks/run_features.py --num-envs 4 --total-steps 300000 --repetitions 2
    python benchmarks/run_features.py --compile false

Each repetition is a process of its own, in which each variant trains a fresh agent of the same seed for the same steps
(default: as many as `rlcore train` takes without a preset), so that neighbours in time are compared; the order rotates.

    bare             the iterations alone: nothing looks at what they yield, and losses are not checked for NaN
    all              `rlcore train` as it is, into a run folder, on a terminal (a pty that is read all the while)
    all, in a pipe   the same with plain lines of progress in place of the live bar
    without X        `all` without one of them

The cost of all is what they add to the time of `bare`, as wall time and as processor time over all threads; that of one
is what leaving it out saves. Both are differences of large times, so each variant's calls are also timed one by one in
a further run (`clocked`): precise, but blind to what happens in other threads (TensorBoard's writer, the live bar).
Times run from the making of the run folder to the end of training, modules imported and programs loaded before.
Iterations are compiled programs unless --compile false, since there each microsecond weighs most.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import machine
import peers
from speed import PPO as WORK

ENV_ID = "CartPole-v1"
FEATURES = ("progress", "tensorboard", "checkpoints", "episodes", "nan check")
VARIANTS = ("bare", "all", "all, in a pipe", *(f"without {feature}" for feature in FEATURES), "clocked")
CLOCKED = {  # the calls that make up a feature: module, class, method
    "progress": [("rlcore.runs.progress", "Progress", "update"), ("rlcore.runs.progress", "Progress", "close")],
    "tensorboard": [("rlcore.runs.train", "Run", "_write_point")],
    "checkpoints": [("rlcore.runs.train", "Run", "checkpoint")],
    "episodes": [("rlcore.runs.folder", "EpisodeLog", "write")],
    "nan check": [("rlcore.agents.agent", "Agent", "_check_finite")],
    "all of an iteration": [("rlcore.runs.train", "Run", "_record")],
}
LIMIT = 0.03  # of training time: what all together may cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[4, 1024])
    parser.add_argument("--total-steps", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", choices=("true", "false"), default="true")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        options.worker.write_text(json.dumps(measure(options)))
        return
    if not {"bare", "all"} <= set(options.variants):
        parser.error("--variants lacks bare or all, with which the others are compared")
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in options.num_envs:
            repetitions = []
            for k in range(options.repetitions):
                variants = options.variants[k:] + options.variants[:k]
                repetitions.append(in_process(options, count, variants, Path(folder)))
                cost = repetitions[-1]["all"]["wall"] / repetitions[-1]["bare"]["wall"] - 1
                print(f"{k + 1}/{options.repetitions} {count:,} environments: all cost {cost:.1%}", flush=True)
            tables[count] = summarize(repetitions)
    for count, table in tables.items():
        report(count, table)
    machine.write(
        f"run_features_{ENV_ID}",
        {"env_id": ENV_ID, "total_steps": options.total_steps, "threads": options.threads}
        | {"compile": options.compile == "true", "work": WORK, "limit": LIMIT, "num_envs": tables},
    )


def in_process(options: argparse.Namespace, count: int, variants: list[str], folder: Path) -> dict[str, Any]:
    """One repetition; its standard output is a terminal that this process reads."""
    file = folder / "result.json"
    command = [sys.executable, __file__, "--worker", str(file), "--num-envs", str(count)]
    command += ["--total-steps", str(options.total_steps), "--threads", str(options.threads)]
    command += ["--compile", options.compile, "--variants", *variants]
    env = {**os.environ, "RLCORE_CACHE": str(folder / "programs"), "PYTHONPATH": str(Path(__file__).parent.parent)}
    env |= {"OMP_NUM_THREADS": str(options.threads), "TERM": "xterm-256color", "COLUMNS": "120"}
    outer, inner = pty.openpty()
    reader = threading.Thread(target=drain, args=(outer,), daemon=True)
    reader.start()
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=inner, stderr=subprocess.PIPE, env=env)
    finally:
        os.close(inner)
        reader.join()
        os.close(outer)
    if result.returncode:
        raise SystemExit(f"a repetition failed:\n{result.stderr.decode()[-2000:]}")
    return json.loads(file.read_text())


def drain(descriptor: int) -> None:
    """Read until the other side of the terminal is closed, which Linux tells as an error."""
    with contextlib.suppress(OSError):
        while os.read(descriptor, 2**16):
            pass


def summarize(repetitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Costs as shares of the bare time of the same repetition: medians, and every repetition."""
    table: dict[str, Any] = {"seconds": repetitions, "cost": {}}
    for clock in ("wall", "cpu"):
        for name in (v for v in repetitions[0] if v not in ("bare", "clocked")):
            saved = name.startswith("without ")
            of = [
                (row["all"][clock] - row[name][clock] if saved else row[name][clock] - row["bare"][clock])
                / row["bare"][clock]
                for row in repetitions
            ]
            cost = table["cost"].setdefault(name.removeprefix("without "), {})
            cost |= {f"{clock}_median": statistics.median(of), clock: of}
    if "clocked" in repetitions[0]:
        for part in repetitions[0]["clocked"]["parts"]:
            of = [row["clocked"]["parts"][part] / row["clocked"]["wall"] for row in repetitions]
            table["cost"].setdefault(part, {})["calls_median"] = statistics.median(of)
    return table


def report(count: int, table: dict[str, Any]) -> None:
    bare = [row["bare"] for row in table["seconds"]]
    print(
        f"\n{count:,} environments: bare {statistics.median(b['wall'] for b in bare):.2f} s for {bare[0]['steps']:,} "
        f"steps, {statistics.median(b['steps'] / b['wall'] for b in bare):,.0f} steps/s"
    )
    print(f"{'cost, of the bare time':26}{'wall time':>24}{'processor time':>24}{'its calls':>12}")
    for name, row in table["cost"].items():
        spreads = [spread(row[clock]) if clock in row else "" for clock in ("wall", "cpu")]
        calls = f"{row['calls_median']:.2%}" if "calls_median" in row else ""
        print(f"{name:26}{spreads[0]:>24}{spreads[1]:>24}{calls:>12}")
    cost = table["cost"]["all"]["wall_median"]
    print(f"all together: {cost:.1%} of training time, {'within' if cost <= LIMIT else 'MORE THAN'} {LIMIT:.0%}")


def spread(shares: list[float]) -> str:
    return f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


# In the process of a repetition.


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(options.threads)
    count, total = options.num_envs[0], options.total_steps
    with tempfile.TemporaryDirectory() as folder:
        run_variant("all", count, 10 * count * WORK["num_steps"], options.compile == "true", Path(folder) / "warm-up")
        return {
            name: run_variant(name, count, total, options.compile == "true", Path(folder) / str(k))
            for k, name in enumerate(options.variants)
        }


def run_variant(name: str, count: int, total: int, compiled: bool, path: Path) -> dict[str, Any]:
    """Wall and processor seconds of one training."""
    import rlcore
    from rlcore.runs.train import CHECKPOINTS_PER_RUN, Run

    agent = rlcore.PPO(ENV_ID, num_envs=count, **WORK, seed=1, device="cpu", compile=compiled)
    agent.engine.prepare(total)
    settings = {"algo": "ppo", "env_id": ENV_ID, "preset": "none", "total_steps": total, "env_kwargs": {}}
    settings["checkpoint_every"] = -(-total // CHECKPOINTS_PER_RUN)
    parts: dict[str, float] = {}
    with contextlib.ExitStack() as patches:
        prepare(name, parts, patches)
        wall, cpu = time.perf_counter(), time.process_time()
        if name == "bare":
            agent.learn(total)
        else:
            Run.start(path, agent, settings).train(progress=name != "without progress")
        result = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "steps": agent.global_step}
    agent.close()
    return {**result, "parts": parts} if parts else result


def prepare(name: str, parts: dict[str, float], patches: contextlib.ExitStack) -> None:
    """Switch off, or put a clock on, what the variant says."""
    off = {
        "bare": ["nan check"],
        **{f"without {feature}": [feature] for feature in FEATURES if feature != "progress"},
    }
    for feature in off.get(name, []):
        for module, owner, method in CLOCKED[feature]:
            patches.enter_context(mock.patch.object(find(module, owner), method, nothing))
    if name == "without tensorboard":
        patches.enter_context(mock.patch("torch.utils.tensorboard.SummaryWriter", mock.MagicMock()))
    if name == "all, in a pipe":
        patches.enter_context(piped())
    if name == "clocked":
        for feature, calls in CLOCKED.items():
            for module, owner, method in calls:
                kind = find(module, owner)
                patches.enter_context(mock.patch.object(kind, method, getattr(kind, method)))  # puts it back
                peers.time_calls(parts, feature, kind, method)


def find(module: str, owner: str) -> Any:
    import importlib

    return getattr(importlib.import_module(module), owner)


def nothing(*_: Any) -> None:
    """In the place of a method that is switched off."""


@contextlib.contextmanager
def piped() -> Iterator[None]:
    """Standard output into a pipe that is read all the while."""
    outer, inner = os.pipe()
    reader = threading.Thread(target=drain, args=(outer,), daemon=True)
    reader.start()
    with open(inner, "w") as file, contextlib.redirect_stdout(file):
        yield
    reader.join()
    os.close(outer)


if __name__ == "__main__":
    main()
