"""Random network distillation (Burda et al. 2019, arXiv:1810.12894) on PPO.

Where a trained network f̂ fails to predict a random one f, the agent has seldom been:

    i_t = ‖f̂(s_{t+1}) − f(s_{t+1})‖² / σ        the bonus of a step                                    section 2.2
    A   = c_E A_E + c_I A_I                      each kind of reward has its own discount and critic    section 2.3

Returns of the bonus do not end with episodes: what a new game brings is to be found too, and dying costs no more than
the way back. σ is the running standard deviation of the bonus's discounted sum; both networks see observations with
running mean 0 and variance 1, clipped to ±5 (section 2.4). PPO learns from A; f̂ and the bonus's critic learn beside it,
in the same gradient steps (algorithm 1).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Annotated

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlcore.agents import PPO, PPOConfig
from rlcore.agents.config import Below1, Count, From0, Range
from rlcore.buffer import Batch, RolloutBuffer
from rlcore.envs.frames import FrameStacks
from rlcore.errors import UsageError
from rlcore.estimators import linear_scan
from rlcore.networks import ActorCritic, Torso
from rlcore.networks.normalize import RewardScaler, RunningNorm
from rlcore.spaces import Field
from rlcore.tracing import reduce


@dataclass(frozen=True)
class RNDConfig(PPOConfig):
    ext_coef: From0 = 2.0  # c_E, weight of the advantages of the environment's reward
    bonus_coef: From0 = 1.0  # c_I, weight of the advantages of the bonus
    int_gamma: Below1 = 0.99  # discount of the bonus, whose returns go on across episode ends
    features: Count = 64  # numbers that the random network puts out and the other predicts
    width: Count = 64  # of the hidden layers of both
    predictor_share: Annotated[float, Range(0, 1, closed=False)] = 1.0  # of a minibatch that the predictor sees

    def check(self) -> None:
        super().check()
        if self.num_steps < 2:
            raise UsageError(f"num_steps is {self.num_steps}, but RND needs at least 2: a bonus is of the row after")


class RND(PPO):
    Config = RNDConfig
    config: RNDConfig

    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        config, inputs = self.config, math.prod(self.envs.single_observation_space.shape)
        with torch.random.fork_rng(devices=[]):  # nobody else's generator is moved
            torch.manual_seed(config.seed)
            target = layers(inputs, config.width, config.features)
            predictor = layers(inputs, config.width, config.width, config.features)
            critic = layers(inputs, *config.hidden_sizes, 1)
        self.register("target", target.requires_grad_(False))
        self.register("predictor", predictor)
        self.register("bonus_critic", critic)
        self.register("obs_norm", RunningNorm((inputs,), clip=5.0))
        self.register("bonus_scaler", RewardScaler(config.num_envs, config.int_gamma))

    def make_network(self, torso: Torso | None) -> ActorCritic:
        space = self.envs.single_observation_space
        if not isinstance(space, spaces.Box):
            raise UsageError(f"RND observes one tensor of numbers, a Box, but the observation space is {space}")
        return super().make_network(torso)

    def fields(self) -> list[Field]:
        return [Field("bonus"), Field("bonus_returns")]

    def surprise(self, seen: Tensor) -> Tensor:
        """Error of the prediction, `[...]`, at normalised observations `seen [..., D]`."""
        return (self.predictor(seen) - self.target(seen)).pow(2).mean(-1)

    @torch.no_grad()
    def rewards(self, buffer: RolloutBuffer) -> None:
        super().rewards(buffer)
        mask, never = buffer.mask, torch.zeros_like(buffer.terminated)
        numbers = flat(buffer.obs, 2)  # [T, N, D]
        self.obs_norm.update(numbers, mask)
        surprise = self.surprise(self.obs_norm(numbers))
        arrived = SimpleNamespace(rewards=surprise, mask=mask, terminated=never, truncated=never)
        self.bonus_scaler.scale_(arrived)
        buffer.bonus = after(arrived.rewards, mask)

    @torch.no_grad()
    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, Tensor]:
        config, mask = self.config, buffer.mask
        advantages, returns = super().estimate(buffer)
        values = self.bonus_critic(self.obs_norm(flat(buffer.obs, 2))).squeeze(-1)
        delta = buffer.bonus + config.int_gamma * after(values, mask) - values
        # The last real row of an environment has its successor in the next rollout, and so no bonus yet: it tells the
        # rows before it what it is worth, and is left out itself.
        known = mask & (after(mask.float(), mask) > 0)
        # GAE without ends, and straight through the padding between two episodes.
        decay = torch.where(mask, config.int_gamma * config.gae_lambda, 1.0)
        bonus_advantages = torch.where(mask, linear_scan(torch.where(known, delta, 0.0), decay), 0.0)
        buffer.bonus_returns = values + bonus_advantages
        return config.ext_coef * advantages + config.bonus_coef * bonus_advantages, returns  # [T, N]

    def loss(self, network: ActorCritic, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(network, batch)
        seen = self.obs_norm(flat(batch.obs, 1))  # [M, D]
        value_loss = 0.5 * batch.mean((self.bonus_critic(seen).squeeze(-1) - batch.bonus_returns) ** 2)
        first = math.ceil(self.config.predictor_share * len(batch))  # minibatches are shuffled: any will do
        weight = batch.weight[:first]
        distillation = torch.dot(self.surprise(seen[:first]), weight) / reduce(weight.sum()).clamp(min=1e-8)
        metrics |= {"bonus": batch.mean(batch.bonus), "bonus_value_loss": value_loss, "distillation": distillation}
        return loss + self.config.vf_coef * value_loss + distillation, metrics


def after(x: Tensor, mask: Tensor) -> Tensor:
    """`x [T, N]` at the next real row of the same environment, 0 where the rollout holds none; `mask [T, N]`.

    After an end that is the first row of the next episode, as in the authors' code: the final observation itself is in
    no row where environments begin anew within a step.
    """
    found = linear_scan(torch.where(mask, x, 0.0), 1.0 - mask.float())  # at this row or the next real one
    return torch.cat([found[1:], torch.zeros_like(found[:1])])


def flat(obs: Tensor | FrameStacks, lead: int) -> Tensor:
    """Observations as plain numbers `[..., D]`, behind so many leading dimensions; images are flattened."""
    obs = obs if isinstance(obs, Tensor) else torch.stack(obs.unbind())  # frames that are stored once
    return obs.reshape(*obs.shape[:lead], -1).float()


def layers(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them; torch's first weights have biases too, without which a
    random network would tell directions alone."""
    found = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*found[:-1])
