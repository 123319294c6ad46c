"""What a node of a cluster does: it unpacks what a cell needs, runs its command, and packs what that has left.

Nothing is assumed of a common file system: folders travel as the bytes of a tar. Imports nothing that is large, since
each worker of the cluster reads it.
"""

import contextlib
import functools
import io
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcore.runs.processes import SECONDS_BETWEEN_LOOKS, kill, start_process

ROOT, PYTHON = "{bench}", "{python}"  # in words: the bench's folder and Python, which every node has its own of
LONGEST_LOG = 2**24  # bytes of what a process has printed that come back, the last ones
DESCRIBE = "import json; from rlcore.runs.machine import describe; print(json.dumps(describe()))"
OF_BENCHES = ("command", "date")  # of a machine's description: of the process that has started the bench


@dataclass(frozen=True)
class Order:
    """A cell to run: the words of its command, its folder as a path from the bench's, further variables of its
    environment, and the folders that it reads, packed, by their paths from the bench's."""

    words: tuple[str, ...]
    folder: str
    env: dict[str, str]
    sent: dict[str, bytes]


@dataclass(frozen=True)
class Answer:
    """What became of it: the code of its process, seconds, what it has printed, its folder packed (None: there is
    none), and the machine."""

    code: int
    seconds: float
    log: bytes
    folder: bytes | None
    machine: dict[str, Any]


def carry_out(order: Order) -> Answer:
    """Run a cell in a folder that is gone afterwards; its process ends when this one is interrupted or dies."""
    with tempfile.TemporaryDirectory(prefix="rlcore-") as name:
        root = Path(name)
        folder, log = root / order.folder, root / f"{order.folder}.log"
        folder.parent.mkdir(parents=True)
        for path, packed in order.sent.items():
            unpack(packed, root / path)
        machine = _machine()  # a node that cannot say it could not run the cell either
        began = time.perf_counter()
        code = _run([_here(word, root) for word in order.words], log, order.env)
        seconds = time.perf_counter() - began
        packed = pack(folder) if folder.is_dir() else None
        return Answer(code, seconds, _end_of(log), packed, machine)


def _here(word: str, root: Path) -> str:
    """A word of a command, of this node."""
    return sys.executable if word == PYTHON else word.replace(ROOT, str(root))


def _run(words: list[str], log: Path, env: dict[str, str]) -> int:
    """The code that a command ends with; one that cannot be begun is a word in the log."""
    try:
        process = start_process(words, log, env)
    except OSError as error:
        log.write_text(f"{words[0]} cannot be started on {platform.node()}: {error.strerror or error}", "utf-8")
        return 127
    try:
        while process.poll() is None:  # and not wait(), which Ray could not interrupt
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        kill(process)
    return process.returncode


def _end_of(log: Path) -> bytes:
    with open(log, "rb") as file:
        file.seek(max(os.path.getsize(log) - LONGEST_LOG, 0))
        return file.read()


@functools.cache
def _machine() -> dict[str, Any]:
    """This machine, asked for in another process so that torch and what it takes of a GPU do not stay in this one."""
    told = subprocess.run([sys.executable, "-c", DESCRIBE], capture_output=True, text=True)
    if told.returncode:
        raise RuntimeError(f"rlcore cannot be started on {platform.node()}: {(told.stderr.splitlines() or [''])[-1]}")
    return {name: value for name, value in json.loads(told.stdout).items() if name not in OF_BENCHES}


def pack(folder: Path) -> bytes:
    """A folder as the bytes of a tar, without its owner."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        archive.add(folder, arcname=".", filter=_ownerless)
    return memory.getvalue()


def _ownerless(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def unpack(packed: bytes, folder: Path) -> None:
    """Make `folder` of what `pack` gave, in the place of an earlier one, whole or not at all.

    Raises:
        tarfile.TarError: for bytes that are no tar, or an entry that leads out of the folder or is no file.
        OSError: where it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _beside(folder) as new, _beside(folder) as old:
        new.mkdir()
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as archive:
            archive.extractall(new, filter="data")
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A path for a folder that is gone afterwards, where it is still there."""
    path = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
