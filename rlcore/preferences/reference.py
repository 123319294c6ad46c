"""How far a policy has gone from a frozen one, its reference."""

import torch
from torch import Tensor

from rlcore.buffer import RolloutBuffer
from rlcore.diagnostics import approx_kl
from rlcore.networks import ActorCritic


@torch.no_grad()
def kl_to_reference(buffer: RolloutBuffer, reference: ActorCritic, estimator: str) -> tuple[Tensor, Tensor]:
    """KL(π ‖ π_ref) of the policy that collected a rollout, at each step.

    Args:
        buffer: the rollout.
        reference: π_ref.
        estimator: at the actions taken, with r = π_ref/π (Schulman 2020, "Approximating KL divergence"): k1 −log r, k2
            (log r)²/2, or k3 r − 1 − log r; the first and the last have no bias, and the last is never negative.

    Returns:
        The estimates and the exact KL, `[T, N]` each, 0 where masked.
    """
    policy, rows = reference.policy(buffer.observations()), buffer.num_envs
    filled = len(policy.params) // rows
    played = buffer.actions, buffer.dist_params, buffer.logprobs
    actions, params, logprobs = (x[:filled].flatten(0, 1) for x in played)
    logratio = policy.log_prob(actions) - logprobs
    estimates = {"k1": -logratio, "k2": logratio.square() / 2, "k3": approx_kl(logratio)}[estimator]
    exact = reference.distribution(params).kl(policy)

    def by_row(x: Tensor) -> Tensor:
        x = torch.cat([x.unflatten(0, (-1, rows)), torch.zeros_like(buffer.rewards[filled:])])
        return torch.where(buffer.mask, x, 0.0)

    return by_row(estimates), by_row(exact)
