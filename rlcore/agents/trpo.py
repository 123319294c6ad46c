"""Trust region policy optimisation (Schulman et al. 2015, arXiv:1502.05477).

    maximise  L(θ) = E[ π_θ(a|s)/π_old(a|s) A ]   subject to   E[ KL(π_old ‖ π_θ) ] ≤ δ                    eq. 14

The step is x = F⁻¹ g by conjugate gradient, with g = ∇L and F the Fisher information, the Hessian of the KL at θ_old,
met only in products F v (appendix C). Its length is the longest for which ½ xᵀF x ≤ δ, shortened until the KL itself
keeps the bound and L has improved. The critic is fitted apart, by gradient steps on (V − R)².
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rlcore import estimators
from rlcore.agents.agent import Agent
from rlcore.agents.config import Above0, Apart, Config, Count, From0, Lambda, Range, Search
from rlcore.buffer import Batch, RolloutBuffer
from rlcore.networks import ActorCritic
from rlcore.optim import conjugate_gradient, flat
from rlcore.tracing import loop, reduce, reduce_each, twice_differentiated


@dataclass(frozen=True)
class TRPOConfig(Config):
    num_envs: Annotated[Count, Search((2, 4, 8, 16))] = 8  # N, environments stepped in parallel
    num_steps: Annotated[Count | None, Search((128, 256, 512, 1024))] = (
        128  # T, steps of each environment per rollout; none: the environment's time limit
    )
    learning_rate: Apart[From0] = 1e-3  # step size of the critic's optimiser
    gae_lambda: Lambda = 0.95  # λ of GAE; 0 is the TD error, 1 the Monte Carlo advantage
    norm_adv: bool = True  # standardise the advantages over the rollout
    max_kl: Annotated[Above0, Search((0.01, 0.02, 0.03, 0.05))] = 0.01  # δ, bound on the mean KL of a step, in nats
    cg_iterations: Count = 15  # of conjugate gradient
    cg_damping: Annotated[From0, Search((0.001, 0.01, 0.1))] = 0.1  # added to F's diagonal, for conjugate gradient only
    fisher_fraction: Annotated[float, Range(0, 1, closed=False)] = 1.0  # share of the rollout from which F is computed
    line_search_steps: Count = 10  # tries at most
    line_search_decay: Annotated[float, Range(0, 1, closed=False)] = 0.8  # factor of the step from one try to the next
    num_minibatches: Annotated[Count, Search((4, 8, 16))] = 4  # of the critic's updates
    update_epochs: Annotated[Count, Search((5, 10, 20))] = 10  # of the critic, over each rollout


class TRPO(Agent):
    Config = TRPOConfig
    config: TRPOConfig
    critic_apart = True

    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, Tensor]:
        b, cfg = buffer, self.config
        advantages = estimators.gae(
            b.rewards, b.values, b.next_values, b.terminated, b.truncated, cfg.gamma, cfg.gae_lambda, b.mask
        )
        return advantages, advantages + b.values  # [T, N]

    def loss(self, network: ActorCritic, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        value_loss = 0.5 * batch.mean(F.mse_loss(network.value(batch.obs), batch.returns, reduction="none"))
        return value_loss, {"value_loss": value_loss}

    def before_steps(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        whole = batch.take(batch.units())
        return batch, self.policy_step(whole.replace(advantages=self._advantages(whole)))

    def _advantages(self, batch: Batch) -> Tensor:
        return batch.standardize(batch.advantages) if self.config.norm_adv else batch.advantages

    def surrogate(self, batch: Batch) -> Tensor:
        """L(θ) with the parameters as they are; of several processes, what this one has of the sum."""
        policy = self.network.policy(batch.obs)
        return batch.mean((policy.log_prob(batch.actions) - batch.logprobs).exp() * batch.advantages)

    def policy_step(self, batch: Batch) -> dict[str, Tensor]:
        """Move the policy along the natural gradient, as far as the bound and the line search allow."""
        cfg, parameters = self.config, self.network.policy_parameters()
        before = self.surrogate(batch)
        gradient, before = reduce_each([flat(torch.autograd.grad(before, parameters)), before])
        # Conjugate gradient is no `loop`: its products share a graph of derivatives, which each turn would make anew.
        fisher = self.fisher_product(batch)
        direction = conjugate_gradient(lambda v: fisher(v) + cfg.cg_damping * v, gradient, cfg.cg_iterations)
        curvature = direction @ fisher(direction)
        full = direction * torch.sqrt(2 * cfg.max_kl / curvature.clamp(min=1e-12))
        kl, gain, scale = self._line_search(batch, parameters, full, before.detach())
        entropy = reduce(batch.mean(self.network.policy(batch.obs).entropy()).detach())
        return {"policy_loss": -gain, "kl": kl, "step_scale": scale, "entropy": entropy}

    def fisher_product(self, batch: Batch):
        """A function v -> F v with F the Hessian of the mean KL at the present parameters."""
        every = self.sampler.every(batch, round(1 / self.config.fisher_fraction), self.buffer.num_envs)
        part = batch.take(every)
        parameters = self.network.policy_parameters()
        with twice_differentiated():
            policy = self.network.policy(part.obs)
        kl = part.mean(self.network.distribution(policy.params.detach()).kl(policy))
        slope = flat(torch.autograd.grad(kl, parameters, create_graph=True))
        return lambda v: reduce(flat(torch.autograd.grad(slope @ v, parameters, retain_graph=True)))

    @torch.no_grad()
    def _line_search(self, batch: Batch, parameters: Sequence[Tensor], full: Tensor, before: Tensor):
        """Shorten the step until KL ≤ δ and L has grown; gives KL, gain in L and scale, zeros if it never does."""
        start, old, cfg = flat(parameters).clone(), self.network.distribution(batch.dist_params), self.config
        scales = (cfg.line_search_decay ** torch.arange(cfg.line_search_steps, device=start.device).double()).float()

        def attempt(_: Any, scale: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            self.parameters.write(start + scale * full, self.network.policy_parameters())
            kl, new = reduce_each([batch.mean(old.kl(self.network.policy(batch.obs))), self.surrogate(batch)])
            gain = new - before
            return {"found": (kl <= cfg.max_kl) & (gain > 0), "result": torch.stack([kl, gain, scale])}, kl

        carry = {"found": torch.zeros_like(scales[0], dtype=torch.bool), "result": torch.zeros(3, device=start.device)}
        carry, *_ = loop(attempt, carry, scales, until=lambda carry: carry["found"])
        kl, gain, scale = torch.where(carry["found"], carry["result"], 0.0).unbind()
        taken = torch.where(carry["found"], start + scale * full, start)
        self.parameters.write(taken, self.network.policy_parameters())
        return kl, gain, scale
