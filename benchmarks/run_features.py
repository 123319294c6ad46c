"""What a run costs beside training: progress, TensorBoard, checkpoints, the CSV of episodes, the check for NaN.

    python benchmarks/run_features.py                          PPO on CartPole-v1, 4 and 1,024 environments × 128 steps
    python benchmarks/run_features.py --num-envs 4 --total-steps 300000 --repetitions 2
    python benchmarks/run_features.py --compile false

Each repetition is a process of its own, in which each variant trains a fresh agent of the same seed for the same steps
(default: as many as `rlcore train` takes without a preset), so that neighbours in time are compared; the order rotates.

    bare             `agent.learn` alone: nothing looks at what the iterations yield
    all              `rlcore train` as it is, into a run folder, on a terminal (a pty that is read all the while)
    all, in a pipe   the same with plain lines of progress in place of the live bar
    without X        `all` without progress, without TensorBoard's points but the last, or without checkpoints but the
                     first and the last

The cost of all is what they add to the time of `bare`, as wall time and as processor time over all threads; that of one
is what leaving it out saves. Both are differences of large times. Two clocks within a run are more precise, but blind
to what happens in other threads (TensorBoard's writer, the live bar): what an agent's phases leave of the time of `all`
(as the agent tells them), and the calls of each feature, those without an off-switch too, in a further run under
Python's profiler (`clocked`), which makes them longer rather than shorter. Times run from the making of the run folder
to the end of training, modules imported and programs loaded before. Iterations are compiled programs unless --compile
false, since there each microsecond weighs most.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import os
import pstats
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import machine
from speed import PPO as WORK

ENV_ID = "CartPole-v1"
FEATURES = ("progress", "tensorboard", "checkpoints")  # what can be switched off
VARIANTS = ("bare", "all", "all, in a pipe", *(f"without {feature}" for feature in FEATURES), "clocked")
CLOCKED = {  # the functions that make up a feature, as the profiler calls them
    "progress": [("runs/progress.py", "update"), ("runs/progress.py", "close")],
    "tensorboard": [("runs/train.py", "_write_point")],
    "checkpoints": [("runs/train.py", "checkpoint")],
    "episodes": [("runs/folder.py", "write")],
    "nan check": [("agents/agent.py", "_check_finite")],
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
    options = parser.parse_args()
    if not {"bare", "all"} <= set(options.variants):
        parser.error("--variants lacks bare or all, with which the others are compared")
    compiled, counts = options.compile == "true", {f"{count:,} envs": count for count in options.num_envs}
    with tempfile.TemporaryDirectory() as programs:

        def measure(name: str, k: int) -> dict[str, Any]:
            variants = [*options.variants[k:], *options.variants[:k]]
            task = {"count": counts[name], "total": options.total_steps, "compiled": compiled, "variants": variants}
            terminal = {"TERM": "xterm-256color", "COLUMNS": "120"}
            return harness.worker(__file__, task, threads=options.threads, cache=programs, **terminal)

        def told(row: dict[str, Any]) -> str:
            return f"all cost {row['all']['wall'] / row['bare']['wall'] - 1:.1%}"

        rows = harness.alternate(counts, options.repetitions, measure, told)
    tables = {counts[name]: summarize(repetitions) for name, repetitions in rows.items()}
    for count, table in tables.items():
        report(count, table)
    machine.write(
        f"run_features_{ENV_ID}",
        {"env_id": ENV_ID, "total_steps": options.total_steps, "threads": options.threads, "compile": compiled}
        | {"work": WORK, "limit": LIMIT, "num_envs": tables},
    )


def summarize(repetitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Costs as shares of the bare time of the same repetition, and of what is clocked of its own run's time: medians,
    and every repetition."""
    cost: dict[str, Any] = {}
    for name in (v for v in repetitions[0] if v not in ("bare", "clocked")):
        row = cost.setdefault(name.removeprefix("without "), {})
        more, less = ("all", name) if name.startswith("without ") else (name, "bare")
        for clock in ("wall", "cpu"):
            added = [r[more][clock] - r[less][clock] for r in repetitions]
            row |= harness.with_median(clock, harness.ratios(added, [r["bare"][clock] for r in repetitions]))
    cost["all"]["calls_median"] = statistics.median(row["all"]["beside"] / row["all"]["wall"] for row in repetitions)
    for part in repetitions[0].get("clocked", {}).get("parts", ()):
        of = [row["clocked"]["parts"][part] / row["clocked"]["wall"] for row in repetitions]
        cost.setdefault(part, {})["calls_median"] = statistics.median(of)
    return {"seconds": repetitions, "cost": cost}


def report(count: int, table: dict[str, Any]) -> None:
    bare = [row["bare"] for row in table["seconds"]]
    print(
        f"\n{count:,} environments: bare {statistics.median(b['wall'] for b in bare):.2f} s for {bare[0]['steps']:,} "
        f"steps, {statistics.median(b['steps'] / b['wall'] for b in bare):,.0f} steps/s"
    )
    cells = [["cost, of the bare time", "wall time", "processor time", "clocked"]]
    for name, row in table["cost"].items():
        spreads = [harness.spread(row[clock], ".1%") if clock in row else "" for clock in ("wall", "cpu")]
        cells.append([name, *spreads, f"{row['calls_median']:.2%}" if "calls_median" in row else ""])
    harness.table(cells)
    cost = table["cost"]["all"]["wall_median"]
    print(f"all together: {cost:.1%} of training time, {'within' if cost <= LIMIT else 'MORE THAN'} {LIMIT:.0%}")


# In the process of a repetition.


def work(count: int, total: int, compiled: bool, variants: list[str]) -> dict[str, Any]:
    """Wall and processor seconds of each variant."""
    with tempfile.TemporaryDirectory() as folder:
        run_variant("all", count, 10 * count * WORK["num_steps"], compiled, Path(folder) / "warm-up")
        return {name: run_variant(name, count, total, compiled, Path(folder) / name) for name in variants}


def run_variant(name: str, count: int, total: int, compiled: bool, path: Path) -> dict[str, Any]:
    """Wall and processor seconds of one training, and those beside the agent's phases."""
    import rlcore
    from rlcore.runs.train import Run, checkpoint_interval

    agent = rlcore.PPO(ENV_ID, num_envs=count, **WORK, seed=1, device="cpu", compile=compiled)
    agent.engine.prepare(total)
    settings = {"algo": "ppo", "env_id": ENV_ID, "preset": "none", "total_steps": total, "env_kwargs": {}}
    settings["checkpoint_every"] = 2 * total if name == "without checkpoints" else checkpoint_interval(total)

    def train() -> None:
        if name == "bare":
            agent.learn(total)
            return
        run = Run.start(path, agent, settings)
        if name == "without tensorboard":
            run.log_every = 2 * total
        run.train(progress=name != "without progress")
        run.close()

    profile = cProfile.Profile()
    with shown_on(os.pipe if name == "all, in a pipe" else os.openpty):
        cpu = time.process_time()
        measured = harness.stretch(agent, train if name != "clocked" else lambda: profile.runcall(train))
        cpu = time.process_time() - cpu
    agent.close()
    result = {"wall": measured.seconds, "cpu": cpu, "beside": measured.seconds - sum(measured.phases.values())}
    return {**result, "steps": measured.steps, **({"parts": parts_of(profile)} if name == "clocked" else {})}


def parts_of(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds in each feature's functions and in all that these call."""
    found = pstats.Stats(profile).stats.items()
    seconds = {("/".join(Path(file).parts[-2:]), name): row[3] for (file, _, name), row in found}
    return {feature: sum(seconds[function] for function in functions) for feature, functions in CLOCKED.items()}


@contextlib.contextmanager
def shown_on(make: Any) -> Iterator[None]:
    """Standard output into a terminal or pipe, of which `make` makes both ends, and that is read all the while."""
    outer, inner = make()
    reader = threading.Thread(target=drain, args=(outer,), daemon=True)
    reader.start()
    with open(inner, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield
    reader.join()
    os.close(outer)


def drain(descriptor: int) -> None:
    """Read until the other side is closed, which Linux tells of a terminal as an error."""
    with contextlib.suppress(OSError):
        while os.read(descriptor, 2**16):
            pass


if __name__ == "__main__":
    harness.start(main, work)
