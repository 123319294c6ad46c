"""Where the environments of a run stand, for its checkpoints."""

from __future__ import annotations

import pickle
from typing import Any

from gymnasium.vector import SyncVectorEnv, VectorEnv

from rlcore.envs.async_vector import GuardedAsyncVectorEnv
from rlcore.envs.state import MOST_VALUES, Misfit, NotCapturable, capture_state, check_fits, restore_state
from rlcore.errors import EnvironmentFault


class Standing:
    """Takes the state of environments, where it is plain data that fresh environments would take back.

    Args:
        envs: the vector environment.
    """

    def __init__(self, envs: VectorEnv):
        self.envs = envs
        self._seeded = False  # whether the environments began with a seed
        self._fresh: bytes | None = None  # packed state of environments that have just begun; b"" where it is no data

    def begun(self, seeded: bool) -> None:
        """All environments were just reset.

        Single environments in this process are looked at when that is first asked for, since Python is slower to reach
        the attributes of an object once all of them have been listed.
        """
        self._seeded = seeded
        if not isinstance(self.envs, SyncVectorEnv):
            self._look_at_fresh(moved=False)

    def capture(self, moved: bool) -> dict[str, Any] | None:
        """The state, or None where it cannot be stored; a resumed run then begins new episodes.

        Args:
            moved: whether they have made steps since they were reset.
        """
        self._look_at_fresh(moved)
        state = self._capture() if self._fresh else None
        if state is None:
            return None
        fresh = pickle.loads(self._fresh)
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

    @property
    def _in_processes(self) -> bool:
        return isinstance(self.envs, GuardedAsyncVectorEnv)

    def _look_at_fresh(self, moved: bool) -> None:
        """Remember the state of environments that have just begun; of others made like them where these have moved."""
        if self._fresh is None:
            others = moved and isinstance(self.envs, SyncVectorEnv)
            state = _state_of_others(self.envs, self._seeded) if others else self._capture()
            self._fresh = b"" if state is None else pickle.dumps(state)

    def _capture(self) -> dict[str, Any] | None:
        try:
            if self._in_processes:
                states = self.envs.get_states(MOST_VALUES // self.envs.num_envs)
                return None if states is None else {"workers": states}
            return capture_state(self.envs)
        except (NotCapturable, EnvironmentFault):  # a fault is found again, and told, by the next step
            return None


def _state_of_others(envs: SyncVectorEnv, seeded: bool) -> dict[str, Any] | None:
    """The state of environments made like these, after their first reset; None where that is not possible."""
    try:
        others = type(envs)(envs.env_fns, autoreset_mode=envs.autoreset_mode)
        if envs.spec is not None:  # given to them afterwards
            others.spec = envs.spec
        try:
            others.reset(seed=0 if seeded else None)
            return capture_state(others)
        finally:
            others.close()
    except Exception:  # whatever a maker of one's own does when it is called once more
        return None
