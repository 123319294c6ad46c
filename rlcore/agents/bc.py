"""Behaviour cloning (Pomerleau 1991): maximum likelihood of what an expert did. With texts that is supervised
fine-tuning, the start that RLHF goes on from.

    L = −E[ log π(a|s) ]    over the states and actions of an expert's episodes
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlcore.agents.agent import Agent
from rlcore.agents.config import Apart, Config, Count, From0
from rlcore.buffer import Batch, RolloutBuffer
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
