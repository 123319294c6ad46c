"""Native environments beside gymnasium's own, which are the reference, and Catch beside a game played by hand."""

import io

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.fx.experimental.proxy_tensor import make_fx

from rlcore import make_vec
from rlcore.envs.native import NATIVE_TASKS, Catch, find_native
from rlcore.envs.native_vector import NativeEnv, NativeVectorEnv
from rlcore.envs.state import capture_state, restore_state
from rlcore.errors import UsageError
from rlcore.tracing import leaves_of

TWINS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
CATCH = ["rlcore/Catch-v0", "rlcore/CatchPixels-v0"]
# From where single steps are compared: all of the state space, so that every bound, wall and threshold is met.
EXTENT = {
    "CartPole-v1": [2.5, 3.0, 0.25, 3.0],
    "Acrobot-v1": [np.pi, np.pi, 4 * np.pi, 9 * np.pi],
    "MountainCar-v0": [0.9, 0.07],  # around -0.3
    "MountainCarContinuous-v0": [0.9, 0.07],
    "Pendulum-v1": [3 * np.pi, 8.0],
}
MODES = list(AutoresetMode)
FLOAT32 = {"rtol": 3e-7, "atol": 1e-9}  # rounding, and differences of numbers of size 0.07


def uniform(task, n, seed=0, dtype=torch.float64):
    return torch.rand(n, task.draws, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sample_actions(task, n, seed=0):
    space = gym.vector.utils.batch_space(task.action_space, n)
    space.seed(seed)
    return torch.from_numpy(space.sample())


def step_one(task, state, action):
    """Next state, observation, reward and terminated of one environment from gymnasium's state."""
    state = torch.from_numpy(np.asarray(state, np.float64))[None]
    state, reward, terminated = task.step(state, torch.from_numpy(np.asarray(action))[None])
    return state[0].numpy(), task.observe(state)[0].numpy(), reward.item(), terminated.item()


def same_single_step(task, env, action):
    """Both step from gymnasium's state and must agree; whether the episode is over."""
    state, *ours = step_one(task, env.unwrapped.state, action)
    obs, reward, terminated, truncated, _ = env.step(action)
    if task.id == "MountainCarContinuous-v0":  # keeps its state in float32
        np.testing.assert_allclose(state, env.unwrapped.state, **FLOAT32)
        np.testing.assert_array_equal(state, state.astype(np.float32))
    else:
        np.testing.assert_allclose(state, env.unwrapped.state, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ours[0], obs, **FLOAT32)
    np.testing.assert_allclose(ours[1], reward, **FLOAT32)
    assert ours[2] == terminated
    return terminated, truncated


@pytest.mark.parametrize("env_id", TWINS)
def test_every_step_of_a_run_is_gymnasiums(env_id):
    task, env = find_native(env_id), gym.make(env_id)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(500):
        if any(same_single_step(task, env, env.action_space.sample())):
            env.reset()


@pytest.mark.parametrize("env_id", TWINS)
def test_steps_from_everywhere_are_gymnasiums(env_id):
    task, env, rng = find_native(env_id), gym.make(env_id).unwrapped, np.random.default_rng(0)
    env.reset(seed=0)
    env.action_space.seed(0)
    ends = 0
    for _ in range(2000):
        state = rng.uniform(-1, 1, task.initial(uniform(task, 1)).shape[1]) * EXTENT[env_id]
        if "Car-" in env_id or "CarC" in env_id:
            state[0] -= 0.3
        env.state = state.astype(np.float32) if env_id == "MountainCarContinuous-v0" else state
        env.steps_beyond_terminated = None
        ends += same_single_step(task, env, env.action_space.sample())[0]
    assert ends > 50 or env_id == "Pendulum-v1"


def test_the_wall_stops_the_car_and_the_goal_wants_forward_motion():
    for env_id, action in (("MountainCar-v0", torch.tensor([0, 0])), ("MountainCarContinuous-v0", -torch.ones(2, 1))):
        task = find_native(env_id)
        for dtype in (torch.float32, torch.float64):
            state = torch.tensor([[-1.199, -0.05], [0.58, -0.05]], dtype=dtype)
            state, _, terminated = task.step(state, action)
            assert state[0].tolist() == pytest.approx([-1.2, 0.0]) and state[0, 1] == 0
            assert state[1, 0] >= task.GOAL and not terminated.any()


def test_actions_beyond_the_bounds_are_clipped_as_gymnasium_clips_them():
    """The cars' motor and the pendulum's torque are bounded; what the car pays for is the number given."""
    for env_id, size in (("MountainCarContinuous-v0", 3.0), ("Pendulum-v1", 5.0)):
        task, env = find_native(env_id), gym.make(env_id, disable_env_checker=True)
        env.reset(seed=0)
        for sign in (-1, 1):
            same_single_step(task, env, np.array([sign * size], np.float32))


@pytest.mark.parametrize("env_id", TWINS)
def test_spaces_and_limits_are_gymnasiums(env_id):
    task, env = find_native(env_id), gym.make(env_id)
    assert task.observation_space == env.observation_space and task.action_space == env.action_space
    assert task.max_episode_steps == env.spec.max_episode_steps
    envs, theirs = NativeVectorEnv(env_id, 3), gym.make_vec(env_id, 3, vectorization_mode="sync")
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(envs, name) == getattr(theirs, name), name
    assert envs.spec.id == env_id and envs.spec.max_episode_steps == env.spec.max_episode_steps
    assert NativeVectorEnv(env_id, 3, max_episode_steps=7).spec.max_episode_steps == 7
    assert gym.spec(env_id).max_episode_steps == env.spec.max_episode_steps


def ks_distance(a, b):
    """The largest difference of two empirical distribution functions."""
    both = np.concatenate([a, b])
    return np.abs(
        np.searchsorted(np.sort(a), both, "right") / len(a) - np.searchsorted(np.sort(b), both, "right") / len(b)
    ).max()


@pytest.mark.parametrize("env_id", TWINS)
def test_starts_have_gymnasiums_distribution(env_id):
    task, env, n = find_native(env_id), gym.make(env_id), 2000
    env.reset(seed=1)
    theirs = np.stack([env.reset()[0] for _ in range(n)])
    for dtype in (torch.float64, torch.float32):
        ours = task.observe(task.initial(uniform(task, n, dtype=dtype))).numpy()
        for a, b in zip(ours.T, theirs.T, strict=True):
            assert ks_distance(a, b) < 1.95 * (2 / n) ** 0.5  # exceeded once in a thousand by equal distributions


@pytest.mark.parametrize("env_id", TWINS)
def test_equal_seeds_give_gymnasiums_starts(env_id):
    envs, env = NativeVectorEnv(env_id, 3), gym.make(env_id)

    def starts(seeds):
        return np.stack([env.reset(seed=s)[0] for s in seeds])

    for seed in range(5):
        np.testing.assert_array_equal(envs.reset(seed=seed)[0], starts(range(seed, seed + 3)))
    for seeds in ([7, 7, 3], np.array([7, 7, 3])):
        np.testing.assert_array_equal(envs.reset(seed=seeds)[0], starts([7, 7, 3]))
    assert envs.np_random_seed == (7, 7, 3)
    # Without a seed each goes on with the generator it has.
    theirs = SyncVectorEnv([lambda: gym.make(env_id)] * 3)
    theirs.reset(seed=[7, 7, 3])
    np.testing.assert_array_equal(envs.reset()[0], theirs.reset()[0])
    np.testing.assert_array_equal(envs.reset(seed=[None, 5, None])[0], theirs.reset(seed=[None, 5, None])[0])


def renew(envs, done):
    return envs.reset(options={"reset_mask": done.copy()})[0].copy()


def assert_same_infos(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name != "final_obs":
            np.testing.assert_equal(ours[name], theirs[name])
    for a, b in zip(ours.get("final_obs", ()), theirs.get("final_obs", ()), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, atol=1e-5)
            assert a.dtype == b.dtype


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", TWINS)
def test_vector_environment_is_gymnasiums_in_every_autoreset_mode(env_id, mode):
    """Free-running, 260 steps: through terminations, and time limits where there are none before them."""
    N, limit = 4, None if env_id == "CartPole-v1" else 60
    kwargs = {} if limit is None else {"max_episode_steps": limit}
    theirs = SyncVectorEnv([lambda: gym.make(env_id, **kwargs)] * N, autoreset_mode=mode)
    ours = NativeVectorEnv(env_id, N, autoreset_mode=mode, **kwargs)
    assert ours.metadata["autoreset_mode"] is mode
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    theirs.action_space.seed(0)
    ends = 0
    for t in range(260):
        if t == 25:  # a reset of some in the middle of their episodes: whoever was not reset is at another time
            some = np.array([True, False, True, False])
            np.testing.assert_allclose(renew(ours, some), renew(theirs, some), atol=1e-5)
        actions = theirs.action_space.sample()
        a, b = ours.step(actions), theirs.step(actions)
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
        assert [x.dtype for x in (a[0], a[2], a[3])] == [x.dtype for x in (b[0], b[2], b[3])]
        assert a[1].dtype == np.float32
        assert ours.observation_space.contains(a[0])
        assert_same_infos(a[4], b[4])
        done = a[2] | a[3]
        ends += done.sum()
        if mode is AutoresetMode.DISABLED and done.any():
            np.testing.assert_allclose(renew(ours, done), renew(theirs, done), atol=1e-5)
    assert ends >= 12


@pytest.mark.parametrize("env_id", ["MountainCar-v0", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_time_limit_is_the_specifications(env_id):
    envs = NativeVectorEnv(env_id, 2)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    limit = gym.spec(env_id).max_episode_steps
    for t in range(1, limit + 1):
        _, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert not terminated.any() and (truncated == (t == limit)).all()
    with pytest.raises(gym.error.ResetNeeded, match=r"environments \[0, 1\] are over"):
        envs.step(envs.action_space.sample())


def test_what_was_returned_does_not_change_later():
    envs = NativeVectorEnv("CartPole-v1", 2, autoreset_mode="SameStep")
    kept = [(envs.reset(seed=0)[0],)]
    copies = [[x.copy() for x in kept[0]]]
    for _ in range(60):
        kept.append(envs.step(np.array([1, 1]))[:4])
        copies.append([x.copy() for x in kept[-1]])
    for a, b in zip(kept, copies, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_wrappers_of_gymnasium_fit():
    envs = gym.wrappers.vector.RecordEpisodeStatistics(NativeVectorEnv("CartPole-v1", 3, autoreset_mode="NextStep"))
    envs.reset(seed=0)
    lengths = []
    for _ in range(60):
        infos = envs.step(np.ones(3, np.int64))[4]
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    assert len(lengths) > 10 and all(8 <= length <= 11 for length in lengths)  # always to one side: the pole falls fast
    assert gym.make_vec("rlcore/Catch-v0", 2).reset(seed=0)[0].shape == (2, 1, 10, 10)


# State


def run(envs, steps, seed):
    envs.action_space.seed(seed)
    rows = []
    for _ in range(steps):
        rows.append(envs.step(envs.action_space.sample())[:4])
    return [np.stack(x) for x in zip(*rows, strict=True)]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCarContinuous-v0", *CATCH])
@pytest.mark.parametrize("way", ["get_state", "capture_state"])
def test_a_stored_state_goes_on_identically(env_id, way):
    def fresh():
        return NativeVectorEnv(env_id, 3, autoreset_mode="NextStep", max_episode_steps=7)

    envs, other = fresh(), fresh()
    envs.reset(seed=0)
    other.reset(seed=99)
    run(envs, 7, seed=0)  # its last step ends episodes, so that resets are pending
    assert envs._pending.any()
    file = io.BytesIO()
    torch.save(envs.get_state() if way == "get_state" else capture_state(envs), file)
    expected = run(envs, 60, seed=1)
    stored = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other.set_state(stored) if way == "get_state" else restore_state(other, stored)
    for a, b in zip(expected, run(other, 60, seed=1), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(envs.reset()[0], other.reset()[0])
    assert envs.np_random_seed == other.np_random_seed


def test_a_stored_state_does_not_change_with_the_environment():
    envs, action = NativeVectorEnv("Pendulum-v1", 2), np.ones((2, 1), np.float32)
    envs.reset(seed=0)
    envs.step(action)
    state = envs.get_state()
    before = {name: state[name].clone() for name in ("state", "elapsed", "pending")}

    def is_as_it_was():
        return all(torch.equal(state[name], x) for name, x in before.items())

    envs.reset()
    assert is_as_it_was()
    for _ in range(2):  # the environment it came from, and one that goes on from it
        envs.set_state(state)
        envs.step(action)
        assert is_as_it_was()
        envs.reset()
        assert is_as_it_was()
    envs.set_state(state)
    state = envs.get_state()
    envs.step(action)
    assert is_as_it_was()


def test_a_state_of_a_never_reset_environment_is_one_too():
    envs = NativeVectorEnv("Pendulum-v1", 2)
    envs.reset(seed=0)
    envs.set_state(NativeVectorEnv("Pendulum-v1", 2).get_state())
    with pytest.raises(gym.error.ResetNeeded, match="before reset"):
        envs.step(np.ones((2, 1), np.float32))
    assert envs.np_random_seed != (0, 1)


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_catch_can_be_captured_however_it_is_stepped(backend):
    envs, other = (make_vec("rlcore/Catch-v0", 3, backend, seed=s) for s in (0, 1))
    envs.step(np.array([0, 1, 2]))
    restore_state(other, capture_state(envs))
    for a, b in zip(envs.step(np.ones(3, np.int64))[:4], other.step(np.ones(3, np.int64))[:4], strict=True):
        np.testing.assert_array_equal(a, b)


# Catch


def picture(cells, scale, ball, paddle):
    """The board drawn cell by cell; ball as (row, column)."""
    image = np.zeros((1, cells * scale, cells * scale), np.uint8)
    for row, column in (ball, (cells - 1, paddle)):
        image[0, row * scale : (row + 1) * scale, column * scale : (column + 1) * scale] = 255
    return image


@pytest.mark.parametrize(("env_id", "cells", "scale"), [(CATCH[0], 10, 1), (CATCH[1], 12, 7)])
@pytest.mark.parametrize("policy", ["chase", "left", "right", "stay"])
def test_catch_played_by_hand(env_id, cells, scale, policy):
    env, outcomes = gym.make(env_id), set()
    for seed in range(20):
        column = int(seeding.np_random(seed)[0].random() * cells)
        paddle = cells // 2
        obs, _ = env.reset(seed=seed)
        for row in range(1, cells):
            np.testing.assert_array_equal(obs, picture(cells, scale, (row - 1, column), paddle))
            move = {"chase": np.sign(column - paddle), "left": -1, "right": 1, "stay": 0}[policy]
            paddle = min(max(paddle + move, 0), cells - 1)
            obs, reward, terminated, truncated, _ = env.step(int(move) + 1)
            assert (reward, terminated, truncated) == (
                0 if row < cells - 1 else 1 if paddle == column else -1,
                row == cells - 1,
                False,
            )
        np.testing.assert_array_equal(obs, picture(cells, scale, (cells - 1, column), paddle))
        outcomes.add(reward)
    assert outcomes == {1} if policy == "chase" else -1 in outcomes


def test_catch_ball_starts_in_every_column_alike():
    for task in (find_native(env_id) for env_id in CATCH):
        columns = task.initial(uniform(task, 12_000))[:, 0].long()
        counts = torch.bincount(columns, minlength=task.cells)
        expected = 12_000 / task.cells
        assert len(counts) == task.cells and (counts - expected).abs().max() < 4.5 * expected**0.5
        assert task.initial(torch.ones(1, 1))[0, 0] == task.cells - 1  # where rounding has made it 1


@pytest.mark.parametrize("env_id", CATCH)
def test_catch_passes_gymnasiums_checks_and_is_the_same_alone(env_id):
    check_env(gym.make(env_id).unwrapped)
    envs, theirs = (
        NativeVectorEnv(env_id, 3, autoreset_mode="SameStep"),
        make_vec(env_id, 3, "sync", autoreset_mode="SameStep"),
    )
    assert isinstance(make_vec(env_id, 3), NativeVectorEnv) and envs.spec.id == env_id
    np.testing.assert_array_equal(envs.reset(seed=0)[0], theirs.reset(seed=0)[0])
    envs.action_space.seed(0)
    for _ in range(40):
        actions = envs.action_space.sample()
        a, b = envs.step(actions), theirs.step(actions)
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)
        assert_same_infos(a[4], b[4])


@pytest.mark.filterwarnings("ignore:.*(A Box|For Box)")  # of the bounds that gymnasium's own spaces have
@pytest.mark.parametrize("env_id", TWINS)
def test_single_environments_of_the_twins_pass_gymnasiums_checks(env_id):
    check_env(NativeEnv(env_id), skip_render_check=True)


# Functions of tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("env_id", NATIVE_TASKS)
def test_functions_are_pure_and_keep_their_types(env_id, dtype):
    task, n = find_native(env_id), 5
    draws, actions = uniform(task, n, dtype=dtype), sample_actions(task, n)
    state = task.initial(draws)
    inputs = [x.clone() for x in (draws, state, actions)]
    following, rewards, terminated = task.step(state, actions)
    obs = task.observe(following)
    assert following.dtype == state.dtype == dtype and following.shape == state.shape
    assert rewards.dtype == torch.float32 and rewards.shape == (n,)
    assert terminated.dtype == torch.bool and terminated.shape == (n,)
    space = task.observation_space
    for part, own in zip(leaves_of(obs), getattr(space, "spaces", {"": space}).values(), strict=True):
        assert part.numpy().dtype == own.dtype and part.shape == (n, *own.shape)
        assert all(own.contains(row) for row in part.numpy())
    for x, y in zip((draws, state, actions), inputs, strict=True):
        assert torch.equal(x, y)
    assert torch.equal(task.step(state, actions)[0], following)


@pytest.mark.parametrize("env_id", NATIVE_TASKS)
def test_functions_can_be_traced(env_id):
    """The graph recorded with one batch gives another's results, and asks the host for nothing on the way."""
    task = find_native(env_id)

    def whole(draws, state, actions):
        following, rewards, terminated = task.step(state, actions)
        return task.initial(draws), task.observe(following), following, rewards, terminated

    def inputs(seed):
        state = task.initial(uniform(task, 3, seed, torch.float32))
        return uniform(task, 3, seed + 1, torch.float32), state, sample_actions(task, 3, seed)

    graph = make_fx(whole)(*inputs(0))
    for a, b in zip(leaves_of(graph(*inputs(5))), leaves_of(whole(*inputs(5))), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    names = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    forbidden = ("_local_scalar_dense", "rand", "lift_fresh", "_.", "index_put", "nonzero")
    assert not [name for name in names if any(part in name for part in forbidden)]


@pytest.mark.parametrize("env_id", NATIVE_TASKS)
def test_float32_follows_float64(env_id):
    task, n = find_native(env_id), 64
    exact = task.initial(uniform(task, n))
    rounded = exact.float()
    for t in range(10):
        actions = sample_actions(task, n, t)
        exact, rewards, _ = task.step(exact, actions)
        rounded, other, _ = task.step(rounded, actions)
        torch.testing.assert_close(task.observe(rounded), task.observe(exact), rtol=0, atol=2e-5)
        torch.testing.assert_close(other, rewards, rtol=0, atol=2e-4)


# Making and misusing


def test_backend_native_makes_them():
    envs = make_vec("CartPole-v1", 8, "native", seed=0)
    assert isinstance(envs, NativeVectorEnv) and envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    np.testing.assert_array_equal(envs.reset(seed=4)[0], make_vec("CartPole-v1", 8, "sync").reset(seed=4)[0])
    assert envs.max_episode_steps == 500
    envs = make_vec("CartPole-v1", 2, "native", autoreset_mode="SameStep")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert isinstance(NativeVectorEnv(Catch("my/Catch", cells=5), 2).reset(seed=0)[0], np.ndarray)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_vec("Taxi-v4", 1, "native"), r"Taxi-v4 has no native implementation; .*CartPole-v1"),
        (lambda: make_vec("Pendulum-v1", 1, "native", g=9.81), r"Pendulum-v1 got \{'g': 9.81\}.*no constructor arg"),
        (lambda: NativeVectorEnv("CartPole-v0"), "'CartPole-v0' is no native task.*did you mean 'CartPole-v1'"),
        (lambda: NativeVectorEnv("CartPole-v1", 0), "num_envs is 0, but must be at least 1"),
        (lambda: NativeVectorEnv("CartPole-v1", 1.5), "num_envs is 1.5, but must be a whole number"),
        (lambda: NativeVectorEnv("CartPole-v1", max_episode_steps=0), "max_episode_steps is 0, but must be at least 1"),
        (lambda: NativeVectorEnv("CartPole-v1", autoreset_mode="never"), "autoreset_mode is 'never', but .*SameStep"),
        (lambda: NativeVectorEnv("CartPole-v1", device="moon"), "device is 'moon', but must be one that torch knows"),
        (lambda: NativeVectorEnv("CartPole-v1", 2).reset(seed=[1]), "seed has 1 numbers, but there are 2 environments"),
        (lambda: NativeVectorEnv("CartPole-v1", 1).reset(seed=["a"]), "seed is 'a', but must be a whole number"),
        (lambda: NativeVectorEnv("CartPole-v1", 2).reset(options={"low": 0}), "option 'low', but native"),
        (lambda: NativeEnv("CartPole-v1").step(2), None),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(make, message):
    kind = UsageError if message else gym.error.ResetNeeded
    with pytest.raises(kind, match=message):
        make()


def test_bad_steps_and_resets_are_refused_in_a_sentence():
    envs, box, env = NativeVectorEnv("CartPole-v1", 2), NativeVectorEnv("Pendulum-v1", 2), NativeEnv("CartPole-v1")
    with pytest.raises(gym.error.ResetNeeded, match="step was called before reset"):
        envs.step(np.zeros(2, np.int64))
    with pytest.raises(gym.error.ResetNeeded, match="the first reset has to be of all"):
        renew(envs, np.array([True, False]))
    for each in (envs, box, env):
        each.reset(seed=0)
    for actions in (np.array([0, 2]), np.array([-1, 0]), np.array([0.0, 1.0])):
        with pytest.raises(UsageError, match=r"actions are \[.*but must be whole numbers from 0 to 1"):
            envs.step(actions)
    for wrong, actions in ((envs, np.zeros(3, np.int64)), (envs, np.zeros((2, 1), np.int64)), (box, np.zeros(2))):
        with pytest.raises(UsageError, match=r"actions have shape .*, but must have \[2"):
            wrong.step(actions)
    with pytest.raises(UsageError, match="action is 2, but must be one of Discrete"):
        env.step(2)
    for mask in ([True, False], np.array([1, 0]), np.zeros(2, bool), np.ones(3, bool)):
        with pytest.raises(UsageError, match=r"options\['reset_mask'\] is .* must be a numpy array of 2 bool"):
            envs.reset(options={"reset_mask": mask})
    with pytest.raises(UsageError, match=r"the state to set has shape \[2, 2\], but 2 environments CartPole-v1"):
        envs.set_state(box.get_state())
