"""What the measuring scripts share: processes of their own, repetitions that alternate, ratios within a repetition.

These machines are shared and their speed drifts. So a measurement is made by a fresh process, techniques that are
compared take turns, and ratios are taken between neighbours in time, never between medians.

A script ends with `harness.start(main, work)`: `main` reads the command line and asks `worker` for measurements, each
of which runs the script once more, as `work` with the task that `worker` was given. Nothing large is imported here,
since peers' interpreters read it too, and the peak memory that Linux tells of a process is at least its parent's.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers

ROOT = Path(__file__).parent.parent
WORKER = "--worker"
FAR = 10**12  # steps of a run that is only timed: its learning rate stays where it is


class Failed(SystemExit):
    """A process failed, which ends the script unless it is caught; `said` is the last line of its stderr."""

    def __init__(self, command: Sequence[str], code: int, stderr: str):
        lines = stderr.strip().splitlines()
        self.said = lines[-1][:300] if lines else f"the process ended with code {code}"
        super().__init__(f"{shlex.join(command)} failed with code {code}:\n{stderr[-2000:]}")


def start(main: Callable[[], None], work: Callable[..., Any]) -> None:
    """What a script does: `main()`, or in a process that `worker` began, `work(**task)`, whose result it prints."""
    if sys.argv[1:2] == [WORKER]:
        print(json.dumps(work(**json.loads(sys.argv[2]))), flush=True)
    else:
        main()


def worker(script: str, task: dict[str, Any], peer: str | None = None, **settings: Any) -> Any:
    """What a script's `work(**task)` returns, in a process of its own; `settings` as for `environment`."""
    output = run(worker_command(script, task, peer), peer=peer, **settings)
    return json.loads(output.splitlines()[-1])


def worker_command(script: str, task: dict[str, Any], peer: str | None = None) -> list[str]:
    """How a script is called to do a task, with this interpreter or a peer's."""
    return [str(peers.interpreter(peer)) if peer else sys.executable, script, WORKER, json.dumps(task)]


def run(command: Sequence[str], **settings: Any) -> str:
    """Run a process to its end; returns its stdout. `settings` as for `environment`.

    Raises:
        Failed: with what it wrote to stderr.
    """
    result = subprocess.run(command, capture_output=True, text=True, env=environment(**settings))
    if result.returncode:
        raise Failed(command, result.returncode, result.stderr)
    return result.stdout


def environment(threads: int | None = 1, cache: Any = None, peer: str | None = None, **more: str) -> dict[str, str]:
    """The environment variables of a process.

    Args:
        threads: of its libraries; None lets it choose.
        cache: the folder of compiled programs, where it is not the user's.
        peer: whose process it is, where it is not rlcore's, which runs from this checkout.
        more: further variables.
    """
    variables = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    variables |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    variables |= {"RLCORE_CACHE": str(cache)} if cache else {}
    return variables | ({} if peer else {"PYTHONPATH": str(ROOT)}) | more


def alternate(
    names: Iterable[Any], repetitions: int, measure: Callable[[Any, int], Any], told: Callable[[Any], str]
) -> dict[Any, list[Any]]:
    """Measure every name in every repetition, one after the other.

    Args:
        measure: gives the result of a name in a repetition, counted from 0; None is left out.
        told: a result in words, printed at once.

    Returns:
        The results of each name.
    """
    rows: dict[Any, list[Any]] = {name: [] for name in names}
    for repetition in range(repetitions):
        for name, results in rows.items():
            result = measure(name, repetition)
            if result is not None:
                results.append(result)
                print(f"{repetition + 1}/{repetitions} {name!s:16}{told(result)}", flush=True)
    return rows


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Each repetition's value over that of the base in the same repetition."""
    return [value / other for value, other in zip(values, base, strict=True)]


def with_median(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Values of all repetitions and their median, as entries of a result."""
    return {f"{name}_median": statistics.median(values), name: list(values)}


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median and range in words."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows of cells, the first of which are the heads, in columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for first, *cells in rows:
        print(
            f"{first:{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)),
            sep="   ",
        )


@dataclass
class Stretch:
    """A stretch of training.

    Attributes:
        calls: iterations, or whatever was called.
        steps: of the environments.
        seconds: of the wall clock.
        phases: those that the agent spent by phase.
    """

    calls: int
    steps: int
    seconds: float
    phases: dict[str, float]

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds


def stretch(agent: Any, call: Callable[[], Any], seconds: float = 0.0, calls: int = 1) -> Stretch:
    """Call until `seconds` are over, and at least `calls` times. Each call is to end by reading from the device, as
    iterations and rollouts do, so the clock needs no further waiting."""
    start, first, before, count = time.perf_counter(), agent.global_step, dict(agent.seconds), 0
    while count < calls or time.perf_counter() - start < seconds:
        call()
        count += 1
    elapsed = time.perf_counter() - start
    phases = {phase: total - before[phase] for phase, total in agent.seconds.items()}
    return Stretch(count, agent.global_step - first, elapsed, phases)
