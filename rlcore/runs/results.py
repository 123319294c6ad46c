"""What became of runs: a record of each, and the index of a bench, which has a line of JSON for each record.

A report reads records alone: those of an index, or the one that `of_run` makes of a run folder.
"""

import contextlib
import dataclasses
import gc
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlcore.errors import UsageError, shown
from rlcore.runs.folder import RunFolder, read_episodes
from rlcore.runs.settings import HIGHEST_COUNT, read_settings

INDEX = "results.jsonl"
POINTS = 100  # of a learning curve
LARGEST_INDEX = 2**30  # bytes
STATES = ("done", "failed")
RUN_KEYS = ("algo", "env_id", "total_steps", "hyperparameters", "versions")  # of config.toml, which stand elsewhere


@dataclass(frozen=True)
class Result:
    """One run: an agent on an environment with a seed.

    Attributes:
        agent: the name it is compared under: that of the algorithm, or one of its variants.
        env_id: of the environment.
        seed: of the run.
        state: done or failed; what is in no index has not been run.
        error: what a failed run said, one sentence.
        folder: the run folder, as a path from that of the index.
        algo: the algorithm.
        total_steps: asked for.
        hyperparameters: all of them, as in config.toml.
        settings: what else config.toml says: preset, env_kwargs.
        steps: of the environments that were made, over all of them.
        seconds: of training, on the wall clock.
        measure: what an evaluation gives: return, accuracy.
        returns: of the evaluation's episodes.
        curve: the course of training in at most 100 stretches of as many steps each: `steps` at the end of each,
            `seconds` until then, and `returns`, the mean of the episodes that ended in it, None where none did.
        machine: hardware, versions and commit, as of `rlcore.runs.machine.describe`.
    """

    agent: str
    env_id: str
    seed: int
    state: str
    error: str | None = None
    folder: str = ""
    algo: str = ""
    total_steps: int = 0
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    measure: str = "return"
    returns: list[float] = field(default_factory=list)
    curve: dict[str, list[Any]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> tuple[str, str, int]:
        """What it is the result of."""
        return self.agent, self.env_id, self.seed

    @property
    def score(self) -> float:
        """The mean of the evaluation, NaN where there is none."""
        return sum(self.returns) / len(self.returns) if self.returns else math.nan

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds if self.seconds else math.nan

    def line(self) -> str:
        """As it stands in an index."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False) + "\n"

    @classmethod
    def of_line(cls, line: str, where: str) -> "Result":
        """What `line` wrote; a UsageError names `where` and what is wrong there."""
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is no JSON") from error
        if not isinstance(entry, dict):
            raise UsageError(f"{where} is {shown(entry)}, but must be the record of a run")
        missing = [name for name in ("agent", "env_id", "seed", "state") if name not in entry]
        if missing or entry["state"] not in STATES:
            raise UsageError(f"{where} is not the record of a run: it has no '{missing[0] if missing else 'state'}'")
        return _checked(cls(**{name: value for name, value in entry.items() if name in KINDS}), where)

    @classmethod
    def of_run(cls, path: str | Path, agent: str | None = None, machine: dict[str, Any] | None = None) -> "Result":
        """The record of a run folder, as far as its run has come; `agent` is another name than that of the algorithm.

        Raises:
            UsageError: where it is no run folder, or its config or evaluation cannot be read.
        """
        folder = RunFolder.open(path)
        config = read_settings(folder.config_file)
        evaluation = folder.read_evaluation() or {}
        episodes = read_episodes(folder.episodes_file)
        machine = machine or {"versions": config.get("versions", {})}
        result = cls(
            agent or config["algo"], config["env_id"], config["hyperparameters"].get("seed", 0), "done",
            folder=str(path), algo=config["algo"], total_steps=config["total_steps"],
            hyperparameters=config["hyperparameters"],
            settings={name: value for name, value in config.items() if name not in RUN_KEYS},
            steps=evaluation.get("global_step", int(episodes["global_step"].max(initial=0))),
            seconds=evaluation.get("training_seconds", float(episodes["seconds"].max(initial=0))),
            measure=evaluation.get("measure", "return"), returns=evaluation.get("returns", []),
            curve=curve_of(episodes, config["total_steps"]), machine=machine,
        )  # fmt: skip
        return _checked(result, str(path))


KINDS: dict[str, Any] = {
    "agent": str, "env_id": str, "seed": int, "state": str, "error": str | None, "folder": str, "algo": str,
    "total_steps": int, "hyperparameters": dict, "settings": dict, "steps": int, "seconds": int | float,
    "measure": str, "returns": list, "curve": dict, "machine": dict,
}  # fmt: skip


def _checked(result: Result, where: str) -> Result:
    """The record, if a run can have it; anyone may have written the file that it is from."""
    for name, kind in KINDS.items():
        value = getattr(result, name)
        if not isinstance(value, kind) or (kind is int and abs(value) > HIGHEST_COUNT):
            raise UsageError(f"{name} in {where} is {shown(value)}, which no run has")
    if not _finite([result.seconds]) or not _finite(result.returns):
        raise UsageError(f"{where} has returns or seconds that are no finite numbers")
    if not _is_curve(result.curve):
        raise UsageError(f"{where} has a curve that is not as many steps, seconds and returns, or no finite numbers")
    return result


def _finite(values: Any) -> bool:
    """Whether it is a list of finite numbers."""
    try:
        return isinstance(values, list) and set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))
    except OverflowError:  # of a whole number that is larger than any float
        return False


def _is_curve(curve: dict[str, Any]) -> bool:
    """Whether it is what `Result` says, or empty."""
    if not curve:
        return True
    steps, seconds, returns = (curve.get(name) for name in ("steps", "seconds", "returns"))
    if not _finite(steps) or not _finite(seconds) or not isinstance(returns, list):
        return False
    return len(steps) == len(seconds) == len(returns) and _finite([x for x in returns if x is not None])


def curve_of(episodes: dict[str, np.ndarray], total_steps: int) -> dict[str, list[Any]]:
    """The course of training from the columns of an episode log, see `Result`."""
    last = max(total_steps, int(episodes["global_step"].max(initial=0)))
    edges = np.linspace(0, last, POINTS + 1)[1:]
    count = np.searchsorted(episodes["global_step"], edges, side="right")  # of episodes up to each edge
    bounds = np.concatenate([[0], count])
    sums = np.concatenate([[0.0], np.cumsum(episodes["return"])])[bounds]
    clock = np.concatenate([[0.0], np.maximum.accumulate(episodes["seconds"])])[count]
    ended = np.diff(bounds)
    means = np.diff(sums) / np.maximum(ended, 1)
    returns = [float(f"{mean:.6g}") if n else None for mean, n in zip(means, ended, strict=True)]
    return {"steps": edges.round().astype(int).tolist(), "seconds": clock.round(2).tolist(), "returns": returns}


def read_index(path: str | Path) -> list[Result]:
    """The records of a bench, of each cell the newest; a last line that was cut short is left out.

    Raises:
        UsageError: where there is no index, or a line that is not the record of a run.
    """
    file = Path(path) / INDEX
    try:
        if os.path.getsize(file) > LARGEST_INDEX:
            raise UsageError(f"{file} is longer than {LARGEST_INDEX:,} bytes, the most that is read")
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the results in {file} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    lines = text.split("\n")[:-1]  # what stands behind the last end of line was cut short
    with _uncollected():
        results = [Result.of_line(line, f"line {number} of {file}") for number, line in enumerate(lines, 1)]
    return list({result.cell: result for result in results}.values())


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's search for cycles: JSON has none, and going through thousands of curves again and again takes a
    fifth of the time of reading them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_results(path: str | Path) -> list[Result]:
    """Those of a folder: of a bench, or of one run."""
    return read_index(path) if os.path.isfile(Path(path) / INDEX) else [Result.of_run(path)]
