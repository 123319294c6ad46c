"""Random network distillation (Burda et al. 2019, arXiv:1810.12894): where a trained network fails to predict a random
one, the agent has seldom been.

    i_t = ‖f̂(s_{t+1}) − f(s_{t+1})‖²        bonus, divided by the running standard deviation of its discounted sum

Here the bonus of a step is that of the observation it starts from, and one critic values both kinds of reward.
"""

from dataclasses import dataclass

import torch
from torch import nn

from rlcore.agents import PPO, PPOConfig
from rlcore.networks.normalize import RunningNorm
from rlcore.spaces import Field


@dataclass(frozen=True)
class RNDConfig(PPOConfig):
    bonus_coef: float = 0.5  # weight of the bonus beside the reward
    features: int = 16  # what the random network puts out


class RND(PPO):
    Config = RNDConfig

    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        inputs, features = self.buffer.obs.shape[-1], self.config.features
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            target, predictor = (nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, features)) for _ in "tp")
        self.register("target", target.requires_grad_(False))
        self.register("predictor", predictor)
        self.register("bonus_scale", RunningNorm(()))

    def fields(self):
        return [Field("bonus")]

    def surprise(self, obs):
        return (self.predictor(obs) - self.target(obs)).pow(2).mean(-1)

    @torch.no_grad()
    def rewards(self, buffer):
        super().rewards(buffer)
        bonus = self.surprise(buffer.obs)  # [T, N]
        self.bonus_scale.update(bonus, buffer.mask)
        buffer.bonus = bonus / (self.bonus_scale.var + 1e-8).sqrt().float()
        buffer.rewards = buffer.rewards + self.config.bonus_coef * buffer.bonus

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        distillation = batch.mean(self.surprise(batch.obs))
        return loss + distillation, {**metrics, "distillation": distillation, "bonus": batch.mean(batch.bonus)}
