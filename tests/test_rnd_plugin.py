"""Random network distillation as a plugin: benchmarks/plugins/rnd, and benchmarks/bonus.py, which shows its effect."""

import copy
import importlib.util
import json
import sys
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import rlcore
from rlcore.agents import AGENTS, PPO
from rlcore.envs import NATIVE_TASKS
from rlcore.envs.frames import FrameStacks
from rlcore.errors import UsageError
from tests.test_declared import assert_same, flat
from tests.test_plugins import install
from tests.test_plugins import rlcore as command_line

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PLUGIN = BENCHMARKS / "plugins" / "rnd"


def loaded(name):
    """A module of the plugin, without its folder among those that packages are searched in."""
    spec = importlib.util.spec_from_file_location(name, PLUGIN / f"{name}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


rlcore_rnd, deep_sea = loaded("rlcore_rnd"), loaded("deep_sea")
for size in deep_sea.SIZES:  # other tests go through all tasks there are
    del NATIVE_TASKS[f"rlcore/DeepSea{size}-v0"], gymnasium.registry[f"rlcore/DeepSea{size}-v0"]
RND = rlcore_rnd.RND
SMALL = dict(num_envs=3, num_steps=11, num_minibatches=1, update_epochs=2, hidden_sizes=(8,), width=8, features=4)
SMALL |= dict(seed=3, device="cpu")


def make(compile=False, env="CartPole-v1", **options):
    return RND(env, compile=compile, **{**SMALL, **options})


def train(agent, iterations=4, total=10_000):
    """The agent after some iterations, and the metrics of each."""
    found = []
    for metrics, _ in agent.iterations(total):
        found.append({name: x for name, x in metrics.items() if "second" not in name})
        if len(found) == iterations:
            return agent, found


# As a package.


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    files = {path.name: path.read_text() for path in PLUGIN.glob("*.py")}
    install(folder, files, (PLUGIN / "pyproject.toml").read_text())
    return folder


def test_it_is_listed_trains_and_resumes_from_the_command_line(site):
    agents = json.loads(command_line(site, "list", "--json")[0])
    assert agents["rnd"]["summary"].startswith("Random network distillation (Burda et al. 2019")
    assert agents["rnd"]["defaults"]["int_gamma"] == 0.99
    small = ["--num-envs", "2", "--num-steps", "16", "--hidden-sizes", "8", "--eval-episodes", "1", "--no-progress"]
    line = ["train", "rnd", "MountainCar-v0", "--total-steps", "320", "--seed", "1", "--run-dir", "run", *small]
    assert "evaluation: return -" in command_line(site, *line, "--compile", "false", "--bonus-coef", "0.5")[0]
    command_line(site, "train", "--resume", "run", "--total-steps", "640", "--no-progress")
    report = json.loads((site / "run" / "evaluation.json").read_text())
    assert report["algo"] == "rnd" and report["global_step"] == 640


def test_every_hyperparameter_is_explained():
    from rlcore.agents.config import field_help

    assert set(field_help(RND.Config)) >= set(RND.Config.__dataclass_fields__)


# What it computes.


def fill(agent, rng, last_real=True):
    """A rollout of noise with ends, and padding after some of them, in the agent's buffer."""
    buffer = agent.buffer
    T, N = buffer.mask.shape
    buffer.obs.copy_(torch.from_numpy(rng.normal(2.0, 3.0, buffer.obs.shape)))
    for name in ("rewards", "values", "next_values"):
        setattr(buffer, name, torch.from_numpy(rng.normal(size=(T, N))))
    buffer.terminated = torch.from_numpy(rng.random((T, N)) < 0.2)
    buffer.truncated = torch.from_numpy(rng.random((T, N)) < 0.2)
    mask = torch.from_numpy(rng.random((T, N)) < 0.7)
    mask[-1] = last_real
    buffer.mask = mask
    return buffer


def forward(network, x):
    """A network of `layers` in float64."""
    linear = [[x.detach().double().numpy() for x in m.parameters()] for m in network if isinstance(m, torch.nn.Linear)]
    for i, (weight, bias) in enumerate(linear):
        x = x @ weight.T + bias
        x = np.maximum(x, 0) if i < len(linear) - 1 else x
    return x


@pytest.mark.parametrize("last_real", [True, False])
def test_bonus_and_its_advantages_are_those_of_a_loop(last_real):
    agent, rng = make(ext_coef=0.3, bonus_coef=0.7, gae_lambda=0.8, int_gamma=0.9), np.random.default_rng(0)
    cfg, N = agent.config, agent.config.num_envs
    every, sums, carry = [], [], np.zeros(N)
    for rollout in range(2):  # statistics and discounted sums go on from one to the next
        buffer = fill(agent, rng, last_real)
        buffer.obs[(*buffer.mask.nonzero()[2], 0)] += 50.0 * rollout  # far out
        obs, mask = buffer.obs.double().numpy(), buffer.mask.numpy()
        agent.rewards(buffer)
        advantages, returns = agent.estimate(buffer)
        every.append(obs[mask])
        seen = np.concatenate(every)
        seen = (obs - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8)
        assert (abs(seen[mask]) > 5).any() or rollout == 0
        seen = seen.clip(-5, 5)
        surprise = ((forward(agent.predictor, seen) - forward(agent.target, seen)) ** 2).mean(-1)
        values = forward(agent.bonus_critic, seen)[..., 0]
        for n in range(N):
            for t in np.flatnonzero(mask[:, n]):
                carry[n] = cfg.int_gamma * carry[n] + surprise[t, n]
                sums.append(carry[n])
    scaled = (surprise / np.sqrt(np.var(sums) + 1e-8)).clip(-10, 10)
    bonus, expected = np.zeros(mask.shape), np.zeros(mask.shape)
    for n in range(N):
        rows, following = np.flatnonzero(mask[:, n]), 0.0
        for t, after in reversed(list(pairwise(rows))):  # the last real row has none after it
            bonus[t, n] = scaled[after, n]
            following = bonus[t, n] + 0.9 * values[after, n] - values[t, n] + 0.9 * 0.8 * following
            expected[t, n] = following
    np.testing.assert_allclose(buffer.bonus.numpy()[mask], bonus[mask], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(buffer.bonus_returns.numpy()[mask], (values + expected)[mask], rtol=1e-4, atol=1e-5)
    ext, ext_returns = PPO.estimate(agent, buffer)
    np.testing.assert_allclose(advantages[mask], (0.3 * ext.numpy() + 0.7 * expected)[mask], rtol=1e-4, atol=1e-5)
    assert torch.equal(returns, ext_returns)
    assert (buffer.terminated & buffer.mask)[:-1].any()


def estimated(spoil):
    agent = make(num_steps=40)
    buffer = fill(agent, np.random.default_rng(1))
    spoil(buffer)
    agent.rewards(buffer)
    agent.estimate(buffer)
    return agent, buffer


def test_the_end_of_an_episode_does_not_end_the_return_of_the_bonus():
    _, expected = estimated(lambda buffer: None)

    def otherwise(buffer):
        buffer.terminated, buffer.truncated = ~buffer.terminated, buffer.terminated

    _, found = estimated(otherwise)
    assert torch.equal(found.bonus_returns, expected.bonus_returns) and torch.equal(found.bonus, expected.bonus)


def test_what_stands_in_padding_changes_nothing():
    agent, expected = estimated(lambda buffer: None)
    other, found = estimated(lambda buffer: buffer.obs.__setitem__(~buffer.mask, torch.nan))
    mask = expected.mask
    assert torch.equal(found.bonus_returns[mask], expected.bonus_returns[mask])
    assert torch.equal(found.bonus[mask], expected.bonus[mask])
    for name, x in flat(agent.state.state_dict()).items():
        assert torch.equal(torch.as_tensor(flat(other.state.state_dict())[name]), torch.as_tensor(x)), name


def test_without_its_weight_the_bonus_leaves_ppo_alone():
    own = ("width", "features")
    options = {**{k: x for k, x in SMALL.items() if k not in own}, "max_grad_norm": None}
    ours, _ = train(make(bonus_coef=0, ext_coef=1, max_grad_norm=None))
    theirs, _ = train(PPO("CartPole-v1", compile=False, **options))
    for name, x in theirs.network.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], x)


def test_the_predictor_learns_and_the_random_network_does_not():
    agent = make(num_steps=64, update_epochs=8, learning_rate=3e-3, anneal_lr=False)
    start = copy.deepcopy(agent.predictor)
    before = {name: x.clone() for name, x in flat(agent.state.state_dict()).items() if isinstance(x, torch.Tensor)}
    agent, _ = train(agent, 30)
    after = flat(agent.state.state_dict())
    changed = {name for name, x in before.items() if not torch.equal(after[name], x)}
    assert not any(name.startswith(".target") for name in changed)
    assert {".predictor.0.weight", ".bonus_critic.0.weight", ".obs_norm.mean", ".bonus_scaler.stats.var"} <= changed
    seen = agent.obs_norm(agent.buffer.obs)
    assert agent.surprise(seen).mean() < 0.2 * (start(seen) - agent.target(seen)).pow(2).mean()
    assert all(x.grad is None and not x.requires_grad for x in agent.target.parameters())


def test_rewards_are_clipped_as_asked_for():
    agent = make(clip_reward=True)
    agent.rewards(fill(agent, np.random.default_rng(0)))
    assert {-1, 1} == set(agent.buffer.rewards.unique().tolist())


def test_networks_follow_from_the_seed_and_nobody_elses_draws_are_moved():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = make(), make(), make(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("target", "predictor", "bonus_critic"):
        one, same, another = (getattr(agent, name)[0].weight for agent in (first, again, other))
        assert torch.equal(one, same) and not torch.equal(one, another)


def test_the_predictor_takes_its_share_of_a_minibatch():
    agent = make(predictor_share=0.25, num_steps=8)  # 6 of 24 rows
    agent.collect()
    agent.rewards(agent.buffer)
    batch = agent.buffer.flatten(*agent.estimate(agent.buffer))
    seen = agent.obs_norm(batch.obs)
    real = batch.mask[:6].double()
    expected = (agent.surprise(seen[:6]).double() * real).sum() / real.sum()
    assert agent.loss(agent.network, batch)[1]["distillation"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_images_are_flattened():
    agent, found = train(make(env="rlcore/Catch-v0"), 2)
    assert agent.predictor[0].in_features == 100 and found[-1]["bonus"] > 0
    stacks = FrameStacks(3, 2, (4, 5, 5))
    for t in range(3):
        obs = np.random.default_rng(t).integers(0, 255, (2, 4, 5, 5)).astype(np.uint8)
        row = stacks.write(t, obs, np.zeros(2, dtype=bool))
    numbers = rlcore_rnd.flat(stacks, 2)
    assert numbers.shape == (3, 2, 100) and torch.equal(numbers[0], stacks[0].reshape(2, -1).float())
    assert row.shape == (2, 4, 5, 5) and rlcore_rnd.flat(torch.zeros(3, 2), 2).shape == (3, 2, 1)


# Alike in all ways of running, and after a pause.


@pytest.mark.parametrize("backend", ["vector", "native"])
def test_it_is_recorded(backend):
    options = dict(backend=backend, num_steps=33, num_minibatches=3, predictor_share=0.5)
    ours, theirs = (train(make(how, **options)) for how in (False, "record"))
    assert theirs[0].engine.how == "recorded" and ours[0].buffer.dones.any()
    assert_same(ours, theirs)


def test_it_runs_alike_as_given_to_the_compiler(not_compiled):
    ours, theirs = (train(make(how, backend="vector", num_steps=4), 8) for how in (False, True))
    assert theirs[0].engine.how == "compiled"
    assert_same(ours, theirs, 2e-5)


@pytest.mark.parametrize("backend", ["vector", "native"])
def test_it_goes_on_with_the_same_bits(backend, tmp_path, monkeypatch):
    monkeypatch.setitem(AGENTS._loaded, "rnd", RND)
    agent, _ = train(make(backend=backend), 3)
    agent.save(tmp_path / "rnd.pt")
    other = rlcore.load(tmp_path / "rnd.pt")
    for one in (agent, other):
        train(one, 3)
    ours, theirs = flat(agent.state.state_dict()), flat(other.state.state_dict())
    assert ours.keys() == theirs.keys() and any("bonus_scaler.carry" in name for name in ours)
    for name, x in ours.items():
        assert torch.equal(torch.as_tensor(theirs[name]), torch.as_tensor(x)), name


def test_it_goes_on_in_another_number_of_environments(tmp_path, monkeypatch):
    monkeypatch.setitem(AGENTS._loaded, "rnd", RND)
    agent, _ = train(make(), 2)
    agent.save(tmp_path / "rnd.pt")
    other = rlcore.load(tmp_path / "rnd.pt", num_envs=5)
    assert other.bonus_scaler.carry.shape == (5,) and other.bonus_scaler.stats.count == agent.bonus_scaler.stats.count
    train(other, 2)


# What it refuses.


class Parts(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict(
        {"a": gymnasium.spaces.Box(0, 1, (2,)), "b": gymnasium.spaces.Discrete(3)}
    )
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": 1}, "num_steps is 1, but RND needs at least 2: a bonus is of the row after"),
        ({"predictor_share": 0.0}, "predictor_share is 0.0, but must be more than 0 and at most 1"),
        ({"int_gamma": 1.0}, "int_gamma is 1.0, but must be at least 0 and at most 0.9999"),
        ({"bonus_coeff": 1.0}, "'bonus_coeff' is not a hyperparameter of RND, did you mean 'bonus_coef'"),
    ],
)
def test_wrong_hyperparameters_are_one_sentence(options, message):
    with pytest.raises(UsageError, match=message):
        make(**options)


def test_observations_of_several_parts_are_refused():
    envs = gymnasium.vector.SyncVectorEnv([Parts] * 3)
    with pytest.raises(
        UsageError, match="RND observes one tensor of numbers, a Box, but the observation space is Dict"
    ):
        make(env=envs)
    with pytest.raises(UsageError, match="but the observation space is Discrete"):
        make(env="FrozenLake-v1")


# Deep Sea, and the script.


def test_the_treasure_of_the_deep_sea_is_at_the_end_of_one_way():
    task = deep_sea.DeepSea(6)
    right = task._right.value.view(6, 6)
    assert {0, 1} == set(right.unique().tolist())
    for turn, expected in ((None, 0.99), (0, -0.01 * 5 / 6), (3, -0.01 * 5 / 6), (5, -0.01 * 5 / 6)):
        state, total = task.initial(torch.rand(1, 1, dtype=torch.float64)), 0.0
        for t in range(6):
            row, column = (int(x) for x in state[0])
            board = task.observe(state)[0]
            assert row == t and board.sum() == 1 and board[row, column] == 1
            action = right[row, column] if t != turn else 1 - right[row, column]
            state, reward, terminated = task.step(state, action.view(1))
            total += reward.item()
            assert terminated.item() == (t == 5)
        assert total == pytest.approx(expected) and task.observe(state).sum() == 0


def test_seeds_that_reached_the_goal_and_that_solved_the_task_are_counted(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bonus

    rest = {"last_hundred": -150.0, "seconds": 1.0}
    runs = [
        {"task": bonus.task_of("MountainCar-v0", agent, seed), "mean": mean, "first_reached": first, **rest}
        for agent, seed, mean, first in (("rnd", 1, -105.0, 900), ("rnd", 0, -160.0, 700), ("ppo", 0, -200.0, None))
    ]
    found = bonus.summary(runs)["MountainCar-v0"]
    assert found["rnd"]["seeds"] == [0, 1] and found["rnd"]["means"] == [-160.0, -105.0]
    assert (found["rnd"]["reached"], found["rnd"]["solved"], found["rnd"]["median"]) == (2, 1, -132.5)
    assert (found["ppo"]["reached"], found["ppo"]["solved"]) == (0, 0)
    assert bonus.told(runs[2]) == "seed 0:  -200.00 (-150.00 in training), goal reached never, 1 s"
    ppo, rnd = (bonus.task_of("rlcore/DeepSea20-v0", agent, 0)["hyperparameters"] for agent in bonus.AGENTS)
    assert ppo.items() <= rnd.items() and json.loads(json.dumps(rnd)) == rnd
