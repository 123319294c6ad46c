import pytest
import torch
from gymnasium import spaces

from rlcore import RolloutBuffer
from rlcore.buffer import RowSampler
from rlcore.errors import UsageError
from rlcore.spaces import Field


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


def test_an_index_of_minus_one_stands_for_no_transition():
    mask = torch.tensor([[True, True], [False, True], [True, True]])
    buffer, share = filled(mask), torch.tensor([[0.1, 0.1], [0.5, 0.2], [0.3, 0.3]])
    for weight in (None, share):
        batch = buffer.flatten(buffer.values, buffer.values, weight)
        ours, theirs = batch.take(torch.tensor([5, 0, 2])), batch.take(torch.tensor([5, -1, 0, 2, -1]), padded=True)
        assert theirs.mask.tolist() == [True, False, True, False, False]
        assert theirs.weight[[1, 3, 4]].tolist() == [0, 0, 0]
        torch.testing.assert_close(theirs.mean(theirs.values), ours.mean(ours.values))
        torch.testing.assert_close(theirs.standardize(theirs.values)[[0, 2]], ours.standardize(ours.values)[[0, 1]])


def test_added_fields_are_there_from_the_rollout_to_the_minibatch():
    added = [Field("bonus"), Field("kind", (2,), torch.int64, "policy")]
    buffer = RolloutBuffer(3, 2, spaces.Box(-1, 1, (4,)), spaces.Discrete(2), added=added)
    assert buffer.bonus.shape == (3, 2) and buffer.kind.shape == (3, 2, 2) and buffer.kind.dtype == torch.int64
    assert "kind" in buffer.filled_by("policy") and "rewards" in buffer.filled_by("environment")
    memory = buffer.bonus.data_ptr()
    buffer.bonus, buffer.mask = torch.arange(6.0).view(3, 2), torch.ones(3, 2)
    assert buffer.bonus.data_ptr() == memory and buffer.mask.dtype == torch.bool
    batch = buffer.flatten(buffer.bonus, buffer.bonus)
    assert batch.take(torch.tensor([4, 1])).bonus.tolist() == [4, 1] and batch.kind.shape == (6, 2)
    for name in ("bonus", "rewards", "obs", "flatten", "mean", "advantages", "weight"):
        with pytest.raises(UsageError, match=f"a field cannot be called '{name}'"):
            RolloutBuffer(3, 2, spaces.Box(-1, 1, (4,)), spaces.Discrete(2), added=[Field("bonus"), Field(name)])


def test_a_minibatch_has_every_field_of_its_rows():
    buffer = filled()
    batch = buffer.flatten(buffer.values, buffer.values).take(torch.tensor([3, 1]))
    assert "obs" not in vars(batch) and batch.obs is batch.obs and batch.obs.shape == (2, 4)  # read when asked for
    assert all(len(getattr(batch, name)) == 2 for name in [*buffer.fields, "advantages", "returns"])
    with pytest.raises(AttributeError, match="a batch has no 'reference'; it has"):
        batch.reference  # noqa: B018
    again = batch.take(torch.tensor([1]))  # of a batch that is a part itself
    assert again.values.tolist() == [1] and again.weight.tolist() == [1]


def test_replaced_and_further_fields_reach_a_minibatch():
    buffer = filled()
    batch = buffer.flatten(buffer.values, buffer.values)
    other = batch.replace(values=batch.values + 10, reference=batch.values * 2)
    minibatch = other.take(torch.tensor([4, 0]))
    assert minibatch.values.tolist() == [14, 10] and minibatch.reference.tolist() == [8, 0]
    assert batch.values.tolist() == [0, 1, 2, 3, 4, 5] and not hasattr(batch, "reference")


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("parts", [1, 3, 4, 20])
def test_each_epoch_goes_through_every_row_once_in_another_order(ragged, parts):
    mask = torch.tensor([[True] * 4, [True, False, True, True], [False, False, True, True]])
    sampler = RowSampler(parts, 3, ragged)
    drawn = sampler.draw(mask, torch.Generator().manual_seed(0))
    expected = mask.flatten().nonzero().flatten().tolist() if ragged else list(range(12))
    count = min(parts, len(expected))
    assert drawn["rows"].tolist() == expected and len(drawn["minibatches"]) == 3 * count
    epochs = [rows[rows >= 0].tolist() for rows in drawn["minibatches"].view(3, -1)]
    assert all(sorted(epoch) == expected for epoch in epochs) and epochs[0] != epochs[1]
    sizes = (drawn["minibatches"] >= 0).sum(1)
    assert sizes.max() - sizes.min() <= 1
    if parts <= 6:  # of what a program is recorded with; more minibatches than rows are learned from as Python
        example = sampler.example(mask)
        assert example.keys() == drawn.keys() and len(example["minibatches"]) == len(drawn["minibatches"])
        assert ragged or all(example[k].shape == drawn[k].shape for k in drawn)
