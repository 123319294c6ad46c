"""Where the environments of a run stand, for its checkpoints."""

import contextlib
import pickle
from collections.abc import Callable
from contextlib import closing
from typing import Any

from gymnasium.vector import VectorEnv

from rlcore.envs.async_vector import GuardedAsyncVectorEnv
from rlcore.envs.state import (
    MOST_VALUES,
    CountedReset,
    Misfit,
    NotCapturable,
    capture_state,
    check_fits,
    restore_state,
)
from rlcore.errors import EnvironmentFault


class Standing:
    """Takes the state of environments, where it is plain data that fresh environments would take back.

    Args:
        envs: the vector environment.
        again: makes another like it, to look at when a state is first taken; without, the environments themselves are
            looked at when they begin, after which Python is slower to reach their attributes.
    """

    def __init__(self, envs: VectorEnv, again: Callable[[], VectorEnv] | None = None):
        self.envs: Any = envs
        self.again = again
        self._in_processes = isinstance(envs, GuardedAsyncVectorEnv)
        self._seeded = False  # whether the environments began with a seed
        self._fresh: bytes | None = None  # state of environments that have just begun, packed
        if not isinstance(envs.reset, CountedReset):
            with contextlib.suppress(AttributeError):  # an environment with slots
                setattr(envs, "reset", CountedReset(envs.reset))  # noqa: B010  to mypy, no method is assigned
        self.left()

    def left(self) -> None:
        """The environments were left as they are now, for a later rollout to go on with."""
        self._resets = getattr(self.envs.reset, "calls", 0)

    @property
    def was_reset(self) -> bool:
        """Whether somebody reset the environments since they were left: what was seen last leads nowhere."""
        return getattr(self.envs.reset, "calls", 0) != self._resets

    def begun(self, seeded: bool) -> None:
        """All environments were just reset."""
        self._seeded = seeded
        self.left()
        if self.again is None and self._fresh is None:
            self._fresh = pickle.dumps(self._capture())

    def capture(self) -> dict[str, Any] | None:
        """The state, or None where it cannot be stored, or is not that of the episodes under way."""
        state = None if self.was_reset else self._capture()
        if state is None:
            return None
        if self._fresh is None:
            self._fresh = pickle.dumps(self._capture_another())
        fresh = pickle.loads(self._fresh)
        if fresh is None:
            return None
        pairs = zip(state["workers"], fresh["workers"], strict=True) if self._in_processes else [(state, fresh)]
        try:
            for one, before in pairs:
                check_fits(one, before)
        except Misfit:
            return None
        return state

    def restore(self, state: dict[str, Any] | None) -> bool:
        """Put a captured state back; whether there was one, of environments that are stepped in this way.

        Raises:
            Misfit: where it does not fit.
        """
        of_processes = isinstance(state, dict) and state.keys() == {"workers"}
        if state is None or of_processes != self._in_processes:
            return False
        self.envs.set_states(state["workers"]) if of_processes else restore_state(self.envs, state)
        return True

    def _capture(self) -> dict[str, Any] | None:
        try:
            if self._in_processes:
                states = self.envs.get_states(MOST_VALUES // self.envs.num_envs)
                return None if states is None else {"workers": states}
            return capture_state(self.envs)
        except (NotCapturable, EnvironmentFault):  # a fault is found again, and told, by the next step
            return None

    def _capture_another(self) -> dict[str, Any] | None:
        """The state of another vector environment after its first reset."""
        try:
            with closing(self.again()) as other:
                other.reset(seed=0 if self._seeded else None)
                return capture_state(other)
        except Exception:  # whatever the environment does when it is made once more
            return None
