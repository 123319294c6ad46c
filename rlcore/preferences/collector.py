"""What fills the buffer from pairs of segments instead of from environments."""

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


class PairCollector(Collector):
    """Fills the buffer with pairs, environment 2k with the first of one and 2k + 1 with its second: as many as there is
    room for, drawn anew each time, none twice where there are so many.

    Args:
        read: gives the Preferences, when they are first needed.
        arguments: as for `Collector`.

    Raises:
        UsageError: where segments are longer than the buffer, or observations are stacked frames.
    """

    plays = False
    next_obs = ()  # nothing is played

    def __init__(self, read: Callable[[], Preferences], *arguments: Any):
        super().__init__(*arguments)
        self.read = read
        self.pairs: Preferences | None = None
        if isinstance(self.buffer.obs, FrameStacks):
            raise UsageError("observations are stacked frames, of which there are no pairs of segments here")

    @torch.inference_mode()
    def collect(self, network: ActorCritic) -> Episodes:
        """Fill the buffer with pairs; there are no episodes to report."""
        pairs, buffer = self._pairs(), self.buffer
        count, wanted = len(pairs), buffer.num_envs // 2
        if count >= wanted:
            chosen = torch.randperm(count, generator=self.generator, device=buffer.device)[:wanted]
        else:
            chosen = torch.randint(count, (wanted,), generator=self.generator, device=buffer.device)
        self._fill(pairs[chosen])
        self.rows_collected += buffer.length
        self.global_step += int(buffer.mask.sum())
        return Episodes()

    def _pairs(self) -> Preferences:
        if self.pairs is None:
            pairs, most = self.read(), self.buffer.num_steps
            if pairs.length > most:
                raise UsageError(f"num_steps is {most}, but there are segments of {pairs.length} rows")
            self.pairs = _on(pairs, self.buffer.device)
        return self.pairs

    def _fill(self, pairs: Preferences) -> None:
        buffer, L = self.buffer, pairs.length

        def rows(first: Tensor, second: Tensor) -> Tensor:
            return torch.stack([first, second], 1).flatten(0, 1).transpose(0, 1)  # [L, N, ...]

        map_parts(lambda x, a, b: x[:L].copy_(rows(a, b)), buffer.obs, pairs.first.obs, pairs.second.obs)
        mask = rows(pairs.first.mask, pairs.second.mask)
        buffer.mask[:L], buffer.mask[L:] = mask, False
        buffer.actions[:L] = rows(pairs.first.actions, pairs.second.actions)
        getattr(buffer, PREFERENCE)[:] = pairs.label.repeat_interleave(2)
        buffer.length = buffer.num_steps

    def _begin(self, seed: int | list[int] | None) -> None:
        """There is nothing to begin."""

    def state_dict(self) -> dict[str, Any]:
        first = torch.zeros(self.buffer.num_envs, dtype=torch.bool)  # tells how many there are
        return {**super().state_dict(), "next_first": first}

    def load_state_dict(self, state: dict[str, Any], seed: int | None = None, restore_envs: bool = True) -> None:
        self.rows_collected, self.global_step = (
            stored_count(state, name) for name in ("rows_collected", "global_step")
        )


def _on(pairs: Preferences, device: torch.device) -> Preferences:
    def there(side: Segments) -> Segments:
        return Segments(map_parts(lambda x: x.to(device), side.obs), side.actions.to(device), side.mask.to(device))

    return Preferences(there(pairs.first), there(pairs.second), pairs.label.to(device))
