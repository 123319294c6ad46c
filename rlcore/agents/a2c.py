"""Advantage actor-critic, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783, algorithm S3).

    ∇J ≈ E[ ψ_t ∇ log π(a_t|s_t) ],  one update per rollout, with ψ_t one of

    q            R_t = r_t + γ r_{t+1} + ... + γ^n V(s_{t+n})   the n-step estimate of Q(s_t, a_t)
    advantage    R_t − V(s_t), or with λ < 1 the GAE of Schulman et al. 2016, eq. 16
    td_error     δ_t = r_t + γ V(s_{t+1}) − V(s_t)

n runs to the end of the rollout, as in A3C. V is fitted to R_t.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rlcore import estimators
from rlcore.agents.agent import Agent
from rlcore.agents.config import Apart, Config, Count, From0, Lambda, Search, Switch
from rlcore.buffer import Batch, RolloutBuffer
from rlcore.networks import ActorCritic


@dataclass(frozen=True)
class A2CConfig(Config):
    num_envs: Annotated[Count, Search((4, 8, 16))] = 8  # N, environments stepped in parallel
    num_steps: Annotated[Count | None, Search((5, 8, 16, 32, 64, 128))] = (
        5  # T, steps of each environment per rollout and update
    )
    optimizer: Annotated[Literal["adam", "rmsprop"], Search(("rmsprop", "adam"))] = (
        "rmsprop"  # what turns gradients into steps
    )
    learning_rate: Apart[From0] = 7e-4  # step size of the optimiser
    psi: Literal["q", "advantage", "td_error"] = "advantage"  # ψ, the weight of each log-probability
    gae_lambda: Lambda = 1.0  # λ of GAE in ψ = q and advantage; 1 is the n-step return
    norm_adv: Switch = False  # standardise ψ over the rollout
    vf_coef: From0 = 0.5  # weight of the value loss
    ent_coef: Annotated[From0, Search((0.0, 0.001, 0.01, 0.03, 0.1))] = 0.01  # weight of the entropy bonus


class A2C(Agent):
    Config = A2CConfig
    config: A2CConfig

    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, Tensor]:
        cfg, b = self.config, buffer
        lam = 0.0 if cfg.psi == "td_error" else cfg.gae_lambda
        advantages = estimators.gae(
            b.rewards, b.values, b.next_values, b.terminated, b.truncated, cfg.gamma, lam, b.mask
        )  # [T, N]
        returns = torch.where(b.mask, advantages + b.values, 0.0)
        return (returns if cfg.psi == "q" else advantages), returns

    def loss(self, network: ActorCritic, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        cfg = self.config
        policy, values = network(batch.obs)
        psi = batch.standardize(batch.advantages) if cfg.norm_adv else batch.advantages
        weighted = psi * policy.log_prob(batch.actions)  # [M]
        value_error = F.mse_loss(values, batch.returns, reduction="none")
        entropy = policy.entropy()
        loss = batch.mean(-weighted + 0.5 * cfg.vf_coef * value_error - cfg.ent_coef * entropy)
        return loss, {
            "policy_loss": -batch.mean(weighted),
            "value_loss": 0.5 * batch.mean(value_error),
            "entropy": batch.mean(entropy),
        }
