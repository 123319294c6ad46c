"""A training run: an agent, a run folder, and everything that is recorded between them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import signal
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from rlcore.agents import Agent, load
from rlcore.checkpoint import read_checkpoint, write_atomically, write_checkpoint
from rlcore.collect import Episodes
from rlcore.errors import DivergenceError, RlcoreError, UsageError
from rlcore.runs.atari_scores import human_normalized
from rlcore.runs.folder import EpisodeLog, RunFolder, storage_error
from rlcore.runs.progress import Progress
from rlcore.torsos import is_image

TENSORBOARD_POINTS = 200  # at most so many points per curve: writing each iteration costs more than it shows
SECONDS_TO_KEEP_POINTS = 1.0  # TensorBoard's writer is a thread; waking it for each point costs more than the point
CHECKPOINTS_PER_RUN = 10
RECENT_EPISODES = 100
GROUPS = {
    "episode_return": "rollout", "episode_length": "rollout", "steps_per_second": "time",
    "learning_rate": "optimizer", "grad_norm": "optimizer",
    "loss": "loss", "policy_loss": "loss", "value_loss": "loss",
}  # fmt: skip


class Interrupted(RlcoreError):
    """The run was asked to stop and saved a checkpoint; `code` is the exit code that tells so."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class StopSignals:
    """Turns Ctrl-C and SIGTERM into a request that is honoured between iterations; a second one stops at once."""

    CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

    def __init__(self) -> None:
        self.code: int | None = None

    def __enter__(self) -> StopSignals:
        self.before = {number: signal.signal(number, self._handle) for number in self.CODES}
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.code is not None:
            raise KeyboardInterrupt
        self.code = self.CODES[signal.Signals(number)]

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Run:
    """One agent training into one folder.

    Args:
        folder: where everything goes.
        agent: the agent, new or loaded from a checkpoint of this folder.
        settings: what `config.toml` holds.
        resumed: what the checkpoint stored of the run itself; None for a new run.
    """

    def __init__(
        self, folder: RunFolder, agent: Agent, settings: dict[str, Any], resumed: dict[str, Any] | None = None
    ):
        self.folder, self.agent, self.settings = folder, agent, settings
        self.total_steps: int = settings["total_steps"]
        self.checkpoint_every: int = settings["checkpoint_every"]
        self.log_every = max(self.total_steps // TENSORBOARD_POINTS, 1)
        self.resumed = resumed is not None
        self.last_checkpoint = agent.global_step if self.resumed else -1  # the step of the newest
        self.seconds_before = resumed["seconds"] if resumed else 0.0
        self.recent_returns: deque[float] = deque(resumed["recent_returns"] if resumed else (), maxlen=RECENT_EPISODES)
        self.began = time.perf_counter()
        self.pending: list[dict[str, float]] = []  # metrics since the last point
        self.pending_episodes = Episodes()
        self.points: list[tuple[dict[str, float], int, float]] = []  # curves not handed to TensorBoard yet
        self.handed_over = self.began

    @classmethod
    def start(cls, path: str | Path, agent: Agent, settings: dict[str, Any]) -> Run:
        """Begin a new run in a new folder."""
        folder = RunFolder.create(path)
        config = dataclasses.asdict(agent.config)
        settings = {**settings, "hyperparameters": config, "versions": versions()}
        run = cls(folder, agent, settings)
        run._guard(lambda: (folder.write_config(settings), run.checkpoint()))
        return run

    @classmethod
    def resume(cls, path: str | Path, total_steps: int | None, **overrides: Any) -> Run:
        """Continue from the newest checkpoint of a folder."""
        folder = RunFolder.open(path)
        settings = folder.read_config()
        file = folder.latest_checkpoint()
        extra = read_checkpoint(file)["extra"]
        settings["total_steps"] = settings["total_steps"] if total_steps is None else total_steps
        agent = load(file, **overrides)
        if agent.global_step >= settings["total_steps"]:
            raise UsageError(
                f"the run {path} is complete at step {agent.global_step:,}; to go on, give --total-steps more than that"
            )
        run = cls(folder, agent, settings, extra)
        run._guard(lambda: folder.write_config(settings))
        return run

    def train(self, progress: bool = True) -> None:
        """Train to the end, recording on the way.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, when a checkpoint has been saved.
            DivergenceError: when the loss is not finite; the message names the last good checkpoint and a dump.
            RlcoreError: when the folder cannot be written.
        """
        self._guard(lambda: self._train(progress))

    def _guard(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            raise storage_error(self.folder, error) from error

    def _train(self, show: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        step = self.agent.global_step
        episodes_log = EpisodeLog(self.folder.episodes_file, resume_at=step if self.resumed else None)
        purge_step = step + 1 if self.resumed else None
        writer = SummaryWriter(str(self.folder.path), purge_step=purge_step, max_queue=TENSORBOARD_POINTS)
        progress = Progress(self.total_steps, step, show)
        self.episodes_log, self.writer = episodes_log, writer
        threading.excepthook = _leave_storage_errors_to_the_caller
        try:
            with StopSignals() as stop:
                for metrics, episodes in self.agent.iterations(self.total_steps):
                    step = self._record(step, metrics, episodes)
                    progress.update(step, lambda: self.mean_return)
                    if stop.code is not None:
                        self.checkpoint()
                        raise Interrupted(
                            f"stopped at step {step:,}; continue with --resume {self.folder.path}", stop.code
                        )
            self._write_point()
            if self.last_checkpoint != step:
                self.checkpoint()
        except DivergenceError as error:
            raise self._diverged(error) from error
        finally:
            progress.close()
            try:
                self._hand_over_points()
            finally:
                episodes_log.close()
                writer.close()
                threading.excepthook = threading.__excepthook__

    @property
    def mean_return(self) -> float:
        """Over the latest episodes; NaN before the first."""
        return float(np.mean(self.recent_returns)) if self.recent_returns else math.nan

    @property
    def seconds(self) -> float:
        """Training time, earlier parts of a resumed run included."""
        return self.seconds_before + time.perf_counter() - self.began

    def _record(self, before: int, metrics: dict[str, float], episodes: Episodes) -> int:
        """Log one iteration that led from step `before` to the agent's step, and checkpoint where one is due."""
        step = self.agent.global_step
        self.recent_returns.extend(episodes.returns)
        self.episodes_log.write(episodes, self.seconds)
        self.pending.append(metrics)
        self.pending_episodes.returns += episodes.returns
        self.pending_episodes.lengths += episodes.lengths
        if step // self.log_every > before // self.log_every:
            self._write_point()
        if step // self.checkpoint_every > before // self.checkpoint_every:
            self.checkpoint()
        return step

    def _write_point(self) -> None:
        """One point per curve: the mean since the last point."""
        if not self.pending:
            return
        means = {name: _mean([metrics[name] for metrics in self.pending]) for name in self.pending[-1]}
        if self.pending_episodes.returns:
            means["episode_return"] = _mean(self.pending_episodes.returns)
            means["episode_length"] = _mean(self.pending_episodes.lengths)
        finite = {f"{GROUPS.get(name, 'policy')}/{name}": x for name, x in means.items() if math.isfinite(x)}
        self.points.append((finite, self.agent.global_step, time.time()))
        self.pending, self.pending_episodes = [], Episodes()
        if time.perf_counter() - self.handed_over > SECONDS_TO_KEEP_POINTS:
            self._hand_over_points()

    def _hand_over_points(self) -> None:
        """To TensorBoard's writer."""
        points, self.points = self.points, []
        for scalars, step, at in points:
            self.writer.file_writer.add_summary(_summary(scalars), step, at)
        self.handed_over = time.perf_counter()

    def checkpoint(self) -> None:
        """Save everything that the rest of the run depends on.

        Environments whose state cannot be stored begin anew here, in this process as in one that resumes from this
        checkpoint, so that both go on alike.
        """
        agent, step = self.agent, self.agent.global_step
        if hasattr(self, "episodes_log"):
            self._hand_over_points()
            self.episodes_log.flush()
            self.writer.flush()
        extra = {"seconds": self.seconds, "recent_returns": list(self.recent_returns), "total_steps": self.total_steps}
        agent.save(self.folder.checkpoint_file(step), extra)
        self.folder.drop_old_checkpoints()
        self.last_checkpoint = step
        if not agent.collector.is_capturable():
            agent.collector.reset(agent.restart_seed(agent.iteration))

    def _diverged(self, error: DivergenceError) -> DivergenceError:
        """Keep what there is to look at, and say where it is."""
        dump = self.folder.path / f"diverged-step-{self.agent.global_step}.pt"
        buffer = {k: v for k, v in vars(self.agent.buffer).items() if isinstance(v, torch.Tensor | dict)}
        write_checkpoint(
            dump, {"agent": self.agent.state_dict(), "buffer": buffer, "settings": json.dumps(self.settings)}
        )
        return DivergenceError(
            f"{error}; the last good checkpoint is {self.folder.latest_checkpoint()}, "
            f"and the rollout and weights to look at are in {dump}"
        )

    def evaluate(self, episodes: int, seed: int | None = None) -> dict[str, Any]:
        """Play greedy evaluation episodes on fresh seeds and store the result as evaluation.json."""
        seed = evaluation_seed(self.agent.config.seed) if seed is None else seed
        report = evaluation_report(self.agent, episodes, seed, deterministic=True)
        report["training_seconds"] = round(self.seconds, 2)
        data = json.dumps(report, indent=1).encode()
        self._guard(lambda: write_atomically(self.folder.evaluation_file, data))
        return report


def _mean(values: list[float]) -> float:
    """Of a list that is short, as most are; making an array of it would take longer than the sum."""
    return math.fsum(values) / len(values)


def _summary(scalars: dict[str, float]) -> Any:
    """A point of each curve as one event: `add_scalar` writes one each, and was a sixth of the time of a fast run."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()])


def _leave_storage_errors_to_the_caller(error: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer thread raises its error again in the next call, where it is reported in one sentence."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)


def set_threads(agent: Agent, asked: str) -> int:
    """Choose torch's CPU threads for this process: `asked`, or by the width of the work where that is "auto".

    Small layers lose more to waking threads than they gain: on the machines measured, two threads gained nothing with
    128 rows of 64 units and half as much again with 2,048 rows. OMP_NUM_THREADS, where set, is left as it is.
    """
    config = agent.config
    rows = config.num_envs * config.num_steps // config.num_minibatches
    parts = agent.adapter.parts
    images = any(map(is_image, parts.values() if isinstance(parts, dict) else [parts]))
    narrow = rows * max(config.hidden_sizes, default=1) < 2**16 and not images
    if asked != "auto":
        torch.set_num_threads(int(asked))
    elif narrow and agent.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return torch.get_num_threads()


def evaluation_seed(seed: int) -> int:
    """A seed for evaluation episodes that no training environment of the run was given."""
    return int(np.random.SeedSequence([seed, 0xE7A1]).generate_state(1)[0] % 2**31)


def evaluation_report(agent: Agent, episodes: int, seed: int, deterministic: bool) -> dict[str, Any]:
    """An evaluation as plain data for a JSON file."""
    result = agent.evaluate(episodes, seed, deterministic)
    normalized = human_normalized(agent.env_id, result.mean)
    return {
        "algo": type(agent).__name__.lower(),
        "env_id": agent.env_id,
        "global_step": agent.global_step,
        "train_seed": agent.config.seed,
        "episodes": episodes,
        "eval_seed": seed,
        "deterministic": deterministic,
        "mean": result.mean,
        "std": result.std,
        **({} if normalized is None else {"human_normalized": normalized}),
        "min": float(result.returns.min()),
        "max": float(result.returns.max()),
        "returns": result.returns.tolist(),
        "lengths": result.lengths.tolist(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What the numbers of a run depend on."""
    import rlcore

    return {
        "rlcore": rlcore.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
    }


def open_agent(path: str | Path, **overrides: Any) -> tuple[Agent, Path]:
    """The agent of a run folder's newest checkpoint, or of a checkpoint file."""
    file = RunFolder.open(path).latest_checkpoint() if Path(path).is_dir() or not Path(path).exists() else Path(path)
    return load(file, **overrides), file


def describe_environment(agent: Agent) -> str:
    """One line: how the environments are stepped and why."""
    asked, backend = agent.config.backend, agent.backend
    why = f"asked for with --backend {asked}"
    if asked == "auto" and backend == "native":
        why = "the twin in tensors, as the run is compiled"
    elif asked == "auto" and agent.group_starts:
        why = "groups need a seed for each environment"
    elif asked == "auto":
        why = (
            "the environment's own vector implementation" if backend == "vector" else "it has no vector implementation"
        )
    return f"{agent.config.num_envs} × {agent.env_id}, backend {backend} ({why}), on {agent.device}"


__all__ = ["Interrupted", "Run", "describe_environment", "evaluation_report", "evaluation_seed", "open_agent"]
