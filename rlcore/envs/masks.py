"""Which actions are allowed. A mask is something that the policy sees, so it becomes a part of the observation,
`action_mask`, wherever an environment tells it:

    observation   in a part of that name of its Dict observation, as in PettingZoo
    method        by its method `action_masks()`, asked after each reset and step, as for sb3-contrib
    infos         under `action_mask` in the infos of its resets and steps, as gymnasium's Taxi

A mask has a number for each choice, 0 where that is forbidden: `[P]`, of MultiDiscrete the choices of all dimensions
side by side, or a tuple of one mask for each dimension.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from rlcore.envs.guard import FAULT_KEY, WAITING_KEY
from rlcore.errors import EnvironmentFault, UsageError
from rlcore.spaces import ACTION_MASK, ActionSpec

LONE = "observation"  # the name of an observation without parts, beside its mask


def with_masks(envs: VectorEnv, spec: ActionSpec, mask_actions: bool | None) -> VectorEnv:
    """The vector environment with masks in its observations, or as it is where actions are not to be masked.

    Args:
        envs: any vector environment.
        spec: of its actions.
        mask_actions: whether to mask; None: where the observation has that part, or the environments that method.

    Raises:
        UsageError: where it is true but these actions have no masks, or the part `action_mask` is of another length.
    """
    possible = spec.kind in ("categorical", "multi_categorical")
    if mask_actions and not possible:
        problem = f"mask_actions is true, but the action space is {spec.space}"
        raise UsageError(f"{problem}; it may be true for Discrete and MultiDiscrete")
    if mask_actions is False or not possible:
        return envs
    source = _source(envs) or ("infos" if mask_actions else None)
    return envs if source is None else MaskedVectorEnv(envs, spec, source)


def _source(envs: VectorEnv) -> str | None:
    """Where masks are, as far as that is known before the first reset."""
    space = envs.single_observation_space
    if isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces:
        return "observation"
    below: Any = envs.unwrapped
    callable_ = isinstance(below, SyncVectorEnv | AsyncVectorEnv)
    return "method" if callable_ and below.call("has_wrapper_attr", "action_masks")[0] else None


class MaskedVectorEnv(VectorWrapper):
    """A vector environment whose observations have a part `action_mask`, the last, `[N, P]` uint8 of 0 and 1.

    The observation to act on has the mask that the environment gave for it. In observations that nobody acts on (after
    which an episode is over) all is allowed, since they are valued alone and the critic does not see masks.

    Args:
        envs: the vector environment.
        spec: of its actions.
        source: where it tells masks: observation, method or infos.

    Attributes:
        source: the same.
        mode: of autoreset.
        masks: `[N, P]` of the latest observations, always in the same memory.

    Raises:
        UsageError: where the observation's part `action_mask` is of another length.
    """

    def __init__(self, envs: VectorEnv, spec: ActionSpec, source: str):
        super().__init__(envs)
        self.source, self.nvec, self.length = source, spec.nvec, spec.num_params
        self.single_observation_space = self._space(envs.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, envs.num_envs)
        # Frames would be stored once, but only of an observation that is nothing else.
        self.metadata = {**(envs.metadata or {}), "frame_stack": 0}
        self.mode = AutoresetMode(self.metadata["autoreset_mode"])
        self.masks = np.ones((envs.num_envs, self.length), np.uint8)
        self._over = np.zeros(envs.num_envs, dtype=bool)  # whose episode is over, so that nobody acts
        self._told = False  # whether any infos had a mask yet

    def _space(self, own: Any) -> spaces.Dict:
        if self.source == "observation":
            mask = own[ACTION_MASK]
            length = sum(int(np.prod(x.shape or ())) for x in (mask if isinstance(mask, spaces.Tuple) else [mask]))
            if length != self.length:
                has = f"the part '{ACTION_MASK}' of the observation has length {length}"
                raise UsageError(f"{has}, but {self._wanted()}; mask_actions may be false")
        return spaces.Dict([*_parts(own, own), (ACTION_MASK, spaces.MultiBinary(self.length))])

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        """Observations of all environments, and infos. An EnvironmentFault where nothing is allowed, or a mask is
        missing or of another length; a UsageError where the first infos have none."""
        begun = (options or {}).get("reset_mask")
        begun = np.ones(self.num_envs, dtype=bool) if begun is None else np.array(begun)  # who is asked may take it out
        obs, infos = self.env.reset(seed=seed, options=options)
        self._over &= ~begun
        if WAITING_KEY in infos:
            self._over |= infos[WAITING_KEY]
        self._read(obs, infos, begun)
        return self.join(obs, self.masks), infos

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict]:
        """Observations, rewards, terminated and truncated `[N]`, and infos; raises as `reset` does."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        before = self._over
        self._over = np.logical_or(terminated, truncated) & (self.mode is not AutoresetMode.SAME_STEP)
        if WAITING_KEY in infos:  # who waits does so until a reset
            self._over |= before
        self._read(obs, infos, np.ones(self.num_envs, dtype=bool))
        if "final_obs" in infos:
            infos = {**infos, "final_obs": self._final(infos["final_obs"])}
        return self.join(obs, self.masks), rewards, terminated, truncated, infos

    def join(self, obs: Any, masks: np.ndarray) -> dict[str, Any]:
        """Observations with masks, of one environment or several."""
        return {**dict(_parts(self.env.single_observation_space, obs)), ACTION_MASK: masks}

    def given(self, obs: Any, masks: Any = None) -> dict[str, Any]:
        """Observations `[N, ...]` from anywhere with their masks: `[N, P]`, or one of each environment. A UsageError
        where these are needed, of another length, or allow nothing."""
        if masks is None and self.source != "observation":
            raise UsageError("this agent's observations come without their masks: pass act(obs, action_mask=...)")
        masks = _side_by_side(obs[ACTION_MASK]) if masks is None else masks
        try:
            return self.join(obs, self._checked(masks, np.arange(len(masks))))
        except EnvironmentFault as fault:
            raise UsageError(f"action_mask does not fit: {fault}") from None

    def _read(self, obs: Any, infos: dict[str, Any], asked: np.ndarray) -> None:
        """Take masks, from infos those of the environments that were `asked [N]`; but not of those that failed, which
        are begun anew."""
        needed = ~self._over & ~infos.get(f"_{FAULT_KEY}", np.zeros_like(asked))
        needed = needed & asked if self.source == "infos" else needed
        which, found = np.flatnonzero(needed), self._found(obs, infos, needed)
        if found is not None and len(which):
            self.masks[which] = self._checked(found, which)
        self.masks[self._over] = 1

    def _found(self, obs: Any, infos: dict[str, Any], needed: np.ndarray) -> Any:
        """The masks as the environments give them, one of each; None where a reset follows before anyone acts."""
        if self.source == "observation":
            return _side_by_side(obs[ACTION_MASK])
        if self.source == "infos":
            return self._from_infos(infos, needed)
        reset_follows = FAULT_KEY in infos or (self.mode is AutoresetMode.DISABLED and self._over.any())
        below: Any = self.env.unwrapped
        return None if reset_follows else below.call("action_masks")

    def _from_infos(self, infos: dict[str, Any], needed: np.ndarray) -> Any:
        missing = needed & ~infos.get(f"_{ACTION_MASK}", np.full(self.num_envs, ACTION_MASK in infos))
        if missing.any() and not self._told:
            places = f"neither observation nor infos have '{ACTION_MASK}', and there is no method action_masks()"
            raise UsageError(f"mask_actions is true, but the environment tells no masks: {places}")
        if missing.any():
            raise EnvironmentFault(f"environment {np.flatnonzero(missing)[0]} has no '{ACTION_MASK}' in its info")
        self._told = True
        return infos.get(ACTION_MASK)

    def _checked(self, masks: Any, which: np.ndarray) -> np.ndarray:
        """The `masks` of the environments `which`, of all those that there are, as `[len(which), P]` of 0 and 1."""
        rows = _rows(masks, which)
        for n, row in zip(which, rows, strict=True):
            if len(row) != self.length:
                wrong = f"environment {n} gave an action mask of length {len(row)}"
                raise EnvironmentFault(f"{wrong}, but {self._wanted()}")
        rows, starts = np.asarray(rows), np.cumsum((0, *self.nvec[:-1]))
        for i, dimension in np.argwhere(~np.logical_or.reduceat(rows, starts, axis=1)):
            where = f" in dimension {dimension}" if len(self.nvec) > 1 else ""
            raise EnvironmentFault(f"environment {which[i]} allows no action{where}")
        return rows.astype(np.uint8)

    def _wanted(self) -> str:
        return f"actions {self.env.single_action_space} take one of length {self.length}"

    def _final(self, final: Any) -> Any:
        """True successors in infos, an object for each environment or batched part by part."""
        if isinstance(final, dict | tuple):
            return self.join(final, np.ones_like(self.masks))
        rows = np.full(len(final), None, dtype=object)
        for n, obs in enumerate(final):
            rows[n] = None if obs is None else self.join(obs, np.ones_like(self.masks[0]))
        return rows


def _parts(space: spaces.Space, obs: Any) -> list[tuple[str, Any]]:
    """Names and parts of an observation, or a space, of this space; but not its mask."""
    if isinstance(space, spaces.Dict):
        return [(key, obs[key]) for key in space.spaces if key != ACTION_MASK]
    if isinstance(space, spaces.Tuple):
        return [(str(i), obs[i]) for i in range(len(space.spaces))]
    return [(LONE, obs)]


def _side_by_side(masks: Any) -> Any:
    """A batch of masks out of observations `[N, P]`, where each dimension may have its own, `[N, P_k]`."""
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in masks], 1) if isinstance(masks, tuple) else masks


def _rows(masks: Any, which: np.ndarray) -> Any:
    """The mask of each environment of `which`, laid flat, as bool; their lengths may differ."""
    if isinstance(masks, np.ndarray) and masks.dtype != object:
        return masks.reshape(len(masks), -1)[which] != 0
    each = (mask if isinstance(mask := masks[n], tuple | list) else [mask] for n in which)
    return [np.concatenate([np.ravel(part) for part in parts]) != 0 for parts in each]
