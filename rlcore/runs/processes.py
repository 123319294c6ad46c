"""Where the cells of a bench run: in processes of this machine. `rlcore.runs.cluster` offers the same on others.

A place has `jobs`, the cells that it runs at a time, and `root`, what stands for the bench's folder in their commands;
it can `start` a cell, tell which have `ended`, and `stop` them. Imports nothing that is large, since the nodes of a
cluster read it too.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlcore.runs.machine import cores

if TYPE_CHECKING:
    from rlcore.runs.suite import Cell

SECONDS_BETWEEN_LOOKS = 0.1
PR_SET_PDEATHSIG = 1  # of Linux: what to be sent when the parent dies


@dataclass
class Job:
    """A cell that is running."""

    cell: "Cell"
    handle: Any  # what the place knows it by
    began: float = 0.0
    slot: int = 0  # which share of the cores it has


@dataclass(frozen=True)
class Ending:
    """How a cell's process ended.

    Attributes:
        code: with which it ended, negative for a signal.
        seconds: that it took.
        machine: what it ran on, as of `rlcore.runs.machine.describe`; None: this one.
        error: why there is nothing to be read of it, one sentence.
        lost: as `error`, where the cell itself is not to blame and should run again.
    """

    code: int
    seconds: float
    machine: dict[str, Any] | None = None
    error: str = ""
    lost: str = ""


class Place(Protocol):
    """See the module."""

    jobs: int
    root: Path

    def start(self, cell: "Cell", words: Sequence[str], env: Mapping[str, str]) -> Job:
        """Begin a cell by its command, whose environment also has `env`."""

    def ended(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Ending]]:
        """Wait for a moment; then those of the jobs that have ended, their files and logs in the bench's folder."""

    def stop(self, jobs: Iterable[Job]) -> None:
        """End those that still run, and all processes that they have begun."""


class Processes:
    """This machine, see `Place`; of J jobs each is kept to a J-th of the cores, so that speeds can be compared."""

    def __init__(self, root: Path, jobs: int):
        self.root, self.jobs = root, jobs
        self.taken: set[int] = set()

    def start(self, cell: "Cell", words: Sequence[str], env: Mapping[str, str]) -> Job:
        slot = min(set(range(self.jobs)) - self.taken)
        self.taken.add(slot)
        folder = self.root / cell.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        process = start_process(words, folder.with_name(f"{folder.name}.log"), env, share(slot, self.jobs))
        return Job(cell, process, time.perf_counter(), slot)

    def ended(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Ending]]:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for job in list(jobs):
            if job.handle.poll() is not None:
                self.taken.discard(job.slot)
                yield job, Ending(job.handle.returncode, time.perf_counter() - job.began)

    def stop(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            kill(job.handle)


def start_process(
    words: Sequence[str], log: Path, env: Mapping[str, str], on: Set[int] = frozenset()
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Begin a process that writes to `log` and dies with this one; `on` says which cores it may use, none: all."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=_preparation(os.getpid(), on), env={**os.environ, **env},
        )  # fmt: skip


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all those that it has begun."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def share(slot: int, jobs: int) -> set[int]:
    """The cores of one of so many jobs, none where the system does not say which there are."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    own = cores()
    size = max(len(own) // jobs, 1)
    return {own[(slot * size + k) % len(own)] for k in range(size)}


def _preparation(parent: int, on: Set[int]) -> Callable[[], None]:
    """What a child does first: keep to its cores, and have the system kill it when the bench dies, however it does."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        library = None

    def prepare() -> None:
        if on:
            os.sched_setaffinity(0, on)
        if hasattr(library, "prctl"):  # elsewhere a child that is left over keeps its folder locked until it ends
            library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return prepare
