"""The agents, by name."""

from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv

from rlcore.agents.a2c import A2C, A2CConfig
from rlcore.agents.agent import Agent, load_agent
from rlcore.agents.config import Config
from rlcore.agents.grpo import GRPO, GRPOConfig
from rlcore.agents.ppo import PPO, PPOConfig
from rlcore.agents.reinforce import REINFORCE, REINFORCEConfig
from rlcore.agents.trpo import TRPO, TRPOConfig
from rlcore.networks import Torso

AGENTS: dict[str, type[Agent]] = {"reinforce": REINFORCE, "a2c": A2C, "ppo": PPO, "trpo": TRPO, "grpo": GRPO}


def load(path: str | Path, env: str | VectorEnv | None = None, torso: Torso | None = None, **overrides: Any) -> Agent:
    """The agent that `agent.save(path)` stored, ready to act, to be evaluated or to learn on.

    Args:
        path: a file written by `save`, or a checkpoint of a run folder. Reading it executes nothing it brings along.
        env: needed where the agent was trained on a VectorEnv instance; may replace the environment otherwise. With it
            new episodes begin; without it they go on where they were.
        torso: needed where the agent was made with a torso of your own: code is not stored.
        overrides: hyperparameters to change, such as `device`.

    Raises:
        CheckpointError: where the file is not a whole checkpoint of this version or does not fit `env` and `torso`.
    """
    return load_agent(AGENTS, path, env, torso, **overrides)


__all__ = [
    "A2C",
    "AGENTS",
    "GRPO",
    "PPO",
    "REINFORCE",
    "TRPO",
    "A2CConfig",
    "Agent",
    "Config",
    "GRPOConfig",
    "PPOConfig",
    "REINFORCEConfig",
    "TRPOConfig",
    "load",
]  # fmt: skip
