from itertools import cycle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rlcore import PPO, ActorCritic, RolloutBuffer
from rlcore.collect import EpisodeCounter, HostCollector, NativeCollector, StagedRows
from rlcore.envs import VectorAdapter
from rlcore.envs.native import NativeTask
from rlcore.errors import EnvironmentFault, UsageError
from tests.environments import MODES, BreaksAt, Echo, Scripted, vectorize

SCRIPTS = [
    [(3, "t"), (1, "c"), (4, "c")],
    [(1, "t"), (1, "t"), (2, "tc")],
    [(100, "t")],
]


def collector(envs, num_steps, seed=0, **network):
    adapter = VectorAdapter(envs)
    buffer = RolloutBuffer(num_steps, envs.num_envs, envs.single_observation_space, adapter.action_spec)
    torch.manual_seed(seed)
    net = ActorCritic(envs.single_observation_space, adapter.action_spec, **network)
    return HostCollector(adapter, buffer, torch.Generator().manual_seed(seed)), net


def reference(script, steps):
    """The transitions that playing a Scripted environment by hand gives: obs, first, reward, end, successor."""
    env, rows = Scripted(script), []
    obs, first = env.reset()[0], False
    while len(rows) < steps:
        successor, reward, terminated, truncated, _ = env.step(0)
        rows.append((obs, first, reward, terminated, truncated, successor))
        obs, first = (env.reset()[0], True) if terminated or truncated else (successor, False)
    return rows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("num_steps", [1, 7])
def test_rollouts_hold_exactly_the_transitions_played_by_hand(mode, shared, num_steps):
    envs = vectorize(lambda n: Scripted(SCRIPTS[n]), 3, mode)
    play, network = collector(envs, num_steps, shared=shared)
    rows = {n: [] for n in range(3)}
    for _ in range(21 // num_steps):
        play.collect(network)
        b = play.buffer
        for n in range(3):
            for t in torch.nonzero(b.mask[:, n]).flatten():
                fields = (b.obs, b.dones, b.rewards, b.terminated, b.truncated, b.values, b.next_values)
                rows[n].append([x[t, n].clone() for x in fields])
    for n, script in enumerate(SCRIPTS):
        assert len(rows[n]) >= 10
        if mode is not AutoresetMode.NEXT_STEP:
            assert len(rows[n]) == 21  # no row is wasted
        for got, want in zip(rows[n], reference(script, len(rows[n])), strict=True):
            obs, first, reward, terminated, truncated, successor = want
            np.testing.assert_array_equal(got[0], obs)
            assert [x.item() for x in got[1:5]] == [first, reward, terminated, truncated]
            torch.testing.assert_close(got[5], network.value(torch.from_numpy(obs)))
            following = torch.zeros(()) if terminated else network.value(torch.from_numpy(successor))
            torch.testing.assert_close(got[6], following)


class TwoWays(NativeTask):
    """Shows [way, t]: the first way is cut after 5 steps, the second ends after 3; which it is is drawn."""

    id, max_episode_steps, draws = "TwoWays", 5, 1
    observation_space, action_space = spaces.Box(0, 5, (2,)), spaces.Discrete(2)

    def initial(self, uniform):
        return torch.cat([(uniform < 0.5).to(uniform.dtype), torch.zeros_like(uniform)], 1)

    def observe(self, state):
        return state.float()

    def step(self, state, action):
        state = state + torch.tensor([0.0, 1.0])
        return state, torch.ones(len(state)), (state[:, 0] == 1) & (state[:, 1] == 3)


class TwoWaysOnTheHost(gym.Env):
    observation_space, action_space = TwoWays.observation_space, TwoWays.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = np.array([self.np_random.random() < 0.5, 0], np.float32)
        return self.obs.copy(), {}

    def step(self, action):
        self.obs[1] += 1
        terminated = self.obs.tolist() == [1, 3]
        return self.obs.copy(), 1.0, terminated, bool(self.obs[1] == 5), {}


@pytest.mark.parametrize("whole_episodes", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", [*MODES, "native"])
def test_every_collector_puts_no_value_after_a_termination_and_that_of_the_true_successor_elsewhere(
    mode, shared, whole_episodes
):
    envs = vectorize(lambda n: TwoWaysOnTheHost(), 6, MODES[0] if mode == "native" else mode)
    adapter, steps = VectorAdapter(envs), 4 if whole_episodes else 11  # too few for the first way
    buffer = RolloutBuffer(steps, 6, envs.single_observation_space, adapter.action_spec)
    kind = HostCollector if mode != "native" else lambda *args: NativeCollector(TwoWays(), *args)
    play = kind(adapter, buffer, torch.Generator().manual_seed(0), whole_episodes)
    network, ends = ActorCritic(envs.single_observation_space, adapter.action_spec, shared=shared), []
    for rollout in range(4):
        if rollout == 0 or whole_episodes:
            play.reset(rollout)
        play.collect(network)
        b = buffer
        following = b.obs + torch.tensor([0.0, 1.0])
        assert torch.equal(b.terminated & b.mask, (following == torch.tensor([1.0, 3.0])).all(-1) & b.mask)
        expected = torch.where(b.terminated, 0.0, network.value(following))
        torch.testing.assert_close(b.next_values[b.mask], expected[b.mask])
        ends.append([int((x & b.mask).sum()) for x in (b.terminated, b.truncated)])
    assert (np.sum(ends, 0) > 5).all()


def test_a_sum_of_rewards_is_exact_where_float32_is_not():
    """2**24 + 1 is no float32."""
    counter, one = EpisodeCounter(1), np.ones((1, 1))
    big, going, ended = 2.0**24 * one, np.zeros((1, 1), dtype=bool), np.ones((1, 1), dtype=bool)
    assert len(counter.count(big, going, ended, 0)) == 0
    assert counter.count(one, ended, ended, 1).returns == [16_777_217.0]

    class Pays(Scripted):
        def step(self, action):
            obs, _, *end = super().step(action)
            return obs, 2.0**24 if self.t == 1 else 1.0, *end

    play, network = collector(vectorize(lambda n: Pays([(2, "t")]), 1, MODES[1]), 2)
    assert play.collect(network).returns == [16_777_217.0]


@pytest.mark.parametrize("mode", MODES)
def test_rows_staged_for_a_device_arrive_as_those_written_in_place(mode):
    """What a CUDA buffer does, with a CPU buffer in its place."""
    in_place, staged = (collector(vectorize(lambda n: Scripted(SCRIPTS[n]), 3, mode), 6) for _ in range(2))
    staged[0].rows = StagedRows(staged[0].buffer, staged[0].noise)
    for _ in range(3):
        episodes = [play.collect(network) for play, network in (in_place, staged)]
        assert episodes[0] == episodes[1]
        for name, ours in vars(in_place[0].buffer).items():
            if isinstance(ours, torch.Tensor):
                assert torch.equal(ours, getattr(staged[0].buffer, name)), name


@pytest.mark.parametrize("mode", MODES)
def test_finished_episodes_are_counted_across_rollouts(mode):
    envs = vectorize(lambda n: Scripted(SCRIPTS[n]), 3, mode)
    play, network = collector(envs, 5)
    found = {n: [] for n in range(3)}
    steps = []
    for _ in range(6):
        episodes = play.collect(network)
        for n, ret, length in zip(episodes.env, episodes.returns, episodes.lengths, strict=True):
            found[n].append((ret, length))
        steps += episodes.step
    for n, script in enumerate(SCRIPTS):
        for e, (ret, length) in enumerate(found[n]):
            assert length == script[e % len(script)][0]
            assert ret == sum(10 * (e + 1) + t for t in range(1, length + 1))
    assert len(found[0]) >= 8 and len(found[1]) >= 10 and not found[2]
    assert steps == sorted(steps) and steps[-1] <= play.global_step
    expected = 6 * 5 * 3 if mode is not AutoresetMode.NEXT_STEP else play.global_step
    assert play.global_step == expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rollouts", range(7))
def test_collection_goes_on_from_a_stored_state_wherever_it_was_cut(mode, rollouts):
    """At each of these cuts some environment is at another point of its episode: first row, dead row, middle."""

    def new():
        return collector(vectorize(lambda n: Scripted(SCRIPTS[n]), 3, mode), 1)

    play, network = new()
    play.reset()
    for _ in range(rollouts):
        play.collect(network)
    resumed, same = new()
    resumed.load_state_dict(play.state_dict())
    resumed.generator.set_state(play.generator.get_state())
    for _ in range(6):
        episodes = [play.collect(network), resumed.collect(same)]
        assert episodes[0] == episodes[1]
        for name, ours in vars(play.buffer).items():
            if isinstance(ours, torch.Tensor):
                assert torch.equal(ours, getattr(resumed.buffer, name)), name
    assert play.global_step == resumed.global_step


def test_a_dead_row_is_masked_and_its_successor_begins_an_episode():
    play, network = collector(vectorize(lambda n: Scripted([(2, "t")]), 1, AutoresetMode.NEXT_STEP), 8)
    play.collect(network)
    assert play.buffer.mask[:, 0].tolist() == [True, True, False] * 2 + [True, True]
    assert play.buffer.dones[:, 0].tolist() == [False, False, False, True, False, False, True, False]
    play.collect(network)
    assert play.buffer.mask[:3, 0].tolist() == [False, True, True]
    assert play.buffer.dones[:3, 0].tolist() == [False, True, False]


class LosesLives(gym.vector.VectorWrapper):
    """Tells of a lost life in its second step, and of none in steps without."""

    steps = 0

    def step(self, actions):
        *step, infos = self.env.step(actions)
        self.steps += 1
        return *step, {**infos, "life_lost": np.array([True])} if self.steps == 2 else infos


def test_a_lost_life_ends_an_episode_for_learning_alone():
    envs = LosesLives(vectorize(lambda n: Scripted([(5, "t")]), 1, AutoresetMode.DISABLED))
    play, network = collector(envs, 3)
    assert play.collect(network).lengths == []
    assert play.buffer.terminated.flatten().tolist() == [False, True, False]
    assert play.buffer.dones.flatten().tolist() == [False, False, True]
    episodes = play.collect(network)  # whose second step is a real end
    assert play.buffer.terminated.flatten().tolist() == [False, True, False]
    assert episodes.lengths == [5] and play.buffer.dones.flatten().tolist() == [False, False, True]


def test_log_probabilities_are_those_of_the_policy_that_acted():
    envs = vectorize(lambda n: Echo(action_space=spaces.Box(-1, 1, (2,))), 2, AutoresetMode.SAME_STEP)
    play, network = collector(envs, 6)
    play.collect(network)
    b = play.buffer
    torch.testing.assert_close(b.logprobs, network.policy(b.obs).log_prob(b.actions))
    torch.testing.assert_close(b.dist_params, network.policy(b.obs).params)


def test_box_actions_are_clipped_at_the_door_and_kept_unclipped_in_the_buffer():
    envs = vectorize(lambda n: Echo(action_space=spaces.Box(-0.1, 0.1, (1,))), 1, AutoresetMode.DISABLED)
    play, network = collector(envs, 30)
    play.collect(network)
    stored, given = play.buffer.actions[:, 0].numpy(), np.array(envs.envs[0].actions)
    assert np.abs(stored).max() > 0.5 and np.abs(given).max() <= 0.1
    np.testing.assert_allclose(given, np.clip(stored, -0.1, 0.1))


OBSERVATIONS = {
    "box": spaces.Box(-1, 1, (2, 3), np.float64),
    "image": spaces.Box(0, 255, (6, 6, 3), np.uint8),
    "discrete": spaces.Discrete(4, start=3),
    "multi_discrete": spaces.MultiDiscrete([3, 4], start=[-1, 2]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)])}),
    "tuple": spaces.Tuple([spaces.Box(0, 255, (2, 2), np.uint8), spaces.Discrete(2, start=1)]),
}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(4),
    "box": spaces.Box(np.float32([-1, 0]), np.float32([1, 5])),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("obs", OBSERVATIONS)
def test_an_agent_trains_on_every_observation_space_in_every_mode(obs, mode):
    envs = vectorize(lambda n: Echo(OBSERVATIONS[obs]), 2, mode)
    agent = PPO(envs, num_steps=8, seed=0, hidden_sizes=(8,), norm_obs=True)
    agent.learn(40)
    assert agent.global_step >= 40
    first = envs.reset(seed=1)[0]
    assert envs.action_space.contains(agent.act(first).astype(envs.action_space.dtype))


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("squash", [False, True])
def test_an_agent_trains_on_every_action_space(action, squash):
    if squash and action != "box":
        with pytest.raises(UsageError, match="squash"):
            PPO(vectorize(lambda n: Echo(action_space=ACTIONS[action]), 2, MODES[0]), squash=True)
        return
    for dependent in (False, True):
        envs = vectorize(lambda n: Echo(action_space=ACTIONS[action]), 2, MODES[0])  # Echo checks what it is given
        agent = PPO(envs, num_steps=8, seed=0, hidden_sizes=(8,), squash=squash, state_dependent_std=dependent)
        agent.learn(40)


@pytest.mark.parametrize(
    "obs, action, options",
    [
        *((obs, action, dict(norm_obs=True, shared=True)) for obs, action in zip(OBSERVATIONS, cycle(ACTIONS))),
        ("box", "box", dict(squash=True, state_dependent_std=True, norm_reward=True)),
    ],
)
def test_recorded_operations_do_what_python_does_on_every_space(obs, action, options):
    def trained(compile):
        envs = vectorize(lambda n: Echo(OBSERVATIONS[obs], ACTIONS[action]), 2, MODES[1])
        agent = PPO(envs, num_steps=8, seed=0, hidden_sizes=(8,), update_epochs=2, compile=compile, **options)
        return agent.learn(64)

    ours, theirs = trained(False), trained("record")
    assert theirs.engine.how == "recorded"
    torch.testing.assert_close(theirs.parameters.vector, ours.parameters.vector, atol=1e-5, rtol=1e-4)
    for name in ("dist_params", "values", "logprobs"):
        torch.testing.assert_close(getattr(theirs.buffer, name), getattr(ours.buffer, name), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("mode", MODES)
def test_nan_from_an_environment_names_environment_and_step(what, mode):
    envs = vectorize(lambda n: BreaksAt(13 if n == 1 else -1, what), 3, mode)
    agent = PPO(envs, num_steps=8, seed=0)
    with pytest.raises(EnvironmentFault, match=rf"environment 1 returned nan in its {what} at vector step 13"):
        agent.learn(1000)


def test_nan_in_the_very_last_observation_of_a_rollout_is_seen():
    agent = PPO(vectorize(lambda n: BreaksAt(8, "observation"), 1, MODES[0]), num_steps=8, seed=0)
    with pytest.raises(EnvironmentFault, match="vector step 8"):
        agent.learn(8)


class NoMode(gym.vector.VectorEnv):
    num_envs, metadata = 1, {}
    single_observation_space, single_action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)


def test_an_unknown_autoreset_mode_is_refused():
    with pytest.raises(UsageError, match="autoreset_mode"):
        PPO(NoMode())


def test_same_seed_same_rollout():
    def rollout():
        agent = PPO("CartPole-v1", seed=3, num_steps=16)
        agent.learn(64)
        return agent.buffer.obs.clone(), agent.network.state_dict()

    (obs, weights), (again, same) = rollout(), rollout()
    assert torch.equal(obs, again) and all(torch.equal(weights[k], same[k]) for k in weights)


def test_correlated_noise_is_standard_normal_and_goes_on_across_rollouts():
    envs = vectorize(lambda n: Echo(action_space=spaces.Box(-1, 1, (2,))), 50, MODES[2])
    adapter = VectorAdapter(envs)
    buffer = RolloutBuffer(4, 50, envs.single_observation_space, adapter.action_spec)
    play = HostCollector(adapter, buffer, torch.Generator().manual_seed(0), noise_correlation=0.9)
    network, rows = ActorCritic(envs.single_observation_space, adapter.action_spec), []
    for _ in range(100):
        play.collect(network)
        rows.append(play.noise.clone())
        policy = network.policy(buffer.obs)
        torch.testing.assert_close(buffer.actions, policy.mean + policy.log_std.exp() * play.noise)
    noise = torch.cat(rows).flatten(1).double()  # [400, 100]
    assert abs(noise.std().item() - 1) < 0.05 and abs(noise.mean().item()) < 0.1
    for lag in (1, 3, 8):
        assert (noise[lag:] * noise[:-lag]).mean().item() == pytest.approx(0.9**lag, abs=0.06)
    with pytest.raises(UsageError, match="noise_correlation"):
        PPO("CartPole-v1", noise_correlation=0.5)


def test_a_reset_forgets_what_was_under_way():
    play, network = collector(vectorize(lambda n: Scripted([(2, "t")]), 2, AutoresetMode.NEXT_STEP), 2)
    play.collect(network)  # both environments have ended: their next row would be dead
    play.reset()
    episodes = play.collect(network)
    assert play.buffer.mask.all() and not play.buffer.dones.any()
    assert episodes.lengths == [2, 2]
