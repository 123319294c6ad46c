"""Deep Sea (Osband et al. 2020, "Behaviour suite for reinforcement learning"), written as tensor functions.

A diver starts at the upper left of a square of `size` rows and sinks one row a step, to the left or to the right; which
of the two actions goes right is drawn anew for each cell. Each step to the right costs 0.01 / size, and the lower right
corner holds a treasure of 1: to reach it takes `size` times right, which chance does once in 2^size episodes, while
every step on the way looks like a loss. The best return is 0.99, that of always going left 0.

Importing this module makes `rlcore/DeepSea10-v0`, 15, 20, 25 and 30 known.
"""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.envs import register_native
from rlcore.envs.native import NativeTask
from rlcore.tracing import Constant

SIZES = (10, 15, 20, 25, 30)


class DeepSea(NativeTask):
    """The state is (row, column), the observation a board `[size, size]` with 1 at the diver's cell.

    Args:
        size: rows and columns, also the steps of an episode.
        seed: of the actions' meanings, which are the same in all episodes.
    """

    max_episode_steps = None
    draws = 1  # of which nothing depends: all episodes start alike
    COST = 0.01

    def __init__(self, size: int, seed: int = 42):
        self.id, self.size = f"rlcore/DeepSea{size}-v0", size
        self.observation_space = spaces.Box(0, 1, (size, size), np.float32)
        self.action_space = spaces.Discrete(2)
        rights = np.random.default_rng(seed).integers(0, 2, size * size)
        self._right = Constant(torch.from_numpy(rights))  # the action that goes right, by cell

    def initial(self, uniform: Tensor) -> Tensor:
        return torch.zeros_like(uniform).expand(-1, 2).clone()

    def observe(self, state: Tensor) -> Tensor:
        row, column = state.unbind(1)
        cells = torch.arange(self.size, device=state.device)  # below the last row there is no cell
        board = (cells.view(-1, 1) == row.view(-1, 1, 1)) & (cells == column.view(-1, 1, 1))
        return board.float()

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        row, column = state.unbind(1)
        cell = (row * self.size + column).long()
        right = action == self._right.like(action)[cell.clamp(max=self.size**2 - 1)]
        found = right & (column == self.size - 1)
        column = (column + 2 * right.to(state.dtype) - 1).clamp(0, self.size - 1)
        row = row + 1
        reward = found.float() - right.float() * (self.COST / self.size)
        return torch.stack((row, column), 1), reward, row >= self.size


for size in SIZES:
    register_native(DeepSea(size))
