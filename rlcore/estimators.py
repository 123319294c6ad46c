"""Returns and advantages: pure functions over `[T, N]` tensors.

Two rules hold in all of them. `terminated` alone stops bootstrapping, and either flag stops the trace, so that a
time-out still counts the value of where the episode would have gone on. A slot with `mask` 0 contributes nothing,
whatever stands in it, and nothing flows through it.
"""

import torch
from torch import Tensor

from rlcore.tracing import is_recording, reduce


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

    Two steps of one environment, the second of which ends the episode, by termination and by truncation:

    >>> reward, value, next_value = torch.ones(2, 1), torch.zeros(2, 1), torch.full((2, 1), 10.0)
    >>> over, never = torch.tensor([[False], [True]]), torch.zeros(2, 1, dtype=torch.bool)
    >>> gae(reward, value, next_value, over, never, gamma=0.5, lam=0.0).flatten()
    tensor([6., 1.])
    >>> gae(reward, value, next_value, never, over, gamma=0.5, lam=0.0).flatten()
    tensor([6., 6.])
    """
    delta = rewards + gamma * torch.where(terminated, 0.0, next_values) - values  # [T, N]
    decay = torch.where(terminated | truncated, 0.0, torch.full_like(delta, gamma * lam))
    if mask is not None:
        delta, decay = torch.where(mask, delta, 0.0), torch.where(mask, decay, 0.0)
    return linear_scan(delta, decay)


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
        rewards, terminated, truncated, gamma, mask: as in `gae`, `[T, N]` the tensors.
        next_values: `[T, N]`; where given, an episode that was cut (truncated, or still running at the end of the
            buffer) goes on with V of the true successor. Where None, it counts as over.

    Returns:
        Returns `[T, N]`, 0 where masked.

    >>> rewards, ends = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[False], [True], [False]])
    >>> reward_to_go(rewards, ends, torch.zeros_like(ends), gamma=0.5).flatten()
    tensor([2., 2., 4.])
    """
    last = terminated | truncated
    decay = torch.where(last, 0.0, torch.full_like(rewards, gamma))
    if next_values is not None:
        cut = truncated & ~terminated
        cut = torch.cat([cut[:-1], (cut[-1] | ~last[-1]).unsqueeze(0)])
        rewards = rewards + gamma * torch.where(cut, next_values, 0.0)
    if mask is not None:
        rewards, decay = torch.where(mask, rewards, 0.0), torch.where(mask, decay, 0.0)
    return linear_scan(rewards, decay)


def total_return(rewards: Tensor, gamma: float, mask: Tensor | None = None) -> Tensor:
    """Discounted return Σ_t γ^t r_t of a whole episode, `[T, N]`: the same at each of its steps, 0 where
    masked (Williams 1992).

    Args:
        rewards: `[T, N]` of one episode per environment, from row 0 on.
        gamma, mask: as in `gae`; `mask [T, N]`.
    """
    rewards = rewards if mask is None else torch.where(mask, rewards, 0.0)
    powers = gamma ** torch.arange(len(rewards), device=rewards.device, dtype=rewards.dtype).unsqueeze(-1)  # [T, 1]
    total = (rewards * powers).sum(0).expand_as(rewards)
    return total.clone() if mask is None else torch.where(mask, total, 0.0)


def group_outcome_advantages(
    rewards: Tensor, mask: Tensor, group_size: int, gamma: float = 1.0, scale: bool = True, leave_one_out: bool = False
) -> Tensor:
    """Outcome supervision of GRPO (Shao et al. 2024, section 4.1.2): Â = (R − mean_group) / std_group at every step.

    Args:
        rewards: `[T, N]` of one episode per environment, from row 0 on; environment n belongs to group n // G.
        mask: `[T, N]` of bool, False for padding.
        group_size: G, at least 2; divides N.
        gamma: discount of the outcome R = Σ_t γ^t r_t; 1 in the paper.
        scale: divide by the group's standard deviation; False is Dr. GRPO (Liu et al. 2025, section 3.2).
        leave_one_out: compare with the mean of the other members (RLOO, Ahmadian et al. 2024, eq. 8).

    Returns:
        Advantages `[T, N]`, 0 where masked and in groups whose scores are all equal.

    >>> scores, mask = torch.tensor([[1.0, 3.0, 5.0, 5.0]]), torch.ones(1, 4, dtype=torch.bool)
    >>> group_outcome_advantages(scores, mask, group_size=2)
    tensor([[-1.,  1.,  0.,  0.]])
    """
    outcome = total_return(rewards, gamma, mask)[0]  # row 0 is real in every episode
    scores = _by_group(outcome, group_size)  # [groups, G]
    centred = _centred(scores, torch.ones_like(scores, dtype=torch.bool))
    if leave_one_out:
        centred = centred * group_size / (group_size - 1)
    if scale:
        centred = centred / (centred.pow(2).mean(-1, keepdim=True).sqrt() + 1e-8)
    return torch.where(mask, centred.flatten().expand_as(rewards), 0.0)


def group_process_advantages(
    rewards: Tensor,
    mask: Tensor,
    group_size: int,
    scale: bool = True,
    aligned: bool = False,
    gamma: float = 1.0,
    step_ends: Tensor | None = None,
) -> Tensor:
    """Process supervision of GRPO (Shao et al. 2024, section 4.1.3), or its step-aligned form.

    The paper's form normalises each step reward over all steps of all members, then sums: Â_t = Σ_{j ≥ t} r̃_j, which is
    0 where every step pays the same, as in CartPole. A step of reasoning may take several rows (tokens); its reward is
    at the last of them, and each row has the sum over the steps that end there or later. The aligned form normalises
    the reward-to-go at each step t over the members that are still playing at t.

    Args:
        rewards, mask: `[T, N]`, as in `group_outcome_advantages`.
        group_size, scale: as there.
        aligned: the step-aligned form.
        gamma: discount of the reward-to-go, in the aligned form only.
        step_ends: `[T, N]` of bool, rows with which a step of reasoning ends, in the paper's form only: index(j) there;
            None: every row is a step.

    Returns:
        Advantages `[T, N]`, 0 where masked and where all that is compared is equal.
    """
    zeros = torch.zeros_like(mask)
    steps = mask if aligned or step_ends is None else mask & step_ends
    to_go = reward_to_go(rewards, zeros, zeros, gamma, mask=mask) if aligned else torch.where(steps, rewards, 0.0)
    grouped, real = _by_group(to_go, group_size), _by_group(steps, group_size)  # [T, groups, G]
    if not aligned:  # statistics over all steps of the group: [groups, T · G]
        grouped, real = (x.transpose(0, 1).flatten(1) for x in (grouped, real))
    centred = _centred(grouped, real)
    if scale:
        count = real.sum(-1, keepdim=True).clamp(min=1)
        centred = centred / ((centred.pow(2).sum(-1, keepdim=True) / count).sqrt() + 1e-8)
    if aligned:
        return centred.flatten(1)
    normalised = centred.unflatten(1, (len(rewards), group_size)).transpose(0, 1).flatten(1)  # [T, N]
    return reward_to_go(normalised, zeros, zeros, 1.0, mask=mask)


def groups_with_spread(advantages: Tensor, group_size: int) -> Tensor:
    """Whether each environment's group compares anything: `[N]` bool, False where all its `advantages [T, N]` are 0; in
    DAPO's "dynamic sampling" others take the place of such groups (Yu et al. 2025, section 3.2)."""
    groups = _by_group((advantages != 0).any(0), group_size).any(-1)
    return groups.repeat_interleave(group_size)


def group_step_weights(mask: Tensor, group_size: int, length_norm: str, counted: Tensor | None = None) -> Tensor:
    """The share of each step in a loss over groups of episodes: a mean over members of normalised sums over steps, all
    processes together.

    Args:
        mask: `[T, N]` of bool; |o_i| is its sum over column i.
        group_size: G.
        length_norm: what the sum over the steps of episode i is divided by: "episode" |o_i| (GRPO, Shao et al. 2024,
            eq. 3), "token" the mean length of its group (DAPO, Yu et al. 2025, eq. 8), "batch" that of all episodes
            that are counted (as libraries for language models have it), "constant" T (Dr. GRPO, Liu et al. 2025),
            "none" 1 (RLOO, Ahmadian et al. 2024).
        counted: `[N]` of bool, the episodes over which the mean is taken; None takes all.

    Returns:
        Weights `[T, N]`, 0 where masked or not counted.
    """
    lengths = mask.sum(0).clamp(min=1).float()  # |o_i|, [N]
    counted = torch.ones_like(mask[0]) if counted is None else counted
    episodes = reduce(counted.sum()).clamp(min=1)
    steps = {
        "episode": lengths,
        "token": _by_group(lengths, group_size).mean(-1).repeat_interleave(group_size),
        "batch": (reduce((lengths * counted).sum()) / episodes).clamp(min=1).expand_as(lengths),
        "constant": torch.full_like(lengths, len(mask)),
        "none": torch.ones_like(lengths),
    }[length_norm]
    return mask * counted / steps / episodes


def _by_group(x: Tensor, group_size: int) -> Tensor:
    """A view of the environment axis: [..., N] as [..., groups, G]."""
    return x.unflatten(-1, (-1, group_size))


def _centred(x: Tensor, real: Tensor) -> Tensor:
    """x minus its mean over the last axis, both over real entries; exactly 0 where these are equal up to rounding,
    since a division would blow up that tiny spread."""
    count = real.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(real, x, 0.0).sum(-1, keepdim=True) / count
    highest = torch.where(real, x, -torch.inf).amax(-1, keepdim=True)
    lowest = torch.where(real, x, torch.inf).amin(-1, keepdim=True)
    differ = highest - lowest > 1e-6 * torch.maximum(highest.abs(), lowest.abs())
    return torch.where(real & differ, x - mean, 0.0)


def linear_scan(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t · y_{t+1} with y_T = 0, for `x` and `decay` `[T, ...]`: row by row from the last, or, while
    recording, by doubling (Hillis & Steele 1986)."""
    if is_recording():
        return _scan_by_doubling(x, decay)
    out = torch.empty_like(x)
    running = torch.zeros_like(x[0])
    for x_t, decay_t, out_t in zip(reversed(x.unbind()), reversed(decay.unbind()), reversed(out.unbind()), strict=True):
        running = torch.addcmul(x_t, decay_t, running, out=out_t)
    return out


def _scan_by_doubling(x: Tensor, decay: Tensor) -> Tensor:
    """The same in log₂ T whole-tensor steps, 9 for T = 500: after k of them, x_t is the sum over the next 2^k terms and
    decay_t the product of their decays."""
    reach = 1
    while reach < len(x):
        beyond = torch.zeros_like(x[:reach])
        x = x + decay * torch.cat([x[reach:], beyond])
        decay = decay * torch.cat([decay[reach:], beyond])
        reach *= 2
    return x
