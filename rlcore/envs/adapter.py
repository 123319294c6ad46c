"""One face for gymnasium's three autoreset modes.

What differs between the modes is where the true successor of an episode's last step is found, and whether a dead row
follows it:

    DISABLED   `step` returns the true successor in its row; `reset` with a mask then renews only the finished ones
    SAME_STEP  `step` returns the first observation of the next episode; the true successor is in infos["final_obs"]
    NEXT_STEP  `step` returns the true successor; the *next* step ignores its action, returns reward 0 and the first
               observation of the next episode: that row is no transition
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rlcore.errors import EnvironmentFault, UsageError
from rlcore.spaces import ActionSpec, action_spec, map_parts, observation_parts, split_observation


class Step(NamedTuple):
    """What one step of N environments gave.

    Attributes:
        obs: observation to act on next, `[N, ...]` arrays, split into parts.
        rewards: `[N]`.
        terminated, truncated, done: `[N]` bool; `done` is either.
        real: `[N]` bool, False where this step was the dead row of a next-step autoreset.
        final_envs: indices of environments whose true successor is not in `obs`, in the order of `final_obs`.
        final_obs: their true successors `[len(final_envs), ...]`, or None where there are none.
        life_lost: `[N]` bool, ends of episodes for learning alone: the game goes on. None where there are none.
    """

    obs: Any
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    done: np.ndarray
    real: np.ndarray
    final_envs: np.ndarray
    final_obs: Any
    life_lost: np.ndarray | None = None


NO_ENVS = np.zeros(0, dtype=np.int64)


class VectorAdapter:
    """Steps a vector environment and tells, whatever its autoreset mode, which rows are real and where episodes led.

    Args:
        envs: any vector environment whose metadata names its autoreset mode.
        squash: map Box actions into their bounds by tanh instead of clipping.

    Raises:
        UsageError: where a space is not supported or the autoreset mode is unknown.
    """

    def __init__(self, envs: VectorEnv, squash: bool = False):
        self.envs, self.num_envs = envs, envs.num_envs
        self.observation_space = envs.single_observation_space
        self.parts = observation_parts(self.observation_space)
        self.action_spec: ActionSpec = action_spec(envs.single_action_space, squash)
        self.mode = autoreset_mode(envs)
        self.pending = np.zeros(self.num_envs, dtype=bool)  # whose next step is a dead row
        self._composite = isinstance(self.observation_space, spaces.Dict | spaces.Tuple)
        self._starts = map_parts(lambda part: part.start, self.parts)
        self._shifted = (
            np.any([np.any(start) for start in self._starts.values()]) if self._composite else np.any(self._starts)
        )

    @property
    def frame_stack(self) -> int:
        """S where an observation `[S, H, W]` is the latest S frames, zeros before an episode's first; 0 elsewhere."""
        return (self.envs.metadata or {}).get("frame_stack", 0)

    @property
    def has_dead_rows(self) -> bool:
        """Whether a row that is no transition follows each episode."""
        return self.mode is AutoresetMode.NEXT_STEP

    def reset(self, seed: int | list[int] | None = None) -> Any:
        """First observations `[N, ...]` of all environments.

        Raises:
            UsageError: where `seed` is a list and the environments take one number only.
        """
        self.pending = np.zeros(self.num_envs, dtype=bool)
        if isinstance(seed, list) and not isinstance(self.envs.unwrapped, SyncVectorEnv | AsyncVectorEnv):
            seed = np.array(seed)  # what vector environments in C++ take
        try:
            obs, _ = self.envs.reset(seed=seed)
        except (gymnasium.error.Error, TypeError, ValueError) as error:
            if isinstance(seed, int | None):
                raise
            raise UsageError(
                f"{type(self.envs.unwrapped).__name__} cannot be reset with a seed for each environment, which groups "
                "that share a start need; take backend sync or async"
            ) from error
        return self.split(obs)

    def step(self, actions: np.ndarray) -> Step:
        """Take actions as the buffer stores them, `[N, ...]`."""
        obs, rewards, terminated, truncated, infos = self.envs.step(self.action_spec.to_env(actions))
        terminated, truncated = terminated.astype(bool, copy=False), truncated.astype(bool, copy=False)
        done = terminated | truncated
        obs = self.split(obs)
        real = ~self.pending
        if self.has_dead_rows:
            self.pending = done
        if self.has_dead_rows or not done.any():
            return Step(obs, rewards, terminated, truncated, done, real, NO_ENVS, None, infos.get("life_lost"))
        final_envs = np.flatnonzero(done)
        if self.mode is AutoresetMode.SAME_STEP:
            final_obs = self._final_from_infos(infos, final_envs)
        else:
            final_obs = map_parts(lambda x: x[final_envs].copy(), obs)
            obs = self._renew(done)
        return Step(obs, rewards, terminated, truncated, done, real, final_envs, final_obs, infos.get("life_lost"))

    def restart(self, which: np.ndarray, after: int) -> Any:
        """Begin a new episode in the environments `which [N]`, whose episodes were cut `after` so many steps.

        Raises:
            EnvironmentFault: where the autoreset mode does not allow that.
        """
        if self.mode is not AutoresetMode.DISABLED:
            raise EnvironmentFault(
                f"an episode runs on after {after:,} steps, and autoreset mode {self.mode.name} cannot begin a new one "
                "in a single environment; give the environment a time limit or allow more steps"
            )
        return self._renew(which)

    def _renew(self, done: np.ndarray) -> Any:
        obs, _ = self.envs.reset(options={"reset_mask": done})
        return self.split(obs)

    def split(self, obs: Any) -> Any:
        """Observations `[N, ...]` of the environment as the buffer takes them: in parts, indices counted from 0."""
        if self._composite:
            obs = split_observation(self.observation_space, obs)
        return map_parts(np.subtract, obs, self._starts) if self._shifted else obs

    def _final_from_infos(self, infos: dict[str, Any], final_envs: np.ndarray) -> Any:
        final = infos.get("final_obs")
        if final is None:
            raise EnvironmentFault(
                "the environment's autoreset mode is SAME_STEP and an episode ended, but its infos have no 'final_obs'"
            )
        if isinstance(final, dict | tuple):  # batched already, part by part
            return map_parts(lambda x: np.asarray(x)[final_envs], self.split(final))
        rows = [self._split_one(final[n]) for n in final_envs]
        if not self._composite:
            return np.stack(rows)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _split_one(self, obs: Any) -> Any:
        return map_parts(np.asarray, self.split(obs))

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    """The mode in the environment's metadata; nothing may be assumed where it names none."""
    mode = (envs.metadata or {}).get("autoreset_mode")
    try:
        return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)
    except ValueError:
        modes = ", ".join(mode.name for mode in AutoresetMode)
        raise UsageError(
            f"the vector environment's metadata['autoreset_mode'] is {mode!r}, "
            f"but must be one of AutoresetMode's {modes}"
        ) from None
