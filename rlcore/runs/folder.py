"""The run folder: what a training run leaves behind, and where.

config.toml            everything needed to make the run again; `rlcore train --config` takes it
checkpoints/           step-000012345.pt, the newest five
episodes.csv           one line per finished episode
events.out.tfevents.*  TensorBoard
evaluation.json        the final evaluation
"""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from rlcore.checkpoint import write_atomically
from rlcore.errors import RlcoreError, UsageError

KEEP_CHECKPOINTS = 5


class RunFolder:
    """Paths of a run folder and what is read from and written to them."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.toml"
        self.episodes_file = self.path / "episodes.csv"
        self.evaluation_file = self.path / "evaluation.json"
        self.checkpoints = self.path / "checkpoints"

    @staticmethod
    def refuse_existing(path: str | Path) -> None:
        """Refuse a folder that has something in it, so that nothing saved is ever overwritten."""
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(
                f"the run folder {path} exists already; choose another --run-dir, or continue it with --resume {path}"
            )

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """A new, empty folder."""
        cls.refuse_existing(path)
        folder = cls(path)
        try:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the run folder {path} cannot be made: {error.strerror}") from error
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder, or a UsageError where there is none."""
        folder = cls(path)
        if not folder.path.is_dir():
            raise UsageError(f"the run folder {path} does not exist")
        if not folder.config_file.is_file():
            raise UsageError(f"{path} is not a run folder: it has no config.toml")
        return folder

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
        return sorted(self.checkpoints.glob("step-*.pt"))

    def write_config(self, config: dict[str, Any]) -> None:
        write_atomically(self.config_file, tomli_w.dumps(to_toml(config)).encode())

    def read_config(self) -> dict[str, Any]:
        return read_toml(self.config_file)


def to_toml(value: Any) -> Any:
    """TOML has no null: None is written as the text "none", which is also what the command line takes."""
    if isinstance(value, dict):
        return {key: to_toml(v) for key, v in value.items()}
    return "none" if value is None else value


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file, or a UsageError where it is missing or malformed."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"the file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not readable as TOML: {error}") from error


class EpisodeLog:
    """The CSV of finished episodes.

    Args:
        path: the file.
        resume_at: drop the lines after this step, which the resumed run will write again; None begins a new file.
    """

    COLUMNS = ("global_step", "env", "return", "length", "seconds")

    def __init__(self, path: Path, resume_at: int | None = None):
        if resume_at is not None and path.exists():
            self._truncate(path, resume_at)
        self.file = open(path, "a", newline="")  # noqa: SIM115  closed by close()
        self.writer = csv.writer(self.file)
        if self.file.tell() == 0:
            self.writer.writerow(self.COLUMNS)

    @staticmethod
    def _truncate(path: Path, step: int) -> None:
        with open(path, newline="") as file:
            lines = file.read().splitlines(keepends=True)
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split(",", 1)[0]) <= step]
        write_atomically(path, "".join(lines[:1] + kept).encode())

    def write(self, episodes: Any, seconds: float) -> None:
        rows = zip(episodes.step, episodes.env, episodes.returns, episodes.lengths, strict=True)
        self.writer.writerows((step, env, f"{ret:.6g}", length, f"{seconds:.2f}") for step, env, ret, length in rows)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def storage_error(folder: RunFolder, error: OSError) -> RlcoreError:
    """What to tell when the run folder could not be written (disk full, no permission)."""
    return RlcoreError(
        f"the run folder {folder.path} cannot be written: {error.strerror or error}; what was saved before is whole"
    )
