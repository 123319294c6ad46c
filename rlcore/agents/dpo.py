"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290): preferences without a reward model.

Of two segments (responses, stretches of an episode), one preferred to the other, with h the difference of

    Σ_t γ^t log( π(a_t|s_t) / π_ref(a_t|s_t) )    between the two, over the steps of each:

    dpo   −log σ(β h)                                                                                    eq. 7
          with label smoothing ε, −(1 − ε) log σ(β h) − ε log σ(−β h)      cDPO (Mitchell 2023)
    ipo   (h − 1/(2β))²                                             Azar et al. 2023, arXiv:2310.12036, eq. 17
    cpl   −log σ(β h_λ), without π_ref, discounted, with λ times the sum of the segment that was not preferred
                                                                  Hejna et al. 2023, arXiv:2310.13639, eq. 5
There are no rollouts: the buffer holds pairs, environment 2k the first of a pair and 2k + 1 the second.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from rlcore.agents.agent import Agent
from rlcore.agents.config import Above0, Apart, Config, Count, From0, Range, Unit
from rlcore.buffer import Batch, RolloutBuffer
from rlcore.errors import UsageError
from rlcore.networks import ActorCritic
from rlcore.preferences.bradley_terry import accuracy, cross_entropy

OBJECTIVES: dict[str, dict[str, Any]] = {"dpo": {}, "ipo": {}, "cpl": dict(gamma=0.99, use_reference=False, bias=0.5)}


@dataclass(frozen=True)
class DPOConfig(Config):
    whole_episodes: ClassVar[bool] = True
    held_out: ClassVar[float] = 0.0  # all pairs are learned from

    objective: Literal["dpo", "ipo", "cpl"] = "dpo"  # which loss; cpl implies other defaults of the switches below
    preferences: Apart[str | None] = None  # file of pairs, a line of JSON each
    num_envs: Count = 64  # N, segments per step: N / 2 pairs
    num_steps: Count | None = None  # T, most rows of a segment; none: as long as they are
    learning_rate: Apart[From0] = 3e-4  # step size of the optimiser
    beta: Above0 = 0.1  # β, how little the policy may go away from the reference
    gamma: Unit = 1.0  # γ, discount of later steps in a segment
    label_smoothing: Annotated[float, Range(0, 0.5)] = 0.0  # ε, the probability that a label is wrong
    use_reference: bool = True  # compare with π_ref
    bias: Unit = 1.0  # λ, weight of the segment that was not preferred

    @classmethod
    def implied(cls, values: dict[str, Any]) -> dict[str, Any]:
        return OBJECTIVES.get(values.get("objective", "dpo"), {})

    def check(self) -> None:
        super().check()
        if self.num_envs % 2:
            raise UsageError(f"num_envs is {self.num_envs}, but must be even, two for each pair")


class DPO(Agent):
    Config = DPOConfig
    config: DPOConfig
    learns_from = "pairs"
    needs_values = False

    @property
    def needs_reference(self) -> bool:
        return self.config.use_reference or super().needs_reference

    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, Tensor]:
        steps = torch.arange(buffer.num_steps, device=buffer.device).unsqueeze(1)
        discount = torch.where(buffer.mask, self.config.gamma**steps, 0.0)
        return discount, discount  # in the place of advantages: how much a step's log-probability counts

    def loss(self, network: ActorCritic, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        cfg, logprobs = self.config, network.policy(batch.obs).log_prob(batch.actions)
        logratio = logprobs - batch.reference_logprobs if cfg.use_reference else logprobs  # [T · N]
        sums = torch.where(batch.mask, batch.advantages * logratio, 0.0).view(-1, cfg.num_envs).sum(0)
        first, second = sums.view(-1, 2).unbind(1)  # [N / 2]
        label = batch.preference.view(-1, cfg.num_envs)[0, ::2]
        won, lost = first - cfg.bias * second, second - cfg.bias * first  # h if the first is preferred, and if not
        if cfg.objective == "ipo":
            losses = (1 - label) * (lost - 0.5 / cfg.beta) ** 2 + label * (won - 0.5 / cfg.beta) ** 2
        else:
            losses = cross_entropy(cfg.beta * won, cfg.beta * lost, label, cfg.label_smoothing)
        with torch.no_grad():
            sign, margin = 2 * label - 1, cfg.beta * (first - second)
            metrics = {"reward_margin": (sign * margin).sum() / sign.abs().sum().clamp(min=1),
                       "reward_accuracy": accuracy(margin, label)}  # fmt: skip
            if cfg.use_reference:
                metrics["reference_logratio"] = batch.step_mean(logratio)
        return losses.mean(), metrics

    @torch.no_grad()
    def before_steps(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        if self.config.use_reference:
            batch = batch.replace(reference_logprobs=self.reference.policy(batch.obs).log_prob(batch.actions))
        return batch, {}
