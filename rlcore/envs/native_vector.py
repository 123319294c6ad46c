"""Gymnasium environments of native tasks: a vector environment that steps N copies at once, and a single one."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rlcore.envs.guard import convert, seed_of_each, whole, whom_to_reset
from rlcore.envs.native import NATIVE_TASKS, NativeTask, find_native
from rlcore.errors import UsageError, did_you_mean
from rlcore.spaces import map_parts

NOT_BEGUN = "step was called before reset"
ARRAYS = ("state", "elapsed", "pending")  # of a vector environment's state


class NativeVectorEnv(VectorEnv):
    """N copies of a native task, stepped together, in gymnasium's terms.

    Observations, flags, infos and starts from a seed are those of gymnasium's `SyncVectorEnv` over the same
    environment; rewards are those rounded to float32. The state is float64.

    Args:
        task: a native task or its id, such as "CartPole-v1".
        num_envs: N, at least 1.
        device: where the task's functions are evaluated. Arrays come and go, and the state rests, in host memory
            (there `rlcore.envs.state` finds it), so that any other device than the CPU pays for copies each step.
        autoreset_mode: with DISABLED every finished environment has to be reset, with a mask, before the next step.
        max_episode_steps: time limit; None takes the task's.
        arguments: of the task, where it takes any.

    Raises:
        UsageError: for a task that does not exist, a number below 1, or a mode or device that does not exist.
    """

    # The task and the device are no state. As slots they are not among the attributes of which a checkpoint is made.
    __slots__ = ("device", "task")

    def __init__(
        self,
        task: NativeTask | str,
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        max_episode_steps: int | None = None,
        **arguments: Any,
    ):
        modes = ", ".join(mode.value for mode in AutoresetMode)
        self.task = _find_task(task).varied(**arguments)
        self.device = convert("device", device, torch.device, "must be one that torch knows, such as cpu or cuda")
        self.num_envs = _at_least_one("num_envs", num_envs)
        self.autoreset_mode = convert("autoreset_mode", autoreset_mode, AutoresetMode, f"may be one of {modes}")
        limit = self.task.max_episode_steps if max_episode_steps is None else max_episode_steps
        self.max_episode_steps = None if limit is None else _at_least_one("max_episode_steps", limit)
        self.metadata = {**_metadata(self.task), "autoreset_mode": self.autoreset_mode}
        self.render_mode = None
        self.spec = copy.deepcopy(gymnasium.registry.get(self.task.id))
        if self.spec is not None:
            self.spec.max_episode_steps = self.max_episode_steps
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        size = self.task.initial(torch.zeros(1, self.task.draws)).shape[1]
        self._state = np.zeros((num_envs, size))
        self._elapsed = np.zeros(num_envs, np.int64)
        self._pending = np.zeros(num_envs, bool)  # who has finished and was not reset since
        self._started = False
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs

    def reset(
        self, *, seed: int | Iterable[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes; observations `[N, ...]` of all environments, and infos.

        Args:
            seed: of environment 0, whose followers count on from it, or one for each environment. An environment
                without a seed goes on with its generator.
            options: may have "reset_mask", a bool array `[N]` that says who begins anew; the others stay as they are.

        Raises:
            ResetNeeded: where a mask leaves out an environment that has never begun.
        """
        options = options or {}
        unknown = sorted(options.keys() - {"reset_mask"})
        if unknown:
            raise UsageError(f"reset got option '{unknown[0]}', but native environments know 'reset_mask' alone")
        which = whom_to_reset(options.get("reset_mask"), self.num_envs)
        if not self._started and len(which) < self.num_envs:
            raise gymnasium.error.ResetNeeded("the first reset has to be of all environments, without a reset_mask")
        seeds = seed_of_each(seed, self.num_envs)
        for n in which:
            if seeds[n] is not None:
                self._generators[n], self._seeds[n] = seeding.np_random(seeds[n])
        self._begin(which)
        self._started = True
        return self._apply(self.task.observe, self._state), self._apply(self.task.extras, self._state)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take `actions [N]` or `[N, d]`; observations, rewards, terminated, truncated `[N]`, and infos.

        Raises:
            ResetNeeded: where an episode is over or has never begun, unless the autoreset mode is NEXT_STEP.
        """
        actions = self._checked(actions)
        if not self._started:
            raise gymnasium.error.ResetNeeded(NOT_BEGUN)
        pending = self._pending
        dead = pending.any()
        if dead and self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            over = f"the episodes of environments {np.flatnonzero(pending).tolist()} are over"
            raise gymnasium.error.ResetNeeded(f"{over}; reset these before the next step")

        with torch.inference_mode():
            state, rewards, terminated = self.task.step(self._tensor(self._state), self._tensor(actions))
            parts = state, rewards, terminated, self.task.observe(state)
        self._state, rewards, terminated, obs = (map_parts(lambda x: x.cpu().numpy(), part) for part in parts)
        self._elapsed += 1
        limit = np.inf if self.max_episode_steps is None else self.max_episode_steps
        truncated = self._elapsed >= limit
        if dead:
            rewards[pending], terminated[pending], truncated[pending] = 0.0, False, False
            self._renew(obs, np.flatnonzero(pending))

        self._pending = done = terminated | truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and done.any():
            which = np.flatnonzero(done)
            for n in which.tolist():
                own = map_parts(lambda x, n=n: x[n].copy(), obs)
                infos = self._add_info(infos, {"final_obs": own, "final_info": {}}, n)
            self._renew(obs, which)
        return obs, rewards, terminated, truncated, {**infos, **self._apply(self.task.extras, self._state)}

    def get_state(self) -> dict[str, Any]:
        """All that the next steps and resets depend on, as tensors and built-in types; see `set_state`."""
        arrays = {name: torch.tensor(getattr(self, f"_{name}")) for name in ARRAYS}
        generators = [None if g is None else g.bit_generator.state for g in self._generators]
        return {**arrays, "started": self._started, "generators": generators, "seeds": list(self._seeds)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on as the environment from which `get_state` came.

        Raises:
            UsageError: where that had another number of environments or another task's state.
        """
        if tuple(state["state"].shape) != self._state.shape:
            raise UsageError(
                f"the state to set has shape {list(state['state'].shape)}, but {self.num_envs} environments "
                f"{self.task.id} have {list(self._state.shape)}"
            )
        for name in ARRAYS:
            setattr(self, f"_{name}", state[name].cpu().numpy().copy())
        self._started = state["started"]
        self._generators = [None if packed is None else _generator(packed) for packed in state["generators"]]
        self._seeds = list(state["seeds"])

    @property  # type: ignore[misc]  # nothing sets it
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """Each environment's generator of starts."""
        return tuple(self._generator(n) for n in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:
        """What each environment's generator was seeded with."""
        self.np_random  # noqa: B018 - seeds who has no generator yet
        return tuple(self._seeds)

    def _apply(self, function: Callable[[Tensor], Any], array: np.ndarray) -> Any:
        """What a function of tensors gives, as an array or several by name."""
        with torch.inference_mode():
            return map_parts(lambda x: x.cpu().numpy(), function(self._tensor(array)))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _begin(self, which: np.ndarray) -> None:
        uniform = np.stack([self._generator(n).random(self.task.draws) for n in which])
        self._state[which] = self._apply(self.task.initial, uniform)
        self._elapsed[which] = 0
        self._pending[which] = False

    def _renew(self, obs: Any, which: np.ndarray) -> None:
        """Begin new episodes in `which`, on the way of a step, and put their observations into `obs [N, ...]`."""
        self._begin(which)
        map_parts(lambda x, new: x.__setitem__(which, new), obs, self._apply(self.task.observe, self._state[which]))

    def _generator(self, n: int) -> np.random.Generator:
        if self._generators[n] is None:
            self._generators[n], self._seeds[n] = seeding.np_random()
        return self._generators[n]

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        """A copy of the actions in the dtype the task takes; numbers out of range would give a wrong physics."""
        given = np.asarray(actions)
        space: Any = self.single_action_space
        if given.shape != self.action_space.shape:
            raise UsageError(f"actions have shape {list(given.shape)}, but must have {list(self.action_space.shape)}")
        if isinstance(space, spaces.Box):
            return np.array(given, np.float32)
        count = space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n
        if given.dtype.kind not in "iu" or (given < 0).any() or (given >= count).any():
            raise UsageError(f"actions are {given.tolist()}, but must be whole numbers from 0 to {count - 1}")
        return np.array(given, np.int64)


class NativeEnv(gymnasium.Env):
    """One environment of a native task, without a time limit (`gymnasium.make` adds that of the specification).

    Args:
        task: a native task or its id.
        render_mode: "ansi" where the task has a text for people.
        arguments: of the task, where it takes any.
    """

    __slots__ = ("task",)  # see NativeVectorEnv

    metadata = {"render_modes": ["ansi"]}  # of some tasks; gymnasium asks the class

    def __init__(self, task: NativeTask | str, render_mode: str | None = None, **arguments: Any):
        self.task = _find_task(task).varied(**arguments)
        self.metadata, self.render_mode = _metadata(self.task), render_mode
        if render_mode not in (None, *self.metadata["render_modes"]):
            modes = ", ".join(self.metadata["render_modes"]) or "none"
            raise UsageError(f"render_mode is {render_mode!r}, but {self.task.id} has {modes}")
        self.observation_space, self.action_space = self.task.observation_space, self.task.action_space
        self._state: np.ndarray | None = None  # [1, S] float64

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new episode; there are no options."""
        super().reset(seed=seed)
        state = self.task.initial(torch.from_numpy(self.np_random.random((1, self.task.draws))))
        self._state = state.numpy()
        return self._observe(state), self._extras(state)

    def step(self, action: int | np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated (never), and an empty dict."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded(NOT_BEGUN)
        if not self.action_space.contains(action):
            raise UsageError(f"action is {action!r}, but must be one of {self.action_space}")
        actions = torch.from_numpy(np.array(action, self.action_space.dtype)[None])
        state, reward, terminated = self.task.step(torch.from_numpy(self._state), actions)
        self._state = state.numpy()
        return self._observe(state), reward.item(), bool(terminated), False, self._extras(state)

    def render(self) -> str | None:
        """The text of the state, with render_mode "ansi"."""
        if self.render_mode is None or self._state is None:
            return None
        task: Any = self.task
        return task.text(torch.from_numpy(self._state))[0]

    def _observe(self, state: Tensor) -> Any:
        return map_parts(lambda x: x.numpy()[0], self.task.observe(state))

    def _extras(self, state: Tensor) -> dict[str, np.ndarray]:
        return {name: x.numpy()[0] for name, x in self.task.extras(state).items()}


def _metadata(task: NativeTask) -> dict[str, Any]:
    modes = ["ansi"] if hasattr(task, "text") else []
    return {"render_modes": modes, "render_fps": 4, **({"fields": list(task.fields)} if task.fields else {})}


def register_native(task: NativeTask) -> None:
    """Make a task of one's own known to gymnasium under `task.id`, and as native environments here."""
    NATIVE_TASKS[task.id] = task
    gymnasium.register(
        task.id,
        entry_point=f"{__name__}:NativeEnv",
        vector_entry_point=f"{__name__}:NativeVectorEnv",
        max_episode_steps=task.max_episode_steps,
        kwargs={"task": task.id},
    )


def _find_task(task: NativeTask | str) -> NativeTask:
    found = task if isinstance(task, NativeTask) else find_native(task)
    if found is None:
        raise UsageError(
            f"'{task}' is no native task, but may be one of {', '.join(NATIVE_TASKS)}"
            f"{did_you_mean(str(task), NATIVE_TASKS)}"
        )
    return found


def _at_least_one(name: str, value: int) -> int:
    if (number := whole(name, value)) < 1:
        raise UsageError(f"{name} is {number}, but must be at least 1")
    return number


def _generator(packed: dict[str, Any]) -> np.random.Generator:
    generator = np.random.Generator(np.random.PCG64())
    generator.bit_generator.state = packed
    return generator
