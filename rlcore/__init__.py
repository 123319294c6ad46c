"""On-policy reinforcement learning on one rollout buffer: the same buffer, another estimator, another loss."""

from rlcore import estimators
from rlcore.agents import PPO, load
from rlcore.buffer import RolloutBuffer
from rlcore.envs import make_vec
from rlcore.errors import RlcoreError
from rlcore.networks import ActorCritic

__version__ = "0.1.0"

__all__ = ["PPO", "ActorCritic", "RlcoreError", "RolloutBuffer", "estimators", "load", "make_vec"]
