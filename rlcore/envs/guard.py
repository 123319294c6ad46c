"""What stands between one environment and the vector environment that it is part of.

An environment may raise, or return what does not fit its spaces. A vector environment would pass that on without the
environment's number, or write it into its arrays as best it can; here it becomes one sentence that names both.
"""

import contextlib
import inspect
import operator
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, iterate

from rlcore.errors import EnvironmentFault, UsageError, one_line

FAULT_KEY = "rlcore_env_fault"  # in infos: the sentence of a fault whose environment has to be begun anew by a reset
WAITING_KEY = "rlcore_waiting"  # in infos: `[N]` bool, for whom the next row is no transition, see VectorAdapter
NUMBERS = frozenset({float, int, np.float64, np.float32, np.int64, np.int32})
FLAGS = frozenset({bool, np.bool_})
PARTS = {"step": "observation, reward, terminated, truncated and info", "reset": "observation and info"}
LARGEST = float(np.finfo(np.float32).max)  # what the buffer can hold


class Guard(gymnasium.Wrapper):
    """Environment `index` of a vector environment, whose faults are sentences.

    A fault raises an EnvironmentFault. With `restarts` NaN and infinity are faults too, and a fault is answered with
    zeros and an info with the sentence under `FAULT_KEY`; the environment is closed, and the next reset makes another.
    """

    transparent = True  # for `rlcore.envs.state`: nothing of the guard is part of the environment's state
    __slots__ = ("_broken", "_make", "_space", "index", "restarts")  # nor is it among its attributes

    def __init__(self, make: Callable[[], gymnasium.Env], index: int, restarts: bool = False):
        super().__init__(make())
        self._make, self.index, self.restarts, self._broken = make, index, restarts, False
        self._space = self.env.observation_space  # asked in every step, through all wrappers

    @property
    def spec(self) -> Any:
        return self.env.spec

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment's own; without restarts, a fault is an EnvironmentFault."""
        answer = None
        try:
            answer = self.env.step(action)
            return self.checked(answer)
        except (Exception, SystemExit) as error:  # an environment that calls sys.exit must not end the run with code 0
            obs, info = self.failed(error, "step", answer)
            return obs, 0.0, False, False, info

    def checked(self, answer: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """What a step returned, if it fits; raises what `failed` makes a sentence of."""
        obs, reward, terminated, truncated, info = answer
        self._check(obs, info)
        terminated, truncated = _flag("terminated", terminated), _flag("truncated", truncated)
        if type(reward) not in NUMBERS:
            array = np.asarray(reward)
            if array.dtype.kind not in "biuf" or array.size != 1:
                raise Wrong(f"{_shown(reward)} as its reward, but it must be a number")
            reward = array.item()
        if self.restarts and not -LARGEST <= reward <= LARGEST:
            raise Wrong(f"{reward} in its reward")
        return obs, reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's own; without restarts, a fault is an EnvironmentFault."""
        answer = None
        try:
            if self._broken:
                self.env, self._broken = self._make(), False
            answer = self.env.reset(seed=seed, options=options)
            obs, info = answer
            self._check(obs, info)
            return obs, info
        except (Exception, SystemExit) as error:
            return self.failed(error, "reset", answer)

    def close(self) -> None:
        """Close the environment; an error on the way is told and does no harm."""
        try:
            if not self._broken:
                self.env.close()
        except (Exception, SystemExit) as error:
            warnings.warn(f"environment {self.index} {describe(error, self.env)} when it was closed", stacklevel=2)

    def failed(self, error: BaseException, method: str, answer: Any) -> tuple[Any, dict[str, str]]:
        """Observation and info to go on with where a method raised or its answer does not fit; without restarts, an
        EnvironmentFault."""
        if isinstance(error, Wrong):
            what = f"returned {error}"
        elif answer is None or not isinstance(error, ValueError | TypeError):
            what = describe(error, self.env)
        else:
            what = f"returned {_shown(answer)} from its {method}, but must return {PARTS[method]}"
        if not self.restarts:
            raise EnvironmentFault(f"environment {self.index} {what}") from error
        if not self._broken:
            with contextlib.suppress(Exception, SystemExit):  # it is broken already, and that is being told
                self.env.close()
            self._broken = True
        return _zeros(self._space), {FAULT_KEY: f"environment {self.index} {what}"}

    def _check(self, obs: Any, info: Any) -> None:
        check_observation(self._space, obs, "", finite=self.restarts)
        if not isinstance(info, dict):
            raise Wrong(f"{_shown(info)} as info, but it must be a dict")


class GuardedSyncVectorEnv(SyncVectorEnv):
    """Gymnasium's SyncVectorEnv of environments from `guarded`, in whose steps the guards cost nothing."""

    def __init__(self, makers: list[Callable[[], Guard]], autoreset_mode: AutoresetMode = AutoresetMode.DISABLED):
        super().__init__(makers, copy=False, autoreset_mode=autoreset_mode)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Observations `[N, ...]`, rewards, terminated and truncated `[N]`, and infos; without restarts, a fault is an
        EnvironmentFault."""
        guards: Sequence[Any] = self.envs
        if self.autoreset_mode is not AutoresetMode.DISABLED or guards[0].restarts:
            return super().step(actions)
        if self._autoreset_envs.any():
            over = np.flatnonzero(self._autoreset_envs).tolist()
            raise gymnasium.error.ResetNeeded(f"the episodes of environments {over} are over; reset these first")
        # As gymnasium does it, but shorter by the guard's own call and by what other modes ask for.
        shape, dtype = self.single_observation_space.shape, self.single_observation_space.dtype
        rewards, terminated, truncated = [], [], []
        infos: dict[str, Any] = {}
        for n, action in enumerate(iterate(self.action_space, actions)):
            guard, answer = guards[n], None
            try:
                answer = guard.env.step(action)
                obs, reward, end, cut, info = answer
                # What an ordinary environment returns passes here; the rest is looked at more closely.
                ordinary = type(reward) in NUMBERS and type(end) in FLAGS and type(cut) in FLAGS and type(info) is dict
                if not (ordinary and type(obs) is np.ndarray and obs.shape == shape and obs.dtype is dtype):
                    obs, reward, end, cut, info = guard.checked(answer)
            except (Exception, SystemExit) as error:
                guard.failed(error, "step", answer)
            self._env_obs[n] = obs
            rewards.append(reward)
            terminated.append(end)
            truncated.append(cut)
            if info:
                infos = self._add_info(infos, info, n)
        self._observations = concatenate(self.single_observation_space, self._env_obs, self._observations)
        self._rewards[:], self._terminations[:], self._truncations[:] = rewards, terminated, truncated
        self._autoreset_envs = self._terminations | self._truncations
        flags = self._terminations.copy(), self._truncations.copy()
        return self._observations, self._rewards.copy(), *flags, infos


class Wrong(Exception):
    """What an environment returned, as the end of a sentence."""


def guarded(make: Callable[[], gymnasium.Env], num_envs: int, restarts: bool) -> list[Callable[[], Guard]]:
    """Makers of `num_envs` guarded environments, numbered from 0."""
    # A function, which is left out where the state of environments is captured, as a partial is not.
    return [lambda index=n: Guard(make, index, restarts) for n in range(num_envs)]  # type: ignore[misc]  # its default


def whom_to_reset(mask: Any, num_envs: int) -> np.ndarray:
    """The indices of the environments that `options["reset_mask"]` names; of all without a mask."""
    if mask is None:
        return np.arange(num_envs)
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (num_envs,) or not mask.any():
        wanted = f"a numpy array of {num_envs} bool, at least one of them True"
        raise UsageError(f"options['reset_mask'] is {mask!r}, but must be {wanted}")
    return np.flatnonzero(mask)


def seed_of_each(seed: int | Iterable[int | None] | None, num_envs: int) -> list[int | None]:
    """The seed of each environment: counted on from a number, none from None, or as they are given."""
    if seed is None or isinstance(seed, int | np.integer):
        return [None if seed is None else int(seed) + n for n in range(num_envs)]
    seeds = [None if s is None else whole("seed", s) for s in seed]
    if len(seeds) != num_envs:
        raise UsageError(f"seed has {len(seeds)} numbers, but there are {num_envs} environments")
    return seeds


def convert(name: str, value: Any, to: Callable, may_be: str) -> Any:
    """`to(value)`, or a UsageError that says what the value may be."""
    try:
        return to(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{name} is {value!r}, but {may_be}") from error


def whole(name: str, value: Any) -> int:
    """A whole number of any type."""
    return convert(name, value, operator.index, "must be a whole number")


def check_observation(space: spaces.Space, obs: Any, part: str, finite: bool) -> None:
    """Refuse an observation that does not fit its space, part by part. A dtype fits where numpy casts it to the space's
    without changing its kind, so float64 fits float32."""
    if type(obs) is np.ndarray and obs.dtype is space.dtype and obs.shape == space.shape and not finite:
        return  # as it should be, and without the cost of a closer look
    name = f"observation part '{part}'" if part else "observation"
    if isinstance(space, spaces.Dict | spaces.Tuple):
        _check_parts(space, obs, part, name, finite)
        return
    try:
        array = np.asarray(obs)
    except ValueError:
        raise Wrong(f"an {name} that is no array") from None
    if array.shape != space.shape:
        raise Wrong(f"an {name} of shape {list(array.shape)}, but its space has shape {list(space.shape)}")
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):
        raise Wrong(f"an {name} of dtype {array.dtype}, but its space has dtype {space.dtype}")
    if finite and array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(array.astype(np.float32, copy=False))
        if bad.any():
            raise Wrong(f"{array[bad].ravel()[0]} in its {name}")


def _check_parts(space: Any, obs: Any, part: str, name: str, finite: bool) -> None:
    is_dict = isinstance(space, spaces.Dict)
    if not isinstance(obs, dict if is_dict else tuple | list):
        raise Wrong(f"an {name} of type {type(obs).__name__}, but its space is a {type(space).__name__}")
    if not is_dict and len(obs) != len(space.spaces):
        raise Wrong(f"an {name} of {len(obs)} parts, but its space has {len(space.spaces)}")
    for key, child in space.spaces.items() if is_dict else enumerate(space.spaces):
        below = f"{part}/{key}" if part else str(key)
        if is_dict and key not in obs:
            raise Wrong(f"an {name} without part '{below}'")
        check_observation(child, obs[key], below, finite)


def _zeros(space: spaces.Space) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _zeros(child) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(map(_zeros, space.spaces))
    return np.zeros(space.shape, space.dtype)


def _flag(name: str, flag: Any) -> Any:
    if type(flag) in FLAGS:
        return flag
    array = np.asarray(flag)
    if array.dtype.kind not in "biuf" or array.size != 1 or array.item() not in (0, 1):
        raise Wrong(f"{_shown(flag)} as {name}, but it must be true or false")
    return bool(array.item())


def describe(error: BaseException, env: gymnasium.Env | None = None) -> str:
    """What was raised and where: "raised ValueError: bad thing (my_env.py, line 30)"; in the file of `env`, where the
    error went through it."""
    text = one_line(error)[:300]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == _file_of(env)]
    where = (own or frames)[-1:]
    place = "".join(f" ({frame.filename.rpartition('/')[2]}, line {frame.lineno})" for frame in where)
    return f"raised {type(error).__name__}{f': {text}' if text else ''}{place}"


def _file_of(env: gymnasium.Env | None) -> str | None:
    try:
        return inspect.getfile(type(env.unwrapped)) if env is not None else None
    except (TypeError, OSError):  # made in a notebook
        return None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
