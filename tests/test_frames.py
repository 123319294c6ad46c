"""Frames stored once against stacks written out."""

import numpy as np
import pytest
import torch

from rlcore.envs.frames import FrameStacks


def games(steps, num_envs, depth, rng, ends):
    """Stacks `[T, N, S, 2, 3]` of an environment that shows random frames, and where its episodes begin."""
    obs, begun = np.zeros((steps, num_envs, depth, 2, 3), np.uint8), np.zeros((steps, num_envs), bool)
    for n in range(num_envs):
        history = []
        for t in range(steps):
            if t and rng.random() < ends:
                history, begun[t, n] = [], True
            history = [*history, rng.integers(1, 256, (2, 3))]
            for k, frame in enumerate(reversed(history[-depth:])):
                obs[t, n, depth - 1 - k] = frame
    return obs, begun


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize(("depth", "ends"), [(4, 0.3), (4, 0.0), (3, 0.9), (2, 0.2), (1, 0.3)])
def test_stacks_read_back_as_they_were_written(depth, ends, staged):
    rng = np.random.default_rng(depth)
    obs, begun = games(25, 3, depth, rng, ends)
    stacks = FrameStacks(10, 3, obs.shape[2:], staged=staged)
    for first in (0, 10):  # the second rollout goes on where the first stopped
        for t in range(10):
            row = stacks.write(t, obs[first + t], begun[first + t])
            np.testing.assert_array_equal(row, obs[first + t])
        expected = torch.from_numpy(obs[first : first + 10])
        assert stacks.shape == expected.shape and stacks.dtype == torch.uint8
        assert torch.equal(torch.stack(stacks.unbind()), expected)
        flat, rows = stacks[:7].flatten(0, 1), torch.tensor([20, 0, 3, 3, 11])
        assert torch.equal(flat[rows], expected[:7].flatten(0, 1)[rows])
        assert torch.equal(stacks[torch.tensor([2, 5]), torch.tensor([0, 2])], expected[[2, 5], [0, 2]])


def test_memory_is_a_share_of_the_stacks():
    stacks = FrameStacks(128, 8, (4, 84, 84))
    assert stacks.frames.nbytes < 128 * 8 * 4 * 84 * 84 / 4 * 1.03
    assert stacks.nbytes < 128 * 8 * 4 * 84 * 84 / 4 * 1.05
