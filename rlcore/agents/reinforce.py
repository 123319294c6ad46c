"""REINFORCE (Williams 1992; Sutton & Barto 2018, sections 13.3 and 13.4).

    ∇J = E_τ[ Σ_t ψ_t ∇ log π(a_t|s_t) ]

from whole episodes, with ψ_t one of

    total_return     R(τ) = Σ_k γ^k r_k            the same for every step
    reward_to_go     G_t = Σ_{k ≥ t} γ^(k−t) r_k   what an action cannot have caused is left out
    baseline         G_t − b                       b = V(s_t), learned, or a running mean of G_t without a critic

All three have the same expectation for γ = 1. For γ < 1 the last two follow the discounted return only where
`discount_steps` weights step t by γ^t; without, they follow no function's gradient (Nota & Thomas 2020), as is usual.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from rlcore import estimators
from rlcore.agents.agent import Agent
from rlcore.agents.config import Apart, Config, Count, Count0, From0, Search, Switch, Unit
from rlcore.buffer import Batch, RolloutBuffer
from rlcore.diagnostics import masked_mean
from rlcore.errors import UsageError
from rlcore.networks import ActorCritic


@dataclass(frozen=True)
class REINFORCEConfig(Config):
    whole_episodes: ClassVar[bool] = True

    num_envs: Annotated[Count, Search((4, 8, 16))] = 8  # N, episodes per update
    num_steps: Count | None = None  # T, longest episode; none: the environment's time limit
    learning_rate: Apart[From0] = 3e-3  # step size of the optimiser
    gamma: Annotated[Unit, Search((0.95, 0.98, 0.99, 0.999, 1.0))] = 0.99  # γ, discount
    psi: Annotated[
        Literal["total_return", "reward_to_go", "baseline"],
        Search(("baseline", "total_return")),
    ] = "baseline"  # ψ, the weight of each log-probability
    baseline: Literal["value", "mean"] = "value"  # b of ψ = baseline: V(s), learned, or a running mean of the returns
    baseline_decay: Unit = 0.9  # of the running mean, per iteration
    discount_steps: bool = False  # weight step t by γ^t, which makes the gradient that of the discounted return
    norm_adv: Switch = False  # standardise ψ over the rollout; biased, but no longer sensitive to the scale of rewards
    critic_updates: Count0 = 20  # steps of the critic after each of the policy, where ψ asks for V
    ent_coef: Annotated[From0, Search((0.0, 0.001, 0.01))] = 0.0  # weight of the entropy bonus

    def check(self) -> None:
        super().check()
        if self.psi == "baseline" and self.baseline == "value" and not self.critic_updates:
            raise UsageError("baseline is 'value', which needs a critic, but critic_updates is 0; it may be 'mean'")


class REINFORCE(Agent):
    Config = REINFORCEConfig
    config: REINFORCEConfig

    def __init__(self, env: str | VectorEnv, **hyperparameters: Any):
        super().__init__(env, **hyperparameters)
        self.coefs = {"baseline": 0.0}

    @property
    def needs_values(self) -> bool:
        return self.config.psi == "baseline" and self.config.baseline == "value"

    @property
    def critic_apart(self) -> bool:
        """Whether there is a critic, which is then fitted in steps of its own."""
        return self.needs_values

    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, Tensor, Tensor]:
        cfg, b = self.config, buffer
        returns = estimators.reward_to_go(b.rewards, b.terminated, b.truncated, cfg.gamma, mask=b.mask)  # [T, N]
        if cfg.psi == "total_return":
            psi = estimators.total_return(b.rewards, cfg.gamma, b.mask)
        else:
            psi = returns - self._baseline(b, returns) if cfg.psi == "baseline" else returns
            if cfg.discount_steps:
                psi = psi * cfg.gamma ** torch.arange(len(psi), device=psi.device, dtype=psi.dtype).unsqueeze(-1)
        # A sum over each episode, a mean over episodes.
        episodes = torch.full_like(returns, 1 / (b.num_envs * self.share.count))
        return psi, returns, episodes

    def _baseline(self, buffer: RolloutBuffer, returns: Tensor) -> Tensor | float:
        if self.config.baseline == "value":
            return buffer.values
        before, decay = self.coefs["baseline"], self.config.baseline_decay
        self.coefs["baseline"] = decay * before + (1 - decay) * masked_mean(returns, buffer.mask)
        return before  # of earlier rollouts, so that it does not depend on these actions

    def loss(self, network: ActorCritic, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        cfg = self.config
        policy = network.policy(batch.obs)
        psi = batch.standardize(batch.advantages) if cfg.norm_adv else batch.advantages
        weighted = psi * policy.log_prob(batch.actions)  # [M]
        entropy = policy.entropy()
        loss = -batch.mean(weighted + cfg.ent_coef * entropy)
        return loss, {"policy_loss": -batch.mean(weighted), "entropy": batch.step_mean(entropy)}
