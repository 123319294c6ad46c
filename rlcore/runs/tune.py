"""Search for the hyperparameters of a preset with Optuna, in a folder where a search that was killed goes on.

study.db       all trials, as Optuna keeps them; several processes may work on them at a time
preset.toml    the best trial as a preset, for `rlcore train --preset`
trials.json    all trials: values, returns, what became of them
tune.html      the same as a page
.*.lock        which process writes, and which are at work

A trial trains with one setting on a few seeds and scores the mean over them of the greedy return less its standard
deviation, so that a setting that fails now and then loses. The first trial is the preset as it stands. A trial is given
up where its first training is behind the median of others at the same point, or ends behind the median.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import secrets
import statistics
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Self

import numpy as np
import tomli_w
import torch
from gymnasium import spaces

from rlcore.agents import AGENTS
from rlcore.agents.config import Config, Search, check_type, field_types, inner_type, parse_value, search_space
from rlcore.envs.make import import_module
from rlcore.errors import RlcoreError, UsageError, difference, one_line, printable
from rlcore.runs import machine
from rlcore.runs.settings import to_toml
from rlcore.runs.train import RECENT_EPISODES, set_threads
from rlcore.runs.tune_page import search_page
from rlcore.storage.files import FolderLock, InUse, write_atomically

STUDY, PRESET, TRIALS, PAGE = "study.db", "preset.toml", "trials.json", "tune.html"
FIRST_SEED = 100  # of a search; those below are what results are reported with
POINTS = 5  # of the first training at which it is compared with others
TRIALS_BEFORE_PRUNING = 5
RANDOM_TRIALS = 8  # before the sampler learns from them
SECONDS_TO_WAIT = 60.0  # for another process that writes to the database
SECONDS_BETWEEN_LOOKS = 0.5
LEAST_FOR_IMPORTANCE = 8  # trials that ended well
FAILURES = (RlcoreError, MemoryError, torch.OutOfMemoryError)  # of a setting; it is given up and the search goes on


@dataclass(frozen=True)
class Problem:
    """What is searched for.

    Attributes:
        algo, env_id, env_kwargs: what is trained on what.
        total_steps: of each training.
        seeds: of the trainings of each trial.
        eval_episodes: greedy ones after each training.
        start: hyperparameters of the first trial: the preset's, those that are fixed, and all that are searched.
        space: what is tried of each hyperparameter; it holds the value of `start` too.
        imports: modules that register environments.
    """

    algo: str
    env_id: str
    env_kwargs: dict[str, Any]
    total_steps: int
    seeds: tuple[int, ...]
    eval_episodes: int
    start: dict[str, Any]
    space: dict[str, Search]
    imports: tuple[str, ...] = ()

    def stored(self) -> dict[str, Any]:
        """What must be the same where a search goes on, as JSON gives it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def changes(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values that are others than those of the first trial."""
        return {name: value for name, value in values.items() if _plain(value) != _plain(self.start[name])}


def make_problem(
    algo: str, env_id: str, *, preset: dict[str, Any], fixed: dict[str, Any], total_steps: int, seeds: Iterable[int],
    eval_episodes: int, env_kwargs: dict[str, Any] | None = None, imports: Iterable[str] = (),
) -> Problem:  # fmt: skip
    """What is searched for, checked by making the agent once.

    Args:
        preset: values to begin with; those that are not searched stay.
        fixed: values that are not searched, before those of the preset.

    Raises:
        UsageError: for an agent that does not learn from rollouts, seeds below 100, or what the agent refuses.
    """
    agent, seeds = AGENTS[algo], tuple(seeds)
    if agent.learns_from != "rollouts":
        known = ", ".join(name for name in AGENTS if AGENTS[name].learns_from == "rollouts")
        raise UsageError(f"ALGO is {algo}, which does not learn from rollouts; there are {known}")
    if "seed" in fixed:
        raise UsageError("--fixed names seed, but a trial is trained with each of --seeds")
    if min(seeds) < FIRST_SEED:
        raise UsageError(
            f"--seeds begins with {seeds[0]}, but must begin with {FIRST_SEED} or more: those below are for results, "
            "which a setting that was chosen by them would flatter"
        )
    config, preset = agent.Config, {name: value for name, value in preset.items() if name != "total_steps"}
    fixed = {**config.implied(fixed), **_typed(config, fixed)}
    given = {**_typed(config, preset), **fixed}
    found = {name: mark for name, mark in search_space(config).items() if name not in fixed}
    made = agent(env_id, env_kwargs=env_kwargs, **_start(config, found, given), seed=seeds[0])
    with contextlib.closing(made):
        is_box = isinstance(made.envs.single_action_space, spaces.Box)
    found = {name: mark for name, mark in found.items() if is_box or not mark.box_only}
    start = _start(config, found, given)
    space = {name: _with_value(config, name, mark, start[name]) for name, mark in found.items()}
    return Problem(
        algo, env_id, env_kwargs or {}, total_steps, seeds, eval_episodes, start, space, tuple(imports)
    )  # fmt: skip


def _typed(config: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """Values out of a preset or the command line as the types of their fields."""
    kinds = field_types(config)
    parsed = {name: parse_value(name, v, kinds[name]) if isinstance(v, str) else v for name, v in values.items()}
    return {name: check_type(name, value, kinds[name]) for name, value in parsed.items()}


def _start(config: type[Config], space: dict[str, Search], given: dict[str, Any]) -> dict[str, Any]:
    """What is given, and of the rest what is searched, as it is without a search."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    defaults |= config.implied(given)
    return {**{name: defaults[name] for name in space}, **given}


def _with_value(config: type[Config], name: str, mark: Search, value: Any) -> Search:
    """A mark whose choices are of the field's type, and that holds `value`, too."""
    if mark.choices:
        kind = field_types(config)[name]
        choices = [check_type(name, choice, kind) for choice in mark.choices]
        return dataclasses.replace(mark, choices=tuple(choices if value in choices else [*choices, value]))
    if mark.low is None or mark.high is None:
        raise UsageError(f"what is searched of {name} is {mark}, but must have choices, or low and high")
    if value is None or (mark.log and value <= 0):
        return mark
    return dataclasses.replace(mark, low=min(mark.low, value), high=max(mark.high, value))


def _plain(value: Any) -> Any:
    """A value as Optuna keeps it: lists are texts."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else value


def train(problem: Problem, values: dict[str, Any], seed: int, report: Callable[[int, float], None]) -> float:
    """The greedy return after one training.

    Args:
        report: called POINTS times on the way, with which of them it is (from 1) and the mean return of the last 100
            episodes; what it raises ends the training.

    Raises:
        RlcoreError: where the setting is refused, training diverges or the environment fails.
    """
    agent = AGENTS[problem.algo](problem.env_id, env_kwargs=problem.env_kwargs, **{**values, "seed": seed})
    with contextlib.closing(agent):
        set_threads(agent, "auto")
        agent.engine.runs = len(problem.seeds)
        recent: deque[float] = deque(maxlen=RECENT_EPISODES)
        told = 0
        for _, episodes in agent.iterations(problem.total_steps):
            recent.extend(episodes.returns)
            point = agent.global_step * (POINTS + 1) // problem.total_steps
            if told < point <= POINTS and recent:
                told = point
                report(point, statistics.fmean(recent))
        return agent.evaluate(problem.eval_episodes, seed=seed).mean


def score(returns: list[float]) -> float:
    """What is searched for the highest of: mean less standard deviation over seeds."""
    return float(np.mean(returns) - np.std(returns))


def optuna_module() -> Any:
    """Optuna, quiet, or a UsageError that names the extra."""
    try:
        import optuna
    except ImportError as error:
        raise UsageError(f"tune needs the package {error.name}: pip install 'rlcore[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Tuner:
    """One of the processes that work on a search. `study` is Optuna's."""

    def __init__(self, path: Path, problem: Problem, study: Any, lock: FolderLock, seed: int):
        self.path, self.problem, self.study, self.lock, self.seed = path, problem, study, lock, seed
        self.optuna = optuna_module()
        self.told = {trial.number for trial in self._ended()}  # trials that need not be told of

    @classmethod
    def open(cls, path: str | Path, problem: Problem, seed: int = 0) -> Self:
        """Begin a search, or go on with the one in `path`, where others may be at work.

        Args:
            seed: of what is tried. A search by one process that is not killed tries the same with the same seed.

        Raises:
            UsageError: where another search is there or something else, or the folder cannot be written.
        """
        path = Path(path)
        optuna_module()
        file, own = path / STUDY, path / f".worker-{os.getpid()}-{secrets.token_hex(4)}.lock"
        if path.exists() and not file.is_file() and (not path.is_dir() or any(path.glob("[!.]*"))):
            raise UsageError(f"--out is {path}, which has something in it that is no search; choose another")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with FolderLock(path / ".lock").acquire(wait=True):
                study = _open_study(file)
                _check_problem(study, problem, path)
                for left in path.glob(".worker-*.lock"):
                    _is_held(left)  # and removed, where nobody holds it
                return cls(path, problem, study, FolderLock(own).acquire(), seed)
        except OSError as error:
            raise UsageError(f"the folder {path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Stop working on it."""
        self.lock.release()

    def work(self, trials: int | None, until: float, show: bool = True) -> None:
        """Run trials.

        Args:
            trials: that the search is to have, those of other processes and earlier commands included; None: any.
            until: on the clock of `time.monotonic`; no trial begins after it.
            show: print a line for each.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what an agent says once would be said by each
            while time.monotonic() < until and (trial := self._ask(trials)) is not None:
                self._run(trial)
                if show:
                    self.tell_of(self.study.get_trials(deepcopy=False)[trial.number])

    def _ask(self, trials: int | None) -> Any:
        """The next trial, None where there are enough. One process at a time asks, so that there are not too many."""
        states, samplers = self.optuna.trial.TrialState, self.optuna.samplers
        with FolderLock(self.path / ".lock").acquire(wait=True):
            self._fail_dead()
            known = self.study.get_trials(deepcopy=False)
            begun = [t for t in known if t.state in (states.COMPLETE, states.PRUNED, states.RUNNING)]
            if trials is not None and len(begun) >= trials:
                return None
            # A seed for each trial: processes must not try the same, nor a search that goes on what it has tried.
            seed = int(np.random.SeedSequence([self.seed, len(known)]).generate_state(1)[0])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
                self.study.sampler = samplers.TPESampler(
                    seed=seed, multivariate=True, n_startup_trials=RANDOM_TRIALS, constant_liar=True
                )
            trial = self.study.ask()
            trial.set_user_attr("worker", self.lock.file.name)
            return trial

    def _fail_dead(self) -> None:
        """Mark as failed what processes have left that are no more, and queue it to be run once more."""
        for trial in self.study.get_trials(states=(self.optuna.trial.TrialState.RUNNING,)):
            if self._is_at_work(trial.user_attrs.get("worker")):
                continue
            self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
            if trial.user_attrs.get("is_preset"):
                _enqueue_preset(self.study, self.problem)
            elif trial.params and "again" not in trial.user_attrs:  # what kills its process must not do so for ever
                self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})

    def _is_at_work(self, worker: str | None) -> bool:
        """Whether the process holds its lock, which goes with it."""
        if worker is None or worker == self.lock.file.name:
            return worker is not None
        return _is_held(self.path / Path(worker).name)

    def _run(self, trial: Any) -> None:
        """Train with a setting on all seeds, or until it is given up."""
        states, began = self.optuna.trial.TrialState, time.perf_counter()
        returns: list[float] = []
        problem, is_preset = self.problem, bool(trial.user_attrs.get("is_preset"))
        values = {**problem.start, **self._suggested(trial)}
        values = problem.start if is_preset else values
        trial.set_user_attr("values", values)

        def report(point: int, mean: float) -> None:
            if len(returns):
                return
            trial.report(mean, point)
            if not is_preset and trial.should_prune():
                raise self.optuna.TrialPruned(f"behind after {point}/{POINTS + 1} of seed {problem.seeds[0]}")

        try:
            for seed in problem.seeds:
                returns.append(train(problem, values, seed, report))
                trial.set_user_attr("returns", returns)
                if len(returns) == 1 and not is_preset and returns[0] < self._median_of_first(trial.number):
                    raise self.optuna.TrialPruned(f"behind after seed {problem.seeds[0]}")
        except self.optuna.TrialPruned as reason:
            self._end(trial, began, states.PRUNED, pruned=str(reason))
        except FAILURES as error:
            self._end(trial, began, states.PRUNED, error=printable(one_line(error)) or type(error).__name__)
        else:
            self._end(trial, began, states.COMPLETE, score(returns))

    def _end(self, trial: Any, began: float, state: Any, value: float | None = None, **told: str) -> None:
        for name, text in {**told, "seconds": round(time.perf_counter() - began, 2)}.items():
            trial.set_user_attr(name, text)
        self.study.tell(trial, value, state)

    def _suggested(self, trial: Any) -> dict[str, Any]:
        """A value for each hyperparameter that is searched."""
        kinds = field_types(AGENTS[self.problem.algo].Config)
        return {name: _suggested(trial, name, mark, kinds[name]) for name, mark in self.problem.space.items()}

    def _median_of_first(self, number: int) -> float:
        """The median over other trials of the first seed's return."""
        failed = self.optuna.trial.TrialState.FAIL
        others = [t for t in self.study.get_trials(deepcopy=False) if t.number != number and t.state != failed]
        firsts = [t.user_attrs["returns"][0] for t in others if t.user_attrs.get("returns")]
        return statistics.median(firsts) if len(firsts) >= TRIALS_BEFORE_PRUNING else -np.inf

    def _ended(self) -> list[Any]:
        """Trials that are over, those of processes that died left out."""
        states = self.optuna.trial.TrialState
        return self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))

    def tell_of_new(self) -> None:
        """Print a line for each trial that has ended and was not told of."""
        for trial in self._ended():
            if trial.number not in self.told:
                self.tell_of(trial)

    def tell_of(self, trial: Any) -> None:
        """Print what became of a trial: number, score, the best so far, returns, what differs from the preset."""
        self.told.add(trial.number)
        known, best = trial.user_attrs, self.best()
        changed = self.problem.changes(known["values"])
        differs = ", ".join(f"{name} {_word(value)}" for name, value in changed.items()) or "the preset"
        if trial.state == self.optuna.trial.TrialState.COMPLETE:
            value = f"{trial.value:.1f}"
        else:
            value = "failed" if "error" in known else "pruned"
        top = "-" if best is None else f"{best.value:.1f}"
        returns = ", ".join(f"{x:.1f}" for x in known.get("returns", []))
        why = known.get("error") or known.get("pruned")
        line = f"{trial.number:4} {value:>9} (best {top:>8})  [{returns}]  {differs}{f'  ({why})' if why else ''}"
        print(printable(line), flush=True)

    def best(self) -> Any:
        """The trial with the highest score, the first of several; None where none has ended well."""
        complete = self.optuna.trial.TrialState.COMPLETE
        return max(
            self.study.get_trials(deepcopy=False, states=(complete,)), key=lambda t: (t.value, -t.number), default=None
        )

    def first(self) -> Any:
        """The trial of the preset as it stands, None where it has not ended well."""
        complete = self.optuna.trial.TrialState.COMPLETE
        trials = self.study.get_trials(deepcopy=False, states=(complete,))
        return next((trial for trial in trials if trial.user_attrs.get("is_preset")), None)

    def preset(self) -> dict[str, Any]:
        """The values of the best trial, as a preset has them."""
        return {"total_steps": self.problem.total_steps, **self.best().user_attrs["values"]}

    def write(self) -> None:
        """Write the best preset and all trials, each file whole or not at all; nothing where no trial ended well."""
        best, ended = self.best(), self._ended()
        if best is None:
            return
        trials = [_told(trial) for trial in ended]
        history = {"machine": machine.describe(), **self.problem.stored(), "best": self.preset(), "trials": trials}
        with FolderLock(self.path / ".lock").acquire(wait=True):
            write_atomically(self.path / PRESET, self._preset_text(best, len(ended)).encode())
            write_atomically(self.path / TRIALS, (json.dumps(history, indent=1) + "\n").encode())
            write_atomically(self.path / PAGE, search_page(self.problem, trials, self._importances()).encode())

    def _preset_text(self, best: Any, count: int) -> str:
        seeds = f"{self.problem.seeds[0]}-{self.problem.seeds[-1]}"
        head = f"# Trial {best.number} of {count}: mean less standard deviation {best.value:.1f} over seeds {seeds}."
        name = self.problem.env_id.rpartition(":")[2]
        return f"{head}\n\n{tomli_w.dumps({self.problem.algo: {name: to_toml(self.preset())}})}"

    def _importances(self) -> dict[str, float]:
        """Of each hyperparameter, the most important first, as shares of one (PED-ANOVA, Watanabe et al. 2023,
        arXiv:2304.10255): how far what the best quarter has of it is from what all have."""
        values = [trial.value for trial in self._ended() if trial.state.name == "COMPLETE"]
        if len(values) < LEAST_FOR_IMPORTANCE or min(values) == max(values):
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = self.optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
            return dict(self.optuna.importance.get_param_importances(self.study, evaluator=evaluator))


def _is_held(file: Path) -> bool:
    """Whether a process holds this lock; one that nobody holds is removed."""
    lock = FolderLock(file)
    try:
        with lock.acquire():
            return not lock.held  # where there are no locks nobody can tell
    except (InUse, OSError):
        return True


def _suggested(trial: Any, name: str, mark: Search, kind: Any) -> Any:
    if mark.choices:
        found = trial.suggest_categorical(name, [_plain(choice) for choice in mark.choices])
        return next(choice for choice in mark.choices if _plain(choice) == found)
    if inner_type(kind) is int:
        return trial.suggest_int(name, int(mark.low), int(mark.high), log=mark.log)
    return float(f"{trial.suggest_float(name, mark.low, mark.high, log=mark.log):.4g}")  # as it will stand in a file


def _told(trial: Any) -> dict[str, Any]:
    """What the files say of a trial: number, state (complete, pruned), value, and of `values`, `returns`, `seconds`,
    and why it was `pruned` or what `error` it had, those that it has."""
    complete = trial.state.name == "COMPLETE"  # the value of another is what it had on the way
    told = {name: x for name, x in trial.user_attrs.items() if name not in ("worker", "again", "is_preset")}
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if complete else None,
        **told,
    }


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(_plain(value))


def _open_study(file: Path) -> Any:
    """Optuna's study in a file, a new one where there is none."""
    optuna = optuna_module()
    from sqlalchemy.exc import SQLAlchemyError

    options = {"connect_args": {"timeout": SECONDS_TO_WAIT}}
    pruner = optuna.pruners.MedianPruner(TRIALS_BEFORE_PRUNING, n_warmup_steps=2)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs=options)
        return optuna.create_study(
            storage=storage, study_name="tune", direction="maximize", pruner=pruner, load_if_exists=True
        )
    except (SQLAlchemyError, RuntimeError, optuna.exceptions.OptunaError) as error:
        raise UsageError(f"{file} cannot be read as the study of a search: {one_line(error)[:200]}") from error


def _check_problem(study: Any, problem: Problem, path: Path) -> None:
    """Refuse to go on with another search; a new one gets the preset for its first trial."""
    stored, asked = study.user_attrs.get("problem"), problem.stored()
    if stored is None:
        study.set_user_attr("problem", asked)
        stored = asked
    for name in asked:
        if stored.get(name) != asked[name]:
            was = difference(name, stored.get(name), asked[name])
            raise UsageError(f"--out is {path}, where a search has begun with another {was}; choose another folder")
    if not study.get_trials(deepcopy=False):
        _enqueue_preset(study, problem)


def _enqueue_preset(study: Any, problem: Problem) -> None:
    params = {name: _plain(problem.start[name]) for name in problem.space if problem.start[name] is not None}
    study.enqueue_trial(params, user_attrs={"is_preset": True})


def work_in_processes(tuner: Tuner, trials: int | None, until: float, jobs: int) -> None:
    """As `Tuner.work`, by so many processes; an RlcoreError tells that one has failed."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    seconds = until - time.monotonic()
    arguments = (tuner.path, tuner.problem, tuner.seed, trials, seconds, jobs)
    processes = [context.Process(target=_work, args=arguments) for _ in range(jobs)]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            wait([process.sentinel for process in processes if process.is_alive()], SECONDS_BETWEEN_LOOKS)
            tuner.tell_of_new()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            if process.pid is not None:
                process.join()
    codes = [process.exitcode for process in processes if process.exitcode]
    if codes:
        raise RlcoreError(f"a process of the search ended with code {codes[0]}; the same command goes on")


def _work(path: Path, problem: Problem, seed: int, trials: int | None, seconds: float, jobs: int) -> None:
    """What each process does; it ends with the one that began it, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    until = time.monotonic() + seconds
    torch.set_num_threads(max(min(len(machine.cores()) // jobs, torch.get_num_threads()), 1))
    try:
        for name in problem.imports:
            import_module(name)
        with contextlib.closing(Tuner.open(path, problem, seed)) as tuner:
            tuner.work(trials, until, show=False)
    except RlcoreError as error:
        print(f"rlcore: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
