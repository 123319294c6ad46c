"""The rewards stage: what stands between the rewards of an environment and an estimator."""

from __future__ import annotations

import collections
import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlcore.agents import setup
from rlcore.buffer import RolloutBuffer
from rlcore.preferences.data import Preferences
from rlcore.preferences.reference import kl_to_reference
from rlcore.preferences.sampling import pairs_of
from rlcore.storage.checkpoint import stored_count
from rlcore.tracing import reduce

if TYPE_CHECKING:
    from rlcore.agents.agent import Agent
    from rlcore.agents.rewardmodel import RewardModel

CANDIDATES = 4  # pairs, of which the one is asked about on which the ensemble differs most
STEPS_PER_COMPARISON = 1  # of gradient of the reward model
NEVER = 10**12  # rows after which its learning rate were 0


def predict(agent: Agent, buffer: RolloutBuffer) -> dict[str, Tensor]:
    """The mean of what the members of a reward model say, in the place of rewards, less a multiple of their standard
    deviation (Coste et al. 2023, arXiv:2310.02743, section 3.2); metrics."""
    said = agent.reward_model.of_rollout(buffer)  # [M, T, N]
    mean, std = said.mean(0), said.std(0, correction=0)
    buffer.rewards = mean - agent.config.reward_std_coef * std
    episodes = _episodes(buffer)
    return {"predicted_return": reduce(mean.sum()) / episodes, "predicted_std": reduce(std.sum()) / episodes}


def charge_kl(agent: Agent, buffer: RolloutBuffer) -> dict[str, Tensor]:
    """Rewards less β KL(π ‖ π_ref) (Ziegler et al. 2019, arXiv:1909.08593, eq. 2), and β adapted to a target (its
    section 2.2); metrics."""
    config, coefs = agent.config, agent.coefs
    kl, exact = kl_to_reference(buffer, agent.reference, config.reward_kl_estimator)
    buffer.rewards = buffer.rewards - coefs["reward_kl_coef"] * kl
    per_episode = reduce(exact.sum()) / _episodes(buffer)
    coef = torch.zeros_like(per_episode) + coefs["reward_kl_coef"]
    if config.reward_kl_target is not None:
        error = (per_episode / config.reward_kl_target - 1).clamp(-0.2, 0.2)
        coefs["reward_kl_coef"] = coefs["reward_kl_coef"] * (1 + 0.1 * error)
    return {"reference_kl": per_episode, "reward_kl_coef": coef}


def _episodes(buffer: RolloutBuffer) -> Tensor:
    """How many ended in the rollout, at least 1."""
    return reduce(((buffer.terminated | buffer.truncated) & buffer.mask).sum()).clamp(min=1)


class Queries:
    """Asks which of two segments of what an agent played is better, and lets its reward model learn from the answers on
    the way (Christiano et al. 2017, section 2.2, arXiv:1706.03741). The answers are those of an oracle that knows the
    rewards. A quarter is asked at the beginning, the rest until three quarters of the run are over, in each rollout at
    most so many that no row is seen more than twice.

    Args:
        agent: whose rollouts are asked about; has the `reward_model`, and is given what that has learned.
        model: the RewardModel, which keeps the pairs that it has.

    Attributes:
        asked: how many pairs were asked about; they are the last of the model's.
        length: rows of a segment, as many as the model takes and a rollout has.
    """

    def __init__(self, agent: Agent, model: RewardModel):
        self.agent, self.model, self.asked = agent, model, 0
        self.length = min(model.config.num_steps, agent.config.num_steps)
        model.engine.go_on("python")

    def ask(self, progress: float) -> dict[str, float]:
        """Ask what is due after such a share of the run about the rollout in the agent's buffer, whose rewards are
        still the environment's own, and let the model learn; metrics."""
        count, rows = self.agent.config.comparisons, int(self.agent.buffer.mask.sum())
        due = math.ceil(min(count, count * (0.25 + progress))) - self.asked
        due = min(due, max(rows // self.length, 1))
        if due > 0:
            self._learn_from(self._most_doubtful(due))
        return {"comparisons": float(self.asked)}

    def _most_doubtful(self, due: int) -> Preferences:
        """The pairs of which the members think least alike, out of some drawn at random."""
        agent, config = self.agent, self.agent.config
        length = None if config.whole_episodes and self.length == config.num_steps else self.length
        group_size = config.group_size if agent.group_starts else 1
        pairs = pairs_of(agent.buffer, due * CANDIDATES, length, group_size, generator=agent.generator)
        doubt = self.model.compare(pairs).sigmoid().std(0, correction=0)
        return pairs[doubt.topk(due).indices]

    def _learn_from(self, answers: Preferences) -> None:
        model, self.asked = self.model, self.asked + len(answers)
        known = [] if model.pairs is None and model.config.preferences is None else [setup.pairs(model)]
        self._hand_over(Preferences.join([*(pairs.to(self.agent.device) for pairs in known), answers]))
        steps = itertools.islice(model.iterations(NEVER), len(answers) * STEPS_PER_COMPARISON)
        collections.deque(steps, maxlen=0)
        self.agent.reward_model.load_state_dict(model.network.state_dict())

    def _hand_over(self, pairs: Preferences) -> None:
        self.model.pairs, self.model.collector.segments = pairs, None

    def state_dict(self) -> dict[str, Any]:
        """The model and its pairs."""
        pairs = {"pairs": self.model.pairs.state_dict()} if self.asked else {}
        return {"model": self.model.state_dict(), "asked": self.asked, **pairs}

    def load_state_dict(self, state: Any) -> None:
        """Go on where `state_dict` was taken; a ValueError where it does not fit."""
        if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
            raise ValueError("its part 'queries' is missing or of another kind")
        self.model.load_state_dict(state["model"])
        self.asked = stored_count(state, "asked")
        if self.asked:
            buffer = self.agent.buffer
            pairs = Preferences.from_state(state.get("pairs"), buffer.obs, buffer.actions)
            self._hand_over(pairs.to(self.agent.device))
