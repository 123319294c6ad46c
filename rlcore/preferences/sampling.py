"""Pairs of segments out of rollouts, and a labeller that judges by rewards, as a person would who knew them."""

import torch
from torch import Tensor

from rlcore.buffer import RolloutBuffer
from rlcore.errors import UsageError
from rlcore.preferences.data import Preferences, Segments
from rlcore.spaces import map_parts


def segments_of(buffer: RolloutBuffer, rows: Tensor, envs: Tensor, length: int) -> tuple[Segments, Tensor]:
    """Stretches of a rollout, each until `length` rows are over or its episode is.

    Args:
        buffer: the rollout, whose rewards are still the environment's own.
        rows, envs: `[K]` int64, where each begins; a row at which something was played.
        length: L, at most `num_steps`.

    Returns:
        The Segments, and `[K]`, their undiscounted sum of rewards.

    Raises:
        UsageError: where the observations are stacked frames.
    """
    if not isinstance(buffer.obs, Tensor | dict):
        raise UsageError("observations are stacked frames, of which there are no stored segments here")
    at = rows.unsqueeze(1) + torch.arange(length, device=rows.device)  # [K, L]
    inside = at < buffer.num_steps
    at, envs = at.clamp(max=buffer.num_steps - 1), envs.unsqueeze(1).expand_as(at)
    over = (buffer.terminated | buffer.truncated)[at, envs].long()
    mask = inside & buffer.mask[at, envs] & (over.cumsum(1) - over == 0)
    rewards = torch.where(mask, buffer.rewards[at, envs], 0.0).sum(1)
    obs = map_parts(lambda x: x[at, envs].clone(), buffer.obs)
    return Segments(obs, buffer.actions[at, envs].clone(), mask), rewards


def pairs_of(
    buffer: RolloutBuffer,
    count: int,
    length: int | None = None,
    group_size: int = 1,
    noise: float = 0.0,
    indifference: float = 0.0,
    generator: torch.Generator | None = None,
) -> Preferences:
    """Pairs of stretches of a rollout, labelled by their rewards, as by a person who knew these (the oracle of
    Christiano et al. 2017, section 3.1, arXiv:1706.03741).

    Args:
        buffer: the rollout, before the rewards stage.
        count: of pairs.
        length: L, rows of a segment; None takes whole columns, one episode each.
        group_size: members of a pair are drawn from the same group of so many environments, 1: from all. Each group is
            taken as often as any other, or once more.
        noise: the probability that a label is the opposite of what is right.
        indifference: returns that differ by no more than this are labelled 0.5.
        generator: of the draws.

    Raises:
        UsageError: where `length` is not from 1 to `num_steps`, or there is no pair to be made.
    """
    most, N = buffer.num_steps, buffer.num_envs
    if length is not None and not 1 <= length <= most:
        raise UsageError(f"length is {length}, but must be from 1 to num_steps = {most}")
    if group_size == 1 and N < 2 and length is None:
        raise UsageError("there is one environment, so that there are no two episodes to compare")

    def below(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator, device=buffer.device)

    if length is None:
        members = group_size if group_size > 1 else N
        group, first = _spread(N // members, count, generator, buffer.device), below(members)
        second = (first + 1 + below(members - 1)) % members
        starts = [(torch.zeros_like(first), group * members + one) for one in (first, second)]
    else:
        played = buffer.mask.clone()
        played[most - length + 1 :] = False  # so that only the end of an episode cuts one short
        places = played.nonzero()
        pairs = (places[below(len(places))] for _ in range(2))
        starts = [(place[:, 0], place[:, 1]) for place in pairs]
    (one, a), (two, b) = (segments_of(buffer, rows, envs, length or most) for rows, envs in starts)
    return Preferences(one, two, judged(a, b, noise, indifference, generator))


def judged(
    first: Tensor, second: Tensor, noise: float = 0.0, indifference: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Labels `[P]` of pairs with returns `first [P]` and `second [P]`; the rest as for `pairs_of`."""
    label = torch.where((first - second).abs() <= indifference, 0.5, (first > second).float())
    wrong = torch.rand(len(label), generator=generator, device=label.device) < noise
    return torch.where(wrong, 1 - label, label)


def _spread(among: int, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """`[count]` numbers below `among`, each as often as any other, or once more."""
    rounds = [torch.randperm(among, generator=generator, device=device) for _ in range(-(-count // among))]
    return torch.cat(rounds)[:count]
