"""Masked policies against closed forms, and no forbidden action anywhere, wherever masks come from."""

import json
import os
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import rlcore
from rlcore import A2C, GRPO, PPO, REINFORCE, TRPO, ActorCritic
from rlcore.cli import main
from rlcore.envs import NATIVE_TASKS, NativeVectorEnv, VectorAdapter, register_native
from rlcore.envs.native import NativeTask
from rlcore.envs.native_vector import NativeEnv
from rlcore.errors import EnvironmentFault, UsageError
from rlcore.networks.distributions import noise_size
from rlcore.spaces import action_spec
from rlcore.storage.checkpoint import read_agent, write_checkpoint
from tests.environments import MODES, vectorize

SMALL = dict(hidden_sizes=(8,), num_steps=12, seed=3, device="cpu", compile=False)
DISCRETE, MULTI = spaces.Discrete(5, start=2), spaces.MultiDiscrete([3, 2, 4])
SPACES = {"discrete": DISCRETE, "multi": MULTI}
SOURCES = ["infos", "observation", "method"]
AGENTS = {
    "ppo": (PPO, dict(num_envs=2, num_minibatches=2)),
    "a2c": (A2C, dict(num_envs=2)),
    "trpo": (TRPO, dict(num_envs=2, cg_iterations=2, line_search_steps=2, update_epochs=2)),
    "reinforce": (REINFORCE, dict(num_envs=2)),
    "grpo": (GRPO, dict(num_envs=4, group_size=2, num_minibatches=2, kl_coef=0.1)),
}


def nvec_of(space):
    return [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.tolist()


class Forbidding(gymnasium.Env):
    """Shows which actions are allowed and refuses all others; after an episode nothing is allowed."""

    def __init__(self, source="infos", space=DISCRETE, fails_at=None, dies_at=None):
        self.source, self.action_space, self.nvec = source, space, nvec_of(space)
        self.fails_at, self.dies_at = fails_at, dies_at
        plain = spaces.Box(-1, 1, (sum(self.nvec),), np.float32)
        mask = spaces.Box(0, 1, (self.nvec[0],), np.int8)
        if len(self.nvec) > 1:
            mask = spaces.Tuple([spaces.MultiBinary(n) for n in self.nvec])
        self.observation_space = plain
        if source == "observation":
            self.observation_space = spaces.Dict({"action_mask": mask, "observation": plain})
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, int(self.np_random.integers(3, 7))
        self._draw()
        return self._shown()

    def _draw(self):
        self.masks = [(self.np_random.random(n) < 0.4).astype(np.int8) for n in self.nvec]
        for mask in self.masks:
            mask[self.np_random.integers(len(mask))] = 1

    def _mask(self):
        return tuple(self.masks) if len(self.masks) > 1 else self.masks[0]

    def _plain(self):
        return np.concatenate(self.masks).astype(np.float32)

    def _shown(self):
        plain = self._plain()
        if self.source == "observation":
            return {"action_mask": self._mask(), "observation": plain}, {}
        return plain, {"action_mask": self._mask()} if self.source == "infos" else {}

    def step(self, action):
        choices = np.ravel(action - self.action_space.start)
        for choice, mask in zip(choices, self.masks, strict=True):
            assert mask[choice], f"action {action} is forbidden"
        self.t, self.steps = self.t + 1, self.steps + 1
        if self.steps == self.fails_at:
            raise KeyError("bad thing")
        if self.steps == self.dies_at:
            os._exit(3)
        self._draw()
        done = self.t >= self.length
        if done:
            self.masks = [mask * 0 for mask in self.masks]
        obs, info = self._shown()
        return obs, float(choices.sum()), done and self.length % 2 == 0, done and self.length % 2 == 1, info


class Fickle(Forbidding):
    """Does something wrong at step 5 of a process."""

    def __init__(self, source="infos", space=DISCRETE, fails_at=None, wrong="nothing"):
        super().__init__(source, space, fails_at)
        self.wrong = wrong

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.length = 100
        return obs, info

    def _draw(self):
        super()._draw()
        if self.steps == 5 and self.wrong == "nothing":
            self.masks[-1] = self.masks[-1] * 0
        if self.steps == 5 and self.wrong == "longer":
            self.masks[-1] = np.ones(9, np.int8)

    def _plain(self):
        return np.zeros(sum(self.nvec), np.float32)

    def _shown(self):
        obs, info = super()._shown()
        return obs, {} if self.steps == 5 and self.wrong == "missing" else info


class Asked:
    def action_masks(self):
        return self._mask()


class AskedForbidding(Asked, Forbidding):
    pass


class AskedFickle(Asked, Fickle):
    pass


def forbidding(source="infos", *arguments, **options):
    """One whose masks come from a source."""
    return (AskedForbidding if source == "method" else Forbidding)(source, *arguments, **options)


def fickle(source="infos", *arguments, **options):
    return (AskedFickle if source == "method" else Fickle)(source, *arguments, **options)


FORBIDDING, FICKLE = "tests/Forbidding-v0", "tests/Fickle-v0"
gymnasium.register(FORBIDDING, forbidding, max_episode_steps=50)
gymnasium.register(FICKLE, fickle, max_episode_steps=50)


def wanted(source):
    """What a user says in order to have masks from a source."""
    return {"mask_actions": True} if source == "infos" else {}


def network_with(space, logits):
    """A policy in float64 whose logits are `logits [P]` at every observation, its own leaf."""
    masked = spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "action_mask": spaces.MultiBinary(len(logits))})
    spec = action_spec(space)
    network = ActorCritic(masked, type(spec)(**{**vars(spec), "masked": True}), hidden_sizes=(4,)).double()
    head = network.policy_head
    head.weight.data.zero_()
    head.bias.data.copy_(torch.as_tensor(logits))
    return network


def random_masks(rng, nvec, count):
    masks = rng.random((count, sum(nvec))) < 0.4
    first = 0
    for n in nvec:
        masks[np.arange(count), first + rng.integers(n, size=count)] = True
        first += n
    return masks


# The policy.


@pytest.mark.parametrize("name", SPACES)
def test_closed_forms(name):
    """By sums over the allowed choices alone, in float64."""
    space, rng = SPACES[name], np.random.default_rng(0)
    nvec, count = nvec_of(space), 50
    logits, others = rng.normal(size=(2, sum(nvec)))
    masks = random_masks(rng, nvec, count)
    obs = {"x": torch.zeros(count, 2, dtype=torch.float64), "action_mask": torch.from_numpy(masks).to(torch.uint8)}
    network, other = network_with(space, logits), network_with(space, others)
    policy = network.policy(obs)
    actions = policy.sample(torch.from_numpy(rng.gumbel(size=masks.shape)))
    found = policy.log_prob(actions), policy.entropy(), policy.kl(other.policy(obs))
    for i in range(count):
        expected, slopes, first = np.zeros(3), np.zeros((2, sum(nvec))), 0
        for k, n in enumerate(nvec):
            allowed = first + np.flatnonzero(masks[i, first : first + n])
            p, q = (np.exp(x[allowed]) / np.exp(x[allowed]).sum() for x in (logits, others))
            chosen = first + int(actions[i] if len(nvec) == 1 else actions[i, k])
            assert chosen in allowed
            entropy = -(p * np.log(p)).sum()
            expected += np.log(p[allowed == chosen][0]), entropy, (p * np.log(p / q)).sum()
            slopes[0, allowed] = (allowed == chosen) - p
            slopes[1, allowed] = -p * (np.log(p) + entropy)
            first += n
        np.testing.assert_allclose([x[i].item() for x in found], expected, rtol=1e-10, atol=1e-10)
        for x, slope in zip(found, slopes, strict=False):
            (gradient,) = torch.autograd.grad(x[i], network.policy_head.bias, retain_graph=True)
            np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-9, atol=1e-12)
            assert (gradient[~torch.from_numpy(masks[i])] == 0).all()


@pytest.mark.parametrize("name", SPACES)
def test_no_forbidden_action_in_a_million(name):
    space, rng, count = SPACES[name], np.random.default_rng(1), 10**6
    nvec = nvec_of(space)
    masks = torch.from_numpy(random_masks(rng, nvec, count))
    network = network_with(space, 30 * rng.normal(size=sum(nvec))).float()
    obs = {"x": torch.zeros(count, 2), "action_mask": masks.to(torch.uint8)}
    with torch.inference_mode():
        policy = network.policy(obs)
        noise = policy.noise_(torch.empty(count, noise_size(network.spec)), torch.Generator().manual_seed(0))
        for actions in (policy.sample(noise), policy.mode()):
            choices = actions.reshape(count, -1) + torch.tensor([0, *np.cumsum(nvec[:-1])])
            assert masks.gather(1, choices).all()
        assert torch.isfinite(policy.log_prob(actions)).all() and torch.isfinite(policy.entropy()).all()


def test_all_allowed_is_no_mask():
    plain = ActorCritic(spaces.Box(-1, 1, (3,)), MULTI, hidden_sizes=(4,))
    masked = network_with(MULTI, np.zeros(9)).float()
    own = ActorCritic(spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "action_mask": spaces.MultiBinary(9)}), masked.spec,
                      hidden_sizes=(4,))  # fmt: skip
    own.load_state_dict(plain.state_dict())
    x = torch.randn(7, 2, 3)
    obs = {"action_mask": torch.ones(7, 2, 9, dtype=torch.uint8), "a": x}
    assert torch.equal(own.policy(obs).params, plain.policy(x).params)
    assert torch.equal(own.value(obs), plain.value(x))


def test_the_torso_sees_all_but_the_mask():
    image, spec = spaces.Box(0, 255, (1, 36, 36), np.uint8), network_with(DISCRETE, np.zeros(5)).spec
    space = spaces.Dict({"action_mask": spaces.MultiBinary(5), "z": image})
    assert type(ActorCritic(space, spec, shared=True).actor.torsos[0]).__name__ == "NatureCNN"
    shapes = []

    def torso(shape):
        shapes.append(shape)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36 * 36, 4))

    one = ActorCritic(space, spec, torso=torso)
    assert shapes == [(1, 36, 36)] * 2
    alone = ActorCritic(space, spec, torso=torso((1, 36, 36)))
    obs = {"action_mask": torch.ones(2, 5), "z": torch.zeros(2, 1, 36, 36, dtype=torch.uint8)}
    assert one.value(obs).shape == alone.value(obs).shape == (2,)
    turned = dict(reversed(obs.items()))
    assert torch.equal(one.value(turned), one.value(obs)) and one.policy(turned).params.shape == (2, 5)
    with pytest.raises(UsageError, match=r"masked, .* part 'action_mask' and one beside it, but has \[''\]"):
        ActorCritic(spaces.Box(-1, 1, (2,)), spec)


def test_normalisation_knows_the_parts_by_name():
    parts = {"action_mask": spaces.MultiBinary(5), "b": spaces.Box(-1, 1, (2,))}
    network = ActorCritic(spaces.Dict(parts), network_with(DISCRETE, np.zeros(5)).spec, norm_obs=True)
    x = torch.randn(3, 4, 2)
    network.update_normalizer({"action_mask": torch.ones(3, 4, 5), "b": x}, torch.ones(3, 4, dtype=torch.bool))
    torch.testing.assert_close(network.preprocess[0].norm.mean.float(), x.mean((0, 1)))


# In training and evaluation.


def iterate(agent, count):
    """Metrics of some iterations that leave the learning rate as it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*were cut there")
        metrics = [metrics for _, (metrics, _) in zip(range(count), agent.iterations(10**9), strict=False)]
    return [{name: x for name, x in one.items() if "second" not in name} for one in metrics]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", AGENTS)
def test_no_forbidden_action(name, source, mode):
    """The environments would raise."""
    kind, options = AGENTS[name]
    space = MULTI if name in ("ppo", "grpo") else DISCRETE
    envs = vectorize(lambda n: forbidding(source, space), options["num_envs"], mode)
    options = {key: value for key, value in options.items() if key != "num_envs"}
    agent = kind(envs, **SMALL, **options, **wanted(source))
    assert list(agent.buffer.obs) == ["observation", "action_mask"]
    assert all(np.isfinite(metrics["loss"]) for metrics in iterate(agent, 3))
    real, seen = agent.buffer.mask, agent.buffer.obs
    assert torch.equal(seen["observation"][real], seen["action_mask"][real].float())
    assert (agent.buffer.dist_params[real][seen["action_mask"][real] == 0] == -1e9).all()
    assert agent.buffer.dist_params[real][seen["action_mask"][real] == 1].abs().max() < 100
    for deterministic in (False, True):
        others = vectorize(lambda n: forbidding(source, space), 3, mode)
        assert len(agent.evaluate(7, seed=1, deterministic=deterministic, env=others).returns) == 7


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_by_id(source, backend):
    agent = PPO(FORBIDDING, num_envs=2, env_kwargs={"source": source}, backend=backend, **SMALL, **wanted(source))
    iterate(agent, 2)
    agent.evaluate(3, seed=0)
    agent.close()


def test_gymnasiums_own_processes():
    envs = AsyncVectorEnv([lambda: forbidding("method")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    agent = PPO(envs, **SMALL)
    iterate(agent, 1)
    assert agent.adapter.stepped.source == "method"
    agent.close()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_environment_that_fails_is_begun_anew(source, backend):
    kwargs = {"source": source, "space": MULTI, "fails_at": 9}
    options = {**SMALL, **wanted(source), "backend": backend, "on_env_error": "restart"}
    agent = PPO(FORBIDDING, num_envs=2, env_kwargs=kwargs, **options)
    with pytest.warns(UserWarning, match="bad thing"):
        iterate(agent, 3)
    assert agent.collector.restarts >= 2
    agent.close()


def test_a_process_that_died_is_not_asked_for_masks():
    kwargs = {"source": "method", "dies_at": 9}
    options = {**SMALL, "backend": "async", "on_env_error": "restart"}
    agent = PPO(FORBIDDING, num_envs=2, env_kwargs=kwargs, **options)
    with pytest.warns(UserWarning, match="died"):
        iterate(agent, 2)
    agent.close()


def test_nobody_is_asked_for_masks_after_the_end_where_a_reset_follows():
    class Strict(AskedForbidding):
        def action_masks(self):
            assert self.t < self.length
            return super().action_masks()

    for mode in (AutoresetMode.DISABLED, AutoresetMode.SAME_STEP):
        iterate(PPO(vectorize(lambda n: Strict("method"), 2, mode), **SMALL), 2)


@pytest.mark.parametrize("source", SOURCES)
def test_after_an_episode_all_is_allowed(source):
    """Who reads final observations finds a mask that is one."""
    for mode in MODES:
        envs = VectorAdapter(vectorize(lambda n: forbidding(source), 2, mode), mask_actions=True)
        obs, finals = envs.reset(0), 0
        for _ in range(20):
            step = envs.step(obs["action_mask"].argmax(1))
            last = step.obs if step.final_obs is None else step.final_obs
            which = step.done if step.final_obs is None else slice(None)
            if step.done.any():
                assert last["action_mask"][which].all()
                finals += 1
            obs = step.obs
        assert finals


def test_masks_help_to_learn():
    """The largest allowed choice pays most: what is forbidden is out of the way."""
    agent = PPO(
        FORBIDDING, num_envs=8, num_steps=32, num_minibatches=4, learning_rate=1e-2, hidden_sizes=(16,), seed=1,
        device="cpu", compile=False, env_kwargs={"source": "method"},
    )  # fmt: skip
    before = agent.evaluate(50, seed=0, deterministic=False)
    agent.learn(5_000)
    after = agent.evaluate(50, seed=0)
    assert after.returns.sum() / after.lengths.sum() > 1.2 * before.returns.sum() / before.lengths.sum()


@pytest.mark.parametrize("source", SOURCES)
def test_masks_can_be_left_out(source):
    agent = PPO(FORBIDDING, num_envs=1, env_kwargs={"source": source}, mask_actions=False, **SMALL)
    assert not agent.network.masked and not agent.adapter.action_spec.masked
    with pytest.raises(EnvironmentFault, match="is forbidden"):
        iterate(agent, 3)
    if source == "infos":  # not looked for unless asked for
        assert not PPO(FORBIDDING, num_envs=1, **SMALL).network.masked


def test_actions_without_masks_may_have_a_part_of_that_name():
    parts = {"action_mask": spaces.MultiBinary(3), "x": spaces.Box(-1, 1, (2,))}

    class Pushing(gymnasium.Env):
        observation_space, action_space = spaces.Dict(parts), spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    agent = PPO(SyncVectorEnv([Pushing] * 2, autoreset_mode="Disabled"), **SMALL)
    assert not agent.network.masked and len(agent.network.preprocess) == 2
    iterate(agent, 1)


# Ways of running.


class Arms(NativeTask):
    """Arms of which the state forbids some; a forbidden one pays NaN, which no collector lets pass."""

    id, draws, max_episode_steps = "tests/Arms-v0", 1, 7

    def __init__(self, space=MULTI, stuck_at=-1):
        self.action_space, self.nvec, self.stuck_at = space, nvec_of(space), stuck_at
        parts = {"action_mask": spaces.MultiBinary(sum(self.nvec)), "observation": spaces.Box(0, 1, (2,), np.float32)}
        self.observation_space = spaces.Dict(parts)

    def initial(self, uniform):
        return torch.cat([(uniform * 61).floor(), torch.zeros_like(uniform)], 1)

    def allowed(self, state):
        columns = [(state[:, 0] + arm) % 3 < 1.5 for n in self.nvec for arm in range(n)]  # at least one of two arms
        *others, last = torch.stack(columns, 1).split(tuple(self.nvec), 1)
        return torch.cat([*others, last & (state[:, 1:] != self.stuck_at)], 1)

    def observe(self, state):
        # In another order than that of the space.
        return {"observation": state.float() / 61, "action_mask": self.allowed(state).to(torch.int8)}

    def step(self, state, action):
        choices, allowed = action.reshape(len(state), -1), self.allowed(state).split(tuple(self.nvec), 1)
        right = torch.cat([own.gather(1, choices[:, k : k + 1]) for k, own in enumerate(allowed)], 1).all(1)
        total = choices.sum(1)
        place = (5 * state[:, 0] + 3 * total + 1) % 61
        reward = torch.where(right, total.float(), torch.nan)
        return torch.stack([place, state[:, 1] + 1], 1).to(state.dtype), reward, place == 17


@pytest.fixture
def arms(monkeypatch):
    """Registers a task; gives its id."""

    def register(task):
        monkeypatch.setitem(NATIVE_TASKS, task.id, None)
        register_native(task)
        return task.id

    return register


def trained(kind, env_id, compile, iterations=4, **options):
    agent = kind(env_id, **{**SMALL, "compile": compile, **options})
    return agent, iterate(agent, iterations)


def assert_alike(ours, theirs):
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    for name, x in ours[0].network.state_dict().items():
        torch.testing.assert_close(theirs[0].network.state_dict()[name], x, atol=1e-5, rtol=1e-3)
    for name in ours[0].buffer.obs:
        assert torch.equal(theirs[0].buffer.obs[name], ours[0].buffer.obs[name])
    assert torch.equal(theirs[0].buffer.actions, ours[0].buffer.actions)


@pytest.mark.parametrize("name", AGENTS)
def test_native_tasks_run_alike_as_python_and_recorded(name, arms):
    kind, options = AGENTS[name]
    env_id = arms(Arms(spaces.Discrete(5) if name in ("trpo", "reinforce") else MULTI))
    ours, theirs = (trained(kind, env_id, how, backend="native", **options) for how in (False, "record"))
    assert theirs[0].engine.how == "recorded" and isinstance(theirs[0].collector.next_obs, dict)
    assert_alike(ours, theirs)
    assert list(ours[0].buffer.obs) == ["observation", "action_mask"]
    ours[0].evaluate(5, seed=0, deterministic=False)


@pytest.mark.parametrize("source", SOURCES)
def test_gymnasiums_environments_run_alike_as_python_and_recorded(source):
    options = {"num_envs": 2, "env_kwargs": {"source": source, "space": MULTI}, **wanted(source)}
    ours, theirs = (trained(PPO, FORBIDDING, how, **options) for how in (False, "record"))
    assert theirs[0].engine.how == "recorded"
    assert_alike(ours, theirs)


def test_native_tasks_run_alike_as_given_to_the_compiler(arms, not_compiled):
    options = dict(num_envs=2, num_steps=11, backend="native", hidden_sizes=(2,))
    env_id = arms(Arms(spaces.Discrete(3)))
    ours, theirs = (trained(A2C, env_id, how, **options) for how in (False, True))
    assert theirs[0].engine.how == "compiled"
    assert_alike(ours, theirs)


def test_values_where_native_episodes_are_cut(arms):
    task = Arms()
    agent = PPO(arms(task), num_envs=3, backend="native", **{**SMALL, "num_steps": 16})
    agent.collector.collect(agent.network)
    buffer = agent.buffer
    cut = buffer.truncated & ~buffer.terminated
    state = (buffer.obs["observation"] * 61).round()[cut]
    following, _, _ = task.step(state, buffer.actions[cut])
    assert cut.any()
    torch.testing.assert_close(buffer.next_values[cut], agent.network.value(task.observe(following)))


def test_programs_of_masked_agents_are_others():
    agents = [PPO(FORBIDDING, env_kwargs={"source": "method"}, mask_actions=m, **SMALL) for m in (None, False)]
    ours, theirs = (agent.engine.key("learn")["spaces"] for agent in agents)
    assert ours != theirs


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_native_vector_environments_have_parts(mode):
    """Their final observations and starts too."""
    task = Arms()
    envs = NativeVectorEnv(task, 3, autoreset_mode=mode)
    agent = PPO(envs, **SMALL)
    iterate(agent, 2)
    assert agent.buffer.truncated.any() and agent.buffer.next_values[agent.buffer.truncated].abs().min() > 0
    seen = agent.buffer.obs
    state = (seen["observation"] * 61).round().flatten(0, 1)
    real = agent.buffer.mask.flatten()
    assert torch.equal(task.allowed(state).byte()[real], seen["action_mask"].flatten(0, 1)[real])
    env = NativeEnv(task)
    obs, _ = env.reset(seed=0)
    assert env.observation_space["observation"].contains(obs["observation"])
    assert np.array_equal(obs["action_mask"], envs.reset(seed=0)[0]["action_mask"][0])


# Saving.


@pytest.mark.parametrize("how", [*SOURCES, "native"])
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_saved_agent_goes_on_exactly(name, how, arms, tmp_path):
    kind, options = AGENTS[name]
    if how == "native":
        agent = kind(arms(Arms()), backend="native", **SMALL, **options)
    else:
        agent = kind(FORBIDDING, env_kwargs={"source": how}, **SMALL, **options, **wanted(how))
    iterate(agent, 2)
    agent.save(tmp_path / "a.pt")
    other = rlcore.load(tmp_path / "a.pt")
    assert other.network.masked
    assert iterate(agent, 2) == iterate(other, 2)
    for x, y in zip(agent.network.state_dict().values(), other.network.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    ours, theirs = (x.evaluate(4, seed=5, deterministic=False) for x in (agent, other))
    assert np.array_equal(ours.returns, theirs.returns)


@pytest.mark.parametrize("source", SOURCES)
def test_checkpoints_of_before_load_as_they_were(source, tmp_path):
    agent = PPO(FORBIDDING, num_envs=2, env_kwargs={"source": source}, mask_actions=False, **SMALL)
    agent.save(tmp_path / "a.pt")
    payload = read_agent(tmp_path / "a.pt")
    del payload["config"]["mask_actions"]
    write_checkpoint(tmp_path / "old.pt", {k: v for k, v in payload.items() if k not in ("format", "version")})
    other = rlcore.load(tmp_path / "old.pt")
    assert other.config.mask_actions is False and not other.network.masked
    if source != "observation":  # where the mask was no part of the network, it may be begun now
        masked = rlcore.load(tmp_path / "old.pt", mask_actions=True)
        iterate(masked, 2)


def test_on_the_command_line(tmp_path, capsys):
    flags = ["--env-arg", "source=infos", "--mask-actions", "--num-envs", "2", "--num-steps", "8"]
    run = ["--total-steps", "64", "--seed", "0", "--run-dir", str(tmp_path / "r"), "--no-progress", "--device", "cpu"]
    assert not main(["train", "ppo", FORBIDDING, *flags, *run, "--eval-episodes", "2", "--compile", "false"])
    capsys.readouterr()
    assert not main(["eval", str(tmp_path / "r"), "--episodes", "3", "--json"])
    assert len(json.loads(capsys.readouterr().out)["returns"]) == 3
    assert not main(["train", "--resume", str(tmp_path / "r"), "--total-steps", "96", "--no-progress"])


# Acting.


def test_acting_with_masks():
    rng = np.random.default_rng(0)
    agent = PPO(FORBIDDING, num_envs=2, mask_actions=True, **SMALL)
    obs, masks = np.zeros((40, 5), np.float32), random_masks(rng, [5], 40)
    for deterministic in (False, True):
        actions = agent.act(obs, deterministic, action_mask=masks.astype(np.int8))
        assert masks[np.arange(40), actions - 2].all()
        assert masks[np.arange(40), agent.act(obs, deterministic, action_mask=list(masks)) - 2].all()
    own = PPO(FORBIDDING, num_envs=2, env_kwargs={"source": "observation"}, **SMALL)
    actions = own.act({"observation": obs, "action_mask": masks.astype(np.int8)})
    assert masks[np.arange(40), actions - 2].all()
    cases = [
        (agent, obs, None, "observations come without their masks: pass act(obs, action_mask=...)"),
        (agent, obs, masks[:, :4], "action_mask does not fit: environment 0 gave an action mask of length 4, but "),
        (agent, obs, masks & False, "action_mask does not fit: environment 0 allows no action"),
        (agent, obs, masks[:3], "there are 3 action masks, but 40 observations"),
        (PPO("CartPole-v1", **SMALL), np.zeros((2, 4)), masks[:2], "this agent does not mask actions (mask_actions)"),
    ]
    for one, seen, mask, sentence in cases:
        with pytest.raises(UsageError) as error:
            one.act(seen, action_mask=mask)
        assert sentence in str(error.value)


# What goes wrong.


def test_masks_that_are_not_there():
    told = "mask_actions is true, but the environment tells no masks: neither observation nor infos have 'action_mask'"
    with pytest.raises(UsageError, match=told):
        PPO("CartPole-v1", mask_actions=True, **SMALL)
    with pytest.raises(UsageError, match=r"actions are masked, but CartPole\(.*\) has no part 'action_mask'"):
        PPO("CartPole-v1", mask_actions=True, backend="native", **SMALL)
    with pytest.raises(UsageError, match=r"mask_actions is true, but the action space is Box.* for Discrete and Multi"):
        PPO("Pendulum-v1", mask_actions=True, **SMALL)
    agent = PPO(FORBIDDING, num_envs=1, mask_actions=True, **SMALL)
    with pytest.raises(UsageError, match="neither observation nor infos"):
        agent.evaluate(1, env=vectorize(lambda n: forbidding("nowhere"), 1, AutoresetMode.DISABLED))


def test_a_part_of_another_length():
    envs = vectorize(lambda n: forbidding("observation"), 1, AutoresetMode.DISABLED)
    envs.single_action_space = spaces.Discrete(4)
    sentence = r"part 'action_mask' of the observation has length 5, but actions Discrete\(4\) take one of length 4;"
    with pytest.raises(UsageError, match=sentence):
        VectorAdapter(envs)
    assert VectorAdapter(envs, mask_actions=False).parts.keys() == {"action_mask", "observation"}


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_allowed(source):
    for space, where in ((DISCRETE, ""), (MULTI, " in dimension 2")):
        kwargs = {"source": source, "space": space, "wrong": "nothing"}
        agent = PPO(FICKLE, num_envs=2, env_kwargs=kwargs, **SMALL, **wanted(source))
        with pytest.raises(EnvironmentFault) as error:
            iterate(agent, 1)
        assert str(error.value) == f"environment 0 allows no action{where} at vector step 5"
        with pytest.raises(EnvironmentFault, match=r"environment 0 allows no action.* at step 5 of the evaluation"):
            agent.evaluate(2, seed=0)


@pytest.mark.parametrize("source", ["infos", "method"])
def test_a_mask_of_another_length(source):
    for space, length in ((DISCRETE, 9), (MULTI, 14)):
        kwargs = {"source": source, "space": space, "wrong": "longer"}
        agent = PPO(FICKLE, num_envs=1, env_kwargs=kwargs, **SMALL, **wanted(source))
        with pytest.raises(EnvironmentFault) as error:
            iterate(agent, 1)
        wants = f"actions {agent.envs.single_action_space} take one of length {agent.network.spec.num_params}"
        sentence = f"environment 0 gave an action mask of length {length}, but {wants} at vector step 5"
        assert str(error.value) == sentence


def test_a_mask_that_is_missing_once():
    agent = PPO(FICKLE, num_envs=2, env_kwargs={"wrong": "missing"}, mask_actions=True, **SMALL)
    with pytest.raises(EnvironmentFault, match="environment 0 has no 'action_mask' in its info at vector step 5"):
        iterate(agent, 1)


def test_a_native_task_that_allows_nothing(arms):
    agent = PPO(arms(Arms(stuck_at=3)), num_envs=2, backend="native", **SMALL)
    with pytest.raises(EnvironmentFault, match="environment 0 allows no action at vector step 3"):
        iterate(agent, 1)
