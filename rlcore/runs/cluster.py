"""A Ray cluster as the place where the cells of a bench run, see `rlcore.runs.processes.Place`.

Each cell is a task; what it needs goes with it and what it leaves comes back through Ray, see `rlcore.runs.node`. Ray
itself tries no task again: the bench counts what was lost and says so.
"""

import contextlib
import importlib
import logging
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from rlcore.errors import UsageError, one_line
from rlcore.runs.machine import cores
from rlcore.runs.node import PYTHON, ROOT, Answer, Order, carry_out, pack, unpack
from rlcore.runs.processes import SECONDS_BETWEEN_LOOKS, Ending, Job
from rlcore.runs.suite import Cell

LOCAL, AUTO, CLIENT = "local", "auto", "ray://"
SECONDS_TO_CONNECT, SECONDS_TO_ANSWER, SECONDS_TO_STOP = 3, 10, 5
CODE_OF_LOST = 1


class Cluster(contextlib.AbstractContextManager):
    """The Ray cluster at `address`, which this process leaves at `close`.

    Args:
        address: HOST:PORT of a cluster that this machine is a node of, ray://HOST:PORT of another, auto for the one
            that runs here, local for one that begins and ends with this process.
        jobs: cells at a time; None: as many as there is room for.
        cpus: that each cell takes.
        gpus: that each takes, or a part of one.

    Raises:
        UsageError: where ray is not installed, no cluster answers, or it has no room for a cell.
    """

    def __init__(self, address: str, jobs: int | None = None, cpus: int = 1, gpus: float = 0.0):
        self.ray = _ray()
        self.root, self.path = Path(ROOT), Path()
        _connect(self.ray, address)
        try:
            self.jobs = jobs or _room(self.ray.cluster_resources(), cpus, gpus)
        except BaseException:
            self.close()
            raise
        self.task = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(carry_out)
        self.lost = _lost_errors(self.ray)

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; tasks that still run end."""
        self.ray.shutdown()

    def at(self, path: Path) -> Self:
        """This cluster for the bench in a folder."""
        self.path = path
        return self

    def start(self, cell: Cell, words: Sequence[str], env: Mapping[str, str]) -> Job:
        folders = [folder for folder in (cell.folder, cell.after) if folder and (self.path / folder).is_dir()]
        sent = {folder.as_posix(): pack(self.path / folder) for folder in folders}
        own = tuple(PYTHON if word == sys.executable else word for word in words)
        return Job(cell, self.task.remote(Order(own, cell.folder.as_posix(), dict(env), sent)))

    def ended(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Ending]]:
        by_handle = {job.handle: job for job in jobs}
        if not by_handle:
            return
        # One that has ended is enough to look, so that thousands of tasks cost one call.
        handles = list(by_handle)
        self.ray.wait(handles, timeout=SECONDS_BETWEEN_LOOKS)
        for handle in self.ray.wait(handles, num_returns=len(handles), timeout=0)[0]:
            yield by_handle[handle], self._ending(by_handle[handle])

    def _ending(self, job: Job) -> Ending:
        """What a task gave, put into the bench's folder."""
        try:
            answer = self.ray.get(job.handle)
        except self.lost as error:
            return Ending(CODE_OF_LOST, 0.0, lost=_first_sentence(error))
        except Exception as error:  # whatever went wrong there is that cell's failure and no other's
            return Ending(CODE_OF_LOST, 0.0, error=f"the cluster could not run it: {_last_line(error)}")
        return self._kept(job.cell, answer)

    def _kept(self, cell: Cell, answer: Answer) -> Ending:
        folder = self.path / cell.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(f"{folder.name}.log"), "ab") as log:
            log.write(answer.log)
        try:
            if answer.folder is not None:
                unpack(answer.folder, folder)
        except (tarfile.TarError, OSError) as error:
            return Ending(answer.code, answer.seconds, error=f"its folder cannot be unpacked: {one_line(error)}")
        return Ending(answer.code, answer.seconds, answer.machine)

    def stop(self, jobs: Iterable[Job]) -> None:
        handles = [job.handle for job in jobs]
        for handle in handles:
            self.ray.cancel(handle)
        if handles:  # each must have time to end its process; what has not by then ends with its worker
            self.ray.wait(handles, num_returns=len(handles), timeout=SECONDS_TO_STOP)


def _ray() -> ModuleType:
    """Ray, or a UsageError that names the extra."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(f"--ray needs ray ({error}): pip install 'rlcore[cluster]'") from None


def _connect(ray: ModuleType, address: str) -> None:
    if address not in (LOCAL, AUTO):
        _check(address)
    own = {"include_dashboard": False, "num_cpus": len(cores())} if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (Exception, SystemExit) as error:  # Ray ends the whole process where no cluster answers
        raise UsageError(f"--ray is {address}, where no cluster can be joined: {one_line(error)}") from None


def _check(address: str) -> None:
    """Refuse an address where nothing answers, of which Ray itself would tell after more than a minute."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--ray is {address}, but must be HOST:PORT, {CLIENT}HOST:PORT, {AUTO} or {LOCAL}")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise UsageError(f"--ray is {address}, where nothing answers: {error.strerror or error}") from None
    if address.startswith(CLIENT):
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except subprocess.TimeoutExpired:
        raise UsageError(f"--ray is {address}, where something answers that is no Ray cluster") from None
    if found.returncode:
        lines = found.stderr.strip().splitlines() or [f"its health check ended with code {found.returncode}"]
        raise UsageError(f"--ray is {address}, where no cluster can be joined: {lines[-1].partition('. ')[0]}")


def _room(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    """How many cells a cluster runs at a time."""
    room = int(resources.get("CPU", 0) // cpus)
    if gpus:
        room = min(room, int(resources.get("GPU", 0) // gpus))
    if room < 1:
        has = ", ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
        raise UsageError(
            f"--ray-cpus is {cpus} and --ray-gpus is {gpus:g}, but the cluster has {has}; "
            "one that will grow needs --jobs"
        )
    return room


def _lost_errors(ray: ModuleType) -> tuple[type[Exception], ...]:
    """What is raised of a task that was lost with its node or its worker."""
    names = ("NodeDiedError", "WorkerCrashedError", "LocalRayletDiedError", "ObjectLostError", "OutOfMemoryError")
    return tuple(getattr(ray.exceptions, name) for name in names if hasattr(ray.exceptions, name))


def _first_sentence(error: BaseException) -> str:
    return one_line(error).partition(". ")[0].rstrip(".")


def _last_line(error: Any) -> str:
    """The error itself, below what Ray tells of where it was raised."""
    cause = getattr(error, "cause", None)
    return one_line(cause) if isinstance(cause, BaseException) else one_line(error)[-300:]
