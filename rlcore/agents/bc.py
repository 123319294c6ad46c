"""Behaviour cloning (Pomerleau 1991): maximum likelihood of what an expert did. With texts that is supervised
fine-tuning, the start that RLHF goes on from.

    L = −E[ log π(a|s) ]    over the states and actions of an expert's episodes
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlcore.agents.agent import Agent
from rlcore.agents.config import NETWORK, Apart, Config, Count, From0
from rlcore.buffer import Batch, RolloutBuffer
from rlcore.errors import UsageError
from rlcore.networks import ActorCritic


@dataclass(frozen=True)
class BCConfig(Config):
    whole_episodes: ClassVar[bool] = True

    num_envs: Count = 64  # N, the expert's episodes per update
    num_steps: Count | None = None  # T, longest episode; none: the environment's time limit
    learning_rate: Apart[From0] = 1e-3  # step size of the optimiser
    demonstrations: Apart[str | None] = None  # file of what an expert did, a line of JSON each; none: the environment's


class BC(Agent):
    Config = BCConfig
    config: BCConfig
    learns_from = "expert"
    needs_values = False

    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros_like(buffer.rewards)
        return nothing, nothing  # an expert is not judged

    def loss(self, network: ActorCritic, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        policy = network.policy(batch.obs)
        loss = -batch.mean(policy.log_prob(batch.actions))
        same = (policy.mode() == batch.actions).reshape(len(batch), -1).all(1)  # [M]
        return loss, {"entropy": batch.mean(policy.entropy()), "agreement": batch.mean(same.float())}


def pretrain(agent: Agent, total_steps: int, demonstrations: str | None = None, **hyperparameters: Any) -> BC:
    """Let an agent's policy copy an expert before it learns by itself; a reference that is its start is the same then.

    Args:
        agent: whose network it is.
        total_steps: steps of the expert to learn from.
        demonstrations: file of them, see `rlcore.preferences.data`; None: the environment's own expert.
        hyperparameters: of `BC`.

    Returns:
        The BC that did it.

    Raises:
        UsageError: where the environment has no expert, or `BC` cannot make the agent's network.
    """
    own = {name: getattr(agent.config, name) for name in NETWORK}
    apart = {"seed": agent.config.seed, "device": str(agent.device), "demonstrations": demonstrations}
    env = agent.envs if agent.env_id is None else agent.env_id
    teacher = BC(env, env_kwargs=agent.env_kwargs, **{**own, **apart, **hyperparameters})
    if teacher.network.state_dict().keys() != agent.network.state_dict().keys():
        raise UsageError("the agent's network has a torso or memory of your own, which BC does not make")
    teacher.network.load_state_dict(agent.network.state_dict())
    teacher.learn(total_steps)
    agent.network.load_state_dict(teacher.network.state_dict())
    if agent.reference is not None and agent.config.reference == "initial":
        agent.reference.load_state_dict(teacher.network.state_dict())
    return teacher
