"""Seconds that benches of many cells take to open, to show and to report, without a run of any.

    python benchmarks/cells.py                 250, 2,500 and 10,000 cells
    python benchmarks/cells.py --cells 2500

The index is made up: five agents on ten environments with 5, 50 and 200 seeds, curves of 100 points and 100 returns of
the evaluation, as those of real runs are. Each figure is the median of three processes: seconds of the processor, which
other work on the machine does not lengthen as it does those of the clock, and for the report both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import machine
import numpy as np

from rlcore.runs.bench import Bench, expected_cells
from rlcore.runs.bench_progress import BenchProgress
from rlcore.runs.report import write_report
from rlcore.runs.results import INDEX, Result
from rlcore.runs.suite import Cell, completed

CELLS, TIMES = (250, 2_500, 10_000), 3
AGENTS, ENVS = 5, 10  # the rest are seeds
SHOWN = 256  # cells that run while the table is drawn
ENV = "cells/Env{}-v0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=CELLS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the process that measures
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(measured(options.folder, *options.cells)))
        return
    found = {str(cells): _median_of_processes(cells) for cells in options.cells}
    for cells, seconds in found.items():
        print(cells, seconds)
    machine.write("cells", {"processes": TIMES, "seconds": found})


def _median_of_processes(cells: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--folder", folder, "--cells", str(cells)]
        told = [json.loads(subprocess.check_output(command).splitlines()[-1]) for _ in range(TIMES)]
    return {name: round(statistics.median(one[name] for one in told), 3) for name in told[0]}


def measured(folder: Path, cells: int) -> dict[str, float]:
    """Seconds of each step, of a bench whose cells have all ended."""
    suite = suite_of(cells)
    with contextlib.closing(Bench.open(folder, suite)) as bench:
        if not (folder / INDEX).exists():
            (folder / INDEX).write_text("".join(made_up(cell).line() for cell in bench.cells))
    seconds: dict[str, float] = {}
    with _timed(seconds, "open the bench"):
        bench = Bench.open(folder, None)
    with contextlib.closing(bench), contextlib.redirect_stdout(io.StringIO()):
        with _timed(seconds, "run what is left, nothing"):
            bench.run(1, show=False)
        with _timed(seconds, "begin to show"):
            progress = BenchProgress(bench.cells, bench.results, show=True)
        with _timed(seconds, "tell of a cell"):
            progress.ended(bench.results[next(iter(bench.results))])
        with _timed(seconds, "draw the table"):
            progress.table(bench.cells[:SHOWN])
    del bench, progress  # which a process that reports has not
    with _timed(seconds, "expected cells"):
        expected = expected_cells(folder)
    began = time.perf_counter()
    with _timed(seconds, "report"):
        write_report([folder], folder / "report.html", expected)
    return {**seconds, "report, on the clock": time.perf_counter() - began}


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.process_time()
    yield
    seconds[name] = time.process_time() - began


def suite_of(cells: int) -> dict[str, Any]:
    """So many cells of agents of rlcore, each with a learning rate of its own."""
    envs = [ENV.format(k) for k in range(ENVS)]
    for env_id in set(envs) - set(gymnasium.registry):
        gymnasium.register(env_id, "gymnasium.envs.classic_control.cartpole:CartPoleEnv")
    agents = {f"ppo-{k}": {"algo": "ppo", "learning_rate": 0.001 * (k + 1)} for k in range(AGENTS)}
    seeds = cells // (ENVS * AGENTS)
    return completed({"agents": agents, "envs": envs, "seeds": seeds, "total_steps": 100_000})


def made_up(cell: Cell) -> Result:
    """A record as a run leaves it."""
    rng = np.random.default_rng(cell.seed)
    steps, rise = np.arange(1, 101) * 1_000, np.linspace(10, 400, 100)
    curve = {"steps": steps.tolist(), "seconds": (steps / 5e3).tolist(), "returns": rng.normal(rise, 20).tolist()}
    settings = {"seed": cell.seed, "learning_rate": 0.001 * (int(cell.agent[-1]) + 1), "hidden_sizes": [64, 64]}
    return Result(
        cell.agent, cell.env_id, cell.seed, "done", folder=cell.folder.as_posix(), algo="ppo", total_steps=100_000,
        hyperparameters=settings, steps=100_000, seconds=20.0 + rng.random(), returns=rng.normal(400, 50, 100).tolist(),
        curve=curve, machine={"cpu": "made up", "cores": 2, "versions": {"rlcore": "0"}},
    )  # fmt: skip


if __name__ == "__main__":
    main()
