"""What becomes of a rollout in which something went wrong: environments that failed, numbers that are not finite."""

import warnings
from typing import Any, NamedTuple

import numpy as np

from rlcore.envs.adapter import VectorAdapter
from rlcore.errors import DivergenceError, EnvironmentFault


class Faults:
    """Keeps what failed environments did out of a rollout, where they are begun anew.

    The row of the fault is masked, and the row before it is cut (truncated), so that its successor, which the faulty
    row shows, is valued. Of a rollout of whole episodes the episode is left out, and with it those of its group: each
    `group_size` environments are compared with each other.

    Attributes:
        gave_up: `[T, N]` rows after which a fault cut the episode, None where there was none in this rollout.
        cut_before: `[N]` whose episode a fault in row 0 cut before the rollout.
    """

    def __init__(self, envs: VectorAdapter, num_steps: int, group_size: int, whole_episodes: bool):
        self.envs, self.group_size, self.whole_episodes = envs, group_size, whole_episodes
        self.shape = num_steps, envs.num_envs
        self.gave_up: np.ndarray | None = None
        self.cut_before = np.zeros(envs.num_envs, dtype=bool)
        self._told = False

    def begin(self) -> np.ndarray:
        """A rollout begins; `[N]` who plays for something."""
        self.gave_up, self.cut_before = None, np.zeros_like(self.cut_before)
        astray = self._with_group(self.envs.astray) if self.group_size > 1 else np.zeros_like(self.envs.astray)
        return ~astray

    def give_up(self, t: int, failed: np.ndarray, playing: np.ndarray, rows: Any, counter: Any) -> np.ndarray:
        """Let nothing depend on row t of the environments `failed [N]`; returns who is still playing. The `rows` have
        `mask`, `terminated`, `truncated` and `done` `[T, N]`; `counter` counts the episodes."""
        if self.gave_up is None:
            self.gave_up = np.zeros(self.shape, dtype=bool)
        if self.whole_episodes:
            left_out = self._with_group(failed & playing)
            rows.mask[: t + 1, left_out] = False
            return playing & ~left_out
        if t == 0:
            self.cut_before |= failed
            counter.forget(failed)
            return playing
        before = failed & rows.mask[t - 1]
        self.gave_up[t - 1] = before & ~rows.done[t - 1]
        rows.truncated[t - 1] |= before & ~rows.terminated[t - 1]
        return playing

    def end(self, mask: np.ndarray) -> None:
        """A rollout, whose `mask` this is, has ended; an EnvironmentFault where nothing of it is left."""
        self.tell()
        if (self.gave_up is not None or self.envs.astray.any()) and not mask.any():
            why = f"since each environment, or one of its group, failed in it: {self.envs.restarts.latest}"
            raise EnvironmentFault(f"nothing of a rollout is left to learn from, {why}")

    def tell(self) -> None:
        """Tell of the first fault, once."""
        if self.envs.restarts.first is not None and not self._told:
            self._told = True
            after = "it was begun anew (on_env_error is restart), and so will others be without a word"
            warnings.warn(f"{self.envs.restarts.first}; {after}", stacklevel=2)

    def _with_group(self, which: np.ndarray) -> np.ndarray:
        """`which [N]` and all others of their groups."""
        return which.reshape(-1, self.group_size).any(1).repeat(self.group_size)


class Seen(NamedTuple):
    """Numbers that environments gave in a rollout.

    Attributes:
        what: they are.
        values: `[steps, N, ...]`; row t belongs to step t + offset of the rollout, counted from 1.
        envs: the environments that they belong to, where these are not all.
    """

    what: str
    values: np.ndarray
    offset: int
    envs: np.ndarray | None = None

    def is_finite(self) -> bool:
        """Whether all are."""
        return self.values.dtype.kind != "f" or bool(np.isfinite(self.values).all())


def refuse_nan(seen: list[Seen], output: np.ndarray, observations: list[np.ndarray], first_step: int) -> None:
    """Raise an EnvironmentFault that names who gave the first number that is not finite, and the vector step, counted
    on from `first_step`; or, where `output` and `observations` say that it was the policy, as `refuse_policy`."""
    bad = next((x for x in seen if not x.is_finite()), None)
    if bad is None:
        return
    t, n = np.argwhere(~np.isfinite(bad.values.reshape(*bad.values.shape[:2], -1)).all(-1))[0]
    refuse_policy(output, observations, t + bad.offset, first_step)
    values, env = bad.values[t, n].ravel(), n if bad.envs is None else bad.envs[n]
    what = f"environment {env} returned {values[~np.isfinite(values)][0]} in {bad.what}"
    raise EnvironmentFault(f"{what} at vector step {first_step + t + bad.offset:,}")


def refuse_policy(output: np.ndarray, observations: list[np.ndarray], steps: int, first_step: int) -> None:
    """Raise a DivergenceError where actions are not finite although what the policy saw was, in the first `steps` rows:
    what comes of them in an environment is not its fault. The policy's `output` is `[T, N, P + A]`, each part of the
    `observations` `[T, N, ...]`."""
    output = output[:steps]
    bad = ~np.isfinite(output).all(-1)
    for values in observations:
        if values.dtype.kind == "f":
            bad &= np.isfinite(values[:steps].reshape(*bad.shape, -1)).all(-1)
    if not bad.any():
        return
    t, n = np.argwhere(bad)[0]
    value = output[t, n][~np.isfinite(output[t, n])][0]
    what = f"the policy's action for environment {n} is {value} at vector step {first_step + t + 1:,}"
    raise DivergenceError(f"{what}: the weights are no longer finite")
