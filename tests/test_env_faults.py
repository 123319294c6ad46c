"""Environments that raise, die, hang or return nonsense: one sentence, or a new beginning and nothing learned of it."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rlcore import PPO, REINFORCE, ActorCritic, RolloutBuffer, load, make_vec
from rlcore.collect import HostCollector
from rlcore.envs import VectorAdapter
from rlcore.envs.adapter import FAULTS_IN_A_ROW
from rlcore.envs.guard import FAULT_KEY, Guard, GuardedSyncVectorEnv, guarded
from rlcore.errors import DivergenceError, EnvironmentFault, UsageError
from tests import faulty_env
from tests.environments import MODES, Scripted

FAULTS = {
    "raise": r"environment \d raised KeyError: 'bad thing' \(faulty_env.py, line \d+\)",
    "exit": r"environment \d raised SystemExit: 0 \(faulty_env.py, line \d+\)",
    "shape": r"environment \d returned an observation of shape \[1\], but its space has shape \[3\]",
    "dtype": r"environment \d returned an observation of dtype object, but its space has dtype float32",
    "nan": r"environment \d returned nan in its observation",
    "inf": r"environment \d returned inf in its reward",
}
DEATHS = {
    "die": r"the process of environment \d died \(exit code 0\)",
    "kill": r"the process of environment \d died \(killed by signal 9\)",
    "hang": r"environment \d did not answer within 1 s \(--env-timeout\)",
}
CASES = [(b, f) for b in ("sync", "async") for f in FAULTS] + [("async", f) for f in DEATHS]
SMALL = dict(num_envs=3, num_steps=16, seed=0, hidden_sizes=(8,), compile=False, env_timeout=1.0)


@pytest.fixture
def agents():
    """Makes agents, whose environments are closed after the test."""
    made = []

    def make(kind, env="Faulty-v0", **options):
        made.append(kind(env, **{**SMALL, **options}))
        return made[-1]

    yield make
    for agent in made:
        agent.close()


# One sentence.


@pytest.mark.parametrize("backend, fault", CASES)
def test_a_fault_stops_a_run_with_one_sentence(agents, backend, fault, tmp_path):
    marker = str(tmp_path / "once")
    agent = agents(PPO, backend=backend, env_kwargs={"fault": fault, "marker": marker})
    with pytest.raises(EnvironmentFault) as caught:
        agent.learn(10_000)
    assert re.fullmatch(f"{({**FAULTS, **DEATHS})[fault]} at vector step 40", str(caught.value))


@pytest.mark.parametrize("backend, fault", CASES)
def test_with_restart_a_run_goes_on_and_tells_once(agents, backend, fault, tmp_path):
    kwargs = {"fault": fault, "marker": str(tmp_path / "once")}
    agent = agents(PPO, backend=backend, on_env_error="restart", env_kwargs=kwargs)
    with pytest.warns(UserWarning, match=f"{({**FAULTS, **DEATHS})[fault]} at vector step 40; it was begun anew"):
        counts = [metrics["env_restarts"] for metrics, _ in agent.iterations(300)]
    assert counts[:2] == [0, 0] and set(counts[2:]) == {1.0} and agent.collector.restarts == 1
    assert agent.global_step == len(counts) * 48 - 1  # all but the row of the fault


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_evaluation_stops_at_a_fault_in_any_case(agents, backend):
    agent = agents(PPO, backend=backend, on_env_error="restart", env_kwargs={"fault": "raise", "at": 7})
    with pytest.raises(EnvironmentFault, match=r"environment 0 raised KeyError.* at step 7 of the evaluation"):
        agent.evaluate(3, seed=0)
    agent = agents(PPO, backend=backend, env_kwargs={"fault": "inf", "at": 7})
    with pytest.raises(EnvironmentFault, match="returned inf in its reward at step 7 of the evaluation"):
        agent.evaluate(3, seed=0)


class Returns(gym.Env):
    """Returns what it is told to."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, obs, answer=None, first=None):
        self.observation_space, self.obs, self.answer, self.first = space, obs, answer, first

    def reset(self, *, seed=None, options=None):
        return (self.observation_space.sample(), {}) if self.first is None else self.first

    def step(self, action):
        return (self.obs, 1.0, False, False, {}) if self.answer is None else self.answer


BOX = spaces.Box(-1, 1, (2,), np.float32)
NESTED = spaces.Dict({"a": BOX, "b": spaces.Tuple([spaces.Discrete(3), BOX])})
GOOD = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    "space, obs",
    [
        (BOX, np.zeros(2, np.float64)),
        (BOX, [0, 1]),
        (BOX, np.zeros(2, np.int64)),
        (spaces.Discrete(3), 1),
        (spaces.Discrete(3), np.array(2)),
        (spaces.MultiBinary(2), np.array([True, False])),
        (NESTED, {"a": GOOD, "b": (np.int64(1), np.zeros(2))}),
        (NESTED, {"a": GOOD, "b": [1, GOOD], "more": 3}),
    ],
)
@pytest.mark.parametrize("restarts", [False, True])
def test_a_sloppy_environment_is_left_alone(space, obs, restarts):
    guard = Guard(lambda: Returns(space, obs), 0, restarts)
    answer = guard.step(0)
    assert answer[0] is obs and answer[1:] == (1.0, False, False, {})
    for reward in (1, True, np.float32(1), np.array(1.0), np.array([1.0]), np.int8(1)):
        assert Guard(lambda r=reward: Returns(space, obs, (obs, r, 0, np.True_, {})), 0).step(0)[1:4] == (1, 0, 1)


@pytest.mark.parametrize(
    "space, obs, words",
    [
        (BOX, np.zeros((1, 2)), r"an observation of shape \[1, 2\], but its space has shape \[2\]"),
        (BOX, [[1], [2, 3]], "an observation that is no array"),
        (BOX, None, r"an observation of shape \[\]"),
        (BOX, np.array(["1", "2"]), "an observation of dtype <U1, but its space has dtype float32"),
        (spaces.Discrete(3), 1.5, "an observation of dtype float64, but its space has dtype int64"),
        (
            spaces.Box(0, 255, (2,), np.uint8),
            np.zeros(2),
            "an observation of dtype float64, but its space has .* uint8",
        ),
        (NESTED, {"a": GOOD}, "an observation without part 'b'"),
        (NESTED, GOOD, "an observation of type ndarray, but its space is a Dict"),
        (NESTED, {"a": GOOD, "b": (1,)}, "an observation part 'b' of 1 parts, but its space has 2"),
        (NESTED, {"a": GOOD, "b": (1, GOOD[:1])}, r"an observation part 'b/1' of shape \[1\], but"),
    ],
)
def test_an_observation_that_its_space_does_not_fit_is_named(space, obs, words):
    with pytest.raises(EnvironmentFault, match=f"environment 3 returned {words}"):
        Guard(lambda: Returns(space, obs), 3).step(0)
    with pytest.raises(EnvironmentFault, match=f"environment 3 returned {words}"):
        Guard(lambda: Returns(space, obs, first=(obs, {})), 3).reset()


@pytest.mark.parametrize(
    "answer, words",
    [
        ((GOOD, None, False, False, {}), "None as its reward, but it must be a number"),
        ((GOOD, "1", False, False, {}), "'1' as its reward"),
        ((GOOD, np.ones(2), False, False, {}), "as its reward"),
        ((GOOD, 1.0, None, False, {}), "None as terminated, but it must be true or false"),
        ((GOOD, 1.0, False, "no", {}), "'no' as truncated"),
        ((GOOD, 1.0, 2, False, {}), "2 as terminated"),
        ((GOOD, 1.0, False, False, None), "None as info, but it must be a dict"),
        ((GOOD, 1.0, False, {}), "from its step, but must return observation, reward, terminated, truncated and info"),
        (17, "17 from its step"),
    ],
)
def test_an_answer_of_another_form_is_named(answer, words):
    with pytest.raises(EnvironmentFault, match=f"environment 0 returned .*{words}"):
        Guard(lambda: Returns(BOX, GOOD, answer), 0).step(0)


@pytest.mark.parametrize(
    "obs, words",
    [
        ({"a": np.array([0, np.inf]), "b": (1, GOOD)}, "inf in its observation part 'a'"),
        ({"a": GOOD, "b": (1, np.array([1e300, 0]))}, "1e[+]300 in its observation part 'b/1'"),
    ],
)
def test_with_restart_numbers_that_learning_cannot_take_are_faults(obs, words):
    guard = Guard(lambda: Returns(NESTED, obs), 1, restarts=True)
    zeros, reward, terminated, truncated, info = guard.step(0)
    assert re.fullmatch(f"environment 1 returned {words}", info[FAULT_KEY])
    assert NESTED.contains(zeros) and (reward, terminated, truncated) == (0.0, False, False)
    for reward in (np.nan, -np.inf, 1e39):
        info = Guard(lambda r=reward: Returns(BOX, GOOD, (GOOD, r, False, False, {})), 1, restarts=True).step(0)[-1]
        assert info[FAULT_KEY] == f"environment 1 returned {reward} in its reward"


def test_an_error_when_closing_is_told_and_no_more():
    class Sticky(Returns):
        def close(self):
            raise OSError("stuck")

    with pytest.warns(UserWarning, match=r"environment 2 raised OSError: stuck \(.*\) when it was closed"):
        Guard(lambda: Sticky(BOX, GOOD), 2).close()


# Nothing is learned of a fault.


class Trips(Scripted):
    """Scripted, but raises in the calls of `step` that `plan` names, counted over all that a maker has made."""

    def __init__(self, script, plan, calls):
        super().__init__(script)
        self.plan, self.calls = plan, calls

    def step(self, action):
        self.calls[0] += 1
        if self.calls[0] - 1 in self.plan:
            raise RuntimeError("tripped")
        return super().step(action)


SCRIPTS = [[(3, "t"), (1, "c"), (4, "c")], [(100, "t")], [(2, "tc")]]
PLANS = [
    {0},  # the very first row
    {5},  # the first row of a rollout
    {4},  # the last row
    {7},
    {6, 7, 8},
    {4, 5},  # over the end of a rollout
    {3},  # just after an end
    {2, 9, 11, 12, 16, 19},
]
T, ROLLOUTS = 5, 4


class Poison(gym.vector.VectorWrapper):
    """Puts garbage in the place of what a faulty step returned."""

    def __init__(self, envs, value):
        super().__init__(envs)
        self.value = value

    def step(self, actions):
        obs, rewards, *rest, infos = self.env.step(actions)
        if FAULT_KEY in infos:
            which = infos[f"_{FAULT_KEY}"]
            obs[which], rewards[which] = self.value, self.value
        return obs, rewards, *rest, infos


def tripping(plans, mode=AutoresetMode.DISABLED, scripts=SCRIPTS):
    makers = [
        lambda n=n, calls=calls: Guard(lambda: Trips(scripts[n], plans[n], calls), n, restarts=True)
        for n, calls in enumerate([[0] for _ in plans])
    ]
    return GuardedSyncVectorEnv(makers, mode)


def collector(envs, num_steps=T, **options):
    adapter = VectorAdapter(envs)
    buffer = RolloutBuffer(num_steps, envs.num_envs, envs.single_observation_space, adapter.action_spec)
    torch.manual_seed(0)
    network = ActorCritic(envs.single_observation_space, adapter.action_spec)
    return HostCollector(adapter, buffer, torch.Generator().manual_seed(0), **options), network


def played_by_hand(script, plan, calls):
    """Transitions (obs, first, reward, terminated, truncated, successor, whether the next call trips) and the finished
    episodes (return, length), of an environment that is made anew where it trips."""
    rows, episodes, call = [], [], 0
    env, first = Scripted(script), False
    obs, rewards = env.reset()[0], []
    while call < calls:
        if call in plan:
            env, first, rewards = Scripted(script), True, []
            obs, call = env.reset()[0], call + 1
            continue
        successor, reward, terminated, truncated, _ = env.step(0)
        call += 1
        rewards.append(reward)
        rows.append((obs, first, reward, terminated, truncated, successor, call in plan))
        obs, first = successor, terminated or truncated
        if first:
            episodes.append((sum(rewards), len(rewards)))
            obs, rewards = env.reset()[0], []
    return rows, episodes


@pytest.mark.filterwarnings("ignore:.*it was begun anew")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_rollouts_with_faults_hold_exactly_what_was_played_by_hand(plan, mode, num_envs):
    plans = [plan, {8} if num_envs > 1 else plan, plan][:num_envs]
    play, network = collector(tripping(plans, mode))
    got, found = {n: [] for n in range(num_envs)}, {n: [] for n in range(num_envs)}
    for _ in range(ROLLOUTS):
        episodes = play.collect(network)
        for n, *episode in zip(episodes.env, episodes.returns, episodes.lengths, strict=True):
            found[n].append(tuple(episode))
        b = play.buffer
        fields = (b.obs, b.dones, b.rewards, b.terminated, b.truncated, b.values, b.next_values)
        for n in range(num_envs):
            got[n] += [(t, [x[t, n].clone() for x in fields]) for t in torch.nonzero(b.mask[:, n]).flatten().tolist()]
    assert play.restarts == sum(play.envs.restarts.counts) > 0
    for n in range(num_envs):
        rows, episodes = played_by_hand(SCRIPTS[n], plans[n], 100)
        if mode is not AutoresetMode.NEXT_STEP:
            assert len(got[n]) == T * ROLLOUTS - len([k for k in plans[n] if k < T * ROLLOUTS])
        for (t, row), want in zip(got[n], rows, strict=False):
            obs, first, reward, terminated, truncated, successor, trips_next = want
            cut = trips_next and t < T - 1 and not (terminated or truncated)
            np.testing.assert_array_equal(row[0], obs)
            assert [x.item() for x in row[1:5]] == [first, reward, terminated, truncated or cut], (n, t)
            torch.testing.assert_close(row[5], network.value(torch.from_numpy(obs)))
            value = 0.0 if terminated else network.value(torch.from_numpy(successor)).item()
            assert row[6].item() == pytest.approx(value, rel=1e-5, abs=1e-6)
        assert found[n] == episodes[: len(found[n])] and len(episodes) - len(found[n]) <= 100
        ends = sum(want[3] or want[4] for (_, _), want in zip(got[n], rows, strict=False))
        assert len(found[n]) == ends
    assert play.global_step == sum(map(len, got.values()))


@pytest.mark.filterwarnings("ignore:.*it was begun anew")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{}, {"norm_obs": True, "norm_reward": True, "norm_adv": True, "shared": True}])
def test_weights_do_not_depend_on_what_a_faulty_step_returned(agents, mode, options):
    def trained(value):
        envs = Poison(tripping([{4, 9, 20}, {0, 1, 2}, {5, 31}], mode), value)
        agent = agents(PPO, envs, num_steps=8, num_minibatches=2, **options).learn(240)
        assert agent.collector.restarts >= 5
        return agent

    clean, poisoned = trained(0.0), trained(1e18)
    assert torch.equal(clean.parameters.vector, poisoned.parameters.vector)
    assert all(torch.equal(x, y) for x, y in zip(clean.network.buffers(), poisoned.network.buffers(), strict=True))
    assert clean.buffer.mask.sum() == poisoned.buffer.mask.sum()


@pytest.mark.filterwarnings("ignore:.*it was begun anew")
def test_rewards_of_a_cut_episode_scale_no_others(agents):
    """The discounted return under way ends at a fault, also where that is in the first row of a rollout."""
    kwargs = {"fault": "raise", "at": 17, "length": 1000}
    agent = agents(PPO, on_env_error="restart", norm_reward=True, num_envs=2, env_kwargs=kwargs)
    iterations = agent.iterations(10_000)
    next(iterations)
    assert (agent.reward_scaler.carry > 1).all()
    next(iterations)
    assert agent.collector.faults.cut_before.all() and not agent.buffer.mask[0].any()
    fresh = torch.zeros(2, dtype=torch.float64)
    actions = agent.buffer.actions.double()  # the reward of an action is the action
    for t in range(1, 16):
        fresh = agent.config.gamma * fresh + actions[t]
    torch.testing.assert_close(agent.reward_scaler.carry, fresh)


@pytest.mark.filterwarnings("ignore:.*were still running")
@pytest.mark.filterwarnings("ignore:.*it was begun anew")
def test_of_a_rollout_of_whole_episodes_the_broken_one_is_left_out():
    scripts = [[(4, "t")], [(3, "t")], [(2, "t")]]
    # Environment 1 fails in its episode; environment 2 when it has finished, which spoils nothing.
    play, network = collector(tripping([set(), {1}, {2}], scripts=scripts), whole_episodes=True)
    episodes = play.collect(network)
    assert play.buffer.mask.sum(0).tolist() == [4, 0, 2] and play.buffer.length == 4
    assert sorted(zip(episodes.env, episodes.lengths, strict=True)) == [(0, 4), (2, 2)]
    assert play.cut_episodes == 0 and play.global_step == 6 and play.restarts == 2
    play.reset()
    assert play.collect(network).lengths == [2, 3, 4] and play.buffer.mask.sum(0).tolist() == [4, 3, 2]


@pytest.mark.filterwarnings("ignore:.*it was begun anew")
def test_a_group_with_a_broken_member_is_left_out():
    scripts = [[(n + 1, "t")] for n in range(6)]
    plans = [set(), set(), {1}, set(), set(), {9}]
    play, network = collector(tripping(plans, scripts=scripts), 8, whole_episodes=True, group_size=2)
    episodes = play.collect(network)
    assert play.buffer.mask.sum(0).tolist() == [1, 2, 0, 0, 5, 6] and episodes.env == [0, 1, 4, 5]
    plans = [{0}, set(), {1}, set()]
    play, network = collector(tripping(plans, scripts=scripts), 8, whole_episodes=True, group_size=2)
    with pytest.raises(
        EnvironmentFault, match=r"nothing of a rollout is left .* raised RuntimeError: tripped .*step 2"
    ):
        play.collect(network)


class BadStart(Scripted):
    """Raises in the resets that `plan` names, counted over all that a maker has made, and remembers its seeds."""

    def __init__(self, script, plan, calls, seeds):
        super().__init__(script)
        self.plan, self.calls, self.seeds = plan, calls, seeds

    def reset(self, *, seed=None, options=None):
        self.calls[0] += 1
        self.seeds.append(seed)
        if self.calls[0] - 1 in self.plan:
            raise RuntimeError("no start")
        return super().reset(seed=seed)


def starting_badly(plans, seeds, script=((3, "t"),), mode=AutoresetMode.DISABLED):
    makers = [
        lambda n=n, calls=calls: Guard(lambda: BadStart(script, plans[n], calls, seeds[n]), n, restarts=True)
        for n, calls in enumerate([[0] for _ in plans])
    ]
    return GuardedSyncVectorEnv(makers, mode)


@pytest.mark.filterwarnings("ignore:.*it was begun anew")
def test_a_fault_in_a_reset_costs_no_transition_and_begins_with_a_seed_of_its_own():
    seeds = [[], []]
    play, network = collector(starting_badly([{0, 2, 3}, set()], seeds), 4, seed=7)
    play.reset(5)
    play.collect(network)
    assert play.buffer.mask.all() and play.restarts == 3
    assert seeds[0][0] == 5 and seeds[1][0] == 6
    assert None not in seeds[0][1:2] and seeds[0][2] is None and None not in seeds[0][3:5]
    assert len(set(seeds[0])) == 5 and seeds[1][1:] == [None]
    same = [[], []]
    again, network = collector(starting_badly([{0, 2, 3}, set()], same), 4, seed=7)
    again.reset(5)
    again.collect(network)
    assert same == seeds
    other = [[], []]
    again, network = collector(starting_badly([{0, 2, 3}, set()], other), 4, seed=8)
    again.reset(5)
    assert other[0][0] == 5 and other[0][1] != seeds[0][1]


@pytest.mark.filterwarnings("ignore:.*it was begun anew")
@pytest.mark.parametrize("mode", MODES)
def test_the_end_of_an_episode_counts_although_the_reset_after_it_fails(mode):
    seeds = [[], []]
    play, network = collector(starting_badly([{1, 2}, {2}], seeds, mode=mode), 9)
    episodes = play.collect(network)
    dead = mode is AutoresetMode.NEXT_STEP
    assert play.buffer.mask[:, 0].tolist() == [True, True, True, not dead] * 2 + [True]
    assert play.buffer.terminated[:, 0].nonzero().flatten().tolist() == ([2, 6] if dead else [2, 5, 8])
    assert play.buffer.dones[:, 0].nonzero().flatten().tolist() == ([4, 8] if dead else [3, 6])
    assert not play.buffer.truncated.any() and set(episodes.lengths) == {3} and play.restarts == 3


@pytest.mark.filterwarnings("ignore:.*it was begun anew")
def test_members_of_a_group_start_alike_after_a_fault_or_the_group_is_left_out():
    seeds = [[], [], [], []]
    play, network = collector(starting_badly([{0}, set(), {0, 1}, set()], seeds), 4, whole_episodes=True, group_size=2)
    play.reset([3, 3, 5, 5])
    assert seeds[0] == [3, 3] and seeds[2][:2] == [5, 5] and seeds[2][2] != 5
    play.collect(network)
    assert play.buffer.mask.sum(0).tolist() == [3, 3, 0, 0]


@pytest.mark.filterwarnings("ignore:.*it was begun anew")
def test_faults_without_an_end_end_a_run(agents):
    agent = agents(PPO, on_env_error="restart", env_kwargs={"fault": "raise", "at": 1})
    with pytest.raises(EnvironmentFault, match=r"raised KeyError.* at vector step 10, which is its fault number 10"):
        agent.learn(1000)
    with pytest.raises(EnvironmentFault, match=r"no start.* at vector step 0, which is its fault number 10"):
        collector(starting_badly([set(range(50))], [[]]))[0].reset(0)
    # One good step between them, and it may go on failing.
    play, network = collector(tripping([{k for k in range(100) if k % 2}]), 8)
    for _ in range(5):
        play.collect(network)
    assert play.restarts == 20 > FAULTS_IN_A_ROW


def test_a_policy_that_is_no_longer_finite_is_not_the_environments_fault(agents):
    class Picky(gym.Env):
        observation_space, action_space = BOX, spaces.Box(-1, 1, (1,))

        def __init__(self, raises):
            self.raises = raises

        def reset(self, *, seed=None, options=None):
            return GOOD, {}

        def step(self, action):
            assert not self.raises or np.isfinite(action).all(), "a bad action"
            return GOOD + action, float(action[0]), False, False, {}

    for raises in (True, False):
        for restarts in (True, False):
            makers = guarded(lambda raises=raises: Picky(raises), 2, restarts)
            envs = GuardedSyncVectorEnv(makers)
            agent = agents(PPO, envs, num_envs=2, num_steps=4)
            iterations = agent.iterations(1000)
            next(iterations)
            with torch.no_grad():
                agent.parameters.vector.fill_(float("nan"))
            with pytest.raises(
                DivergenceError, match="the policy's action for environment 0 is nan at vector step 5: the"
            ):
                next(iterations)


# Resuming.


@pytest.mark.filterwarnings("ignore:.*it was begun anew")
@pytest.mark.parametrize("flaky", [0.0, 0.02])
@pytest.mark.parametrize("kind", [PPO, REINFORCE])
def test_sync_and_async_learn_the_same_and_go_on_alike(agents, kind, flaky, tmp_path):
    """Through a stop and a start, with faults that the environments draw from their own random numbers."""
    weights = {}
    for backend in ("sync", "async"):
        options = dict(on_env_error="restart", env_kwargs={"flaky": flaky}, num_envs=6, num_steps=32)
        whole = agents(kind, backend=backend, **options).learn(900)
        agent = agents(kind, backend=backend, **options)
        for _ in agent.iterations(900):
            if agent.global_step >= 400:
                break
        assert agent.collector.is_capturable()
        agent.save(tmp_path / f"{backend}.pt")
        resumed = load(tmp_path / f"{backend}.pt")
        assert resumed.collector.restarts == agent.collector.restarts
        resumed.learn(900)
        assert torch.equal(whole.parameters.vector, resumed.parameters.vector)
        assert whole.collector.restarts == resumed.collector.restarts
        assert (whole.collector.restarts > 3) == (flaky > 0)
        weights[backend] = whole.parameters.vector
        resumed.close()
    assert torch.equal(*weights.values())


def test_states_of_processes_are_checked_before_they_are_put_back(agents, tmp_path):
    agent = agents(PPO, "CartPole-v1", backend="async", env_kwargs={})
    agent.learn(48)
    state = agent.state_dict()
    workers = state["collector"]["env"]["workers"]
    assert len(workers) == 3
    for bad, words in [
        (workers[:2], "are 2 of them, but must be a list of 3"),
        ("abc", "are a str, but must be a list of 3"),
        ([*workers[:2], {}], "environment 2: .*other attributes"),
        ([*workers[:2], 5], "environment 2: .*other attributes"),
    ]:
        with pytest.raises(ValueError, match=words):
            agent.collector.load_state_dict({**state["collector"], "env": {"workers": bad}})
    for counts in (torch.zeros(2, dtype=torch.int64), torch.full((3,), -1), "many", torch.zeros(3)):
        with pytest.raises(ValueError, match="restarts"):
            agent.collector.load_state_dict({**state["collector"], "restarts": counts})
    del state["collector"]["restarts"]
    agent.load_state_dict(state)
    assert agent.collector.restarts == 0
    # Another backend begins new episodes instead.
    agent.save(tmp_path / "async.pt")
    other = load(tmp_path / "async.pt", backend="sync")
    assert other.global_step == 48 and other.backend == "sync"
    other.learn(200)


# Processes.


def test_processes_survive_what_is_meant_for_the_run():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    envs = make_vec("CartPole-v1", 2, "async", seed=0)
    try:
        assert {number: signal.getsignal(number) for number in handlers} == handlers
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
        for process in envs.processes:
            assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
            os.kill(process.pid, signal.SIGINT)
        assert envs.step(np.zeros(2, np.int64))[0].shape == (2, 4)
        assert all(process.is_alive() for process in envs.processes)
    finally:
        envs.close()
    assert not any(process.is_alive() for process in envs.processes)


def test_closing_does_not_wait_for_a_process_that_hangs(monkeypatch):
    monkeypatch.setattr("rlcore.envs.async_vector.SECONDS_TO_CLOSE", 0.3)
    envs = make_vec("Faulty-v0", 2, "async", seed=0, fault="hang", at=1)
    envs.step_async(np.zeros(2, np.int64))
    start = time.perf_counter()
    envs.close()
    assert time.perf_counter() - start < 3
    assert not any(process.is_alive() for process in envs.processes)


def test_processes_die_with_the_run_even_if_it_is_killed():
    program = (
        "import time; from tests import faulty_env; from rlcore import make_vec; import numpy as np\n"
        "envs = make_vec('Faulty-v0', 2, 'async', seed=0, fault='hang', at=1)\n"
        "envs.step_async(np.zeros(2, int)); print(*[p.pid for p in envs.processes], flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pids = list(map(int, process.stdout.readline().split()))
    process.kill()
    process.wait()
    assert len(pids) == 2
    wait_until(lambda: not any(map(is_running, pids)))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=20):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.01)


def test_processes_of_a_script_that_forgets_to_close_do_not_keep_it_alive():
    program = (
        "from tests import faulty_env; from rlcore import make_vec; import numpy as np\n"
        "envs = make_vec('Faulty-v0', 2, 'async', seed=0, fault='hang', at=1); envs.step_async(np.zeros(2, int))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.filterwarnings("ignore:.*while waiting for a pending call")
def test_a_vector_environment_of_ones_own_gets_one_sentence_too(agents):
    def one():
        return faulty_env.Faulty("raise", at=5)

    agent = agents(PPO, SyncVectorEnv([one] * 2, autoreset_mode="Disabled"), num_envs=2)
    with pytest.raises(EnvironmentFault, match=r"vector environment raised KeyError: 'bad thing' .* at vector step 5"):
        agent.learn(100)
    agent = agents(
        PPO, AsyncVectorEnv([lambda: faulty_env.Faulty("kill", at=5)], autoreset_mode="Disabled"), num_envs=1
    )
    with pytest.raises(EnvironmentFault, match=r"process of environment 0 died .* at vector step 5"):
        agent.learn(100)
    agent.close()  # of which gymnasium would make an EOFError
    agent.envs.closed = True


def test_attributes_and_calls_go_through():
    envs = make_vec("CartPole-v1", 2, "async", seed=0, render_mode="rgb_array")
    try:
        assert envs.call("has_wrapper_attr", "gravity") == (True, True) and envs.get_attr("gravity") == (9.8, 9.8)
        envs.set_attr("gravity", [1.0, 2.0])
        assert envs.get_attr("gravity") == (1.0, 2.0)
        assert len(envs.render()) == 2
        with pytest.raises(EnvironmentFault, match="environment 0 raised AttributeError"):
            envs.get_attr("no_such_attribute")
        assert envs.reset(seed=[3, None])[0].shape == (2, 4)
        with pytest.raises(ValueError, match="seed has 1"):
            envs.reset(seed=[3])
        with pytest.raises(ValueError, match="reset_mask"):
            envs.reset(options={"reset_mask": np.zeros(2, bool)})
    finally:
        envs.close()


@pytest.mark.parametrize("mode", MODES)
def test_processes_step_as_copies_in_this_process_do(mode):
    ours, theirs = (make_vec("CartPole-v1", 3, b, seed=1, autoreset_mode=mode) for b in ("async", "sync"))
    try:
        rng = np.random.default_rng(0)
        for _ in range(200):
            actions = rng.integers(0, 2, 3)
            a, b = ours.step(actions), theirs.step(actions)
            for x, y in zip(a[:4], b[:4], strict=True):
                np.testing.assert_array_equal(x, y)
                assert x.dtype == y.dtype
            assert a[4].keys() == b[4].keys()
            done = a[2] | a[3]
            if done.any() and mode is AutoresetMode.DISABLED:
                x, y = (envs.reset(options={"reset_mask": done})[0] for envs in (ours, theirs))
                np.testing.assert_array_equal(x, y)
    finally:
        ours.close()


# make_vec.


class Unmakeable(gym.Env):
    def __init__(self, kind=KeyError):
        raise kind("no such file")


gym.register("Unmakeable-v0", entry_point=Unmakeable)


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("kind", [KeyError, AssertionError, FileNotFoundError, SystemError])
def test_any_error_of_a_constructor_is_one_sentence(backend, kind):
    with pytest.raises(UsageError, match=f"Unmakeable-v0 cannot be made with .*: {kind.__name__}: .*no such file"):
        make_vec("Unmakeable-v0", 2, backend, kind=kind)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(num_envs=2**16 + 1, backend="sync"), "num_envs is 65,537, but backend sync takes at most 65,536"),
        (dict(num_envs=1025, backend="async"), "num_envs is 1,025, but backend async takes at most 1,024"),
        (dict(num_envs=2**24 + 1), "num_envs is 16,777,217, but backend vector takes at most 16,777,216"),
        (dict(on_env_error="ignore"), "on_env_error is 'ignore', but may be one of stop, restart"),
        (dict(env_timeout=0), "env_timeout is 0, but must be more than 0"),
        (dict(on_env_error="restart", backend="vector"), "for backends sync and async, but backend is 'vector'"),
        (dict(on_env_error="restart", backend="native"), "for backends sync and async, but backend is 'native'"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, words):
    with pytest.raises(UsageError, match=words):
        make_vec("CartPole-v1", **arguments)


def test_restart_takes_backend_sync_and_no_instance():
    agent = PPO("CartPole-v1", on_env_error="restart", compile=False)
    assert agent.backend == "sync" and not agent.engine.may_go_native
    with pytest.raises(UsageError, match="on_env_error is 'restart', which is for an environment id"):
        PPO(make_vec("CartPole-v1", 2), on_env_error="restart")
    with pytest.raises(UsageError, match="env_timeout is -1"):
        PPO("CartPole-v1", env_timeout=-1)


def test_a_specification_is_a_copy():
    for backend in ("sync", "async", "vector"):
        envs = make_vec("CartPole-v1", 1, backend)
        assert envs.spec is not gym.spec("CartPole-v1") and envs.spec.id == "CartPole-v1"
        envs.spec.kwargs["more"] = 1
        assert "more" not in gym.spec("CartPole-v1").kwargs
        envs.close()


# The command line, in a process group of its own.

MAIN = "import sys, faulty_env; from rlcore.cli import main; sys.exit(main(sys.argv[1:]))"
FLAGS = ["--num-envs", "3", "--num-steps", "16", "--hidden-sizes", "8", "--seed", "5", "--preset", "none"]
FLAGS += ["--compile", "false", "--no-progress", "--eval-episodes", "0"]


def start(folder, *flags, total=2000, backend="async"):
    command = [sys.executable, "-c", MAIN, "train", "ppo", "Faulty-v0", *FLAGS, "--backend", backend, *flags]
    command += ["--total-steps", str(total), "--run-dir", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=env, start_new_session=True, **pipes)


def finish(process, seconds=60):
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert "Traceback" not in err and "Traceback" not in out, err
    return process.returncode, err


def workers_of(process):
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()))


def checkpoints(folder):
    return sorted(int(file.stem.removeprefix("step-")) for file in folder.glob("checkpoints/step-*.pt"))


def fault_flags(fault, tmp_path):
    return ["--env-arg", f'fault="{fault}"', "--env-arg", f"marker={json.dumps(str(tmp_path / 'once'))}"]


# benchmarks/env_faults.py goes through all of them this way.
SOME = [("sync", "exit"), ("async", "shape"), ("async", "die"), ("async", "hang")]


@pytest.mark.parametrize("backend, fault", SOME)
def test_on_the_command_line_a_fault_is_code_2_and_one_sentence(backend, fault, tmp_path):
    flags = [*fault_flags(fault, tmp_path), "--env-timeout", "1"]
    code, err = finish(start(tmp_path / "run", *flags, backend=backend))
    assert code == 2
    assert re.fullmatch(rf"rlcore: {({**FAULTS, **DEATHS})[fault]} at vector step 40(; [^\n]*)?\n", err)


@pytest.mark.parametrize("backend, fault", SOME)
def test_on_the_command_line_a_restart_is_one_warning_and_a_curve(backend, fault, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [*fault_flags(fault, tmp_path), "--env-timeout", "1", "--on-env-error", "restart"]
    code, err = finish(start(tmp_path / "run", *flags, backend=backend))
    assert code == 0
    assert re.fullmatch(rf"rlcore: {({**FAULTS, **DEATHS})[fault]} at vector step 40; it was begun anew[^\n]*\n", err)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    (tag,) = [tag for tag in events.Tags()["scalars"] if tag.endswith("env_restarts")]
    assert events.Scalars(tag)[-1].value == 1


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_stops_a_run_in_order(number, code, tmp_path):
    process = start(tmp_path / "run", "--checkpoint-every", "200", total=10_000_000)
    wait_until(lambda: len(checkpoints(tmp_path / "run")) > 1, 60)
    workers, before = workers_of(process), checkpoints(tmp_path / "run")
    os.killpg(process.pid, number)
    got, err = finish(process)
    assert got == code and re.fullmatch(r"rlcore: stopped at step [\d,]+; continue with --resume [^\n]*\n", err)
    assert len(workers) == 3 and not any(map(is_running, workers))
    stopped = int(re.search(r"step ([\d,]+)", err)[1].replace(",", ""))
    assert stopped == checkpoints(tmp_path / "run")[-1] >= before[-1]


@pytest.mark.parametrize("restart", [False, True])
def test_a_killed_worker_ends_the_run_with_one_sentence_or_is_replaced(restart, tmp_path):
    flags = ["--on-env-error", "restart"] if restart else []
    process = start(tmp_path / "run", *flags, total=9_000 if restart else 10_000_000)
    wait_until(lambda: len(checkpoints(tmp_path / "run")) > (1 if restart else 0), 60)
    wait_until(lambda: len(workers_of(process)) == 3)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    code, err = finish(process)
    sentence = r"rlcore: the process of environment 1 died \(killed by signal 9\) at vector step [\d,]+"
    assert code == (0 if restart else 2)
    assert re.fullmatch(sentence + ("; it was begun anew.*\n" if restart else "(; [^\n]*)?\n"), err)


def test_sync_and_async_runs_are_the_same_to_the_last_bit(tmp_path):
    """Checkpoints on the way, killed and resumed, with environments that fail now and then."""
    flags = ["--on-env-error", "restart", "--env-arg", "flaky=0.01", "--checkpoint-every", "250"]
    for backend in ("sync", "async"):
        assert finish(start(tmp_path / backend, *flags, backend=backend, total=3000))[0] == 0
    process = start(tmp_path / "killed", *flags, total=3000)
    wait_until(lambda: max(checkpoints(tmp_path / "killed"), default=0) >= 1000, 60)
    process.kill()
    process.communicate()
    at = checkpoints(tmp_path / "killed")[-1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    resume = ["train", "--resume", str(tmp_path / "killed"), "--no-progress", "--eval-episodes", "0"]
    subprocess.run([sys.executable, "-c", MAIN, *resume], env=env, check=True, capture_output=True)
    assert at < 3000
    ends = [load(max((tmp_path / run / "checkpoints").glob("*.pt"))) for run in ("sync", "async", "killed")]
    for agent in ends[1:]:
        assert agent.global_step == ends[0].global_step
        assert torch.equal(agent.parameters.vector, ends[0].parameters.vector)
        assert agent.collector.restarts == ends[0].collector.restarts > 5
    assert episodes(tmp_path / "sync") == episodes(tmp_path / "async") == episodes(tmp_path / "killed")
    for agent in ends:
        agent.close()


def episodes(folder):
    with open(folder / "episodes.csv", encoding="utf-8", newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    assert len(rows) > 100
    return rows
