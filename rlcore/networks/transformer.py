"""A small causal transformer as a policy's memory: acting keeps keys and values of the latest observations, learning
looks at whole sequences at once, and both give the same.

Blocks are x + attention(norm x), x + mlp(norm x) (Vaswani et al. 2017, arXiv:1706.03762, norms in front as in Xiong et
al. 2020), with rotary positions (Su et al. 2021, arXiv:2104.09864) counted from the beginning of the episode, so that
only distances matter. An observation looks back over the `context` latest of its own episode, itself among them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.errors import UsageError
from rlcore.networks.memory import Memory
from rlcore.networks.torsos import orthogonal


class Transformer(Memory):
    """`[L, S, in_features]` to `[L, S, size]`; its carry are `cache [N, layers, 2, context, size]`, a ring of keys and
    values, and `count [N]`, observations of the episode so far.

    Args:
        in_features: of what goes in.
        size: width of the blocks.
        context: C, observations that can be looked back upon.
        layers, heads: of attention.

    Raises:
        UsageError: where `size` cannot be split into as many heads of an even width.
    """

    def __init__(self, in_features: int, size: int = 64, context: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        if size % (2 * heads):
            raise UsageError(f"memory_size is {size}, but must be a multiple of {2 * heads} for {heads} heads")
        self.features, self.context = size, context
        self.sizes = {"cache": (layers, 2, context, size), "count": ()}
        self.embed = orthogonal(nn.Linear(in_features, size), 1.0)
        self.blocks = nn.ModuleList(Block(size, heads, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(size)

    def begin(self, carry: dict[str, Tensor], first: Tensor) -> dict[str, Tensor]:
        return {**carry, "count": torch.where(first, 0.0, carry["count"])}  # what is not counted is not looked at

    def step(self, x: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        count, caches = carry["count"].unsqueeze(1), []
        slots = torch.arange(self.context, device=x.device)
        here, seen = slots == count % self.context, slots <= count  # [N, C]
        x = self.embed(x).unsqueeze(1)  # [N, 1, size]
        for block, old in zip(self.blocks, carry["cache"].unbind(1), strict=True):
            q, k, v = block.project(x, count)
            cache = torch.where(here[:, None, :, None], torch.stack([k, v], 1), old)
            x = block(x, q, *cache.unbind(1), seen.unsqueeze(1))
            caches.append(cache)
        return self.norm(x).squeeze(1), {"cache": torch.stack(caches, 1), "count": carry["count"] + 1}

    def forward(self, x: Tensor, carry: dict[str, Tensor], first: Tensor) -> Tensor:
        position, allowed = self._places(carry["count"], first)
        x = self.embed(x).transpose(0, 1)  # [S, L, size]
        for block, cache in zip(self.blocks, carry["cache"].unbind(1), strict=True):
            q, k, v = block.project(x, position)
            keys, values = (torch.cat(pair, 1) for pair in zip(cache.unbind(1), (k, v), strict=True))
            x = block(x, q, keys, values, allowed)
        return self.norm(x).transpose(0, 1)

    def _places(self, count: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Of sequences that are `first [L, S]` somewhere and have seen `count [S]` observations before: the position
        of each row in its episode `[S, L]`, and what it may look at, `[S, L, C + L]`, the cache in front."""
        C, steps = self.context, torch.arange(len(first), device=first.device)
        episode = first.long().cumsum(0).T  # [S, L], 0 where it is the one that goes on
        same = episode.unsqueeze(2) == episode.unsqueeze(1)  # [S, L, L]
        within = torch.tril(same).sum(2) - 1  # rows of the episode before each, in this sequence
        position = within + torch.where(episode == 0, count.unsqueeze(1), 0.0)
        recent = torch.tril(same) & (steps.unsqueeze(1) - steps < C)
        slots = torch.arange(C, device=first.device)
        cached = slots + C * ((count.unsqueeze(1) - 1 - slots) / C).floor()  # [S, C] position that each slot holds
        old = (position.unsqueeze(2) - cached.unsqueeze(1) < C) & (cached >= 0).unsqueeze(1)
        return position, torch.cat([old & (episode == 0).unsqueeze(2), recent], 2)


class Block(nn.Module):
    """Attention and a two-layer perceptron on `[S, L, size]`."""

    def __init__(self, size: int, heads: int, layers: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.up = orthogonal(nn.Linear(size, 3 * size), 1.0), orthogonal(nn.Linear(size, 4 * size), 2**0.5)
        # What is added to the stream shrinks with the number of layers (Radford et al. 2019, section 2.3).
        gain = 1 / math.sqrt(2 * layers)
        self.out, self.down = orthogonal(nn.Linear(size, size), gain), orthogonal(nn.Linear(4 * size, size), gain)

    def project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `x [S, L, size]` at `position [S, L]`, the first two turned by their position."""
        q, k, v = self.qkv(self.norm_1(x)).chunk(3, -1)
        return self._turned(q, position), self._turned(k, position), v

    def _turned(self, x: Tensor, position: Tensor) -> Tensor:
        half = x.shape[-1] // self.heads // 2
        rate = 10_000.0 ** (-torch.arange(half, device=x.device) / half)
        angle = (position.unsqueeze(-1) * rate).unsqueeze(2)  # [S, L, 1, half]
        a, b = x.unflatten(-1, (self.heads, -1)).chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(2)

    def forward(self, x: Tensor, q: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """`x [S, L, size]` after looking, with `q [S, L, size]`, at those of `keys [S, K, size]` and
        `values [S, K, size]` that are `allowed [S, L, K]`."""
        q, keys, values = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, keys, values))
        scores = q @ keys.transpose(2, 3) / math.sqrt(q.shape[-1])  # [S, heads, L, K]
        weights = scores.masked_fill(~allowed.unsqueeze(1), -torch.inf).softmax(-1)
        x = x + self.out((weights @ values).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))
