"""Environments in processes of their own, whose end, silence or error is one sentence.

Gymnasium's AsyncVectorEnv waits for ever for a process that hangs, logs tracebacks, and its processes die of the Ctrl-C
that is meant for the run. Here both ends of the pipes are our own:

    - a process ignores Ctrl-C and has a process group of its own, so that signals to the group of the run reach the run
      alone, which then stops in order; when the run dies, so do they
    - a wait may have a limit, and a process that is dead, hangs or reports an error is an EnvironmentFault, or, with
      restarts, is replaced by a new one
    - the state of an environment can be taken out of its process and put back, for exact resumes
"""

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import CloudpickleWrapper, batch_space, clear_mpi_env_vars, iterate
from gymnasium.vector.utils.shared_memory import create_shared_memory, read_from_shared_memory, write_to_shared_memory

from rlcore.envs.guard import FAULT_KEY, Guard, describe, seed_of_each, whom_to_reset
from rlcore.envs.state import NotCapturable, capture_state, restore_state
from rlcore.errors import EnvironmentFault

SECONDS_TO_CLOSE = 5.0  # for all environments together; who takes longer is killed
SECONDS_TO_MAKE = 60.0  # at least, for an environment's constructor: it may load more than a step ever does
STOPS = (signal.SIGINT, signal.SIGTERM)  # what a run is stopped with
PR_SET_PDEATHSIG = 1  # of Linux: what to be sent when the parent dies


class Failure(str):
    """A sentence in the place of an answer."""


class GuardedAsyncVectorEnv(AsyncVectorEnv):
    """N environments from `guarded`, each in a process of its own; observations come through shared memory.

    Args:
        timeout: seconds that a step, a reset or a call may take in all environments together; None: no limit.
        restarts: replace a process that died or hangs, which is an EnvironmentFault otherwise; the environment's step
            is then all zeros with the sentence in its info, as `Guard` gives it, and a reset has to follow.
    """

    def __init__(self, makers: list[Callable[[], Guard]], mode: AutoresetMode, timeout: float | None, restarts: bool):
        # Instead of gymnasium's own constructor, which starts its own workers and keeps their shared memory to itself.
        self.env_fns, self.num_envs = makers, len(makers)
        self.autoreset_mode, self.timeout, self.restarts = mode, timeout, restarts
        self._time_to_make = None if timeout is None else max(timeout, SECONDS_TO_MAKE)
        dummy = makers[0]()  # in this process, to know its spaces before there is a pipe
        self.metadata = {**dummy.metadata, "autoreset_mode": mode}
        self.render_mode = dummy.render_mode
        self.single_observation_space, self.single_action_space = dummy.observation_space, dummy.action_space
        dummy.close()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._context = multiprocessing.get_context()
        context: Any = self._context  # as well as the module that gymnasium asks for
        self._shared = create_shared_memory(self.single_observation_space, self.num_envs, context)
        self.observations = read_from_shared_memory(self.single_observation_space, self._shared, self.num_envs)
        self._owner = os.getpid()
        self._state = AsyncState.DEFAULT  # what is under way
        self._asked: list[int] = []  # whose answers are awaited
        self.parent_pipes: list[Connection] = []
        self.processes: list[Any] = []
        self._polls: list[Callable[[float | None], Any]] = []
        # Runs before multiprocessing's own handler at exit, which waits for processes without a limit.
        self._at_exit = Finalize(self, _kill_all, (self.processes, self._owner), exitpriority=10)
        try:
            for n in range(self.num_envs):
                self._start(n)
            self._refuse(self._receive(range(self.num_envs), self._time_to_make))
        except BaseException:
            self.close(terminate=True)
            raise

    # Processes.

    def _start(self, n: int) -> None:
        """Start the process of environment n, whose first answer says that the environment has been made."""
        ours, theirs = self._context.Pipe()
        forks = self._context.get_start_method() == "fork"
        inherited = [pipe for pipe in self.parent_pipes if not pipe.closed] if forks else []
        # Tied to the thread that made it, and threads come and go.
        tied = forks and sys.platform == "linux" and threading.current_thread() is threading.main_thread()
        spaces_of_first = {"observation": self.single_observation_space, "action": self.single_action_space}
        of_environment = n, CloudpickleWrapper(self.env_fns[n]), self.autoreset_mode, self._shared, spaces_of_first
        of_process = theirs, [ours, *inherited], os.getpid() if tied else None
        process = self._context.Process(
            target=serve, name=f"rlcore-environment-{n}", args=(*of_environment, *of_process), daemon=True
        )
        with clear_mpi_env_vars(), _stops_held_back():
            process.start()
        theirs.close()
        for held, new in ((self.parent_pipes, ours), (self.processes, process), (self._polls, _poll_of(ours))):
            held[n : n + 1] = [new]  # type: ignore[list-item]  # each list its own kind

    def _replace(self, n: int) -> None:
        """A new process for environment n; one that does not come up is found dead by the next command."""
        _kill(self.processes[n])
        self.parent_pipes[n].close()
        self._start(n)
        if isinstance(self._receive([n], self._time_to_make)[n], Failure):
            _kill(self.processes[n])

    # Commands and answers.

    def _send(self, command: str, data: dict[int, Any], state: AsyncState = AsyncState.WAITING_CALL) -> None:
        """Give a command to environments, each with its own data; `state` is what their answers are awaited in."""
        self._assert_is_running()
        if self._state is not AsyncState.DEFAULT:
            raise gymnasium.error.AlreadyPendingCallError(
                f"a {state.value} was asked for while a {self._state.value} is under way", self._state.value
            )
        packed = {n: ForkingPickler.dumps((command, x)) for n, x in data.items()}
        self._state, self._asked = state, list(data)
        for n, message in packed.items():
            with contextlib.suppress(OSError):  # a process that is gone is told of where its answer is missing
                self.parent_pipes[n].send_bytes(message)

    def _wait(self, state: AsyncState, timeout: float | None = None) -> dict[int, Any]:
        self._assert_is_running()
        if self._state is not state:
            raise gymnasium.error.NoAsyncCallError(f"there is no {state.value} to wait for", state.value)
        answers = self._receive(self._asked, self.timeout if timeout is None else timeout)
        self._state, self._asked = AsyncState.DEFAULT, []
        return answers

    def _receive(self, which: Any, timeout: float | None) -> dict[int, Any]:
        """The answer of each environment of `which`, a Failure where there is none."""
        end = None if timeout is None else time.monotonic() + timeout
        return {n: self._receive_one(n, end, timeout) for n in which}

    def _receive_one(self, n: int, end: float | None, timeout: float | None) -> Any:
        try:
            if not self._polls[n](None if end is None else max(end - time.monotonic(), 0)):
                _kill(self.processes[n])
                return Failure(f"environment {n} did not answer within {timeout:g} s (--env-timeout)")
            answer, sentence = self.parent_pipes[n].recv()
        except (EOFError, OSError):
            return Failure(f"the process of environment {n} died ({cause_of_death(self.processes[n])})")
        except Exception as error:
            return Failure(f"what environment {n} returned cannot be read: it {describe(error)}")
        return answer if sentence is None else Failure(sentence)

    def _refuse(self, answers: dict[int, Any]) -> dict[int, Any]:
        for answer in answers.values():
            if isinstance(answer, Failure):
                raise EnvironmentFault(str(answer))
        return answers

    def _settle(self, answers: dict[int, Any], otherwise: tuple) -> tuple[list[tuple], dict[str, Any]]:
        """Answers without the info that each ends with, and the infos; in the place of a failure `otherwise` and the
        sentence, from a new process."""
        settled: list[Any] = []
        infos: dict[str, Any] = {}
        for n, answer in (answers if self.restarts else self._refuse(answers)).items():
            if isinstance(answer, Failure):
                self._replace(n)
                answer = (*otherwise, {FAULT_KEY: str(answer)})
            settled.append(answer[:-1])
            infos = self._add_info(infos, answer[-1], n)
        return settled, infos

    # Gymnasium's interface.

    def reset_async(self, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> None:
        """Ask all environments for a reset, or those that `options["reset_mask"]`, a bool array `[N]`, names."""
        options = dict(options or {})
        which, seeds = whom_to_reset(options.pop("reset_mask", None), self.num_envs), seed_of_each(seed, self.num_envs)
        data = {n: {"seed": seeds[n], "options": options or None} for n in which}
        self._send("reset", data, AsyncState.WAITING_RESET)

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        """Observations `[N, ...]` of all environments, and the infos of those that were reset."""
        _, infos = self._settle(self._wait(AsyncState.WAITING_RESET, timeout), ())
        return self.observations, infos

    def step_async(self, actions: Any) -> None:
        """Ask all environments for a step."""
        self._send("step", dict(enumerate(iterate(self.action_space, actions))), AsyncState.WAITING_STEP)

    def step_wait(self, timeout: float | None = None) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Observations `[N, ...]`, rewards, terminated and truncated `[N]`, and infos."""
        answers, infos = self._settle(self._wait(AsyncState.WAITING_STEP, timeout), (0.0, False, False))
        rewards, terminated, truncated = zip(*answers, strict=True)
        flags = np.array(terminated, bool), np.array(truncated, bool)
        return self.observations, np.array(rewards, np.float64), *flags, infos

    def call_async(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Ask all environments for a method's result or an attribute."""
        self._send("call", dict.fromkeys(range(self.num_envs), (name, args, kwargs)))

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """The results, one for each environment."""
        return tuple(self._refuse(self._wait(AsyncState.WAITING_CALL, timeout)).values())

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute, to the same value or to one from a list for each environment."""
        values = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"values has {len(values)} of them, but there are {self.num_envs} environments")
        self._send("set", {n: (name, value) for n, value in enumerate(values)})
        self.call_wait()

    def get_states(self, most: int | None = None) -> list[dict[str, Any]] | None:
        """The state of each environment, as `capture_state` takes it; None where it refuses one. Without an answer,
        with restarts too, it is an EnvironmentFault."""
        self._send("get_state", dict.fromkeys(range(self.num_envs), most))
        packed = self.call_wait()
        return None if None in packed else [pickle.loads(state) for state in packed]

    def set_states(self, states: list[dict[str, Any]]) -> None:
        """Go on where `get_states` was asked; after a reset. The states may come from anyone, see `restore_state`;
        where they are not those of as many such environments, it is a ValueError."""
        if not isinstance(states, list) or len(states) != self.num_envs:
            found = f"{len(states)} of them" if isinstance(states, list) else f"a {type(states).__name__}"
            raise ValueError(f"the states of environments are {found}, but must be a list of {self.num_envs}")
        self._send("set_state", {n: pickle.dumps(state) for n, state in enumerate(states)})
        for problem in self.call_wait():
            if problem is not None:
                raise ValueError(problem)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ask the processes to end, and kill those that have not after a few seconds; with `terminate` at once."""
        if os.getpid() != self._owner:  # a copy in a process that was forked
            return
        end = time.monotonic() + (0.0 if terminate else SECONDS_TO_CLOSE if timeout is None else timeout)
        for pipe in () if terminate else self.parent_pipes:
            with contextlib.suppress(OSError):
                pipe.send(("close", None))
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        _kill_all(self.processes, self._owner)
        for pipe in self.parent_pipes:
            pipe.close()
        self._at_exit.cancel()

    def __del__(self) -> None:
        if not self.closed and hasattr(self, "_at_exit"):
            with contextlib.suppress(Exception):  # nobody is there to hear of it
                self.close(terminate=True)


def _poll_of(pipe: Connection) -> Callable[[float | None], Any]:
    """Waits until something can be read from a pipe, at most so many seconds; `Connection.poll` is ten times slower."""
    if not hasattr(select, "poll"):  # Windows
        return pipe.poll
    poll = select.poll()
    poll.register(pipe.fileno(), select.POLLIN)
    return lambda seconds: poll.poll(None if seconds is None else 1000 * seconds)


@contextlib.contextmanager
def _stops_held_back() -> Iterator[None]:
    """Hold back what stops a run while a process is started, which inherits that until it has its own mind about it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def first_dead(processes: list[Any]) -> int | None:
    """The index of a process that has died, or dies within a second."""
    ready = wait([process.sentinel for process in processes], timeout=1.0)
    return next((n for n, process in enumerate(processes) if process.sentinel in ready), None)


def cause_of_death(process: Any) -> str:
    """How a process ended that has closed its pipe: "killed by signal 9", "exit code 1"."""
    process.join(1.0)  # its pipe closes a moment before it is gone
    if process.exitcode is None:
        _kill(process)
        return "it closed its pipe"
    return f"killed by signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"


def _kill_all(processes: list[Any], owner: int) -> None:
    if os.getpid() == owner:
        for process in processes:
            _kill(process)


def _kill(process: Any) -> None:
    """End a process and those that it has started, and wait until it is gone."""
    if process.exitcode is not None:
        return
    with contextlib.suppress(OSError, AttributeError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(SECONDS_TO_CLOSE)


# In the process of an environment.


def serve(
    index: int,
    maker: Callable[[], Guard],
    mode: AutoresetMode,
    shared: Any,
    expected: dict[str, spaces.Space],
    pipe: Connection,
    not_ours: list[Connection],
    parent: int | None,
) -> None:
    """Make environment `index` and answer commands with (answer, None) or (None, sentence), until told to close."""
    _detach(parent)
    for other in not_ours:
        other.close()
    torch.set_num_threads(1)  # threads do not survive a fork, and the processors are taken
    try:
        env = maker()
        worker, problem = Worker(env, index, shared, mode), _other_spaces(env, index, expected)
    except BaseException as error:
        _answer(pipe, index, None, f"environment {index} cannot be made: it {describe(error)}")
        return
    _answer(pipe, index, None, problem)
    with contextlib.suppress(EOFError, OSError):  # the run is gone
        for command, data in iter(pipe.recv, ("close", None)):
            try:
                answer, sentence = getattr(worker, command)(data), None
            except BaseException as error:
                told = isinstance(error, EnvironmentFault)
                answer, sentence = None, str(error) if told else f"environment {index} {describe(error, env)}"
            _answer(pipe, index, answer, sentence)
    env.close()


def _detach(parent: int | None) -> None:
    """Leave the group of the run, whose signals are not for us, but not outlive the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # forgets one that was sent to the group before we left it
    with contextlib.suppress(OSError, AttributeError):
        os.setpgid(0, 0)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if parent is not None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was too late for that
            os._exit(1)


def _other_spaces(env: Guard, index: int, expected: dict[str, spaces.Space]) -> str | None:
    for name, other in expected.items():
        if (own := getattr(env, f"{name}_space")) != other:
            return f"environment {index} has the {name} space {own}, but environment 0 has {other}"
    return None


def _answer(pipe: Connection, index: int, answer: Any, sentence: str | None) -> None:
    try:
        pipe.send((answer, sentence))
    except OSError:  # the run is gone, which the next command would tell
        pass
    except Exception as error:  # before anything was sent
        pipe.send((None, f"environment {index} returned what cannot be sent: it {describe(error)}"))


class Worker:
    """One environment's side of the commands of `GuardedAsyncVectorEnv`, which are its methods."""

    def __init__(self, env: Guard, index: int, shared: Any, mode: AutoresetMode):
        self.env, self.index, self.mode = env, index, mode
        space = env.observation_space  # asked for once: it may be behind many wrappers
        self.show = lambda obs: write_to_shared_memory(space, index, obs, shared)
        self.over = False  # whether the next step is the reset of a next-step autoreset

    def reset(self, arguments: dict[str, Any]) -> tuple[dict[str, Any]]:
        """Info of a new episode; the observation is in the shared memory."""
        obs, info = self.env.reset(**arguments)
        self.show(obs)
        self.over = False
        return (info,)

    def step(self, action: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Reward, terminated, truncated and info; the observation is in the shared memory."""
        if self.over:
            return 0.0, False, False, *self.reset({})
        obs, reward, terminated, truncated, info = self.env.step(action)
        done = terminated or truncated
        if done and self.mode is AutoresetMode.SAME_STEP:
            final = {"final_obs": obs, "final_info": info}
            obs, info = self.env.reset()
            info = {**final, **info}
        self.over = bool(done) and self.mode is AutoresetMode.NEXT_STEP
        self.show(obs)
        return reward, terminated, truncated, info

    def call(self, data: tuple[str, tuple, dict[str, Any]]) -> Any:
        """What a method returns, or an attribute."""
        name, args, kwargs = data
        found = self.env.get_wrapper_attr(name)
        return found(*args, **kwargs) if callable(found) else found

    def set(self, data: tuple[str, Any]) -> None:
        """Set an attribute."""
        self.env.set_wrapper_attr(*data)

    def get_state(self, most: int | None) -> bytes | None:
        """The environment's state, packed; None where it is not plain data, or more than `most` values."""
        try:
            return pickle.dumps(capture_state(self.env, most))
        except NotCapturable:
            return None

    def set_state(self, packed: bytes) -> str | None:
        """Go on from a state; says what is wrong with it, if anything."""
        try:
            restore_state(self.env, pickle.loads(packed))
        except ValueError as error:
            return f"environment {self.index}: {error}"
        return None
