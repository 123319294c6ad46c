"""Steps per second of whole training in one process and in several ranks, in one run.

    python benchmarks/ranks.py                       CartPole with 1,024 environments, and Pong where ale-py is there
    python benchmarks/ranks.py --ranks 1,2,4 --repetitions 5 --seconds 10

Each measurement is a fresh run, which trains, unmeasured, for some iterations and then, measured, for some seconds; the
numbers of ranks alternate, because these machines are shared and their speed drifts, and ratios are taken within a
repetition. One thread in each process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import machine

WIDE = dict(num_envs=1024, num_steps=32, num_minibatches=4, update_epochs=4, hidden_sizes=(256, 256), backend="native")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "wide CartPole as Python": ("CartPole-v1", dict(WIDE, compile=False)),
    "wide CartPole recorded": ("CartPole-v1", dict(WIDE, compile="record")),
    "Pong": ("ALE/Pong-v5", dict(num_envs=8, num_steps=128, num_minibatches=4, update_epochs=4, compile=False)),
}
WARM_UP = 2  # iterations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2", help="numbers of processes")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time per repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure, arguments.seconds)
    counts, results = [int(x) for x in arguments.ranks.split(",")], {}
    for case in arguments.cases.split(","):
        if CASES[case][0].startswith("ALE/") and importlib.util.find_spec("ale_py") is None:
            print(f"{case}: left out, ale-py is not installed")
            continue
        found = {count: [] for count in counts}
        for repetition in range(arguments.repetitions):
            for count in counts if repetition % 2 == 0 else counts[::-1]:
                found[count].append(launch(case, count, arguments.seconds))
        results[case] = summary(found)
        print(case, json.dumps(results[case]["median"]), json.dumps(results[case]["speed_up"]), flush=True)
    settings = {name: CASES[name] for name in results}
    load = [round(x, 1) for x in os.getloadavg()]  # others may have the machine too, of which this tells
    command = {"seconds": arguments.seconds, "repetitions": arguments.repetitions}
    machine.write(
        "ranks", {"what": "steps per second", **command, "load": load, "settings": settings, "results": results}
    )


def summary(found: dict[int, list[float]]) -> dict[str, Any]:
    """Medians, and what more ranks gain on the fewest within a repetition: median and range."""
    fewest = found[min(found)]
    ratios = {k: [x / y for x, y in zip(speeds, fewest, strict=True)] for k, speeds in found.items() if k != min(found)}
    return {
        "steps_per_second": {k: [round(x) for x in speeds] for k, speeds in found.items()},
        "median": {k: round(statistics.median(speeds)) for k, speeds in found.items()},
        "speed_up": {k: [round(f(x), 3) for f in (statistics.median, min, max)] for k, x in ratios.items()},
    }


def launch(case: str, count: int, seconds: float) -> float:
    """Steps per second of a run in so many ranks."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, __file__, "--measure", case, "--seconds", str(seconds)]
    world = dict(WORLD_SIZE=count, LOCAL_WORLD_SIZE=count, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS=1)
    ranks = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **{k: str(x) for k, x in {**world, "RANK": rank, "LOCAL_RANK": rank}.items()}},
        )
        for rank in range(count)
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit(f"{case} in {count} ranks failed")
    return json.loads(outputs[0].splitlines()[-1])


def measure(case: str, seconds: float) -> None:
    """Train in this rank, and print the speed."""
    import torch

    import rlcore
    from rlcore.distributed.ranks import ranks

    torch.set_num_threads(1)
    env_id, settings = CASES[case]
    with ranks() as share:
        agent = rlcore.PPO(env_id, seed=1, device="cpu", **settings)
        iterations = agent.iterations(10**9)
        for _ in range(WARM_UP):
            next(iterations)
        began, first = time.perf_counter(), agent.global_step
        while not share.any(time.perf_counter() - began > seconds):
            next(iterations)
        print(json.dumps((agent.global_step - first) / (time.perf_counter() - began)))


if __name__ == "__main__":
    main()
