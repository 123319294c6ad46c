"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347).

With r = π(a|s) / π_old(a|s) and the advantage A of GAE (Schulman et al. 2016):

    objective="clip"   L = E[ min(r A, clip(r, 1 − ε, 1 + ε) A) ]                                      eq. 7
    objective="kl"     L = E[ r A − β KL(π_old ‖ π) ],  β doubled or halved to hold KL near its target  eq. 8

and minimised is −L + c₁ E[(V − R)²]/2 − c₂ E[H(π)] (eq. 9), several epochs over each rollout. Batch.mean is the mean
over real transitions; padding has no weight.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.nn import functional as F

from rlcore import estimators
from rlcore.agents.agent import Agent
from rlcore.agents.config import Above0, Config, Count, From0, Lambda, Search, Switch
from rlcore.buffer import Batch, RolloutBuffer
from rlcore.diagnostics import approx_kl, clip_fraction
from rlcore.networks import ActorCritic
from rlcore.tracing import reduce


@dataclass(frozen=True)
class PPOConfig(Config):
    num_envs: Annotated[Count, Search((4, 8, 16))] = 4  # N, environments stepped in parallel
    num_steps: Annotated[Count | None, Search((32, 64, 128, 256, 512))] = (
        128  # T, steps of each environment per rollout; none: the environment's time limit
    )
    gae_lambda: Lambda = 0.95  # λ of GAE; 0 is the TD error, 1 the Monte Carlo advantage
    num_minibatches: Annotated[Count, Search((1, 4, 8, 16))] = 4  # minibatches per epoch, shuffled anew
    update_epochs: Annotated[Count, Search((4, 10, 20))] = 4  # K, epochs over each rollout
    target_kl: Above0 | None = None  # KL(old ‖ new) per iteration, in nats; epochs stop at 1.5 times this; none: never
    norm_adv: bool = True  # standardise the advantages of each minibatch
    objective: Literal["clip", "kl"] = "clip"  # clipped surrogate (eq. 7) or adaptive KL penalty (eq. 8)
    clip_coef: Annotated[Above0, Search((0.1, 0.2, 0.3))] = (
        0.2  # ε, how far the ratio may leave 1; of the value clipping too
    )
    anneal_clip: bool = False  # lower ε linearly to 0 over the run
    clip_vloss: Switch = True  # keep the new value within ε of the old one in the value loss
    vf_coef: From0 = 0.5  # c₁, weight of the value loss
    ent_coef: Annotated[From0, Search((0.0, 0.001, 0.01))] = 0.01  # c₂, weight of the entropy bonus
    kl_coef: From0 = 1.0  # β of objective "kl" at the start; adapted to hold target_kl where that is set


class PPO(Agent):
    Config = PPOConfig
    config: PPOConfig

    def __init__(self, env: str | VectorEnv, **hyperparameters: Any):
        super().__init__(env, **hyperparameters)
        self.coefs |= {"clip_coef": self.config.clip_coef, "kl_coef": self.config.kl_coef}

    def anneal(self, remaining: float) -> None:
        super().anneal(remaining)
        if self.config.anneal_clip:
            self.coefs["clip_coef"] = self.config.clip_coef * remaining

    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, Tensor]:
        advantages = estimators.gae(
            buffer.rewards, buffer.values, buffer.next_values, buffer.terminated, buffer.truncated,
            self.config.gamma, self.config.gae_lambda, buffer.mask,
        )  # fmt: skip
        return advantages, advantages + buffer.values  # [T, N]

    def loss(self, network: ActorCritic, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        cfg, clip = self.config, self.coefs["clip_coef"]
        policy, values = network(batch.obs)
        advantages = batch.standardize(batch.advantages) if cfg.norm_adv else batch.advantages
        logratio = policy.log_prob(batch.actions) - batch.logprobs
        ratio = logratio.exp()  # [M]

        if cfg.objective == "clip":
            surrogate = torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
        else:
            old = network.distribution(batch.dist_params)
            surrogate = ratio * advantages - self.coefs["kl_coef"] * old.kl(policy)

        value_error = F.mse_loss(values, batch.returns, reduction="none")
        if cfg.clip_vloss:
            clipped = batch.values + (values - batch.values).clamp(-clip, clip)
            value_error = torch.max(value_error, F.mse_loss(clipped, batch.returns, reduction="none"))

        entropy = policy.entropy()
        loss = batch.mean(-surrogate + 0.5 * cfg.vf_coef * value_error - cfg.ent_coef * entropy)
        with torch.no_grad():
            metrics = {
                "policy_loss": -batch.mean(surrogate),
                "value_loss": 0.5 * batch.mean(value_error),
                "entropy": batch.mean(entropy),
                "approx_kl": batch.mean(approx_kl(logratio)),
                "clip_fraction": batch.mean(clip_fraction(logratio, clip)),
            }
        return loss, metrics

    @property
    def stops_early(self) -> bool:
        return self.config.objective == "clip" and super().stops_early  # "kl" has β to hold KL near its target

    def after_steps(self, batch: Batch) -> dict[str, Tensor]:
        adapts = self.config.objective == "kl" and self.config.target_kl is not None
        return {"kl": self._adapt_kl_coef(batch)} if adapts else {}

    @torch.no_grad()
    def _adapt_kl_coef(self, batch: Batch) -> Tensor:
        """β ← 2β where KL > 1.5 d_targ, β/2 where KL < d_targ/1.5 (section 4); returns the KL.

        The paper sets no bounds; here β stays within a factor 1,024 of its start, or long quiet stretches would take
        it so low that it could not come back in time.
        """
        batch = batch.take(batch.units())
        kl = reduce(batch.mean(self.network.distribution(batch.dist_params).kl(self.network.policy(batch.obs))))
        start, target = self.config.kl_coef, self.config.target_kl
        factor = torch.where(kl > 1.5 * target, 2.0, torch.where(kl < target / 1.5, 0.5, 1.0))
        self.coefs["kl_coef"] = (self.coefs["kl_coef"] * factor).clamp(start / 1024, start * 1024)
        return kl
