"""On-policy reinforcement learning on one rollout buffer: the same buffer, another estimator, another loss.

The names are loaded when first used, so that `rlcore --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlcore.version import __version__

if TYPE_CHECKING:
    from rlcore import estimators
    from rlcore.agents import A2C, BC, DPO, GRPO, PPO, REINFORCE, TRPO, RewardModel, callbacks, load, pretrain
    from rlcore.buffer import RolloutBuffer
    from rlcore.distributed.together import learn_together
    from rlcore.envs import make_vec
    from rlcore.errors import RlcoreError
    from rlcore.networks import ActorCritic
    from rlcore.runs.from_python import train

_MODULES = {"estimators": "rlcore.estimators", "callbacks": "rlcore.agents.callbacks"}
_HOME = {
    **dict.fromkeys(
        ("REINFORCE", "A2C", "PPO", "TRPO", "GRPO", "BC", "DPO", "RewardModel", "load", "pretrain"), "rlcore.agents"
    ),
    "RolloutBuffer": "rlcore.buffer",
    "learn_together": "rlcore.distributed.together",
    "make_vec": "rlcore.envs",
    "RlcoreError": "rlcore.errors",
    "ActorCritic": "rlcore.networks",
    "train": "rlcore.runs.from_python",
}

__all__ = [
    "A2C", "BC", "DPO", "GRPO", "PPO", "REINFORCE", "TRPO", "ActorCritic", "RewardModel", "RlcoreError",
    "RolloutBuffer", "__version__", "callbacks", "estimators", "learn_together", "load", "make_vec",
    "pretrain", "train",
]  # fmt: skip


if not TYPE_CHECKING:  # which would take any name for one that is here

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(_MODULES[name])
        if name not in _HOME:
            raise AttributeError(f"module 'rlcore' has no attribute '{name}'")
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
