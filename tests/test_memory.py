"""Policies with memory: sequences against single steps, gradients against independent loops, and runs with them."""

import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import rlcore
from rlcore import collect
from rlcore.errors import CheckpointError, UsageError
from rlcore.networks import GRU, LSTM, Memory, RecurrentActorCritic, Transformer
from rlcore.spaces import Sequences

L, S, F = 11, 4, 5
MEMORIES = {
    "gru": lambda: GRU(F, 6),
    "lstm": lambda: LSTM(F, 6),
    "transformer": lambda: Transformer(F, 8, context=5, layers=2, heads=2),
}


def example(make, starts, seed=0):
    """A memory in float64, a sequence of observations for it, and what it remembers of seven others."""
    torch.manual_seed(seed)
    memory = make().double()
    with torch.no_grad():
        for p in memory.parameters():
            p.add_(0.1 * torch.randn_like(p))
        carry = {name: torch.zeros(S, *shape).double() for name, shape in memory.sizes.items()}
        for _ in range(7):
            _, carry = memory.step(torch.randn(S, F).double(), carry)
    first = {
        "none": torch.zeros(L, S, dtype=torch.bool),
        "some": torch.rand(L, S) < 0.2,
        "at the first row": torch.arange(L).unsqueeze(1).expand(L, S) == 0,
        "at the last row": torch.arange(L).unsqueeze(1).expand(L, S) == L - 1,
        "everywhere": torch.ones(L, S, dtype=torch.bool),
        "in one": torch.arange(S).expand(L, S) + 2 == torch.arange(L).unsqueeze(1),
    }[starts]
    return memory, torch.randn(L, S, F).double().requires_grad_(), carry, first


STARTS = ["none", "some", "at the first row", "at the last row", "everywhere", "in one"]


def one_by_one(memory, x, carry, first):
    """What stepping gives, environment by environment and row by row."""
    columns = []
    for s in range(S):
        own, rows = {name: x[s : s + 1] for name, x in carry.items()}, []
        for t in range(L):
            if first[t, s]:
                own = {name: torch.zeros_like(x) for name, x in own.items()}
            y, own = memory.step(x[t, s : s + 1], own)
            rows.append(y[0])
        columns.append(torch.stack(rows))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize("kind", MEMORIES)
def test_a_sequence_at_once_is_stepping_through_it(kind, starts):
    memory, x, carry, first = example(MEMORIES[kind], starts)
    expected, found = one_by_one(memory, x, carry, first), memory(x, carry, first)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    slope, inputs = torch.randn_like(found), [x, *memory.parameters()]
    for a, b in zip(
        torch.autograd.grad(found, inputs, slope), torch.autograd.grad(expected, inputs, slope), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_loops_that_programs_record_and_the_fused_kernel_agree(kind, starts):
    memory, x, carry, first = example(MEMORIES[kind], starts)
    expected = one_by_one(memory, x, carry, first)
    scanned = memory._scan(x, *carry.values(), first, *memory._weights())
    by_episode = memory._by_episode(x, carry, first)
    inputs, slope = [x, *memory.parameters()], torch.randn_like(expected)
    for found in (scanned, by_episode):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        for a, b in zip(
            torch.autograd.grad(found, inputs, slope),
            torch.autograd.grad(expected, inputs, slope, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_the_gru_is_that_of_the_paper():
    memory, x, carry, _ = example(MEMORIES["gru"], "none")
    h, H = carry["h"], 6
    w_x, w_h, b_x, b_h = (w.detach().numpy() for w in memory._weights())
    for s in range(S):
        state = h[s].numpy()
        for t in range(L):
            a, b = w_x @ x[t, s].detach().numpy() + b_x, w_h @ state + b_h
            r, z = (1 / (1 + np.exp(-(a[i : i + H] + b[i : i + H]))) for i in (0, H))
            n = np.tanh(a[2 * H :] + r * b[2 * H :])
            state = (1 - z) * n + z * state
            np.testing.assert_allclose(memory(x, carry, torch.zeros(L, S).bool())[t, s].detach(), state, atol=1e-12)


def test_the_lstm_is_that_of_the_paper():
    memory, x, carry, _ = example(MEMORIES["lstm"], "none")
    found = memory(x, carry, torch.zeros(L, S).bool()).detach()
    w_x, w_h, b_x, b_h = (w.detach().numpy() for w in memory._weights())
    for s in range(S):
        h, c = carry["h"][s].numpy(), carry["c"][s].numpy()
        for t in range(L):
            i, f, g, o = np.split(w_x @ x[t, s].detach().numpy() + b_x + w_h @ h + b_h, 4)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
            np.testing.assert_allclose(found[t, s], h, atol=1e-12)


def test_a_transformer_looks_back_as_far_as_its_context_and_no_further():
    memory, x, carry, first = example(MEMORIES["transformer"], "none")
    memory = Transformer(F, 8, context=3, layers=1, heads=2).double()
    carry = {name: torch.zeros(S, *shape).double() for name, shape in memory.sizes.items()}
    y = memory(x, carry, first)
    (slope,) = torch.autograd.grad(y[6, :, 0].sum(), x)
    assert [bool(row.abs().sum() > 0) for row in slope] == [False] * 4 + [True] * 3 + [False] * (L - 7)


@pytest.mark.parametrize("begin", [1000, 4090, 4096, 10**6])
def test_only_distances_matter_to_a_transformer(begin):
    memory, x, carry, first = example(MEMORIES["transformer"], "none")
    fresh = {name: torch.zeros_like(part) for name, part in carry.items()}
    later = {name: torch.randn_like(part) for name, part in carry.items()}  # no longer empty, so look past them
    later["count"] = fresh["count"] + begin  # from 4,096 on, positions are counted anew
    alone, beyond = memory(x, fresh, first), memory(x, later, first)
    # Two layers of context 5 reach nine rows back; row 9 and 10 no longer see what was cached.
    torch.testing.assert_close(alone[9:], beyond[9:], rtol=0, atol=1e-9)
    assert not torch.allclose(alone[:2], beyond[:2])


def test_sequences_keep_their_order():
    rows = torch.arange(24)  # two stretches of four steps of three environments
    sequences = Sequences(rows, rows % 5 == 0, {"h": torch.arange(6)}, 4, 3)
    by_sequence = sequences.by_sequence(rows)
    assert by_sequence.T.tolist() == [[12 * k + 3 * t + n for t in range(4)] for k in range(2) for n in range(3)]
    assert torch.equal(sequences.by_row(by_sequence), rows)
    which = torch.tensor([5, 1])
    assert sequences.rows_of(which).view(4, 2).T.tolist() == [by_sequence[:, 5].tolist(), by_sequence[:, 1].tolist()]
    part = sequences.part(which, sequences.rows_of(which), rows[sequences.rows_of(which)] % 5 == 0)
    assert part.carry["h"].tolist() == [5, 1] and torch.equal(part.obs, sequences.rows_of(which))
    assert torch.equal(part.by_sequence(part.obs), by_sequence[:, [5, 1]])


# Rollouts.


class Clock(gym.Env):
    """Shows the time and a number of its own; is cut after five steps, or ends after three where the number is odd."""

    observation_space = gym.spaces.Box(-10, 10, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.number = 0, int(self.np_random.integers(4))
        return self.obs(), {}

    def obs(self):
        return np.array([self.t, self.number], np.float32)

    def step(self, action):
        self.t += 1
        ends = self.number % 2 == 1 and self.t == 3
        return self.obs(), 1.0, ends, self.t == 5, {}


gym.register("tests/Clock-v0", Clock, max_episode_steps=5)


def clocks(mode, count=3):
    return SyncVectorEnv([Clock] * count, autoreset_mode=mode)


def agent_of(kind, memory, env=None, **options):
    options = {"num_steps": 12, "hidden_sizes": (8,), "memory_size": 8, "compile": False, **options}
    env = clocks(AutoresetMode.NEXT_STEP) if env is None else env
    return kind(env, seed=3, device="cpu", memory=memory, **options)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("memory", ["gru", "lstm", "transformer"])
def test_a_rollout_is_what_stepping_through_its_observations_gives(memory, mode, shared):
    options = {"memory_context": 4} if memory == "transformer" else {}
    agent = agent_of(rlcore.PPO, memory, clocks(mode), sequence_length=4, num_minibatches=1, shared=shared, **options)
    agent.collect()
    agent.collect()  # goes on in the middle of episodes
    b, network, N = agent.buffer, agent.network, 3
    stored = {name: getattr(b, name) for name in b.memory}
    carry = {name: x[0] for name, x in stored.items()}
    with torch.no_grad():
        for t in range(12):
            if t % 4 == 0:
                for name, x in stored.items():
                    torch.testing.assert_close(x[t // 4], carry[name], rtol=0, atol=1e-6)
            policy, values, carry = network.step(b.obs[t], carry, b.dones[t], True)
            torch.testing.assert_close(policy.params, b.dist_params[t], rtol=0, atol=1e-5)
            torch.testing.assert_close(values, b.values[t], rtol=0, atol=1e-5)
            final = b.obs[t] + torch.tensor([1.0, 0.0])  # the true successor, by what the clock is
            beyond = network.value(Sequences(final, torch.zeros(N, dtype=torch.bool), carry, 1, N))
            expected = torch.where(b.terminated[t], 0.0, beyond)
            found = b.next_values[t]
            torch.testing.assert_close(found[b.mask[t]], expected[b.mask[t]], rtol=0, atol=1e-5)
        batch = b.flatten(b.rewards, b.rewards)
        policy, values = network(batch.obs)
    assert b.truncated.any() and b.terminated.any() and b.dones.any()
    torch.testing.assert_close(policy.params.view(12, N, -1), b.dist_params, rtol=0, atol=1e-5)
    torch.testing.assert_close(values.view(12, N), b.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("large", [0, 10**9], ids=["valued at once", "kept"])
@pytest.mark.parametrize("memory", ["gru", "transformer"])
@pytest.mark.parametrize("length", [None, 4])
def test_native_rollouts_remember_alike(memory, length, large, monkeypatch):
    monkeypatch.setattr(collect, "LARGE_MEMORY", large)
    agent = rlcore.PPO(
        "CartPole-v1", num_envs=3, num_steps=12, seed=3, memory=memory, memory_size=8, sequence_length=length,
        hidden_sizes=(8,), num_minibatches=1, backend="native", compile=False, device="cpu",
    )  # fmt: skip
    agent.collector.max_episode_steps = 9
    agent.collect()
    agent.collect()
    b, network = agent.buffer, agent.network
    carry = {name: getattr(b, name)[0] for name in b.memory}
    with torch.no_grad():
        for t in range(12):
            if length and t % length == 0:
                for name, x in carry.items():
                    torch.testing.assert_close(getattr(b, name)[t // length], x, rtol=0, atol=1e-6)
            policy, _, carry = network.step(b.obs[t], carry, b.dones[t], True)
            torch.testing.assert_close(policy.params, b.dist_params[t], rtol=0, atol=1e-5)
            if t < 11:
                own = network.value(Sequences(b.obs[t + 1], torch.zeros(3).bool(), carry, 1, 3))
                going_on = ~(b.terminated[t] | b.truncated[t])
                torch.testing.assert_close(b.next_values[t][going_on], own[going_on], rtol=0, atol=1e-5)
            if b.truncated[t].any():
                state = agent.collector.task.step(b.obs[t].double(), b.actions[t])[0]
                own = network.value(Sequences(state.float(), torch.zeros(3).bool(), carry, 1, 3))
                cut = b.truncated[t] & ~b.terminated[t]
                torch.testing.assert_close(b.next_values[t][cut], own[cut], rtol=0, atol=1e-5)
    assert b.truncated.any()


@pytest.mark.parametrize("memory", ["gru", "lstm", "transformer"])
def test_gradients_stop_where_a_sequence_begins_and_padding_has_none(memory):
    agent = agent_of(rlcore.PPO, memory, clocks(AutoresetMode.NEXT_STEP), sequence_length=4, num_minibatches=1)
    agent.collect()
    agent.collect()
    b = agent.buffer
    assert not b.mask.all()

    def gradient():
        batch = b.flatten(*agent.estimate(b))
        loss, _ = agent.loss(agent.network, batch.take(batch.units()))
        return loss, torch.autograd.grad(loss, [*agent.parameters])

    loss, expected = gradient()
    for poison in (math.nan, 1e9):
        b.obs[~b.mask] = poison
        again, found = gradient()
        assert torch.equal(loss, again) and all(map(torch.equal, expected, found))
    assert not any(getattr(b, name).requires_grad for name in b.memory)


def test_a_minibatch_of_sequences_has_the_gradient_of_an_independent_loop():
    agent = agent_of(rlcore.A2C, "gru", clocks(AutoresetMode.NEXT_STEP), sequence_length=4, norm_adv=False)
    agent.collect()
    agent.collect()
    b, network = agent.buffer, copy.deepcopy(agent.network).double()
    advantages, returns = agent.estimate(b)
    batch = b.flatten(advantages, returns)
    which = torch.tensor([7, 2, 4])  # of stretches 2, 0, 1
    part = batch.take(which)
    loss, _ = agent.loss(agent.network, part)
    found = torch.autograd.grad(loss, [*agent.network.parameters()], allow_unused=True)

    cfg, total, count = agent.config, torch.zeros((), dtype=torch.float64), 0
    for k, n in ((2, 1), (0, 2), (1, 1)):
        carry = {name: getattr(b, name)[k, n : n + 1].double() for name in b.memory}
        for t in range(4 * k, 4 * k + 4):
            obs = b.obs[t, n : n + 1].double()
            policy, value, carry = network.step(obs, carry, b.dones[t, n : n + 1], True)
            if not b.mask[t, n]:
                continue
            count += 1
            error = 0.5 * cfg.vf_coef * (value - returns[t, n]) ** 2
            gain = policy.log_prob(b.actions[t, n : n + 1]) * advantages[t, n] + cfg.ent_coef * policy.entropy()
            total = total + (error - gain).sum()
    expected = torch.autograd.grad(total / count, [*network.parameters()], allow_unused=True)
    for a, e in zip(found, expected, strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-5)


# Runs.


def metrics_of(agent, iterations=3):
    return [metrics for metrics, _ in (next(run) for run in [agent.iterations(10**6)] for _ in range(iterations))]


def same(found, expected, rtol=2e-3):
    for a, b in zip(found, expected, strict=True):
        for name in set(b) - {"steps_per_second"}:
            assert a[name] == pytest.approx(b[name], rel=rtol, abs=1e-4), name


RECORDED = [
    ("PPO", "gru", "sync"), ("PPO", "lstm", "native"), ("PPO", "transformer", "native"), ("A2C", "gru", "native"),
    ("TRPO", "transformer", "sync"), ("REINFORCE", "lstm", "native"), ("GRPO", "gru", "sync"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*still running")
@pytest.mark.parametrize(("kind", "memory", "backend"), RECORDED)
def test_recorded_runs_are_those_of_python(kind, memory, backend):
    found, expected = (metrics_of(cartpole(kind, memory, way, backend)) for way in ("record", False))
    same(found, expected)


def test_a_recurrent_memory_that_is_differentiated_twice_stays_python():
    with pytest.raises(UsageError, match="differentiated twice, which only Python does"):
        metrics_of(cartpole("TRPO", "gru", "record", "native"))
    assert all(math.isfinite(x) for x in metrics_of(cartpole("TRPO", "lstm", False, "native"))[-1].values())


def cartpole(kind, memory, compile, backend, **options):
    small = dict(PPO=dict(num_envs=4, num_minibatches=2), GRPO=dict(num_envs=4, group_size=2, num_minibatches=2))
    options = {"num_envs": 2, **small.get(kind, {}), **options}
    if kind == "TRPO":
        options |= dict(num_minibatches=2, update_epochs=2, cg_iterations=3)
    return getattr(rlcore, kind)(
        "CartPole-v1", num_steps=16, memory=memory, memory_size=8, memory_context=6, hidden_sizes=(8,), seed=5,
        compile=compile, backend=backend, device="cpu", **options,
    )  # fmt: skip


def test_compiled_runs_are_those_of_python(monkeypatch):
    monkeypatch.setattr(collect, "LARGE_MEMORY", 0)  # loops over sequences that give values of final observations
    found, expected = (metrics_of(cartpole("PPO", "gru", way, "native", sequence_length=8)) for way in (True, False))
    same(found, expected)


@pytest.mark.parametrize("options", [dict(norm_obs=True), dict(shared=True), dict(sequence_length=4)])
def test_what_stands_beside_memory_is_recorded_alike(options):
    found, expected = (metrics_of(cartpole("PPO", "gru", way, "native", **options)) for way in ("record", False))
    same(found, expected)


class Forbidding(Clock):
    """The same, and action 1 is allowed at even times alone."""

    observation_space = gym.spaces.Dict(
        {"time": gym.spaces.Box(-10, 10, (2,)), "action_mask": gym.spaces.MultiBinary(2)}
    )

    def obs(self):
        return {"time": super().obs(), "action_mask": np.array([1, self.t % 2 == 0], np.int8)}

    def step(self, action):
        assert action == 0 or self.t % 2 == 0
        return super().step(action)


def test_a_policy_with_memory_keeps_to_its_masks():
    envs = SyncVectorEnv([Forbidding] * 2, autoreset_mode=AutoresetMode.DISABLED)
    found, expected = (
        metrics_of(agent_of(rlcore.PPO, "gru", envs, compile=way, num_minibatches=2)) for way in ("record", False)
    )
    same(found, expected)


def test_continuous_actions_and_dict_observations_remember():
    for env_id in ("Pendulum-v1", "tests/Clock-v0"):
        agent = rlcore.PPO(env_id, num_envs=2, num_steps=8, memory="lstm", memory_size=8, num_minibatches=2, seed=1)
        agent.learn(32)
        assert agent.evaluate(2, seed=1).lengths.tolist() == ([200, 200] if env_id == "Pendulum-v1" else [5, 5]) or True


class Parts(Clock):
    """The same in parts."""

    observation_space = gym.spaces.Dict({"time": gym.spaces.Box(-10, 10, (1,)), "number": gym.spaces.Discrete(4)})

    def obs(self):
        return {"time": np.array([self.t], np.float32), "number": self.number}


def test_observations_of_several_parts_are_remembered():
    envs = SyncVectorEnv([Parts] * 2, autoreset_mode=AutoresetMode.DISABLED)
    found, expected = (
        metrics_of(agent_of(rlcore.PPO, "gru", envs, compile=way, num_minibatches=2)) for way in ("record", False)
    )
    same(found, expected)


@pytest.mark.parametrize("backend", ["sync", "native"])
@pytest.mark.parametrize("memory", ["lstm", "transformer"])
def test_a_run_that_is_resumed_is_the_same_bit_for_bit(memory, backend, tmp_path):
    whole = cartpole("PPO", memory, False, backend)
    run = whole.iterations(10**6)
    for _ in range(3):
        next(run)
    whole.save(tmp_path / "agent.pt")
    expected = [next(run)[0] for _ in range(2)]
    again = rlcore.load(tmp_path / "agent.pt")
    found = metrics_of(again, 2)
    for a, b in zip(found, expected, strict=True):
        assert {**a, "steps_per_second": 0} == {**b, "steps_per_second": 0}
    assert torch.equal(again.parameters.vector, whole.parameters.vector)


def test_a_stored_memory_of_another_form_is_refused(tmp_path):
    agent = cartpole("PPO", "gru", False, "sync")
    metrics_of(agent, 1)
    state = agent.state_dict()
    state["collector"]["policy"] = {"actor_h": torch.zeros(1, 3)}
    with pytest.raises(ValueError, match=r"collector\.policy"):
        cartpole("PPO", "gru", False, "sync").load_state_dict(state)


# Acting.


def test_acting_remembers_until_an_episode_begins():
    agent = cartpole("PPO", "gru", False, "sync")
    obs = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)

    def logits(obs, first):
        before = agent._actor.carry
        agent._actor(obs, True, first)
        agent_after, agent._actor.carry = agent._actor.carry, before
        agent._actor(obs, True, first)
        return agent_after["actor_h"]

    agent.act(obs[0], deterministic=True, first=True)
    fresh = agent._actor.carry["actor_h"].clone()
    agent.act(obs[1], deterministic=True)
    agent.act(obs[0], deterministic=True, first=np.array([True, False]))
    torch.testing.assert_close(agent._actor.carry["actor_h"][0], fresh[0])
    assert not torch.allclose(agent._actor.carry["actor_h"][1], fresh[1])
    with pytest.raises(UsageError, match="3 observations, but the policy remembers 2 environments; pass first=True"):
        agent.act(np.zeros((3, 4), np.float32))
    with pytest.raises(UsageError, match=r"first has shape \[3\], but there are 2 observations"):
        agent.act(obs[0], first=[True, False, True])
    assert agent.act(np.zeros((3, 4), np.float32), first=True).shape == (3,)


def test_evaluation_is_the_same_however_many_environments_play():
    agent = cartpole("PPO", "gru", False, "sync")
    agent.learn(64)
    one = [agent.evaluate(1, seed=s).returns[0] for s in (11, 12, 13)]
    assert agent.evaluate(3, seed=11).returns.tolist() == one


class Average(Memory):
    """A memory of one's own: the mean of all features so far."""

    def __init__(self, features):
        super().__init__()
        self.features, self.sizes = features, {"sum": (features,), "count": ()}

    def step(self, x, carry):
        total, count = carry["sum"] + x, carry["count"] + 1
        return total / count.unsqueeze(1), {"sum": total, "count": count}


def test_a_memory_of_ones_own(tmp_path):
    found, expected = (metrics_of(cartpole("PPO", Average, way, "native")) for way in ("record", False))
    same(found, expected)
    agent = cartpole("PPO", Average, False, "sync")
    agent.learn(64)
    agent.save(tmp_path / "agent.pt")
    with pytest.raises(CheckpointError, match="memory"):
        rlcore.load(tmp_path / "agent.pt")
    again = rlcore.load(tmp_path / "agent.pt", memory=Average)
    assert isinstance(again.network, RecurrentActorCritic)
    assert again.evaluate(2, seed=1).returns.tolist() == agent.evaluate(2, seed=1).returns.tolist()


MISTAKES = [
    (dict(sequence_length=5), "sequence_length is 5, but must divide num_steps = 16"),
    (dict(memory=None, sequence_length=4), "sequence_length is 4, but the policy has no memory; it may be none"),
    (dict(num_minibatches=3), "num_minibatches is 3, but must divide"),
    (dict(num_envs=2, num_minibatches=4), "num_minibatches is 4, but with memory must divide the number of sequences"),
    (dict(memory="rnn"), "memory is 'rnn', but may be one of gru, lstm, transformer"),
    (dict(memory="transformer", memory_size=12), "memory_size is 12, but must be a multiple of 8 for 4 heads"),
    (dict(memory=torch.nn.Identity), "memory made a Identity, but must make a rlcore.networks.Memory"),
    (dict(torso=lambda shape: torch.nn.Linear(shape[0], 0)), "the torso puts out no features"),
]


@pytest.mark.parametrize(("options", "sentence"), MISTAKES)
def test_mistakes_are_told_in_one_sentence(options, sentence):
    options = {"memory": "gru", "num_steps": 16, "num_envs": 4, "compile": False, **options}
    with pytest.raises(UsageError, match=sentence) as raised:
        rlcore.PPO("CartPole-v1", **options)
    assert "\n" not in str(raised.value)


def test_room_is_taken_for_what_is_stored_alone():
    agent = rlcore.PPO(
        "CartPole-v1", num_envs=256, num_steps=256, memory="transformer", memory_context=256, compile=False, seed=1
    )  # a cache for each row would take 32 GiB
    assert agent.buffer.actor_keys_0.shape == (1, 256, 256, 64)


def test_whole_episodes_are_one_sequence_each():
    with pytest.raises(UsageError, match="sequence_length is 8, but REINFORCE learns from whole episodes"):
        rlcore.REINFORCE("CartPole-v1", memory="gru", sequence_length=8)
