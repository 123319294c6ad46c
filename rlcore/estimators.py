"""Returns and advantages: pure functions over `[T, N]` tensors.

Two rules hold in all of them. `terminated` alone stops bootstrapping, and either flag stops the trace, so that a
time-out still counts the value of where the episode would have gone on. A slot with `mask` 0 contributes nothing,
whatever stands in it, and nothing flows through it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    lam: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16, with the episode ends told apart).

        δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
        A_t = δ_t + γλ (1 − terminated_t ∨ truncated_t) A_{t+1}

    λ = 0 is the TD error, λ = 1 the Monte Carlo return minus V. The end of the buffer is no case of its own: the last
    row bootstraps from its own `next_values` like any other.

    Args:
        rewards, values, next_values: `[T, N]`; `next_values[t]` is V of the true successor of step t, which for the
            last step of an episode is the final observation and not the one after the reset.
        terminated, truncated: `[T, N]` of bool, how the step ended an episode, if it did.
        gamma: discount γ in [0, 1].
        lam: trace decay λ in [0, 1].
        mask: `[T, N]` of bool, False for padding; None where every slot is a transition.

    Returns:
        Advantages `[T, N]`, 0 where masked.
    """
    delta = rewards + gamma * torch.where(terminated, 0.0, next_values) - values  # [T, N]
    decay = torch.where(terminated | truncated, 0.0, torch.full_like(delta, gamma * lam))
    if mask is not None:
        delta, decay = torch.where(mask, delta, 0.0), torch.where(mask, decay, 0.0)
    return _reverse_scan(delta, decay)


def reward_to_go(
    rewards: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    next_values: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Discounted sum of the rewards from each step to the end of its episode (Sutton & Barto 2018, eq. 3.8).

    Args:
        rewards, terminated, truncated, gamma, mask: as in `gae`.
        next_values: `[T, N]`; where given, an episode that was cut (truncated, or still running at the end of the
            buffer) goes on with V of the true successor. Where None, it counts as over.

    Returns:
        Returns `[T, N]`, 0 where masked.
    """
    last = terminated | truncated
    decay = torch.where(last, 0.0, torch.full_like(rewards, gamma))
    if next_values is not None:
        cut = truncated & ~terminated
        cut[-1] |= ~last[-1]
        rewards = rewards + gamma * torch.where(cut, next_values, 0.0)
    if mask is not None:
        rewards, decay = torch.where(mask, rewards, 0.0), torch.where(mask, decay, 0.0)
    return _reverse_scan(rewards, decay)


def _reverse_scan(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t · y_{t+1}, with y_T = 0."""
    out = torch.empty_like(x)
    running = torch.zeros_like(x[0])
    for x_t, decay_t, out_t in zip(reversed(x.unbind()), reversed(decay.unbind()), reversed(out.unbind()), strict=True):
        running = torch.addcmul(x_t, decay_t, running, out=out_t)
    return out
