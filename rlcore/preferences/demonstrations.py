"""What an expert did, as rollouts to learn from."""

from typing import Any

import numpy as np
from torch import Tensor

from rlcore.collect import NativeCollector
from rlcore.envs.native import NativeTask
from rlcore.errors import UsageError
from rlcore.networks import ActorCritic


def expert_of(task: NativeTask | None, env_id: str | None) -> NativeTask:
    """The native `task` of an environment, which has an expert; a UsageError where there is none."""
    if task is None or type(task).expert is NativeTask.expert:
        raise UsageError(f"{env_id or 'a VectorEnv of your own'} has no expert that could be copied")
    return task


class ExpertCollector(NativeCollector):
    """Plays a native task with its expert. No episodes are reported: their returns would not be the policy's."""

    def _choose(self, state: Tensor, *_: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"actions": self.task.expert(state)}, {}

    def _begin_carry(self, network: ActorCritic) -> None:
        """Nothing to remember: the expert sees the state."""

    def _play(self, network: ActorCritic) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        rewards, ends, gave_up = super()._play(network)
        return rewards, np.zeros_like(ends), gave_up
