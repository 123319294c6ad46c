import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from rlcore import PPO, make_vec
from rlcore.envs.state import NotCapturable, capture_state, restore_state
from rlcore.errors import UsageError
from rlcore.presets import find_preset

IDS = [
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "Taxi-v4",
    "Blackjack-v1",
]


@pytest.mark.parametrize("backend", ["auto", "sync", "async", "vector"])
def test_backends_make_what_was_asked_for(backend):
    envs = make_vec("CartPole-v1", 3, backend, seed=0)
    try:
        assert envs.num_envs == 3
        kind = {"sync": gym.vector.SyncVectorEnv, "async": gym.vector.AsyncVectorEnv}.get(backend)
        assert kind is None or isinstance(envs, kind)
        if kind:
            assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        assert envs.step(np.zeros(3, np.int64))[0].shape == (3, 4)  # seed= has reset it
    finally:
        envs.close()


def test_seed_determines_the_start():
    a, b, c = (make_vec("CartPole-v1", 2, "sync", seed=s).reset()[0].copy() for s in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


def test_the_vector_cartpole_is_the_same_task_as_the_single_one():
    """Backend auto takes gymnasium's vector CartPole, so it must be exact."""
    vector, single = make_vec("CartPole-v1", 1, "vector", seed=0), make_vec("CartPole-v1", 1, "sync", seed=0)
    inner, rng, ends = single.envs[0].unwrapped, np.random.default_rng(0), 0
    inner.state = vector.state[:, 0].copy()
    for t in range(2000):
        # Now at random, now balancing, so that episodes end both ways.
        balance = t % 1200 < 700
        lean = vector.state[2] + 0.5 * vector.state[3] + 0.05 * vector.state[1] + 0.01 * vector.state[0]
        actions = (lean > 0).astype(np.int64) if balance else rng.integers(0, 2, 1)
        obs, *flags, _ = vector.step(actions)
        other, *theirs, _ = single.step(actions)
        np.testing.assert_allclose(obs, other, atol=1e-6)
        np.testing.assert_array_equal(flags, theirs)
        if flags[1][0] or flags[2][0]:
            ends += 1 if flags[1][0] else 100
            single.reset(options={"reset_mask": np.array([True])})
            _, *flags, _ = vector.step(actions)  # the dead row
            assert not np.any(flags)
            inner.state = vector.state[:, 0].copy()
    assert ends > 120  # at least one truncation and twenty terminations


def test_constructor_arguments_reach_the_environment():
    envs = make_vec("FrozenLake-v1", 2, is_slippery=False, map_name="8x8")
    assert envs.single_observation_space.n == 64


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(env_id="CartPol-v1"), "CartPole-v1"),
        (dict(env_id="Nowhere-v7"), "not registered"),
        (dict(env_id="no_such_module_x:Env-v0"), "not registered"),
        (dict(env_id="CartPole-v1", backend="sink"), "sync"),
        (dict(env_id="Pendulum-v1", backend="vector"), "no vector implementation"),
        (dict(env_id="CartPole-v1", num_envs=0), "at least 1"),
        (dict(env_id="CartPole-v1", num_envs=2.5), "2.5"),
        (dict(env_id="CartPole-v1", wind=3), "wind"),
        (dict(env_id="CartPole-v1", backend="vector", autoreset_mode="SameStep"), "its own"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, words):
    with pytest.raises(UsageError, match=words) as caught:
        make_vec(**arguments)
    assert "\n" not in str(caught.value)


def play(envs, actions):
    rows = []
    for action in actions:
        obs, rewards, terminated, truncated, _ = envs.step(action)
        rows.append((np.array(obs).copy(), np.array(rewards), terminated.copy(), truncated.copy()))
        done = terminated | truncated
        if done.any() and envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
            obs, _ = envs.reset(options={"reset_mask": done})
            rows.append((np.array(obs).copy(),))
    return rows


@pytest.mark.parametrize("env_id, backend", [(i, "sync") for i in IDS] + [("CartPole-v1", "vector")])
def test_captured_state_restored_into_a_fresh_environment_plays_on_alike(env_id, backend, tmp_path):
    envs, fresh = make_vec(env_id, 3, backend, seed=1), make_vec(env_id, 3, backend, seed=2)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(300)]
    play(envs, actions[:40])
    torch.save(capture_state(envs), tmp_path / "state.pt")
    expected = play(envs, actions[40:])
    restore_state(fresh, torch.load(tmp_path / "state.pt", weights_only=True))
    got = play(fresh, actions[40:])
    assert len(got) == len(expected)
    for row, want in zip(got, expected, strict=True):
        for x, y in zip(row, want, strict=True):
            np.testing.assert_array_equal(x, y)


def test_state_that_is_not_plain_data_is_not_captured_by_halves():
    envs = make_vec("CartPole-v1", 2, "async")
    with pytest.raises(NotCapturable, match="AsyncVectorEnv"):
        capture_state(envs)
    envs.close()
    envs = make_vec("CartPole-v1", 2, "sync", seed=0)
    envs.envs[1].unwrapped.engine = object()
    with pytest.raises(NotCapturable, match="engine is object"):
        capture_state(envs)


def test_a_closure_over_something_mutable_is_not_captured():
    envs, counter = make_vec("CartPole-v1", 1, "sync", seed=0), [0]
    envs.envs[0].unwrapped.hook = lambda: counter.append(1)
    with pytest.raises(NotCapturable, match="hook"):
        capture_state(envs)


@pytest.mark.parametrize(
    ("env_id", "missing", "extra"),
    [
        ("LunarLander-v3", ["Box2D"], "box2d"),
        ("Hopper-v5", ["mujoco"], "mujoco"),
        ("MinAtar/Breakout-v1", ["minatar", "minatar.gym"], "minatar"),
    ],
)
def test_environments_of_an_extra_that_is_missing_name_it(env_id, missing, extra, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(gym.registry, "MinAtar/Breakout-v1", raising=False)
    with pytest.raises(UsageError) as error:
        make_vec(env_id, 1)
    assert f"pip install 'rlcore[{extra}]'" in str(error.value) and "\n" not in str(error.value)


def test_minatar_is_learned_with_its_preset():
    """Its observations are Booleans; its games are registered when one is asked for."""
    pytest.importorskip("minatar", reason="extra 'minatar' is not installed")
    hyperparameters = {**find_preset("ppo", "MinAtar/Freeway-v1"), "num_steps": 16}
    assert hyperparameters.pop("total_steps") >= 1_000_000
    agent = PPO("MinAtar/Freeway-v1", seed=0, compile=False, **hyperparameters)
    before = {name: weight.clone() for name, weight in agent.network.named_parameters()}
    agent.learn(total_steps=2 * 16 * agent.config.num_envs)
    assert set(agent.buffer.obs.unique().tolist()) == {0.0, 1.0}
    assert all((weight != before[name]).any() for name, weight in agent.network.named_parameters())
