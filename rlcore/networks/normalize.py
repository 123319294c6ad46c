"""Running normalisation of observations and rewards.

Statistics change once per iteration, after learning, from all real transitions of all environments together: the
behaviour policy and the policy being trained see the same numbers. Evaluation never changes them. They are module
buffers, so they are saved with the weights.
"""

import numpy as np
import torch
from torch import Tensor, nn

from rlcore.buffer import RolloutBuffer
from rlcore.estimators import linear_scan
from rlcore.tracing import reduce


class RunningNorm(nn.Module):
    """Centres and scales observations `x [..., *shape]` by running statistics, which only `update` changes."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0):
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean.to(x.dtype)) * (self.var + 1e-8).rsqrt().to(x.dtype)).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor) -> None:
        """Merge the rows of `x [T, N, ...]` where `mask [T, N]` is True (Chan et al. 1979, eq. 2.1). Deviations are
        from the mean of the batch itself, so large offsets lose no precision."""
        weight = mask.double().reshape(*mask.shape, *(1 for _ in self.mean.shape))
        x = torch.where(weight > 0, x.double(), 0.0)
        count = reduce(weight.sum())
        batch_mean = reduce((x * weight).sum((0, 1))) / count.clamp(min=1)
        batch_var = reduce(((x - batch_mean) ** 2 * weight).sum((0, 1))) / count.clamp(min=1)
        total = self.count + count
        share = count / total.clamp(min=1)
        delta = batch_mean - self.mean
        # The initial mean 0 and variance 1 have count 0, so the first batch replaces them.
        var = (1 - share) * self.var + share * batch_var + share * (1 - share) * delta**2
        self.mean.copy_(self.mean + share * delta)
        self.var.copy_(torch.where(total > 0, var, self.var))
        self.count.copy_(total)


class RewardScaler(nn.Module):
    """Divides rewards by the running standard deviation of the discounted return (Engstrom et al. 2020, section 2).

    The mean is not subtracted, which would change what episode lengths are good. Reported returns are unscaled.
    """

    carry: Tensor

    def __init__(self, num_envs: int, gamma: float, clip: float = 10.0):
        super().__init__()
        self.gamma, self.clip = gamma, clip
        self.stats = RunningNorm(())
        self.register_buffer("carry", torch.zeros(num_envs, dtype=torch.float64))  # discounted return so far, per env

    @torch.no_grad()
    def scale_(self, buffer: RolloutBuffer) -> None:
        """Take the rollout's discounted returns into the statistics, then scale `buffer.rewards` in place."""
        mask, gamma = buffer.mask, torch.full_like(buffer.rewards, self.gamma, dtype=torch.float64)
        ends = (buffer.terminated | buffer.truncated) & mask
        # What a row keeps of the sum before it: nothing after the end of an episode, all of it through padding.
        begins = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
        keeps = torch.where(mask, gamma, 1.0).masked_fill(begins, 0.0)
        grown = torch.where(mask, buffer.rewards, 0.0).double()
        grown = torch.cat([(grown[0] + keeps[0] * self.carry).unsqueeze(0), grown[1:]])
        returns = linear_scan(grown.flip(0), keeps.flip(0)).flip(0)  # [T, N]
        self.carry.copy_(returns[-1].masked_fill(ends[-1], 0.0))
        self.stats.update(returns, mask)
        scale = (self.stats.var + 1e-8).rsqrt().to(buffer.rewards.dtype)
        buffer.rewards = (buffer.rewards * scale).clamp(-self.clip, self.clip)

    def forget(self, which: np.ndarray) -> None:
        """The discounted return of episodes that were cut before the rollout, in the environments `which [N]`."""
        self.carry[torch.from_numpy(which).to(self.carry.device)] = 0
