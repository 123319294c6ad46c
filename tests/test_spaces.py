import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlcore.errors import UsageError
from rlcore.spaces import action_spec, observation_parts, split_observation


def test_leaves_keep_shape_and_a_fitting_dtype():
    assert observation_parts(spaces.Box(-1, 1, (3, 2), np.float64)).dtype == torch.float32
    image = observation_parts(spaces.Box(0, 255, (84, 84, 3), np.uint8))
    assert (image.shape, image.dtype, image.image) == ((84, 84, 3), torch.uint8, True)
    discrete = observation_parts(spaces.Discrete(4, start=-2))
    assert (discrete.shape, discrete.categories, discrete.start) == ((), (4,), -2)
    assert observation_parts(spaces.MultiDiscrete([3, 4])).categories == (3, 4)
    assert observation_parts(spaces.MultiBinary(5)).shape == (5,)


def test_nested_spaces_become_named_parts():
    space = spaces.Dict(
        {"robot": spaces.Dict({"joints": spaces.Box(-1, 1, (2,))}), "pair": spaces.Tuple([spaces.Discrete(2)] * 2)}
    )
    assert set(observation_parts(space)) == {"robot/joints", "pair/0", "pair/1"}
    sample = space.sample()
    parts = split_observation(space, sample)
    assert parts["pair/1"] == sample["pair"][1]
    assert list(parts) == list(observation_parts(space))


@pytest.mark.parametrize(
    "space", [spaces.Text(3), spaces.Sequence(spaces.Discrete(2)), spaces.Graph(spaces.Discrete(2), None)]
)
def test_what_has_no_tensor_form_is_refused_by_name(space):
    with pytest.raises(UsageError, match=type(space).__name__):
        observation_parts(space)
    with pytest.raises(UsageError, match="part 'inner'"):
        observation_parts(spaces.Dict({"inner": space}))
    with pytest.raises(UsageError, match="action space"):
        action_spec(space)


def test_integer_box_actions_are_refused():
    with pytest.raises(UsageError, match="Box of floats"):
        action_spec(spaces.Box(0, 5, (2,), np.int64))


@pytest.mark.parametrize(
    "space, stored",
    [
        (spaces.Discrete(3, start=5), [0, 2]),
        (spaces.MultiDiscrete([2, 3]), [[0, 2], [1, 1]]),
        (spaces.MultiDiscrete([[2, 3]], start=[[1, -1]]), [[0, 2], [1, 1]]),
        (spaces.MultiBinary([2, 2]), [[0, 1, 1, 0], [1, 1, 1, 1]]),
        (spaces.Box(-1.0, 1.0, (2, 1)), [[0.5, -0.5], [7.0, -7.0]]),
        (spaces.Box(-1.0, 1.0, (2,), np.float64), [[0.5, -0.5], [7.0, -7.0]]),
        (spaces.Box(-np.inf, np.inf, (1,)), [[9.0], [-9.0]]),
    ],
)
def test_actions_at_the_door_belong_to_the_space(space, stored):
    spec = action_spec(space)
    actions = np.array(stored)
    before = actions.copy()
    for action in spec.to_env(actions.astype(np.float32) if spec.kind == "gaussian" else actions):
        assert space.contains(
            action if isinstance(space, spaces.Box | spaces.MultiDiscrete) else action.astype(space.dtype)
        )
    np.testing.assert_array_equal(actions, before)  # the buffer's copy stays as drawn


def test_discrete_start_is_added():
    assert action_spec(spaces.Discrete(3, start=5)).to_env(np.array([0, 2])).tolist() == [5, 7]


def test_squash_maps_the_line_onto_the_bounds():
    spec = action_spec(spaces.Box(np.float32([-2, 0]), np.float32([2, 5])), squash=True)
    np.testing.assert_allclose(spec.to_env(np.float32([[0, 0], [100, -100]])), [[0, 2.5], [2, 0]])
    for space in (spaces.Discrete(2), spaces.Box(-np.inf, 1, (1,))):
        with pytest.raises(UsageError, match="squash"):
            action_spec(space, squash=True)
