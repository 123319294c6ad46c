"""A training run: an agent, a run folder, and everything that is recorded between them."""

import contextlib
import dataclasses
import json
import math
import os
import platform
import signal
import statistics
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import gymnasium
import numpy as np
import torch

from rlcore.agents import Agent, load
from rlcore.agents.callbacks import Callback, one_stops
from rlcore.agents.setup import restart_seed
from rlcore.agents.stored import read_told
from rlcore.collect import Episodes
from rlcore.errors import CheckpointError, DivergenceError, EnvironmentFault, RlcoreError, UsageError, one_line, shown
from rlcore.networks.torsos import is_image
from rlcore.progress import Progress
from rlcore.runs.atari_scores import human_normalized
from rlcore.runs.folder import EpisodeLog, RunFolder
from rlcore.runs.settings import (
    EVAL_EPISODES,
    KEPT_WITH_CHECKPOINTS,
    edited_since,
    read_settings,
    settings_of_checkpoint,
)
from rlcore.runs.tracking import Maker, TensorBoard, Tracker
from rlcore.storage.checkpoint import read_newest, write_checkpoint
from rlcore.storage.files import set_aside, write_atomically
from rlcore.tracing import share

TENSORBOARD_POINTS = 200  # at most so many points per curve: writing each iteration costs more than it shows
SECONDS_TO_KEEP_POINTS = 1.0  # TensorBoard's writer is a thread; waking it for each point costs more than the point
CHECKPOINTS_PER_RUN = 10
RECENT_EPISODES = 100
HANGUP, TERMINATED = 129, 143  # exit codes: 128 and the number of the signal
LARGEST = 1e300  # time or return taken from a file
GROUPS = {
    "episode_return": "rollout", "episode_length": "rollout", "env_restarts": "rollout",
    "learning_rate": "optimizer", "grad_norm": "optimizer", "param_norm": "optimizer",
    "loss": "loss", "policy_loss": "loss", "value_loss": "loss", "steps_per_second": "time",
}  # fmt: skip


def checkpoint_interval(total_steps: int) -> int:
    """Steps between checkpoints where nothing else is asked for."""
    return -(-total_steps // CHECKPOINTS_PER_RUN)


class Interrupted(RlcoreError):
    """The run was asked to stop and saved a checkpoint; `code` is the exit code that tells so."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class StopSignals:
    """Turns Ctrl-C, SIGTERM and SIGHUP (the terminal is gone) into a request that is honoured between iterations.

    A second Ctrl-C or SIGTERM stops at once. SIGHUP does not count there, as it comes together with others when a
    session ends, and it stays ignored where it was, which is what nohup does.
    """

    code: int | None = None  # the exit code that tells of the first

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def _handle(self, number: int, frame: Any) -> None:
        code = 128 + number
        if HANGUP not in (code, self.code) and self.code is not None:
            raise KeyboardInterrupt
        self.code = code if self.code in (None, HANGUP) else self.code

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Course:
    """What all ranks of a run have to decide alike: when it ends, stops, and is saved.

    Attributes:
        agent: that trains.
        total_steps, checkpoint_every: environment steps, over all environments.
    """

    agent: Agent
    total_steps: int
    checkpoint_every: int

    @property
    def is_complete(self) -> bool:
        """Whether all steps are done; the final evaluation may be missing."""
        return self.agent.global_step >= self.total_steps

    def is_due(self, before: int, step: int) -> bool:
        """Whether an iteration that led from step `before` to `step` ends with a checkpoint."""
        return step // self.checkpoint_every > before // self.checkpoint_every

    def must_stop(self, stop: StopSignals) -> bool:
        """Whether this rank or another was asked to stop."""
        return self.agent.share.any(stop.code is not None)

    def begin_anew_where_not_stored(self) -> None:
        """Environments whose state cannot be stored begin anew after a checkpoint, in this process as in one that
        resumes from it, so that both go on alike."""
        agent = self.agent
        if agent.share.any(not agent.collector.is_capturable()):
            agent.collector.reset(restart_seed(agent.config.seed, agent.iteration))


class Run(Course):
    """One agent training into one folder; of several ranks the first does, and the others are each a `Follower`.

    `settings` is what `config.toml` holds, `resumed` what a checkpoint stored of the run itself, None for a new run.
    `tracked_by` makes what else takes the curves beside TensorBoard; `callbacks` are called after each iteration, and
    one that returns True ends the training.
    """

    tracked_by: Sequence[Maker] = ()
    callbacks: Sequence[Callback] = ()

    def __init__(self, folder: RunFolder, agent: Agent, settings: dict[str, Any], resumed: dict[str, Any] | None):
        self.folder, self.agent, self.settings = folder, agent, settings
        self.total_steps: int = settings["total_steps"]
        self.checkpoint_every: int = settings["checkpoint_every"]
        self.eval_episodes: int = settings.get("eval_episodes", EVAL_EPISODES)  # of the final evaluation, 0 for none
        self.log_every = max(self.total_steps // TENSORBOARD_POINTS, 1)
        self.resumed = resumed is not None
        self.last_checkpoint = agent.global_step if self.resumed else -1  # the step of the newest
        self.seconds_before, returns = _what_was_stored(resumed or {})
        self.recent_returns: deque[float] = deque(returns, maxlen=RECENT_EPISODES)
        self.began = time.perf_counter()
        self.ended = self.began if self.is_complete else None  # when the last iteration did
        self.trackers: list[Tracker] = []
        self.pending: defaultdict[str, list[float]] = defaultdict(list)  # of each curve since its last point
        self.points: list[tuple[dict[str, float], int, float]] = []  # curves not handed to TensorBoard yet
        self.handed_over = self.began

    @classmethod
    def start(cls, path: str | Path | RunFolder, agent: Agent, settings: dict[str, Any]) -> Self:
        """Begin a new run in a new folder, which no other process can write to until `close`."""
        folder = path if isinstance(path, RunFolder) else RunFolder.create(path)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(folder.close)
            settings = {**settings, "hyperparameters": dataclasses.asdict(agent.config), "versions": versions()}
            run = cls(folder, agent, settings, None)
            with run._guard():
                folder.write_config(settings)
                run.checkpoint()
            on_failure.pop_all()
        return run

    @classmethod
    def resume(
        cls, path: str | Path, total_steps: int | None, *, checkpoint_every: int | None = None,
        eval_episodes: int | None = None, env_kwargs: dict[str, Any] | None = None, **overrides: Any,
    ) -> Self:  # fmt: skip
        """Continue from the newest checkpoint of a folder that can be read, until `close` for this process alone, with
        hyperparameters that were edited in its config.toml, where a run can go on with others.

        The three counts are as before where they are None; `env_kwargs` take the place of stored arguments of the
        environment's constructor, `overrides` of hyperparameters, such as `device`. A UsageError tells that there is
        no run, another process has it, or nothing is left to do; a CheckpointError that no checkpoint can be read.
        """
        asked = {"total_steps": total_steps, "checkpoint_every": checkpoint_every, "eval_episodes": eval_episodes}
        with contextlib.ExitStack() as on_failure:
            folder = RunFolder.open_to_write(path)
            on_failure.callback(folder.close)
            file, payload, damaged = read_newest(path)
            stored, problem = _stored_settings(folder, payload)
            settings = {**stored, **{name: count for name, count in asked.items() if count is not None}}
            settings.setdefault("checkpoint_every", checkpoint_interval(settings["total_steps"]))
            edited = {} if problem else edited_since(folder.config_file, stored, payload)
            if env_kwargs:
                settings["env_kwargs"] = {**settings["env_kwargs"], **env_kwargs}
                overrides["env_kwargs"] = env_kwargs
            if share().count > 1:
                share().broadcast((settings, edited, file.read_bytes()))
            agent = load(file, **{**edited, **overrides})
            on_failure.callback(agent.close)
            run = cls(folder, agent, settings, payload["extra"])
            if run.is_complete and (run.eval_episodes == 0 or folder.has_evaluation(agent.global_step)):
                where = f"the run {folder.path} is complete at step {agent.global_step:,}"
                raise UsageError(f"{where}; to go on, give --total-steps more than that")
            with run._guard():
                run._repair(file, damaged, problem)
                run._tell_of(edited, payload["config"])
                settings["hyperparameters"] = dataclasses.asdict(agent.config)
                folder.write_config(settings)
            on_failure.pop_all()
        return run

    def _repair(self, file: Path, damaged: dict[Path, CheckpointError], problem: UsageError | None) -> None:
        """Set aside what could not be read, and say so."""
        for other, error in damaged.items():
            kept = set_aside(other, "damaged").name
            _tell(f"{error}; the run goes on from {file} before it, and the damaged one is now {kept}")
        if problem is not None:
            config, where = self.folder.config_file, ""
            if os.path.lexists(config):
                where = f", and the damaged one is now {set_aside(config, 'damaged').name}"
            _tell(f"{problem}; it is made again from what {file} holds{where}")

    def _tell_of(self, edited: dict[str, Any], before: dict[str, Any]) -> None:
        for name in edited:
            now, was = shown(getattr(self.agent.config, name)), shown(before.get(name))
            _tell(f"{name} is {now} from here on, as {self.folder.config_file} says, and was {was}")

    def close(self) -> None:
        """Let other processes write to the folder."""
        self.folder.close()

    def train(self, progress: bool = True) -> None:
        """Train to the end, recording on the way.

        Interrupted tells of Ctrl-C, SIGTERM or SIGHUP, when a checkpoint has been saved; an EnvironmentFault says how
        to go on, a DivergenceError names the last good checkpoint and a dump.
        """
        if not self.is_complete:
            with self._guard():
                self._train(progress)
            self.ended = time.perf_counter()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Tell in one sentence that the run folder cannot be written (disk full, no permission)."""
        try:
            yield
        except ConnectionError:  # of a process that steps environments, not of the folder
            raise
        except OSError as error:
            why = f"{error.strerror or error}; what was saved before is whole"
            raise RlcoreError(f"the run folder {self.folder.path} cannot be written: {why}") from error

    def _train(self, show: bool) -> None:
        step = self.agent.global_step
        self.episodes_log = EpisodeLog(self.folder.episodes_file, resume_at=step if self.resumed else None)
        if self.episodes_log.set_aside:
            kept = f"its whole records up to step {step:,} are kept"
            damaged = f"the damaged file is now {self.episodes_log.set_aside.name}"
            _tell(f"{self.folder.episodes_file} was damaged; {kept}, and {damaged}")
        path, settings = self.folder.path, self.settings
        self.trackers = [TensorBoard(path, settings, step if self.resumed else None)]
        progress = Progress(self.total_steps, step, show)
        try:
            self.trackers += [make(path, settings) for make in self.tracked_by]
            with StopSignals() as stop:
                for metrics, episodes in self.agent.iterations(self.total_steps):
                    step = self._record(step, metrics, episodes)
                    progress.update(step, self._mean_return)
                    if one_stops(self.callbacks, self.agent, metrics, episodes):
                        break
                    if self.must_stop(stop):
                        self.checkpoint()
                        where = f"stopped at step {step:,}; continue with --resume {self.folder.path}"
                        raise Interrupted(where, stop.code or TERMINATED)
            self._write_point()
            if self.last_checkpoint != step:
                self.checkpoint()
        except DivergenceError as error:
            raise self._diverged(error) from error
        except EnvironmentFault as error:
            raise self._faulted(error) from error
        finally:
            progress.close()
            with contextlib.ExitStack() as ending:
                for tracker in self.trackers:
                    ending.callback(tracker.close)
                ending.callback(self.episodes_log.close)
                self._hand_over_points()

    def _mean_return(self) -> float:
        return float(np.mean(self.recent_returns)) if self.recent_returns else math.nan

    @property
    def seconds(self) -> float:
        """Training time, earlier parts of a resumed run included."""
        return self.seconds_before + (self.ended or time.perf_counter()) - self.began

    def _record(self, before: int, metrics: dict[str, float], episodes: Episodes) -> int:
        """Log one iteration that led from step `before` to the agent's step, and checkpoint where one is due."""
        step = self.agent.global_step
        self.recent_returns.extend(episodes.returns)
        self.episodes_log.write(episodes, self.seconds)
        for name, value in metrics.items():
            self.pending[name].append(value)
        self.pending["episode_return"] += episodes.returns
        self.pending["episode_length"] += episodes.lengths
        if step // self.log_every > before // self.log_every:
            self._write_point()
        if self.is_due(before, step):
            self.checkpoint()
        return step

    def _write_point(self) -> None:
        """One point per curve: the mean since the last point."""
        if not self.pending:
            return
        means = {name: statistics.fmean(values) for name, values in self.pending.items() if values}
        finite = {f"{GROUPS.get(name, 'policy')}/{name}": x for name, x in means.items() if math.isfinite(x)}
        self.points.append((finite, self.agent.global_step, time.time()))
        self.pending.clear()
        if time.perf_counter() - self.handed_over > SECONDS_TO_KEEP_POINTS:
            self._hand_over_points()

    def _hand_over_points(self) -> None:
        """To the trackers; one that fails, because a server is gone, is left out from then on."""
        points, self.points = self.points, []
        for tracker in list(self.trackers):
            try:
                for point in points:
                    tracker.log(*point)
            except Exception as error:
                if isinstance(tracker, TensorBoard):  # the folder cannot be written
                    raise
                self.trackers.remove(tracker)
                _tell(f"nothing more is logged to {type(tracker).__name__}, which failed: {one_line(error)[:500]}")
        self.handed_over = time.perf_counter()

    def checkpoint(self) -> None:
        """Save everything that the rest of the run depends on."""
        agent, step = self.agent, self.agent.global_step
        if hasattr(self, "episodes_log"):
            self._hand_over_points()
            self.episodes_log.file.flush()
            for tracker in self.trackers:
                tracker.flush()
        # With what config.toml says of the run, which can so be made again if that is damaged.
        settings = {key: self.settings[key] for key in KEPT_WITH_CHECKPOINTS if key in self.settings}
        extra = {**settings, "seconds": self.seconds, "recent_returns": list(self.recent_returns)}
        agent.save(self.folder.checkpoint_file(step), extra)
        self.folder.drop_old_checkpoints()
        self.last_checkpoint = step
        self.begin_anew_where_not_stored()

    def _diverged(self, error: DivergenceError) -> DivergenceError:
        """Keep what there is to look at, and say where it is."""
        dump = self.folder.path / f"diverged-step-{self.agent.global_step}.pt"
        state, buffer = self.agent.state_dict(), self.agent.buffer.tensors()
        write_checkpoint(dump, {"agent": state, "buffer": buffer, "settings": json.dumps(self.settings, default=str)})
        return DivergenceError(
            f"{error}; the last good checkpoint is {self.folder.latest_checkpoint()}, "
            f"and the rollout and weights to look at are in {dump}"
        )

    def _faulted(self, error: EnvironmentFault) -> EnvironmentFault:
        return EnvironmentFault(f"{error}; continue with --resume {self.folder.path}")

    def evaluate(self, episodes: int) -> dict[str, Any]:
        """Play greedy evaluation episodes on fresh seeds and store the result as evaluation.json."""
        seed, seconds = evaluation_seed(self.agent.config.seed), self.seconds
        try:
            report = evaluation_report(self.agent, episodes, seed, deterministic=True)
        except EnvironmentFault as error:
            raise self._faulted(error) from error
        report["training_seconds"] = round(seconds, 2)
        with self._guard():
            write_atomically(self.folder.evaluation_file, json.dumps(report, indent=1).encode())
        return report


def _what_was_stored(extra: dict[str, Any]) -> tuple[float, list[float]]:
    """Training time and latest returns from a checkpoint, which may hold anything in their place."""
    seconds, returns = extra.get("seconds"), extra.get("recent_returns")
    seconds = float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < LARGEST else 0.0
    returns = returns if isinstance(returns, list | tuple) else []
    return seconds, [float(x) for x in returns if isinstance(x, int | float) and abs(x) < LARGEST]


def _stored_settings(folder: RunFolder, payload: dict[str, Any]) -> tuple[dict[str, Any], UsageError | None]:
    """What config.toml says of the run, or where it cannot be read, what a checkpoint does, and what the problem is."""
    try:
        return read_settings(folder.config_file), None
    except UsageError as problem:
        try:
            return {**settings_of_checkpoint(payload), "versions": versions()}, problem
        except UsageError as error:
            raise UsageError(f"{problem}; {error}") from error


def _tell(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


def set_threads(agent: Agent, asked: str) -> int:
    """Choose torch's CPU threads for this process: `asked`, or by the width of the work where that is "auto".

    Small layers lose more to waking threads than they gain: on the machines measured, two threads gained nothing with
    128 rows of 64 units and half as much again with 2,048 rows. OMP_NUM_THREADS, where set, is left as it is.
    """
    config = agent.config
    rows = agent.buffer.num_envs * config.num_steps // config.num_minibatches
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
        "algo": type(agent).__name__.lower(), "env_id": agent.env_id, "global_step": agent.global_step,
        "train_seed": agent.config.seed, "episodes": episodes, "eval_seed": seed, "deterministic": deterministic,
        "measure": agent.scored_by[0], "mean": result.mean, "std": result.std,
        **({} if normalized is None else {"human_normalized": normalized}),
        "min": float(result.returns.min()), "max": float(result.returns.max()),
        "returns": result.returns.tolist(), "lengths": result.lengths.tolist(), "versions": versions(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """What the numbers of a run depend on."""
    import rlcore

    modules = (rlcore, torch, np, gymnasium)
    return {"python": platform.python_version(), **{module.__name__: module.__version__ for module in modules}}


def open_agent(path: str | Path, **overrides: Any) -> tuple[Agent, Path]:
    """The agent of a run folder's newest checkpoint that can be read, or of a checkpoint file."""
    if os.path.lexists(path) and not os.path.isdir(path):
        return load(path, **overrides), Path(path)
    RunFolder.open(path)  # or a sentence that it is none
    file, _ = read_told(path)
    return load(file, **overrides), file


STEPPED = {
    "native": "rlcore's own {env_id}, in tensors and so part of the compiled programs",
    "sync": "one after another in this process",
    "async": "each in a process of its own",
    "vector": "all at once, by the vector implementation of {env_id}",
    "envpool": "all at once, by EnvPool's threads",
}


def describe_task(agent: Agent) -> str:
    """What is learned from, of the first line that a run prints."""
    count = agent.config.num_envs
    if agent.learns_from == "pairs":
        return f"{count // 2} pairs of segments of {agent.env_id} a step, on {agent.device}"
    return f"{count} × {agent.env_id}, on {agent.device}"


def describe_ways(agent: Agent) -> list[str]:
    """A line each: how the environments are stepped, where there are any, and how iterations run, and why."""
    return [describe_environment(agent)] * (agent.learns_from != "pairs") + [agent.engine.describe()]


def describe_environment(agent: Agent) -> str:
    """How the environments are stepped, the flag that asks for it, and why."""
    asked, backend, name = agent.config.backend, agent.backend, str(agent.env_id).rpartition(":")[2]
    is_twin, compiled = not name.startswith("rlcore/"), agent.engine.how == "compiled"
    reasons = [
        (asked != "auto", "asked for"),
        (backend == "native" and is_twin, "the same task as gymnasium's"),
        (backend == "native", "it is made of tensors"),
        (agent.config.on_env_error == "restart", "environments that fail are begun anew one by one"),
        (agent.group_starts, "groups need a seed for each environment"),
        (agent.share.count > 1 and backend == "sync", "each process has the seeds of its own environments"),
        (backend == "vector", "that is faster than one by one"),
        (True, "it has no vector implementation"),
    ]
    why = next(reason for holds, reason in reasons if holds)
    how = STEPPED[backend].format(env_id=name)
    how = how if compiled else how.removesuffix(" and so part of the compiled programs")
    return f"environments: {how} (--backend {backend}); {why}"
