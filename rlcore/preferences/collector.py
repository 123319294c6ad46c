"""What fills the buffer from stored segments instead of from environments: demonstrations, or pairs of which one was
preferred."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlcore.collect import Collector, Episodes
from rlcore.envs.frames import FrameStacks
from rlcore.errors import UsageError
from rlcore.networks import ActorCritic
from rlcore.preferences.data import Preferences, Segments
from rlcore.spaces import map_parts
from rlcore.storage.checkpoint import stored_count

PREFERENCE = "preference"  # the field of the buffer that holds the label of a pair, in each row of both


class SegmentCollector(Collector):
    """Fills the buffer with segments, one in the column of each environment, drawn anew each time; none twice where
    there are so many.

    Args:
        read: gives the Segments, when they are first needed.
        arguments: as for `Collector`.

    Raises:
        UsageError: where segments are longer than the buffer, or observations are stacked frames.
    """

    plays = False
    next_obs = ()  # nothing is played

    def __init__(self, read: Callable[[], Any], *arguments: Any):
        super().__init__(*arguments)
        self.read = read
        self.segments: Segments | None = None
        if isinstance(self.buffer.obs, FrameStacks):
            raise UsageError("observations are stacked frames, of which there are no stored segments here")

    @torch.inference_mode()
    def collect(self, network: ActorCritic) -> Episodes:
        """Fill the buffer; there are no episodes to report."""
        if self.segments is None:
            self.segments = self._on_device(self._given())
        self._fill(self.segments[self._choose()])
        self.rows_collected += self.buffer.length
        self.global_step += int(self.buffer.mask.sum())
        return Episodes()

    def _given(self) -> Segments:
        return self.read()

    def _choose(self) -> Tensor:
        """Which segments `[N]` to learn from."""
        return self._draw(len(self.segments), self.buffer.num_envs)

    def _draw(self, count: int, wanted: int) -> Tensor:
        """So many numbers below `count`, none twice where there are enough."""
        if count >= wanted:
            return torch.randperm(count, generator=self.generator, device=self.buffer.device)[:wanted]
        return torch.randint(count, (wanted,), generator=self.generator, device=self.buffer.device)

    def _fill(self, segments: Segments) -> None:
        buffer, L = self.buffer, segments.length
        map_parts(lambda rows, x: rows[:L].copy_(x.transpose(0, 1)), buffer.obs, segments.obs)
        buffer.actions[:L] = segments.actions.transpose(0, 1)
        buffer.mask[:L], buffer.mask[L:] = segments.mask.T, False
        buffer.length = buffer.num_steps

    def _on_device(self, segments: Segments) -> Segments:
        if segments.length > self.buffer.num_steps:
            long = f"there are segments of {segments.length} rows; it may be none"
            raise UsageError(f"num_steps is {self.buffer.num_steps}, but {long}")
        return segments.to(self.buffer.device)

    def _begin(self, seed: int | list[int] | None) -> None:
        """There is nothing to begin."""

    def state_dict(self) -> dict[str, Any]:
        first = torch.zeros(self.buffer.num_envs, dtype=torch.bool)  # tells how many there are
        return {**super().state_dict(), "next_first": first}

    def load_state_dict(self, state: dict[str, Any], seed: int | None = None, restore_envs: bool = True) -> None:
        counts = (stored_count(state, name) for name in ("rows_collected", "global_step"))
        self.rows_collected, self.global_step = counts


class PairCollector(SegmentCollector):
    """Fills the buffer with pairs, column 2k with the first of one and 2k + 1 with its second; `read` gives the
    Preferences, whose labels become the field `preference`, and of which a share is `held_out`."""

    def __init__(self, held_out: float, *arguments: Any):
        super().__init__(*arguments)
        self.held_out = held_out

    def held_out_pairs(self) -> Preferences:
        """Those with which the buffer is not filled."""
        pairs: Preferences = self.read()
        return pairs[pairs.held_out(self.held_out)]

    def _given(self) -> Segments:
        pairs: Preferences = self.read()
        pairs = pairs[~pairs.held_out(self.held_out)]
        self.label = pairs.label.to(self.buffer.device)
        return Segments.join([pairs.first, pairs.second])

    def _choose(self) -> Tensor:
        pairs = self._draw(len(self.label), self.buffer.num_envs // 2)
        getattr(self.buffer, PREFERENCE)[:] = self.label[pairs].repeat_interleave(2)
        return torch.stack([pairs, pairs + len(self.label)], 1).flatten()
