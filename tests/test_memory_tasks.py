"""Tasks that need memory, beside games played by hand, and what policies with and without memory get for them."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

from rlcore import PPO, make_vec
from rlcore.envs import find_native
from rlcore.envs.memory_tasks import MEMORY_TASKS, RepeatObservation, TMaze
from rlcore.envs.native_vector import NativeVectorEnv

REPEAT = {"rlcore/Repeat1-v0": 1, "rlcore/Repeat4-v0": 4, "rlcore/Repeat16-v0": 16}
MAZE, CART = "rlcore/TMaze-v0", "rlcore/CartPoleNoVel-v1"
IDS = [*REPEAT, MAZE, CART]
FORWARD, LEFT, RIGHT = 0, 1, 2


def returns(task, uniform, policy, steps):
    """Returns `[N]` of one episode from each row of `uniform [N, draws]`, and whether each has ended by itself;
    `policy(history)` gives actions `[N]` from all observations so far."""
    state, history = task.initial(uniform), []
    total, over = torch.zeros(len(uniform)), torch.zeros(len(uniform), dtype=torch.bool)
    for _ in range(steps):
        history.append(task.observe(state))
        state, rewards, terminated = task.step(state, policy(history))
        total += rewards * ~over
        over |= terminated
    return total, over


def by_table(table):
    """The policy without memory that takes `table[obs]`."""
    return lambda history: torch.tensor(table)[history[-1]]


# Played by hand


@pytest.mark.parametrize("env_id", REPEAT)
@pytest.mark.parametrize("policy", ["right", "wrong", "random"])
def test_repeat_played_by_hand(env_id, policy):
    env, delay, rng = gym.make(env_id), REPEAT[env_id], np.random.default_rng(0)
    for seed in range(5):
        symbols = [int(u * 4) for u in seeding.np_random(seed)[0].random(delay + 32)]
        obs, _ = env.reset(seed=seed)
        for t, symbol in enumerate(symbols):
            assert obs == symbol
            asked = symbols[t - delay] if t >= delay else symbols[0]
            action = {"right": asked, "wrong": (asked + 1) % 4, "random": int(rng.integers(4))}[policy]
            obs, reward, terminated, truncated, _ = env.step(action)
            assert reward == float(t >= delay and action == asked)
            assert (terminated, truncated) == (t == delay + 31, False)
        assert obs == symbols[-1]


@pytest.mark.parametrize("policy", ["home", "wrong", "random", "wait"])
def test_the_maze_played_by_hand(policy):
    env, rng, ends = gym.make(MAZE), np.random.default_rng(0), set()
    for seed in range(30):
        side, position = int(seeding.np_random(seed)[0].random() * 2), 0
        obs, _ = env.reset(seed=seed)
        assert obs == side
        for t in range(1, 61):
            turn = {"home": 1 + side, "wrong": 2 - side, "random": int(rng.integers(1, 3)), "wait": FORWARD}[policy]
            into_wall = t % 2 == 0
            move = turn if position == 20 else RIGHT if into_wall else FORWARD
            turned, position = position == 20 and move != FORWARD, min(position + (move == FORWARD), 20)
            obs, reward, terminated, truncated, _ = env.step(move)
            assert obs == (3 if position == 20 else 2)
            assert (reward, terminated) == (float(turned and move == 1 + side), turned)
            assert truncated == (t == 60)
            if terminated or truncated:
                break
        assert t == (60 if policy == "wait" else 40)
        ends.add((side, reward))
    expected = {"home": {(0, 1), (1, 1)}, "wrong": {(0, 0), (1, 0)}, "wait": {(0, 0), (1, 0)}}
    assert ends == expected.get(policy, {(0, 0), (0, 1), (1, 0), (1, 1)})


def test_the_signal_of_the_maze_is_seen_in_the_first_step_alone():
    task = find_native(MAZE)
    start = task.initial(torch.tensor([[0.0], [0.49], [0.5], [1.0]]))
    assert task.observe(start).tolist() == [LEFT - 1, LEFT - 1, RIGHT - 1, RIGHT - 1]
    stayed, _, _ = task.step(start, torch.tensor([LEFT, RIGHT, LEFT, RIGHT]))
    assert task.observe(stayed).tolist() == [2, 2, 2, 2] and torch.equal(stayed[:, :2], start[:, :2])


def test_the_cart_pole_is_gymnasiums_without_velocities():
    ours, theirs = gym.make(CART), gym.make("CartPole-v1")
    whole = theirs.observation_space
    assert ours.observation_space == gym.spaces.Box(whole.low[[0, 2]], whole.high[[0, 2]], dtype=np.float32)
    assert ours.action_space == theirs.action_space and ours.spec.max_episode_steps == 500
    theirs.action_space.seed(0)
    for seed in range(10):
        np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0][[0, 2]])
        done = False
        while not done:
            action = theirs.action_space.sample()
            a, b = ours.step(action), theirs.step(action)
            np.testing.assert_allclose(a[0], b[0][[0, 2]], atol=1e-6)
            assert a[1:4] == b[1:4]
            done = a[2] or a[3]


# What can be got


@pytest.mark.parametrize("env_id", REPEAT)
def test_who_remembers_is_always_right(env_id):
    task = find_native(env_id)
    uniform = torch.rand(50, task.draws, generator=torch.Generator().manual_seed(0))
    total, over = returns(task, uniform, lambda seen: seen[max(len(seen) - 1 - task.delay, 0)], task.steps)
    assert total.tolist() == [32.0] * 50 and over.all()


@pytest.mark.parametrize("delay", [1, 2])
def test_no_policy_without_memory_is_right_more_often_than_by_chance(delay):
    """Over all courses that an episode can take, every policy without memory is right in one answer of `symbols`."""
    task = RepeatObservation("my/Repeat-v0", delay=delay, symbols=3, answers=4)
    uniform = torch.tensor([*itertools.product([0.0, 0.4, 0.9], repeat=delay + 4)])
    for table in itertools.product(range(3), repeat=3):
        total, _ = returns(task, uniform, by_table(table), task.steps)
        assert total.mean().item() == pytest.approx(4 / 3)
    task = RepeatObservation("my/Repeat-v0", delay=0, symbols=3, answers=4)  # the other way round
    assert returns(task, uniform[:, :4], by_table([0, 1, 2]), 4)[0].min() == 4


@pytest.mark.parametrize("env_id", REPEAT)
def test_symbols_are_alike_often_and_independent(env_id):
    task, n = find_native(env_id), 4000
    uniform = torch.rand(n, task.draws, generator=torch.Generator().manual_seed(0))
    first, later = (task.initial(uniform)[:, 1 + t].long() for t in (0, task.delay))
    counts = torch.bincount(4 * first + later, minlength=16)
    assert len(counts) == 16 and (counts - n / 16).abs().max() < 4.5 * (n / 16) ** 0.5
    assert task.initial(torch.ones(1, task.draws)).max() == 3  # where rounding has made it 1


def test_who_remembers_always_turns_to_the_right_side():
    task = find_native(MAZE)

    def walk(seen):
        return torch.where(seen[-1] == 3, seen[0] + 1, FORWARD)

    total, over = returns(task, torch.tensor([[0.2], [0.8]]), walk, 21)
    assert total.tolist() == [1, 1] and over.all()
    assert not returns(task, torch.tensor([[0.2], [0.8]]), walk, 20)[1].any()


def test_no_policy_without_memory_turns_to_the_right_side_more_than_half_of_the_time():
    task = TMaze("my/TMaze-v0", length=3)
    assert task.max_episode_steps == 9
    both = torch.tensor([[0.2], [0.8]])
    means = [returns(task, both, by_table(table), 9)[0].mean() for table in itertools.product(range(3), repeat=4)]
    assert max(means) == 0.5


def test_differences_of_positions_balance_the_pole_and_positions_do_not():
    task = find_native(CART)
    uniform = torch.rand(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def lean(weights, seen):
        now, before = seen[-1], seen[-2] if len(seen) > 1 else seen[-1]
        x, theta, dx, dtheta = *now.unbind(1), *((now - before) / task.TAU).unbind(1)
        return (torch.stack((x, theta, dx, dtheta), 1) @ torch.tensor(weights) > 0).long()

    assert not returns(task, uniform, lambda seen: lean([0.1, 1.0, 0.2, 0.3], seen), 500)[1].any()
    for x in np.linspace(-1, 1, 21).tolist():
        assert returns(task, uniform, lambda seen, x=x: lean([x, 1.0, 0.0, 0.0], seen), 500)[1].all()


# As environments


@pytest.mark.parametrize("env_id", IDS)
def test_they_pass_gymnasiums_checks_and_are_the_same_alone(env_id):
    check_env(gym.make(env_id).unwrapped, skip_render_check=True)
    ours, theirs = (make_vec(env_id, 3, backend, autoreset_mode="SameStep") for backend in ("native", "sync"))
    assert isinstance(make_vec(env_id, 3), NativeVectorEnv)
    np.testing.assert_array_equal(ours.reset(seed=0)[0], theirs.reset(seed=0)[0])
    ours.action_space.seed(0)
    ends = 0
    for _ in range(130):
        actions = ours.action_space.sample()
        a, b = ours.step(actions), theirs.step(actions)
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)
        finals = [step[4].get("final_obs", [None] * 3) for step in (a, b)]
        for x, y in zip(*finals, strict=True):
            np.testing.assert_array_equal(x, y)
        ends += (a[2] | a[3]).sum()
    assert ends >= 6


def test_all_are_registered():
    assert [task.id for task in MEMORY_TASKS] == IDS
    for task in MEMORY_TASKS:
        assert find_native(task.id) is task and gym.spec(task.id).max_episode_steps == task.max_episode_steps


@pytest.mark.parametrize("env_id", ["rlcore/Repeat1-v0", "rlcore/Repeat4-v0"])
def test_rollouts_on_tensors_are_paid_for_what_was_shown_before(env_id):
    delay, N = REPEAT[env_id], 3
    agent = PPO(env_id, num_envs=N, num_steps=32, seed=0, device="cpu", compile=False, backend="native")
    rows = {name: [] for name in ("obs", "actions", "rewards", "terminated", "dones")}
    for _ in zip(range(4), agent.iterations(10_000), strict=False):
        for name, kept in rows.items():
            kept.append(getattr(agent.buffer, name).clone())
    agent.close()
    obs, actions, rewards, terminated, dones = (torch.cat(x) for x in rows.values())
    assert obs.dtype == torch.int64 and obs.shape == (128, N)
    clock, ends = [0] * N, 0
    for t, n in itertools.product(range(128), range(N)):
        clock[n] = 0 if dones[t, n] else clock[n]
        right = clock[n] >= delay and actions[t, n] == obs[t - delay, n]
        assert rewards[t, n] == float(right) and terminated[t, n] == (clock[n] == delay + 31)
        clock[n] += 1
        ends += int(terminated[t, n])
    assert ends == 3 * N and 0.1 < rewards.mean() < 0.5
