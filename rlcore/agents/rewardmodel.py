"""A reward model (Christiano et al. 2017, arXiv:1706.03741): what a step is worth, from which segment was preferred.

    P = σ( Σ_t r(s_t, a_t) over the first − Σ_t r(s_t, a_t) over the second )                              eq. 1
    L = −E[ y log P + (1 − y) log(1 − P) ]    y: 1 where the first is preferred, 0 the second, ½ neither

Each of an ensemble learns so by itself. Another agent that is given the model learns from the mean of what they say in
the place of rewards. There are no rollouts: the buffer holds pairs, environment 2k the first of one and 2k + 1 the
second.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NoReturn

import torch
from torch import Tensor

from rlcore.agents.agent import Agent
from rlcore.agents.config import Apart, Config, Count, From0, Range
from rlcore.agents.evaluation import Evaluation
from rlcore.buffer import Batch, RolloutBuffer
from rlcore.errors import UsageError
from rlcore.networks import Torso
from rlcore.networks.reward import RewardNetwork
from rlcore.preferences.bradley_terry import Reliability, accuracy, cross_entropy, reliability
from rlcore.preferences.data import Preferences

LOOK_EVERY = 10  # iterations from one look at the pairs held out to the next


@dataclass(frozen=True)
class RewardModelConfig(Config):
    whole_episodes: ClassVar[bool] = True

    preferences: Apart[str | None] = None  # file of pairs, a line of JSON each
    num_envs: Count = 64  # N, segments per step: N / 2 pairs
    num_steps: Count | None = None  # T, most rows of a segment; none: as long as they are
    learning_rate: Apart[From0] = 1e-3  # step size of the optimiser
    shared: bool | None = True  # there is no critic
    ensemble: Count = 3  # M, networks that differ by their first weights
    label_smoothing: Annotated[float, Range(0, 0.5)] = 0.0  # the probability that a label is wrong
    held_out: Apart[Annotated[float, Range(0.01, 0.9)]] = 0.1  # share of the pairs that is only measured on

    def check(self) -> None:
        super().check()
        if self.num_envs % 2:
            raise UsageError(f"num_envs is {self.num_envs}, but must be even, two for each pair")


class RewardModel(Agent):
    Config = RewardModelConfig
    config: RewardModelConfig
    network: Any  # a RewardNetwork
    learns_from = "pairs"
    scored_by = ("accuracy", "pairs held out")
    needs_values = False

    def make_network(self, torso: Torso | None) -> RewardNetwork:
        return RewardNetwork(partial(super().make_network, torso), self.config.ensemble)

    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros_like(buffer.rewards)
        return nothing, nothing

    def loss(self, network: RewardNetwork, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        rewards = torch.where(batch.mask, network(batch.obs, batch.actions), 0.0)  # [M, T · N]
        sums = rewards.unflatten(1, (-1, self.config.num_envs)).sum(1)
        first, second = sums.unflatten(1, (-1, 2)).unbind(2)  # [M, N / 2]
        label, h = batch.preference.view(-1, self.config.num_envs)[0, ::2], first - second
        losses = cross_entropy(h, -h, label, self.config.label_smoothing)
        with torch.no_grad():
            metrics = {"accuracy": accuracy(h.mean(0), label), "disagreement": h.std(0, correction=0).mean()}
        return losses.mean(1).sum(), metrics

    def iterations(self, total_steps: int) -> Iterator[tuple[dict[str, float], Any]]:
        """As of every agent; each tenth has metrics of the pairs held out."""
        for metrics, episodes in super().iterations(total_steps):
            if self.iteration % LOOK_EVERY == 0:
                seen = self.reliability()
                metrics["held_out_accuracy"], metrics["held_out_loss"] = seen.accuracy, seen.loss
                metrics["calibration_error"] = seen.calibration_error
            yield metrics, episodes

    def compare(self, pairs: Preferences) -> Tensor:
        """By how much the first of each of P pairs is better, as each member says: `[M, P]`, the h of P = σ(h)."""
        first, second = (self.network.of_segments(side.to(self.device)) for side in (pairs.first, pairs.second))
        return first - second

    def reliability(self, pairs: Preferences | None = None) -> Reliability:
        """How far what it says can be believed: accuracy, loss and calibration on the pairs held out, or on others."""
        pairs = self.collector.held_out_pairs() if pairs is None else pairs
        return reliability(self.compare(pairs).mean(0), pairs.label.to(self.device))

    def evaluate(
        self, episodes: int = 100, seed: int | None = None, deterministic: bool = True, env: Any = None,
        max_steps: int = 1_000_000,
    ) -> Evaluation:  # fmt: skip
        """In the place of returns, 1 for each pair held out whose better one is told and 0 for others, so that their
        mean is the accuracy, with the rows that both have; the first so many of them as there are to be `episodes`."""
        pairs = self.collector.held_out_pairs()
        pairs = pairs[(pairs.label != 0.5).nonzero().squeeze(1)[:episodes]]
        right = self.compare(pairs).mean(0).cpu() * (pairs.label.cpu() - 0.5) > 0
        rows = pairs.first.mask.sum(1) + pairs.second.mask.sum(1)
        return Evaluation(right.double().numpy(), rows.cpu().numpy())

    def act(self, *_: Any, **__: Any) -> NoReturn:
        """A UsageError: it has no policy."""
        raise UsageError("a reward model does not act; give it to an agent, reward_model=...")
