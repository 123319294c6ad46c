"""Group relative policy optimisation (DeepSeekMath, Shao et al. 2024, arXiv:2402.03300) for control.

G episodes from the same start form a group; their scores are each other's baseline, and no critic is needed.

    J = 1/G Σ_i 1/|o_i| Σ_t { min(r A, clip(r, 1 − ε, 1 + ε) A) − β KL(π ‖ π_ref) }                         eq. 3
    KL(π ‖ π_ref) ≈ π_ref/π − log(π_ref/π) − 1 at the actions taken                                       eq. 4
    outcome   A_t = (R − mean R) / std R over the group                                               section 4.1.2
    process   A_t = Σ_{j ≥ t} (r_j − mean r) / std r over all steps of the group                      section 4.1.3
    aligned   A_t = (G_t − mean G_t) / std G_t over the members still playing at step t                        ours

Variants are bundles of the same switches, see VARIANTS: Dr. GRPO (Liu et al. 2025, arXiv:2503.20783), DAPO (Yu et al.
2025, arXiv:2503.14476), RLOO (Ahmadian et al. 2024, arXiv:2402.14740), GPG (Chu et al. 2025, arXiv:2504.02546).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from rlcore import estimators
from rlcore.agents.agent import Agent
from rlcore.agents.config import MOST, Above0, Apart, Config, Count, From0, Range, Search, Unit
from rlcore.buffer import Batch, RolloutBuffer
from rlcore.diagnostics import approx_kl, clip_fraction, masked_mean
from rlcore.errors import UsageError
from rlcore.networks import ActorCritic

ON_POLICY = dict(ratio=False, kl_coef=0.0, update_epochs=1, num_minibatches=1)
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": dict(scale_std=False, length_norm="constant", kl_coef=0.0),
    "dapo": dict(clip_coef_high=0.28, length_norm="token", drop_equal_groups=True, kl_coef=0.0),
    "rloo": dict(scale_std=False, leave_one_out=True, length_norm="none", **ON_POLICY),
    "gpg": dict(scale_std=False, length_norm="token", correct_equal_groups=True, **ON_POLICY),
}


@dataclass(frozen=True)
class GRPOConfig(Config):
    whole_episodes: ClassVar[bool] = True

    variant: Literal["grpo", "dr_grpo", "dapo", "rloo", "gpg"] = "grpo"  # bundle of the switches below, as defaults
    num_envs: Annotated[Count, Search((16, 32, 64))] = 32  # N = groups × group_size, episodes per update
    num_steps: Count | None = None  # T, longest episode; none: the environment's time limit
    group_size: Annotated[int, Range(2, MOST), Search((4, 8, 16))] = 8  # G, members that share a start
    learning_rate: Apart[From0] = 1e-3  # step size of the optimiser
    gamma: Annotated[Unit, Search((0.98, 0.99, 0.999, 1.0))] = 1.0  # γ, discount of outcome and reward-to-go
    norm_reward: Annotated[bool, Search()] = False  # divide rewards by the running deviation of the discounted return
    supervision: Annotated[Literal["outcome", "process", "aligned"], Search(("outcome", "aligned"))] = (
        "outcome"  # what a group compares
    )
    scale_std: bool = True  # divide by the group's standard deviation
    leave_one_out: bool = False  # compare with the mean of the other members (outcome only)
    length_norm: Annotated[
        Literal["episode", "token", "batch", "constant", "none"],
        Search(("episode", "token", "constant")),
    ] = "episode"  # steps weigh 1/|o_i|, 1 over the mean of |o_i| in the group or the batch, 1/T, or 1
    ratio: bool = True  # clipped probability ratio; without, the plain policy gradient
    clip_coef: Annotated[Above0, Search((0.1, 0.2, 0.3))] = 0.2  # ε, how far the ratio may fall below 1
    clip_coef_high: Above0 | None = None  # how far it may rise above 1; none: as far
    drop_equal_groups: bool = False  # leave groups without spread out of the mean, instead of averaging in their zeros
    correct_equal_groups: bool = False  # the same by scaling the advantages of the others up (GPG, section 3.3)
    kl_coef: From0 = 0.0  # β, weight of the KL to the reference policy
    reference_every: Apart[Count | None] = None  # iterations after which π_ref becomes the present policy; none: never
    update_epochs: Annotated[Count, Search((2, 4, 8))] = 4  # epochs over each rollout
    num_minibatches: Count = 4  # minibatches per epoch
    target_kl: Above0 | None = None  # KL(old ‖ new) per iteration, in nats; epochs stop at 1.5 times this; none: never
    ent_coef: From0 = 0.0  # weight of the entropy bonus

    @classmethod
    def implied(cls, values: dict[str, Any]) -> dict[str, Any]:
        return VARIANTS.get(values.get("variant", "grpo"), {})

    def check(self) -> None:
        super().check()
        if self.num_envs % self.group_size:
            raise UsageError(f"group_size is {self.group_size}, but must divide num_envs = {self.num_envs}")
        if self.leave_one_out and self.supervision != "outcome":
            raise UsageError(f"leave_one_out is for supervision 'outcome', but supervision is '{self.supervision}'")


class GRPO(Agent):
    Config = GRPOConfig
    config: GRPOConfig
    group_starts = True
    needs_values = False

    @property
    def needs_reference(self) -> bool:
        return bool(self.config.kl_coef) or super().needs_reference

    def anneal(self, remaining: float) -> None:
        super().anneal(remaining)
        every = self.config.reference_every
        if self.config.kl_coef and every and self.iteration and self.iteration % every == 0:
            self.reference.load_state_dict(self.network.state_dict())

    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, Tensor, Tensor]:
        cfg, b, G = self.config, buffer, self.config.group_size
        if cfg.supervision == "outcome":
            advantages = estimators.group_outcome_advantages(
                b.rewards, b.mask, G, cfg.gamma, cfg.scale_std, cfg.leave_one_out
            )
        else:
            step_ends = getattr(b, "step_ends", None)  # of environments that tell where a step of reasoning ends
            step_ends = None if step_ends is None else step_ends | b.terminated | b.truncated  # the outcome is one too
            switches = cfg.scale_std, cfg.supervision == "aligned", cfg.gamma, step_ends
            advantages = estimators.group_process_advantages(b.rewards, b.mask, G, *switches)
        spread = estimators.groups_with_spread(advantages, G)  # [N]
        if cfg.correct_equal_groups:
            smallest = 1 / (len(spread) * self.share.count)
            advantages = advantages / masked_mean(spread.float()).clamp(min=smallest)
        counted = spread if cfg.drop_equal_groups else torch.ones_like(spread)
        return advantages, advantages, estimators.group_step_weights(b.mask, G, cfg.length_norm, counted)

    def loss(self, network: ActorCritic, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        cfg, policy = self.config, network.policy(batch.obs)
        logprobs, advantages = policy.log_prob(batch.actions), batch.advantages
        logratio = logprobs - batch.logprobs
        high = cfg.clip_coef if cfg.clip_coef_high is None else cfg.clip_coef_high
        if cfg.ratio:
            ratio = logratio.exp()  # [M]
            surrogate = torch.min(ratio * advantages, ratio.clamp(1 - cfg.clip_coef, 1 + high) * advantages)
        else:
            surrogate = logprobs * advantages
        entropy = policy.entropy()
        objective = surrogate + cfg.ent_coef * entropy
        metrics = {
            "policy_loss": -batch.mean(surrogate), "entropy": batch.step_mean(entropy),
            "approx_kl": batch.step_mean(approx_kl(logratio)),
            "clip_fraction": batch.step_mean(clip_fraction(logratio, cfg.clip_coef)),
        }  # fmt: skip
        if cfg.kl_coef:
            reference_kl = approx_kl(batch.reference_logprobs - logprobs)
            objective = objective - cfg.kl_coef * reference_kl
            metrics["reference_kl"] = batch.mean(reference_kl)
        return -batch.mean(objective), metrics

    @torch.no_grad()
    def before_steps(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        if self.config.kl_coef:
            batch = batch.replace(reference_logprobs=self.reference.policy(batch.obs).log_prob(batch.actions))
        advantages = batch.advantages.view(-1, self.config.num_envs // self.share.count)  # [T, N]
        spread = estimators.groups_with_spread(advantages, self.config.group_size)
        return batch, {"equal_groups": 1 - masked_mean(spread.float())}
