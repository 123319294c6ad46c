"""The run folder: what a training run leaves behind, and where.

config.toml            everything needed to make the run again; `rlcore train --config` takes it
checkpoints/           step-000012345.pt, the newest five
episodes.csv           one line per finished episode
events.out.tfevents.*  TensorBoard
evaluation.json        the final evaluation
.lock                  which process writes here, as long as it does
*.damaged              what could not be read when the run was resumed, and was set aside
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import tomli_w

from rlcore.errors import UsageError
from rlcore.runs.settings import to_toml
from rlcore.storage.checkpoint import checkpoint_files
from rlcore.storage.files import FolderLock, InUse, atomic_file, keep_aside, set_aside, write_atomically

KEEP_CHECKPOINTS = 5
TEMPORARY = re.compile(r"\..+\.[0-9]+(-[0-9a-f]+)?\.tmp")  # of `atomic_file`
LOCK = ".lock"
LARGEST_EVALUATION = 2**28  # bytes


class FolderTaken(UsageError):
    """A new run cannot have this folder, because another run has it."""


class RunFolder:
    """Paths of a run folder and what is read from and written to them."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.toml"
        self.episodes_file = self.path / "episodes.csv"
        self.evaluation_file = self.path / "evaluation.json"
        self.checkpoints = self.path / "checkpoints"
        self.lock = FolderLock(self.path / LOCK)

    @staticmethod
    def refuse_existing(path: str | Path) -> None:
        """Refuse a folder that has something in it, so that nothing saved is ever overwritten."""
        if not str(path):
            raise UsageError("the run folder has no name")
        if not str(path).isascii() and os.fsencode(path) != str(path).encode(errors="replace"):
            raise UsageError(f"the run folder {path} has letters that this locale has not; LC_ALL=C.UTF-8 has them")
        try:
            taken = os.path.lexists(path) and (not os.path.isdir(path) or set(os.listdir(path)) - {LOCK})
        except OSError as error:
            raise UsageError(f"the run folder {path} cannot be read: {error.strerror}") from error
        if taken and os.path.lexists(Path(path, "config.toml")):
            raise FolderTaken(
                f"the run folder {path} exists already; choose another --run-dir, or continue it with --resume {path}"
            )
        if taken:
            what = "a folder with other things in it" if os.path.isdir(path) else "a file"
            raise FolderTaken(f"{path} exists already and is {what}, not a run; choose another --run-dir")

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """A new, empty folder, locked for this process; FolderTaken where another run has it."""
        cls.refuse_existing(path)
        folder = cls(path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder._acquire()
            cls.refuse_existing(path)  # again, now that nobody else can begin there
            folder.checkpoints.mkdir(exist_ok=True)
        except BaseException as error:
            folder.close()
            if isinstance(error, OSError):
                raise UsageError(f"the run folder {path} cannot be made: {error.strerror or error}") from error
            raise
        return folder

    @classmethod
    def create_numbered(cls, path: str | Path) -> Self:
        """As `create`, with a number behind the name where other runs have it."""
        for number in range(1, 10_000):
            try:
                return cls.create(path if number == 1 else f"{path}-{number}")
            except FolderTaken as error:
                taken = error
        raise taken

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run folder to read from, or a UsageError where there is none."""
        folder = cls(path)
        if not os.path.isdir(path):
            raise UsageError(f"the run folder {path} does not exist")
        if not os.path.isfile(folder.config_file) and not folder._checkpoint_files():
            raise UsageError(f"{path} is not a run folder: it has no config.toml")
        return folder

    @classmethod
    def open_to_write(cls, path: str | Path) -> Self:
        """As `open`, locked for this process; what dead ones had half written is removed."""
        folder = cls.open(path)
        try:
            folder._acquire()
            if folder.lock.held:  # where there are no locks, they may be of a living process
                folder._remove_temporary_files()
        except OSError as error:
            folder.close()
            raise UsageError(f"the run folder {path} cannot be written: {error.strerror or error}") from error
        return folder

    def _acquire(self) -> None:
        try:
            self.lock.acquire()
        except InUse as error:
            raise FolderTaken(f"the run folder {self.path} {error}, which must end before another begins") from None

    def _remove_temporary_files(self) -> None:
        for folder in filter(os.path.isdir, (self.path, self.checkpoints)):
            for name in filter(TEMPORARY.fullmatch, os.listdir(folder)):
                Path(folder, name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let others write here."""
        self.lock.release()

    def checkpoint_file(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:09d}.pt"

    def latest_checkpoint(self) -> Path:
        """The checkpoint of the highest step."""
        files = self._checkpoint_files()
        if not files:
            raise UsageError(f"the run folder {self.path} has no checkpoint")
        return files[-1]

    def drop_old_checkpoints(self) -> None:
        """Keep the newest ones; called only after a newer one is safely in place."""
        for file in self._checkpoint_files()[:-KEEP_CHECKPOINTS]:
            file.unlink(missing_ok=True)

    def _checkpoint_files(self) -> list[Path]:
        return checkpoint_files(self.checkpoints)

    def write_config(self, config: dict[str, Any]) -> None:
        write_atomically(self.config_file, tomli_w.dumps(to_toml(config)).encode())

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation of the agent as it was at this step is there and whole."""
        report = self.read_evaluation()
        return report is not None and report.get("global_step") == step and "mean" in report

    def read_evaluation(self) -> dict[str, Any] | None:
        """The final evaluation, None where there is none that is whole."""
        try:
            if os.path.getsize(self.evaluation_file) > LARGEST_EVALUATION:
                return None
            report = json.loads(self.evaluation_file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return report if isinstance(report, dict) else None


class EpisodeLog:
    """The CSV of finished episodes: a new file, or one without the lines after the step `resume_at`, which the resumed
    run will write again. `set_aside` is where that went, if it was damaged; what of it was whole has been kept."""

    COLUMNS = ("global_step", "env", "return", "length", "seconds")

    def __init__(self, path: Path, resume_at: int | None = None):
        self.set_aside = None
        if resume_at is not None and os.path.lexists(path):
            self.set_aside = _truncate(path, resume_at)
        self.file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115  closed by close()
        self.writer = csv.writer(self.file)
        if self.file.tell() == 0:
            self.writer.writerow(self.COLUMNS)

    def write(self, episodes: Any, seconds: float) -> None:
        rows = zip(episodes.step, episodes.env, episodes.returns, episodes.lengths, strict=True)
        self.writer.writerows((step, env, f"{ret:.6g}", length, f"{seconds:.2f}") for step, env, ret, length in rows)

    def close(self) -> None:
        self.file.close()


HEADER = ",".join(EpisodeLog.COLUMNS).encode()
NUMBER = rb"[0-9]+(?:\.[0-9]+)?"
RECORD = re.compile(rb"([0-9]{1,19}),[0-9]+,-?(?:%b(?:e[+-][0-9]+)?|inf|nan),[0-9]+,%b" % (NUMBER, NUMBER))
LONGEST_LINE = 200  # bytes; no record has so many


def read_episodes(path: Path) -> dict[str, np.ndarray]:
    """The columns of an episode log by name, of its whole records with a finite return; empty where there is none."""
    rows = []
    if path.is_file():
        with open(path, "rb") as file:
            rows = [line.split(b",") for line, is_ended in _lines(file) if is_ended and RECORD.fullmatch(line)]
    columns = np.array(rows, dtype=float).reshape(-1, len(EpisodeLog.COLUMNS)).T
    columns = columns[:, np.isfinite(columns[EpisodeLog.COLUMNS.index("return")])]
    return dict(zip(EpisodeLog.COLUMNS, columns, strict=True))


def _truncate(path: Path, step: int) -> Path | None:
    """Leave the whole records up to `step` in an episode log; returns where the original is, if it was damaged."""
    if not path.is_file():  # a folder, a pipe
        return set_aside(path, "damaged-1")
    with open(path, "rb") as source, atomic_file(path) as kept:
        kept.write(HEADER + b"\r\n")
        damaged = False
        for number, (line, is_ended) in enumerate(_lines(source)):
            record = RECORD.fullmatch(line)
            if record and is_ended and int(record[1]) <= step:
                kept.write(line + b"\r\n")
            damaged |= _is_damage(line, is_ended, step) if number else not HEADER.startswith(line)
        return keep_aside(path, "damaged-1") if damaged else None


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Each line without its end, and whether it has one; of a line longer than any record, its beginning."""
    while line := file.readline(LONGEST_LINE):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
        yield line.removesuffix(b"\n").removesuffix(b"\r"), bool(rest)


def _is_damage(line: bytes, is_ended: bool, step: int) -> bool:
    """Whether a line is none that a run writes, or was cut short before `step`, where all had reached the file."""
    if is_ended:
        return not RECORD.fullmatch(line)
    at, comma, _ = line.partition(b",")
    return not at.isdigit() or len(at) > 19 or (bool(comma) and int(at) <= step)
