"""Stacked frames stored once.

Neighbouring observations of a stack of S frames share S − 1 of them. Here each frame is kept once and a stack is put
together when it is read, which takes 1/S of the memory.
"""

import copy
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class FrameStacks:
    """T × N observations `[S, H, W]` uint8 that read like a tensor `[T, N, S, H, W]`.

    Indexing with a number or a tensor gives stacks as a tensor; a slice or `flatten(0, 1)` gives a view that still
    stores single frames. Frames before the first of an episode are zeros, as the environments here give them.

    Args:
        num_steps, num_envs: T and N.
        shape: (S, H, W).
        device: where the frames live.
        staged: whether frames go through host memory of their own; by default, where the device is not the host.
    """

    dtype = torch.uint8

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        staged: bool | None = None,
    ):
        self.num_envs, self.depth = num_envs, shape[0]
        count = (num_steps + self.depth - 1) * num_envs
        # The S − 1 rows before row 0 stand first, then a row per step; last comes a frame of zeros.
        self.frames = torch.zeros(count + 1, *shape[1:], dtype=torch.uint8, device=device)
        self.device = self.frames.device
        self.blank = count
        newest = torch.arange(num_steps * num_envs).view(num_steps, num_envs, 1)
        self._whole = (newest + torch.arange(self.depth) * num_envs).numpy()  # [T, N, S], oldest first
        self.table = torch.from_numpy(self._whole.copy()).to(device)  # [T, N, S] where to find each frame
        self._ages = np.zeros(num_envs, dtype=np.int64)  # frames of the same episode before the newest, at most S − 1
        staged = self.device.type != "cpu" if staged is None else staged
        size = (num_steps, num_envs, *shape[1:])
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available()) if staged else None

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.table.shape, *self.frames.shape[1:]))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def nbytes(self) -> int:
        """Memory of the frames and of what finds them."""
        return self.frames.nbytes + self.table.nbytes + self._whole.nbytes

    def write(self, t: int, obs: np.ndarray, begun: np.ndarray) -> Tensor:
        """Store row t and give it back as a tensor on the device.

        Args:
            t: the row; rows are written in order, and row 0 brings its own history.
            obs: `[N, S, H, W]` as the environments gave it.
            begun: `[N]` bool, whose episode begins with this row.
        """
        n, last = self.num_envs, self.depth - 1
        if t == 0:
            history = np.ascontiguousarray(obs[:, :-1].swapaxes(0, 1)).reshape(last * n, *obs.shape[2:])
            self.frames[: last * n].copy_(torch.from_numpy(history))
            self._ages[:] = last
        else:
            self._ages = np.where(begun, 0, np.minimum(self._ages + 1, last))
        rows, newest = self.frames[(t + last) * n : (t + last + 1) * n], torch.from_numpy(obs[:, -1])
        rows.copy_(newest if self._host is None else self._host[t].copy_(newest), non_blocking=True)
        known = np.arange(self.depth) >= last - self._ages[:, None]  # [N, S]
        self.table[t].copy_(torch.from_numpy(np.where(known, self._whole[t], self.blank)), non_blocking=True)
        return torch.from_numpy(np.asarray(obs)) if self._host is None else self[t]

    def __getitem__(self, index: Any) -> Any:
        table = self.table[index]
        if isinstance(index, slice):
            return self._view(table)
        frames = self.frames.index_select(0, table.reshape(-1))
        return frames.view(*table.shape, *self.frames.shape[1:])

    def flatten(self, start: int, end: int) -> Self:
        """`[T, N, S, H, W]` as `[T · N, S, H, W]`; dimensions 0 and 1 are the only choice, else a ValueError."""
        if (start, end) != (0, 1):
            raise ValueError(f"frame stacks flatten over dimensions 0 and 1 alone, not {start} to {end}")
        return self._view(self.table.flatten(0, 1))

    def unbind(self) -> tuple[Tensor, ...]:
        """The rows, each put together."""
        return tuple(self[t] for t in range(len(self)))

    def _view(self, table: Tensor) -> Self:
        view = copy.copy(self)
        view.table = table
        return view
