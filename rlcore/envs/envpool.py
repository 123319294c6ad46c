"""EnvPool's environments as a gymnasium vector environment with masked resets.

EnvPool takes its seeds when a pool is made and ignores those of `reset`; a masked reset gives back only the rows that
were reset. Here a seed makes a new pool, and an observation always has all rows. The autoreset mode is DISABLED, so
every row of a rollout is a real transition.
"""

import importlib
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlcore.errors import UsageError

FOOTBALL = "gfootball/"


class EnvPoolVectorEnv(VectorEnv):
    """N environments of an EnvPool task, with EnvPool's further settings of it.

    Where an observation is a stack of `frame_stack` frames, those before an episode's first are zeros; EnvPool repeats
    the first.
    """

    def __init__(self, task: str, num_envs: int, spec: EnvSpec | None = None, frame_stack: int = 0, **settings: Any):
        envpool = import_envpool()
        if task not in envpool.list_all_envs():
            raise UsageError(f"EnvPool has no environment '{task}'")
        self.num_envs, self.spec = num_envs, spec
        self.make_pool = partial(envpool.make_gymnasium, task, num_envs=num_envs, **settings)
        description = envpool.make_spec(task, **settings)
        self.single_observation_space = description.gymnasium_observation_space
        self.single_action_space = description.gymnasium_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "frame_stack": frame_stack}
        self.frame_stack, self.ages = frame_stack, np.zeros(num_envs, dtype=np.int64)
        self.pool: Any = None
        self.obs: np.ndarray | None = None

    def reset(
        self, *, seed: int | list[int] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        mask = (options or {}).get("reset_mask")
        if seed is not None or self.pool is None:
            if seed is None:
                seed = np.random.SeedSequence().generate_state(self.num_envs) % 2**31
            elif isinstance(seed, int | np.integer):
                seed = (int(seed) + np.arange(self.num_envs)) % 2**31
            self.pool = self.make_pool(seed=[int(s) for s in seed])
        if mask is None or self.obs is None:
            self.obs, infos = self.pool.reset()
            which = np.arange(self.num_envs)
        else:
            which = np.flatnonzero(mask)
            rows, infos = self.pool.reset(which.astype(np.int32))
            self.obs = self.obs.copy()
            self.obs[which] = rows
            infos = {name: self._spread(rows, which) for name, rows in infos.items() if isinstance(rows, np.ndarray)}
        self.ages[which] = 0
        self._blank_earlier_frames()
        return self.obs, infos

    def _spread(self, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The rows of some environments in an array of all."""
        everyone = np.zeros((self.num_envs, *rows.shape[1:]), dtype=rows.dtype)
        everyone[which] = rows
        return everyone

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.obs, rewards, terminated, truncated, infos = self.pool.step(actions)
        self.ages += 1
        self._blank_earlier_frames()
        return self.obs, rewards, terminated, truncated, infos

    def _blank_earlier_frames(self) -> None:
        for n in np.flatnonzero(self.ages < self.frame_stack - 1):
            self.obs[n, : self.frame_stack - 1 - self.ages[n]] = 0

    def close_extras(self, **kwargs: Any) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool = None


def needed(module: str, what: str, package: str, extra: str) -> Any:
    """A module of an optional package, or a UsageError that says what needs it and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs the package {package}: pip install 'rlcore[{extra}]'") from error


import_envpool = partial(needed, "envpool", "this environment", "envpool", extra="envpool")


def register_football() -> None:
    """Make the academies and matches of Google Football known to gymnasium; a UsageError without EnvPool."""
    for task in import_envpool().list_all_envs():
        if task.startswith(FOOTBALL) and task not in gymnasium.registry:
            gymnasium.register(task, vector_entry_point="rlcore.envs.envpool:make_football")


def make_football(num_envs: int, spec: EnvSpec, **settings: Any) -> VectorEnv:
    """A vector environment of one scenario: the super mini map `[72, 96, 4]` (own team, other team, ball, the active
    player), 19 actions, +1 for a goal and −1 for one against.

    A game engine takes some 45 MB, which EnvPool 1.2.5 does not give back when a pool is closed: resets with a seed,
    which make a new pool, are for the start of a run and its checkpoints.
    """
    envs = EnvPoolVectorEnv(spec.id, num_envs, spec, **settings)
    envs.metadata["heavy"] = True
    return envs
