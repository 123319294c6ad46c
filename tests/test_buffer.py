import pytest
import torch
from gymnasium import spaces

from rlcore import RolloutBuffer
from rlcore.errors import UsageError


def filled(mask=None):
    buffer = RolloutBuffer(3, 2, spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    buffer.obs.copy_(torch.arange(24.0).view(3, 2, 4))
    buffer.values.copy_(torch.arange(6.0).view(3, 2))
    buffer.mask.copy_(torch.ones(3, 2, dtype=torch.bool) if mask is None else mask)
    return buffer


def test_fields_have_the_shapes_and_dtypes_of_the_design():
    space = spaces.Dict({"image": spaces.Box(0, 255, (8, 8, 3), "uint8"), "goal": spaces.Discrete(4)})
    buffer = RolloutBuffer(5, 3, space, spaces.Box(-1, 1, (2,)))
    assert (buffer.obs["image"].shape, buffer.obs["image"].dtype) == ((5, 3, 8, 8, 3), torch.uint8)
    assert (buffer.obs["goal"].shape, buffer.obs["goal"].dtype) == ((5, 3), torch.int64)
    assert (buffer.actions.shape, buffer.dist_params.shape) == ((5, 3, 2), (5, 3, 4))
    for name in ("dones", "terminated", "truncated", "mask"):
        assert (getattr(buffer, name).shape, getattr(buffer, name).dtype) == ((5, 3), torch.bool)
    for name in ("logprobs", "values", "rewards", "next_values"):
        assert (getattr(buffer, name).shape, getattr(buffer, name).dtype) == ((5, 3), torch.float32)


@pytest.mark.parametrize("steps, envs", [(0, 2), (2, 0)])
def test_an_empty_buffer_is_refused(steps, envs):
    with pytest.raises(UsageError, match="is 0"):
        RolloutBuffer(steps, envs, spaces.Box(-1, 1, (4,)), spaces.Discrete(2))


def test_take_gathers_every_field_by_the_same_index():
    buffer = filled()
    batch = buffer.flatten(buffer.values + 100, buffer.values + 200).take(torch.tensor([5, 0]))
    assert batch.obs[:, 0].tolist() == [20, 0]
    assert batch.values.tolist() == [5, 0]
    assert batch.advantages.tolist() == [105, 100]
    assert batch.returns.tolist() == [205, 200]
    assert batch.weight.tolist() == [0.5, 0.5]


def test_padding_has_no_weight_and_is_never_read():
    mask = torch.tensor([[False, True], [True, False], [True, True]])
    buffer = filled(mask)
    buffer.obs[~mask] = torch.nan
    buffer.values[~mask] = torch.nan
    batch = buffer.flatten(buffer.values, buffer.values).take(torch.arange(6))
    assert torch.isfinite(batch.obs).all() and torch.isfinite(batch.advantages).all()
    assert batch.mean(batch.values) == (1 + 2 + 4 + 5) / 4
    z = batch.standardize(batch.values)
    assert batch.mean(z).abs() < 1e-6 and (batch.mean(z * z) - 1).abs() < 1e-6


def test_a_batch_of_padding_alone_is_all_zero_not_nan():
    buffer = filled(torch.zeros(3, 2, dtype=torch.bool))
    batch = buffer.flatten(buffer.values, buffer.values).take(torch.arange(3))
    assert batch.mean(batch.values) == 0
    assert torch.isfinite(batch.standardize(batch.values)).all()


def test_constant_advantages_stay_finite_and_small():
    buffer = filled()
    for constant in (0.0, 8.0, 7.1e6):
        batch = buffer.flatten(torch.full((3, 2), constant), buffer.values).take(torch.arange(6))
        assert batch.standardize(batch.advantages).abs().max() <= 1
