"""Agents × environments × seeds, each a run in a process of its own, into one folder that a killed bench goes on in.

bench.toml             the suite
ENV_ID/AGENT/seed-S    the run folder of each cell; beside it seed-S.log, what its process has printed
results.jsonl          a record of each cell that ended, see `rlcore.runs.results`
.lock                  which process writes here, as long as it does

A cell that was killed goes on from its newest checkpoint, so that the results are those of a bench that was not. Cells
run in sessions of their own and end when the bench does, at once and without a checkpoint between those of the run,
which could change its course. Where they run, here or on a cluster, is a `rlcore.runs.processes.Place`.
"""

import contextlib
import json
import os
import tomllib
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tomli_w

from rlcore.agents.engine import RUNS
from rlcore.errors import UsageError, difference, printable
from rlcore.runs import machine
from rlcore.runs.bench_progress import BenchProgress
from rlcore.runs.folder import RunFolder
from rlcore.runs.processes import Ending, Job, Place, Processes
from rlcore.runs.results import INDEX, Result, read_index
from rlcore.runs.settings import read_settings, to_toml
from rlcore.runs.suite import Cell, cells_of, completed, read_suite, tabled
from rlcore.storage.files import FolderLock, InUse, set_aside, write_atomically

if TYPE_CHECKING:
    from rlcore.runs.cluster import Cluster

SUITE, RESULT = "bench.toml", "result.json"
MOST_LOSSES = 5  # of a cell, with its node or its worker
LONGEST_SENTENCE = 500
OF_COMMANDS = ("returns", "steps", "seconds", "measure", "curve", "hyperparameters", "machine", "total_steps")


class Bench:
    """A bench in its folder, which no other process can write to until `close`."""

    def __init__(self, path: Path, suite: dict[str, Any], lock: FolderLock):
        self.path, self.suite, self.lock = path, suite, lock
        self.cells = list(cells_of(suite))
        self.machine = machine.describe()
        self.results = {result.cell: result for result in _whole_index(path)}
        self.losses: Counter[Cell] = Counter()

    @classmethod
    def open(cls, path: str | Path, suite: dict[str, Any] | None) -> Self:
        """Begin a bench, or go on with the one in `path`.

        Args:
            suite: as `completed` gives it; None: the one that was begun there. It may bring further agents,
                environments and seeds.

        Raises:
            UsageError: where there is none to go on with, another one is there or it is being run, or the folder
                cannot be written.
        """
        path, file = Path(path), Path(path) / SUITE
        if suite is None and not file.is_file():
            raise UsageError(
                f"--out is {path}, where no bench has begun; a new one needs a SUITE, or --agents and --envs"
            )
        if not file.is_file() and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"--out is {path}, which has something in it that is no bench; choose another")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(path / ".lock").acquire()
        except InUse as error:
            raise UsageError(f"the bench {path} {error}, which must end before another begins") from None
        except OSError as error:
            raise UsageError(f"the folder {path} cannot be written: {error.strerror or error}") from error
        try:
            suite = _merged(suite, stored_suite(path), path) if file.is_file() else suite
            write_atomically(file, tomli_w.dumps(to_toml(suite)).encode())
            return cls(path, suite, lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Let other processes write to the folder."""
        self.lock.release()

    def run(self, jobs: int, show: bool = True, cluster: "Cluster | None" = None) -> list[Result]:
        """Run what has not ended well, `jobs` cells at a time; returns those that failed.

        Args:
            jobs: J, processes at a time; each is kept to a J-th of the cores, so that speeds can be compared.
            show: a table on a terminal, or a line for each cell where there is none.
            cluster: what runs them in the place of this machine, as many at a time as it says.
        """
        waiting = deque(cell for cell in self.cells if not self._is_done(cell))
        running: list[Job] = []
        place = Processes(self.path, jobs) if cluster is None else cluster.at(self.path)
        with BenchProgress(self.cells, self.results, show) as progress:
            try:
                while waiting or running:
                    self._start_some(waiting, running, place, progress)
                    for job, ending in place.ended(running):
                        running.remove(job)
                        self._settle(job.cell, ending, waiting, progress)
                    progress.running([job.cell for job in running])
            finally:
                place.stop(running)
        return [result for cell in self.cells if (result := self.results[_key(cell)]).state == "failed"]

    def _is_done(self, cell: Cell) -> bool:
        result = self.results.get(_key(cell))
        return result is not None and result.state == "done"

    def _start_some(
        self, waiting: deque[Cell], running: list[Job], place: Place, progress: BenchProgress
    ) -> None:  # fmt: skip
        """Begin cells as far as there is room; one that must wait for another goes to the end of the queue."""
        for _ in range(len(waiting)):
            if len(running) >= place.jobs:
                return
            cell = waiting.popleft()
            before = self._before(cell)
            if before is None or before.state == "done":
                running.append(place.start(cell, self._command(cell, place.root), self._environment()))
            elif before.state == "failed":
                sentence = f"it begins with the network of {before.agent}, which failed: {before.error}"
                progress.ended(self._record(_failed(cell, sentence, self.machine)))
            else:
                waiting.append(cell)

    def _settle(self, cell: Cell, ending: Ending, waiting: deque[Cell], progress: BenchProgress) -> None:
        """Record what became of a cell, or have it run again where it was lost and is not to blame."""
        self.losses[cell] += bool(ending.lost)
        if not ending.lost or self.losses[cell] > MOST_LOSSES:
            progress.ended(self._record(self._result(cell, ending)))
            return
        waiting.appendleft(cell)
        progress.told(f"{_name(cell)} was lost and runs again, {sum(self.losses.values())} so far: {ending.lost}")

    def _before(self, cell: Cell) -> Result | None:
        """What became of the cell that this one begins with, "waiting" where it has not ended, None without one."""
        if cell.after is None:
            return None
        key = (cell.after.parent.name, cell.env_id, cell.seed)
        return self.results.get(key, Result(*key, state="waiting"))

    def _environment(self) -> dict[str, str]:
        """Variables for each cell."""
        return {RUNS: str(len(self.suite["seeds"]))}

    def _command(self, cell: Cell, root: Path) -> list[str]:
        """How the cell is run, or gone on with, where `root` stands for the bench's folder."""
        folder, there = self.path / cell.folder, root / cell.folder
        if not cell.is_own:
            return [*cell.command, f"--out={there}"]
        if folder.exists() and not list(folder.glob("checkpoints/step-*.pt")):  # killed while it was made
            set_aside(folder, "unfinished")
        if folder.exists():
            imports = [word for word in cell.command if word.startswith("--import=")]
            return [*cell.command[:4], f"--resume={there}", *imports, "--no-progress"]
        init = [] if cell.after is None else [f"--init={root / cell.after}"]
        return [*cell.command, *init, f"--run-dir={there}"]

    def _result(self, cell: Cell, ending: Ending) -> Result:
        """What became of a cell whose process has ended."""
        folder, made_on = self.path / cell.folder, {**self.machine, **(ending.machine or {})}
        if ending.lost:
            return _failed(cell, f"it was lost {self.losses[cell]} times, the last time: {ending.lost}", made_on)
        if ending.error:
            return _failed(cell, ending.error, made_on)
        try:
            result = self._finished(cell, folder, ending.seconds, made_on)
        except UsageError as error:
            return _failed(cell, str(error), made_on)
        if result is None:
            return _failed(cell, _last_words(folder.with_name(f"{folder.name}.log"), ending.code), made_on)
        return result

    def _finished(self, cell: Cell, folder: Path, seconds: float, made_on: dict[str, Any]) -> Result | None:
        """The record of a cell that is at its end, None where it is not."""
        if not cell.is_own:
            return _foreign_result(cell, folder, seconds, made_on)
        if not (folder / "evaluation.json").exists():
            return None
        evaluation = RunFolder(folder).read_evaluation() or {}
        if evaluation.get("global_step", 0) < read_settings(folder / "config.toml")["total_steps"]:
            return None
        result = Result.of_run(folder, cell.agent, made_on)
        return replace(result, env_id=cell.env_id, seed=cell.seed, folder=cell.folder.as_posix())

    def _record(self, result: Result) -> Result:
        """Add a line to the index, whole and on the disk before anything else happens."""
        self.results[result.cell] = result
        with open(self.path / INDEX, "ab") as file:
            file.write(result.line().encode())
            file.flush()
            os.fsync(file.fileno())
        return result


def _key(cell: Cell) -> tuple[str, str, int]:
    return cell.agent, cell.env_id, cell.seed


def _name(cell: Cell) -> str:
    return f"{cell.agent} on {cell.env_id}, seed {cell.seed}"


def expected_cells(path: str | Path) -> list[tuple[str, str, int]]:
    """Agent, environment and seed of each cell of the bench in a folder; none where there is no bench. Nothing that the
    folder names is imported."""
    if not (Path(path) / SUITE).is_file():
        return []
    suite = tabled(read_suite(Path(path) / SUITE))
    return list(product(suite["agents"], suite["envs"], suite["seeds"]))


def stored_suite(path: str | Path) -> dict[str, Any]:
    """The suite of the bench in a folder, or a UsageError where it cannot be read."""
    return completed(read_suite(Path(path) / SUITE))


def _merged(suite: dict[str, Any] | None, stored: dict[str, Any], path: Path) -> dict[str, Any]:
    """The suite to go on with: agents, environments and seeds of both, which must agree where both say something."""
    if suite is None:
        return stored
    suite = completed(tomllib.loads(tomli_w.dumps(to_toml(suite))))  # as it would be read again
    merged = {**stored, "seeds": sorted({*stored["seeds"], *suite["seeds"]})}
    for kind in ("agents", "envs"):
        merged[kind] = {**stored[kind], **suite[kind]}
        suite[kind] = {name: suite[kind].get(name, table) for name, table in stored[kind].items()}
    for name in sorted({*suite, *stored} - {"seeds"}):
        if suite.get(name) != stored.get(name):
            was = difference(name, stored.get(name), suite.get(name))
            raise UsageError(f"--out is {path}, where a bench has begun with another {was}; choose another folder")
    return completed(merged)


def _whole_index(path: Path) -> Iterable[Result]:
    """The records so far; a last line that was cut short is taken off the file."""
    file = path / INDEX
    if not file.exists():
        return []
    data = file.read_bytes()
    if not data.endswith(b"\n") and data:
        os.truncate(file, data.rfind(b"\n") + 1)
    return read_index(path)


def _failed(cell: Cell, sentence: str, machine: dict[str, Any]) -> Result:
    return Result(
        cell.agent, cell.env_id, cell.seed, "failed", sentence[:LONGEST_SENTENCE], cell.folder.as_posix(),
        machine=machine,
    )  # fmt: skip


def _last_words(log: Path, code: int) -> str:
    """The sentence with which a process failed: the last line that it printed, or which signal ended it."""
    if code < 0:
        return f"the process was ended by signal {-code}"
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(os.path.getsize(log) - 10_000, 0))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return printable(lines[-1].strip().removeprefix("rlcore: "))
    return f"the process ended with code {code}"


def _foreign_result(cell: Cell, folder: Path, seconds: float, machine: dict[str, Any]) -> Result | None:
    """What a command that is none of rlcore has left, None where that is nothing."""
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except OSError:
        return None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{folder / RESULT} is no JSON") from error
    if not isinstance(found, dict) or not found.get("returns"):
        raise UsageError(f"{folder / RESULT} has no 'returns'")
    entry = {"seconds": seconds, "machine": machine, **{name: found[name] for name in OF_COMMANDS if name in found}}
    entry |= {"agent": cell.agent, "env_id": cell.env_id, "seed": cell.seed, "state": "done"}
    return Result.of_line(json.dumps({**entry, "folder": cell.folder.as_posix()}), str(folder / RESULT))
