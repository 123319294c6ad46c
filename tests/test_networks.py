import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.fx import GraphModule

from rlcore import ActorCritic
from rlcore.buffer import RolloutBuffer
from rlcore.errors import UsageError
from rlcore.networks.normalize import RewardScaler, RunningNorm
from rlcore.optim import Parameters
from rlcore.programs.program import Program
from rlcore.state import module_places

BOX, DISCRETE = spaces.Box(-1, 1, (4,)), spaces.Discrete(3)


def test_heads_agree_with_forward_and_evaluate():
    network, obs = ActorCritic(BOX, DISCRETE), torch.randn(5, 4)
    policy, values = network(obs)
    torch.testing.assert_close(policy.params, network.policy(obs).params)
    torch.testing.assert_close(values, network.value(obs))
    actions = torch.tensor([0, 1, 2, 1, 0])
    logprobs, entropy, evaluated = network.evaluate(obs, actions)
    torch.testing.assert_close(logprobs, policy.log_prob(actions))
    torch.testing.assert_close(entropy, policy.entropy())
    torch.testing.assert_close(evaluated, values)


@pytest.mark.parametrize("shared", [False, True])
def test_any_leading_dimensions(shared):
    network, obs = ActorCritic(BOX, spaces.Box(-1, 1, (2,)), shared=shared), torch.randn(3, 5, 4)
    assert network.value(obs).shape == (3, 5)
    assert network.policy(obs).mean.shape == (3, 5, 2)
    torch.testing.assert_close(network.value(obs)[1, 2], network.value(obs[1, 2]))
    torch.testing.assert_close(network.policy(obs).mean[1, 2], network.policy(obs[1, 2]).mean)


def test_orthogonal_initialisation_with_a_small_policy_head_and_zero_biases():
    network = ActorCritic(BOX, DISCRETE, hidden_sizes=(64, 64))
    hidden = network.actor.torsos[0].layers[1].weight
    torch.testing.assert_close(hidden @ hidden.T, 2 * torch.eye(64), atol=1e-5, rtol=0)
    head = network.policy_head.weight
    torch.testing.assert_close(head @ head.T, 1e-4 * torch.eye(3), atol=1e-7, rtol=0)
    assert all((p == 0).all() for name, p in network.named_parameters() if name.endswith("bias"))
    probabilities = network.policy(torch.randn(10, 4)).log_p.exp()
    assert (probabilities - 1 / 3).abs().max() < 0.02


def test_separate_torsos_share_no_weights_and_a_shared_one_is_one():
    separate, shared = ActorCritic(BOX, DISCRETE), ActorCritic(BOX, DISCRETE, shared=True)
    assert separate.actor is not separate.critic and shared.actor is shared.critic
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    torso = 4 * 64 + 64 + 64 * 64 + 64
    assert count(separate) - count(shared) == torso


@pytest.mark.parametrize(
    "space, features",
    [
        (spaces.Discrete(4, start=0), 4),
        (spaces.MultiDiscrete([3, 2]), 5),
        (spaces.MultiBinary([2, 2]), 4),
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), 48),
        (spaces.Box(-1, 1, ()), 1),
        (spaces.Dict({"values": spaces.Box(-1, 1, (2,)), "a.b": spaces.Discrete(3)}), 5),
    ],
)
def test_every_supported_observation_space_reaches_the_torso_as_floats(space, features):
    seen = []

    def torso(shape):
        seen.append(int(np.prod(shape)))
        return nn.Sequential(nn.Flatten(), nn.Linear(seen[-1], 8))

    network = ActorCritic(space, DISCRETE, torso=torso, shared=True)
    assert sum(seen) == features
    buffer = RolloutBuffer(2, 3, space, DISCRETE)
    assert network.value(buffer.obs).shape == (2, 3)
    assert ActorCritic(space, DISCRETE).value(buffer.obs).shape == (2, 3)


def test_discrete_observations_are_one_hot():
    network = ActorCritic(spaces.MultiDiscrete([3, 2]), DISCRETE)
    assert network.preprocess[0](torch.tensor([[2, 0]])).tolist() == [[0, 0, 1, 1, 0]]


def test_images_are_scaled_to_one():
    network = ActorCritic(spaces.Box(0, 255, (2, 2), np.uint8), DISCRETE)
    assert network.preprocess[0](torch.full((1, 2, 2), 255, dtype=torch.uint8)).max() == 1


def test_a_torso_module_of_ones_own_is_used_by_actor_and_critic():
    torso = nn.Sequential(nn.Linear(4, 7), nn.ReLU())
    network = ActorCritic(BOX, DISCRETE, torso=torso)
    assert network.shared and network.policy_head.in_features == 7
    obs = torch.randn(3, 4)
    torch.testing.assert_close(network.value(obs), network.value_head(torso(obs)).squeeze(-1))


def test_torsos_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"\[batch, features\]"):
        ActorCritic(BOX, DISCRETE, torso=nn.Unflatten(1, (2, 2)))
    with pytest.raises(UsageError, match="2 parts"):
        ActorCritic(spaces.Tuple([BOX, BOX]), DISCRETE, torso=nn.Linear(4, 4))
    with pytest.raises(UsageError, match="activation is 'tan'"):
        ActorCritic(BOX, DISCRETE, activation="tan")


def test_log_std_is_free_or_from_the_network():
    box = spaces.Box(-1, 1, (2,))
    free = ActorCritic(BOX, box, log_std_init=-1.0)
    assert (free.policy(torch.randn(3, 4)).log_std == -1).all()
    dependent = ActorCritic(BOX, box, log_std_init=-1.0, state_dependent_std=True)
    log_std = dependent.policy(10 * torch.randn(3, 4)).log_std
    assert (log_std + 1).abs().max() < 0.1 and log_std.std() > 0


def test_flat_parameters_are_views_of_one_vector():
    network = ActorCritic(BOX, DISCRETE)
    before, obs = {k: v.clone() for k, v in network.state_dict().items()}, torch.randn(2, 4)
    parameters = Parameters(lambda: {"network": network})
    vector = parameters.vector
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert len(vector) == sum(p.numel() for p in parameters)
    with torch.no_grad():
        vector.zero_()
    assert network.value(obs).abs().max() == 0
    network.load_state_dict(before)
    assert vector.abs().max() > 0


def test_running_norm_equals_the_moments_of_all_it_saw():
    rng, norm = np.random.default_rng(0), RunningNorm((3,))
    seen = []
    for size in (1, 5, 40):
        x, mask = rng.normal(1e4, 3, (size, 2, 3)), rng.random((size, 2)) < 0.7
        mask[0, 0] = True
        seen.append(x[mask])
        x[~mask] = np.nan
        norm.update(torch.from_numpy(x), torch.from_numpy(mask))
    seen = np.concatenate(seen)
    np.testing.assert_allclose(norm.mean, seen.mean(0))
    np.testing.assert_allclose(norm.var, seen.var(0))
    assert norm.count == len(seen)


def test_running_norm_begins_as_the_identity_and_an_empty_update_changes_nothing():
    norm, x = RunningNorm((2,)), torch.tensor([[0.5, -3.0]])
    norm.update(torch.full((1, 1, 2), torch.nan), torch.zeros(1, 1, dtype=torch.bool))
    torch.testing.assert_close(norm(x), x)
    assert norm(torch.tensor([[1e9, -1e9]])).tolist() == [[10, -10]]


def test_actor_and_critic_share_statistics_and_only_real_numbers_have_them():
    space = spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "image": spaces.Box(0, 255, (2, 2), np.uint8)})
    network = ActorCritic(space, DISCRETE, norm_obs=True)
    assert network.actor.preprocess is network.critic.preprocess
    assert [p.norm is not None for p in network.preprocess] == [
        isinstance(s, spaces.Box) and s.dtype == np.float32 for s in space.spaces.values()
    ]


def test_reward_scaler_equals_a_loop_over_each_environment():
    rng = np.random.default_rng(0)
    buffer, scaler = RolloutBuffer(6, 3, BOX, DISCRETE), RewardScaler(3, 0.9)
    carry, seen = np.zeros(3), []
    for _ in range(4):
        rewards = rng.normal(2, 5, (6, 3)).astype(np.float32)
        ends, mask = rng.random((6, 3)) < 0.3, rng.random((6, 3)) < 0.8
        buffer.rewards.copy_(torch.from_numpy(np.where(mask, rewards, np.nan)))
        buffer.terminated.copy_(torch.from_numpy(ends))
        buffer.mask.copy_(torch.from_numpy(mask))
        scaler.scale_(buffer)
        for t in range(6):
            for n in range(3):
                if mask[t, n]:
                    carry[n] = 0.9 * carry[n] + rewards[t, n]
                    seen.append(carry[n])
                    carry[n] *= not ends[t, n]
        expected = np.clip(rewards / np.sqrt(np.var(seen) + 1e-8), -10, 10)
        np.testing.assert_allclose(buffer.rewards.numpy()[mask], expected[mask], rtol=1e-5)


def test_reward_scaling_is_recorded_without_writing_out_the_rows():
    """The same operations, or a few more, for four times as many rows; and they do what Python does."""
    sizes = []
    for steps in (64, 256):
        generator = torch.Generator().manual_seed(steps)
        scalers = [RewardScaler(3, 0.9) for _ in range(2)]
        buffers = [RolloutBuffer(steps, 3, BOX, DISCRETE) for _ in range(2)]

        def places(buffer=buffers[1], scaler=scalers[1]):
            return [*module_places(scaler, "scaler"), *buffer.places()]

        program = Program(lambda: scalers[1].scale_(buffers[1]), places)  # noqa: B023
        program.prepare(None, compiled=False)
        sizes.append(sum(len(m.graph.nodes) for m in program.recorded.graph.modules() if isinstance(m, GraphModule)))
        for _ in range(3):
            draws = torch.rand(4, steps, 3, generator=generator)
            for buffer in buffers:
                buffer.rewards, buffer.mask = draws[0] * 7 - 3, draws[1] < 0.9
                buffer.terminated, buffer.truncated = draws[2] < 0.05, draws[3] < 0.05
            scalers[0].scale_(buffers[0])
            program()
            torch.testing.assert_close(buffers[1].rewards, buffers[0].rewards)
            torch.testing.assert_close(scalers[1].state_dict(), scalers[0].state_dict())
    assert sizes[0] <= sizes[1] <= sizes[0] + 40, sizes


def test_bfloat16_changes_the_torsos_arithmetic_and_no_dtype():
    space = spaces.Box(0, 255, (4, 36, 36), np.uint8)
    torch.manual_seed(0)
    exact = ActorCritic(space, spaces.Discrete(3), shared=True)
    rough = ActorCritic(space, spaces.Discrete(3), shared=True, precision="bfloat16")
    rough.load_state_dict(exact.state_dict())
    obs = torch.randint(0, 256, (5, 4, 36, 36), dtype=torch.uint8)
    (_, values), (other, others) = exact(obs), rough(obs)
    assert other.params.dtype == others.dtype == torch.float32
    assert not torch.equal(values, others)
    torch.testing.assert_close(values, others, atol=0.05, rtol=0.05)
    (gradient,) = torch.autograd.grad(others.sum(), rough.actor.torsos[0].conv1.weight)
    assert gradient.dtype == torch.float32
