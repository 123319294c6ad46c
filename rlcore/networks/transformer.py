"""A small causal transformer as a policy's memory: acting keeps keys and values of the latest observations, learning
looks at whole sequences at once, and both give the same.

Blocks are x + attention(norm x), x + mlp(norm x) (Vaswani et al. 2017, arXiv:1706.03762, norms in front as in Xiong et
al. 2020), with rotary positions (Su et al. 2021, arXiv:2104.09864) counted from the beginning of the episode, so that
only distances matter. Every rate is a whole number of turns in `period` positions, so that angles stand in a table and
are exact however long an episode lasts. An observation looks back over the `context` latest of its own episode, itself
among them.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.errors import UsageError
from rlcore.networks.memory import Memory
from rlcore.networks.torsos import orthogonal
from rlcore.tracing import Constant


class Transformer(Memory):
    """`[L, S, in_features]` to `[L, S, size]`; its carry are rings of keys and values, `keys_0 [N, context, size]`,
    `values_0`, `keys_1` and so on by layer, and `count [N]`, observations of the episode so far.

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
        rings = [f"{kind}_{i}" for i in range(layers) for kind in ("keys", "values")]
        self.sizes = {**dict.fromkeys(rings, (context, size)), "count": ()}
        self.embed = orthogonal(nn.Linear(in_features, size), 1.0)
        self.blocks: Any = nn.ModuleList(Block(size, heads, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(size)
        self.turns = Constant(_turns(size // heads // 2, period=max(4096, 2 * context)))

    def begin(self, carry: dict[str, Tensor], first: Tensor) -> dict[str, Tensor]:
        return {**carry, "count": torch.where(first, 0.0, carry["count"])}  # what is not counted is not looked at

    def step(self, x: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        count, after = carry["count"].unsqueeze(1), {}
        slots = torch.arange(self.context, device=x.device)
        here, seen = slots == _within(count, self.context), slots <= count  # [N, C]
        x, turn = self.embed(x), self._turn(carry["count"], x)
        for i, block in enumerate(self.blocks):
            q, *new = block.project(x, turn)
            for name, row in zip((f"keys_{i}", f"values_{i}"), new, strict=True):
                after[name] = torch.where(here.unsqueeze(2), row.unsqueeze(1), carry[name])
            x = block.add(x, block.look_back(q, after[f"keys_{i}"], after[f"values_{i}"], seen))
        return self.norm(x), {**after, "count": carry["count"] + 1}

    def forward(self, x: Tensor, carry: dict[str, Tensor], first: Tensor) -> Tensor:
        """Sequences `x [L, S, F]`, with the `carry [S, ...]` before them, none where nothing was, to `[L, S, H]`;
        `first [L, S]` bool tells where episodes begin."""
        position, allowed = self._places(carry.get("count"), first)
        x = self.embed(x).transpose(0, 1)  # [S, L, size]
        turn = self._turn(position, x)
        for i, block in enumerate(self.blocks):
            q, keys, values = block.project(x, turn)
            if carry:
                keys, values = torch.cat([carry[f"keys_{i}"], keys], 1), torch.cat([carry[f"values_{i}"], values], 1)
            x = block(x, q, keys, values, allowed)
        return self.norm(x).transpose(0, 1)

    def _turn(self, position: Tensor, x: Tensor) -> Tensor:
        """Cosines and sines `[..., 2 half]` by which features at `position [...]` are turned, in the type of `x`."""
        turns = self.turns.like(x)
        return turns[_within(position, len(turns)).long()]

    def _places(self, count: Tensor | None, first: Tensor) -> tuple[Tensor, Tensor]:
        """Of sequences that are `first [L, S]` somewhere and have seen `count [S]` observations before: the position
        of each row in its episode `[S, L]`, and what it may look at, `[S, L, C + L]`, the cache in front; without a
        count there is none, `[S, L, L]`."""
        C, steps = self.context, torch.arange(len(first), device=first.device)
        episode = first.long().cumsum(0).T  # [S, L], 0 where it is the one that goes on
        same = episode.unsqueeze(2) == episode.unsqueeze(1)  # [S, L, L]
        within = torch.tril(same).sum(2) - 1  # rows of the episode before each, in this sequence
        recent = torch.tril(same) & (steps.unsqueeze(1) - steps < C)
        if count is None:
            return within, recent
        position = within + torch.where(episode == 0, count.unsqueeze(1), 0.0)
        slots = torch.arange(C, device=first.device)
        cached = slots + C * ((count.unsqueeze(1) - 1 - slots) / C).floor()  # [S, C] position that each slot holds
        old = (position.unsqueeze(2) - cached.unsqueeze(1) < C) & (cached >= 0).unsqueeze(1)
        return position, torch.cat([old & (episode == 0).unsqueeze(2), recent], 2)


class Block(nn.Module):
    """Attention and a two-layer perceptron on `[..., size]`."""

    def __init__(self, size: int, heads: int, layers: int):
        super().__init__()
        self.heads, self.scale = heads, 1 / math.sqrt(size // heads)
        self.norm_1, self.norm_2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.up = orthogonal(nn.Linear(size, 3 * size), 1.0), orthogonal(nn.Linear(size, 4 * size), 2**0.5)
        # What is added to the stream shrinks with the number of layers (Radford et al. 2019, section 2.3).
        gain = 1 / math.sqrt(2 * layers)
        self.out, self.down = orthogonal(nn.Linear(size, size), gain), orthogonal(nn.Linear(4 * size, size), gain)

    def project(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[..., size]` of `x [..., size]`, the first two turned, by `turn [..., 2 half]`."""
        q, k, v = self.qkv(self.norm_1(x)).chunk(3, -1)
        return self._turned(q, turn), self._turned(k, turn), v

    def _turned(self, x: Tensor, turn: Tensor) -> Tensor:
        cos, sin = turn.unsqueeze(-2).chunk(2, -1)
        a, b = x.unflatten(-1, (self.heads, -1)).chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

    def look_back(self, q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """What `q [N, size]` finds among those of `keys [N, C, size]` and `values [N, C, size]` that are
        `seen [N, C]`; for one row, sums cost less than products of matrices."""
        scores = (q.unsqueeze(1) * keys).unflatten(-1, (self.heads, -1)).sum(-1) * self.scale  # [N, C, heads]
        weights = scores.masked_fill(~seen.unsqueeze(2), -torch.inf).softmax(1)
        return (weights.unsqueeze(-1) * values.unflatten(-1, (self.heads, -1))).sum(1).flatten(1)

    def forward(self, x: Tensor, q: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """`x [S, L, size]` after looking, with `q [S, L, size]`, at those of `keys [S, K, size]` and
        `values [S, K, size]` that are `allowed [S, L, K]`."""
        q, keys, values = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, keys, values))
        scores = q @ keys.transpose(2, 3) * self.scale  # [S, heads, L, K]
        weights = scores.masked_fill(~allowed.unsqueeze(1), -torch.inf).softmax(-1)
        return self.add(x, (weights @ values).transpose(1, 2).flatten(2))

    def add(self, x: Tensor, found: Tensor) -> Tensor:
        """`x [..., size]` with what attention `found [..., size]`, and the perceptron."""
        x = x + self.out(found)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


def _turns(half: int, period: int) -> Tensor:
    """Cosines and sines `[period, 2 half]` of each position, of rates that fall from 1 to 1/10,000."""
    rates = (10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half) * period / (2 * math.pi)).round()
    angle = torch.arange(period).unsqueeze(1) * rates * (2 * math.pi / period)
    return torch.cat([angle.cos(), angle.sin()], 1)


def _within(count: Tensor, period: int) -> Tensor:
    """The remainder of `count [...]`, whole numbers, by `period`."""
    return count - period * (count / period).floor()
