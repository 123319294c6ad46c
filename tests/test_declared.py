"""What is declared arrives everywhere; what is not is refused by name. Every way of running computes the same."""

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rlcore
import rlcore.storage.checkpoint
import rlcore.tracing
from rlcore.agents import A2C, PPO
from rlcore.envs import NATIVE_TASKS, NativeVectorEnv, register_native
from rlcore.envs.native import CartPole
from rlcore.errors import EnvironmentFault, UsageError
from rlcore.networks import ActorCritic
from rlcore.spaces import Field
from tests.outside.first_steps import FirstSteps
from tests.outside.rnd import RND
from tests.outside.running_torso import torso as running_torso

SMALL = dict(hidden_sizes=(8,), num_steps=8, num_envs=2, seed=3, device="cpu")
STEPS = dict(num_minibatches=2, update_epochs=2)


def train(kind, compile=False, iterations=4, total=20, **options):
    """An agent after some iterations, and the metrics of each."""
    agent = kind("CartPole-v1", compile=compile, **{**SMALL, **options})
    steps = agent.config.num_steps * agent.config.num_envs
    found = []
    for metrics, _ in agent.iterations(total * steps):
        found.append({name: x for name, x in metrics.items() if "second" not in name})
        if len(found) == iterations:
            break
    return agent, found


def assert_same(ours, theirs, tolerance=1e-5):
    (a, expected), (b, found) = ours, theirs
    for one, other in zip(expected, found, strict=True):
        assert list(one) == list(other)
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4, nan_ok=True)
    ours, theirs = a.state.state_dict(), b.state.state_dict()
    assert ours.keys() == theirs.keys()
    for name, x in flat(ours).items():
        torch.testing.assert_close(torch.as_tensor(flat(theirs)[name]), torch.as_tensor(x), atol=tolerance, rtol=1e-3)


def flat(tree, name=""):
    if not isinstance(tree, dict):
        return {name: tree}
    return {k: x for key, part in tree.items() for k, x in flat(part, f"{name}.{key}").items()}


# Three agents from outside, each alike in all ways of running.

OUTSIDE = {
    "rnd": (RND, STEPS),
    "first_steps": (FirstSteps, {}),
    "running_torso": (PPO, dict(torso=running_torso, **STEPS)),
}


@pytest.mark.parametrize("backend", ["vector", "native"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_code_from_outside_is_recorded(name, backend):
    kind, options = OUTSIDE[name]
    ours = train(kind, False, backend=backend, **options)
    theirs = train(kind, "record", backend=backend, **options)
    assert theirs[0].engine.how == "recorded"
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["first_steps", "running_torso"])  # tests/test_rnd_plugin.py has the other
def test_code_from_outside_is_compiled(name, request):
    """One that is compiled, and one as it is given to the compiler."""
    kind, options = OUTSIDE[name]
    if name == "running_torso":
        request.getfixturevalue("not_compiled")
    options = {
        **options,
        "num_steps": 11,
        "num_minibatches": 1,
        "backend": "native" if name == "running_torso" else "vector",
    }
    ours, theirs = (train(kind, how, **options) for how in (False, True))
    assert theirs[0].engine.how == "compiled"
    assert_same(ours, theirs, 2e-5)


def test_the_examples_are_short():
    for path in (Path(__file__).parent / "outside").glob("*.py"):
        assert len(path.read_text().splitlines()) < 60


def test_a_registered_module_is_saved_moved_and_restored(tmp_path):
    agent, _ = train(RND, **STEPS)
    agent.save(tmp_path / "rnd.pt")
    other = RND("CartPole-v1", **SMALL, **STEPS, compile=False)
    state = rlcore.storage.checkpoint.read_agent(tmp_path / "rnd.pt")["agent"]
    assert {"predictor", "target", "bonus_scale"} <= state.keys()
    before = other.predictor[0].weight.clone()
    other.load_state_dict(state)
    assert torch.equal(other.predictor[0].weight, agent.predictor[0].weight)
    assert not torch.equal(other.predictor[0].weight, before)
    assert other.bonus_scale.count == agent.bonus_scale.count > 0
    learned = [x[1] for x in (copy.deepcopy(train(RND, iterations=1, **STEPS)),)]
    assert learned[0][0]["distillation"] > 0
    del state["predictor"]
    with pytest.raises(ValueError, match="predictor has other parts"):
        other.load_state_dict(state)


# Fields.


class Noticing(ActorCritic):
    """A policy with a field and a carry: how many rows it has acted since an episode began."""

    def fields(self):
        return [Field("age"), Field("wide", (2,))]

    def initial_carry(self, num_envs):
        return {"age": torch.zeros(num_envs)}

    def act(self, obs, carry, first, noise, with_values=False):
        row, _ = super().act(obs, {}, first, noise, with_values)
        age = torch.where(first, 0.0, carry["age"])
        return {**row, "age": age, "wide": torch.stack([age, -age], -1)}, {"age": age + 1}


class WithNoticing(PPO):
    def make_network(self, torso):
        return Noticing(self.envs.single_observation_space, self.adapter.action_spec, hidden_sizes=(8,))

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss, {**metrics, "age": batch.mean(batch.age), "wide": batch.mean(batch.wide[:, 1])}


@pytest.mark.parametrize("backend", ["vector", "sync", "native"])
@pytest.mark.parametrize("compile", [False, "record"])
def test_a_field_of_the_policy_arrives_in_the_batch(backend, compile):
    agent, found = train(WithNoticing, compile, num_steps=40, iterations=2, backend=backend, num_minibatches=1)
    expected, age = np.zeros((40, 2)), np.full(2, 0.0)
    dones = agent.buffer.dones.numpy()
    for t in range(40):
        age = np.where(dones[t], 0.0, age + 1 if t else agent.buffer.age[0].numpy())
        expected[t] = age
    np.testing.assert_array_equal(agent.buffer.age.numpy(), expected)
    np.testing.assert_array_equal(agent.buffer.wide[..., 1].numpy(), -expected)
    real = agent.buffer.mask.numpy()
    assert found[-1]["age"] == pytest.approx(expected[real].mean(), rel=1e-3)
    assert found[-1]["wide"] == pytest.approx(-expected[real].mean(), rel=1e-3)


class Masked(CartPole):
    """A cart that tells which actions are allowed: not to push on where it moves fast already."""

    id = "tests/Masked-v0"
    max_episode_steps = 30
    fields = (Field("allowed", (2,), torch.bool), Field("lean"))

    def extras(self, state):
        return {"allowed": torch.stack([state[:, 1] > -0.3, state[:, 1] < 0.3], -1), "lean": state[:, 2].float()}


class ReadsAllowed(PPO):
    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss, {**metrics, "allowed": batch.mean(batch.allowed.float().sum(-1)), "lean": batch.mean(batch.lean)}


@pytest.mark.parametrize("backend", ["native", "vector", "sync"])
@pytest.mark.parametrize("compile", [False, "record"])
def test_a_field_of_the_environment_arrives_in_the_batch(backend, compile, monkeypatch):
    """A task from outside the package, stepped in every way there is."""
    monkeypatch.setitem(NATIVE_TASKS, Masked.id, None)
    register_native(Masked())
    options = {**SMALL, "num_steps": 70, "num_minibatches": 1, "backend": backend}
    agent = ReadsAllowed(Masked.id, compile=compile, **options)
    found = [metrics for _, (metrics, _) in zip(range(2), agent.iterations(10**6), strict=False)]
    b = agent.buffer
    assert b.dones.any()
    torch.testing.assert_close(b.lean, b.obs[..., 2])
    assert torch.equal(b.allowed, torch.stack([b.obs[..., 1] > -0.3, b.obs[..., 1] < 0.3], -1))
    assert found[-1]["lean"] == pytest.approx(b.lean[b.mask].mean().item(), rel=1e-3, abs=1e-6)
    assert found[-1]["allowed"] == pytest.approx(b.allowed[b.mask].float().sum(-1).mean().item(), rel=1e-3)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_field_of_the_environment_in_every_autoreset_mode(mode):
    envs = NativeVectorEnv(Masked(), 3, autoreset_mode=mode)
    agent = ReadsAllowed(envs, num_steps=70, num_minibatches=1, hidden_sizes=(4,), seed=1, device="cpu", compile=False)
    next(agent.iterations(10**6))
    assert agent.buffer.dones.any()
    torch.testing.assert_close(agent.buffer.lean, agent.buffer.obs[..., 2])


@pytest.mark.parametrize("backend", ["native", "vector", "sync"])
def test_a_resumed_run_has_the_fields_of_the_environment_in_its_first_row(backend, monkeypatch, tmp_path):
    monkeypatch.setitem(NATIVE_TASKS, Masked.id, None)
    register_native(Masked())
    options = {**SMALL, "num_steps": 11, "num_minibatches": 1, "backend": backend}
    agent = ReadsAllowed(Masked.id, compile=False, **options)
    iterations = agent.iterations(10**6)
    next(iterations)
    state = agent.state_dict()
    assert agent.collector.is_capturable()
    other = ReadsAllowed(Masked.id, compile=False, **options)
    other.load_state_dict(state)
    next(iterations)
    next(other.iterations(10**6))
    for name in ("obs", "lean", "allowed", "actions"):
        assert torch.equal(getattr(agent.buffer, name), getattr(other.buffer, name)), name
    assert torch.equal(agent.parameters.vector, other.parameters.vector)


def test_an_environment_that_does_not_tell_what_it_promises():
    class Silent(Masked):
        def extras(self, state):
            return {}

    with pytest.raises(EnvironmentFault, match="promise 'allowed' in their infos, but it is not there"):
        PPO(NativeVectorEnv(Silent(), 2), num_steps=4, seed=1, device="cpu")


def test_a_field_cannot_take_the_name_of_another():
    class Twice(PPO):
        def fields(self):
            return [Field("rewards")]

    with pytest.raises(UsageError, match="a field cannot be called 'rewards'"):
        Twice("CartPole-v1", **SMALL)


class ReadsDones(PPO):
    def estimate(self, buffer):
        advantages, returns = super().estimate(buffer)
        return advantages + buffer.dones.float() * 10, returns


def test_dones_are_no_constant():
    ours, theirs = (train(ReadsDones, how, num_steps=64, norm_adv=False, **STEPS) for how in (False, "record"))
    assert ours[0].buffer.dones.any()
    assert_same(ours, theirs)
    assert train(PPO, num_steps=64, norm_adv=False, **STEPS)[1][-1] != ours[1][-1]


def test_assigning_a_field_keeps_its_memory():
    agent, _ = train(PPO, iterations=1, **STEPS)
    lies = agent.buffer.rewards.data_ptr()
    agent.buffer.rewards = torch.full((8, 2), 3.0, dtype=torch.float64)
    assert agent.buffer.rewards.data_ptr() == lies and (agent.buffer.rewards == 3).all()


# State.


class Averaging(PPO):
    """Registers a tensor, and sets it anew after each rollout."""

    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        self.register("average", torch.tensor(1.0))

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss * self.average, {**metrics, "average": self.average.detach().clone()}

    def after_steps(self, batch):
        self.average = 0.9 * self.average + 0.1 * batch.mean(batch.returns).detach()
        return {}


def test_a_registered_tensor_may_be_reassigned(tmp_path):
    ours, theirs = (train(Averaging, how, **STEPS) for how in (False, "record"))
    assert_same(ours, theirs)
    averages = [metrics["average"] for metrics in theirs[1]]
    assert len(set(averages)) == len(averages) and averages[0] == 1
    theirs[0].save(tmp_path / "a.pt")
    state = rlcore.storage.checkpoint.read_agent(tmp_path / "a.pt")["agent"]
    assert state["average"] == theirs[0].average


def test_a_name_is_registered_once():
    agent = PPO("CartPole-v1", **SMALL)
    with pytest.raises(UsageError, match="'network' cannot be registered, because the PPO has it already"):
        agent.register("network", nn.Linear(1, 1))
    with pytest.raises(UsageError, match="'thing' is a str, but must be"):
        agent.register("thing", "text")


# What is refused, by name.


class Undeclared(PPO):
    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        self.table = torch.tensor([0.5, 2.0])

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss * self.table[0], metrics


class UndeclaredModule(PPO):
    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        self.predictor = nn.Linear(4, 1)

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss + batch.mean(self.predictor(batch.obs).squeeze(-1) ** 2), metrics


class Reassigned(PPO):
    level = None

    def estimate(self, buffer):
        self.level = buffer.rewards.mean()
        return super().estimate(buffer)


class Counting(PPO):
    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        self.calls, self.log = 0, []

    def estimate(self, buffer):
        self.calls += 1
        self.log.append(self.calls)
        return super().estimate(buffer)


class InPlace(PPO):
    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        self.total = torch.zeros(())

    def estimate(self, buffer):
        self.total += 1
        return super().estimate(buffer)


class Looking(PPO):
    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return (loss * 2 if loss > 0 else loss), metrics


class Random(PPO):
    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss + 0 * torch.randn(()), metrics


class Picking(PPO):
    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss, {**metrics, "good": batch.returns[batch.returns > 0].sum().detach()}


class HowMany(PPO):
    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss * (1 + len(batch.returns[batch.returns > 0])), metrics


class RandomNumpy(PPO):
    def estimate(self, buffer):
        advantages, returns = super().estimate(buffer)
        return advantages * np.random.rand(), returns


class OwnGenerator(PPO):
    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        self.rng = np.random.default_rng(1)

    def estimate(self, buffer):
        advantages, returns = super().estimate(buffer)
        return advantages * self.rng.random(), returns


REFUSED = {
    Undeclared: r"'table' is read in line \d+ of test_declared.py, but not declared.*register\('table'",
    UndeclaredModule: r"'predictor.(weight|bias)' is read in line \d+ of",
    Reassigned: "'level' is set while learning, but not declared",
    Counting: "'(calls|log)' is set while learning, but not declared",
    InPlace: "'total' is (set|read)",
    Looking: r"Python looks at the value of a tensor \(line \d+ of test_declared.py\)",
    Random: r"random numbers are drawn in line \d+ of test_declared.py",
    Picking: r"how much is picked in line \d+ of test_declared.py depends on the values of a tensor",
    HowMany: r"how much is picked in line \d+ of test_declared.py depends on the values of a tensor",
    RandomNumpy: "random numbers are drawn by numpy or Python",
    OwnGenerator: "'rng' is set while learning, but not declared",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_frozen_is_refused_by_name(kind):
    agent = kind("CartPole-v1", compile="record", **SMALL, **STEPS)
    with pytest.raises(UsageError, match=REFUSED[kind]):
        agent.learn(32)
    assert agent.global_step == 0


@pytest.mark.parametrize("kind", REFUSED)
def test_auto_runs_it_as_python_instead_and_says_why(kind, monkeypatch):
    torch.manual_seed(0)
    np.random.seed(0)
    agent = kind("CartPole-v1", compile="auto", **SMALL, **STEPS)
    monkeypatch.setattr(agent.engine, "_choose_fastest", lambda seconds: ("recorded", "the test wants it"))
    agent.engine.prepare(64)
    for name, value in (("calls", 0), ("log", []), ("total", 0.0), ("level", None)):
        assert getattr(agent, name, value) == value  # what was run to be recorded has left no trace
    torch.manual_seed(0)
    np.random.seed(0)
    for iteration, _ in zip(range(4), agent.iterations(20 * 16), strict=False):
        assert iteration < 4
    assert agent.engine.how == "python" and "could not be recorded" in agent.engine.reason
    torch.manual_seed(0)
    np.random.seed(0)
    eager, _ = train(kind, False, iterations=4, **STEPS)
    assert torch.equal(agent.parameters.vector, eager.parameters.vector)


def test_a_constant_is_taken():
    table = rlcore.tracing.Constant(torch.tensor([0.5, 2.0]))

    class Declared(PPO):
        def loss(self, network, batch):
            loss, metrics = super().loss(network, batch)
            return loss * table.like(loss)[0], metrics

    assert_same(*(train(Declared, how, **STEPS) for how in (False, "record")))


# Numbers of yesterday.


class Annealing(PPO):
    beta = 1.0

    def anneal(self, remaining):
        super().anneal(remaining)
        self.beta = remaining

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss * self.beta, metrics


class ReadsIteration(PPO):
    def estimate(self, buffer):
        advantages, returns = super().estimate(buffer)
        return advantages + self.iteration, returns


class Helped(PPO):
    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        self.schedule = type("Schedule", (), {})()
        self.schedule.beta = 1.0

    def anneal(self, remaining):
        super().anneal(remaining)
        self.schedule.beta = remaining

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss * self.schedule.beta, metrics


class Replaced(PPO):
    def anneal(self, remaining):
        super().anneal(remaining)
        self.config = dataclasses.replace(self.config, ent_coef=remaining)


FACTOR = 1.0
TABLE = {"factor": 1.0}


class Global(PPO):
    def anneal(self, remaining):
        super().anneal(remaining)
        globals()["FACTOR"] = remaining

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss * FACTOR, metrics


class GlobalTable(PPO):
    def anneal(self, remaining):
        super().anneal(remaining)
        TABLE["factor"] = remaining

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss * TABLE["factor"], metrics


class Scaled(nn.Linear):
    scale = 1.0

    def forward(self, x):
        return super().forward(x) * self.scale


class ChangesTorso(PPO):
    def __init__(self, env, **hyperparameters):
        super().__init__(env, torso=lambda shape: Scaled(shape[0], 8), **hyperparameters)
        for module in self.network.modules():
            if isinstance(module, Scaled):
                module.scale = 1.0

    def anneal(self, remaining):
        super().anneal(remaining)
        for module in self.network.modules():
            if isinstance(module, Scaled):
                module.scale = remaining


CHANGING = {
    Annealing: "'beta' was 1.0 and has become 0.95",
    ReadsIteration: "'iteration' was 0 and has become 1",
    Helped: "'schedule' has changed",
    Replaced: "'config' has changed",
    Global: "'FACTOR' was 1.0 and has become 0.95",
    GlobalTable: "'TABLE' has changed",
    ChangesTorso: "'network.*scale' was 1.0 and has become 0.95",
}


@pytest.mark.parametrize("kind", CHANGING)
def test_a_program_never_computes_with_the_number_of_before(kind, monkeypatch):
    monkeypatch.setitem(TABLE, "factor", 1.0)
    monkeypatch.setitem(globals(), "FACTOR", 1.0)
    with pytest.raises(UsageError, match=CHANGING[kind]):
        train(kind, "record", **STEPS)
    monkeypatch.setitem(globals(), "FACTOR", 1.0)
    monkeypatch.setitem(TABLE, "factor", 1.0)
    ours = train(kind, False, **STEPS)
    monkeypatch.setitem(globals(), "FACTOR", 1.0)
    monkeypatch.setitem(TABLE, "factor", 1.0)
    monkeypatch.setattr("rlcore.agents.engine.Engine._choose_fastest", lambda self, seconds: ("recorded", "test"))
    with pytest.warns(UserWarning, match="iterations go on as Python: " + CHANGING[kind]):
        theirs = train(kind, "auto", **STEPS)
    assert theirs[0].engine.how == "python"
    assert_same(ours, theirs)


def test_declared_coefficients_may_change():
    class Declared(PPO):
        def __init__(self, env, **hyperparameters):
            super().__init__(env, **hyperparameters)
            self.coefs["beta"] = 1.0

        def anneal(self, remaining):
            super().anneal(remaining)
            self.coefs["beta"] = remaining

        def loss(self, network, batch):
            loss, metrics = super().loss(network, batch)
            return loss * self.coefs["beta"], metrics

    assert_same(*(train(Declared, how, **STEPS) for how in (False, "record")))


# Overrides of any step are recorded.


class OwnUpdate(PPO):
    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        self.register("predictor", nn.Linear(4, 1))
        with torch.no_grad():
            self.predictor.weight.fill_(0.1)
            self.predictor.bias.fill_(0.1)

    def update(self, batch):
        batch = batch.replace(advantages=batch.advantages * 2)
        metrics = super().update(batch)
        return {**metrics, "seen": batch.mean(self.predictor(batch.obs).squeeze(-1)).detach()}

    def learn_from_buffer(self):
        metrics = super().learn_from_buffer()
        return {**metrics, "own": self.buffer.rewards.mean() + 1}

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss + batch.mean((self.predictor(batch.obs).squeeze(-1) - batch.returns) ** 2), metrics


def test_overrides_of_update_and_learn_from_buffer_are_recorded():
    ours, theirs = (train(OwnUpdate, how, norm_adv=False, **STEPS) for how in (False, "record"))
    assert_same(ours, theirs)
    assert ours[1][0]["own"] == pytest.approx(2)
    assert theirs[0].predictor.weight.sum().item() != pytest.approx(0.4)


# Parameters that are frozen, tied, copied.


def test_a_frozen_torso_stays_as_it_is_in_every_way_of_running():
    class Frozen(PPO):
        def __init__(self, env, **hyperparameters):
            super().__init__(env, **hyperparameters)
            self.network.actor.requires_grad_(False)

    ours, theirs = (train(Frozen, how, **STEPS) for how in (False, "record"))
    assert_same(ours, theirs)
    fresh = PPO("CartPole-v1", **SMALL, **STEPS)
    for agent in (ours[0], theirs[0]):
        assert all(map(torch.equal, agent.network.actor.parameters(), fresh.network.actor.parameters()))
        assert not torch.equal(agent.network.policy_head.weight, fresh.network.policy_head.weight)


def test_freezing_and_thawing_keeps_the_moments_of_what_goes_on():
    agent, _ = train(PPO, iterations=2, **STEPS)
    moments = agent.optimizer.exp_avg_sq.clone()
    size = {place.name: place.get().numel() for place in agent.parameters.places}
    agent.network.actor.requires_grad_(False)
    agent.refresh()
    kept = [x for x, name in zip(moments.split(list(size.values())), size, strict=True) if "actor" not in name]
    assert torch.equal(agent.optimizer.exp_avg_sq, torch.cat(kept))
    agent.learn(100)


class Tied(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.one, self.two = nn.Linear(inputs, inputs), nn.Linear(inputs, inputs)
        self.two.weight = self.one.weight

    def forward(self, x):
        return torch.tanh(self.two(torch.tanh(self.one(x))))


def test_tied_weights_learn_alike_in_every_way_of_running():
    options = dict(torso=lambda shape: Tied(shape[0]), learning_rate=1e-2, **STEPS)
    ours, theirs = (train(PPO, how, **options) for how in (False, "record"))
    assert_same(ours, theirs)
    tied = theirs[0].network.actor.torsos[0]
    assert tied.one.weight is tied.two.weight


def unpickled(agent):
    return pickle.loads(pickle.dumps(agent))


def recast(agent):
    agent.network.double().float()
    return agent


def assigned(agent):
    state = {name: x.clone() for name, x in agent.network.state_dict().items()}
    agent.network.load_state_dict(state, assign=True)
    return agent


@pytest.mark.parametrize(
    ("change", "compile"),
    [*((change, False) for change in (copy.deepcopy, unpickled, recast, assigned)), (assigned, "record")],
)
def test_what_breaks_the_views_of_the_vector_is_mended(change, compile):
    agent, _ = train(PPO, compile, iterations=2, backend="native", **STEPS)
    expected, _ = train(PPO, compile, iterations=4, backend="native", **STEPS)
    other = change(agent)
    before = other.network.policy_head.weight.detach().clone()
    for count, _ in enumerate(other.iterations(20 * 16), 1):
        if count == 2:
            break
    assert not torch.equal(other.network.policy_head.weight, before)
    torch.testing.assert_close(other.parameters.vector, expected.parameters.vector)
    torch.testing.assert_close(other.network.policy_head.weight, expected.network.policy_head.weight)


@pytest.mark.parametrize("change", [copy.deepcopy])
def test_a_copy_on_environments_of_the_host_fills_its_own_buffer(change):
    agent, _ = train(PPO, iterations=2, backend="sync", **STEPS)
    other, before = change(agent), agent.buffer.obs.clone()
    other.learn(other.global_step + 32)
    assert torch.equal(agent.buffer.obs, before) and not torch.equal(other.buffer.obs, before)
    assert not torch.equal(other.parameters.vector, agent.parameters.vector)


# Loading with other hyperparameters.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "agent.pt"
    agent, _ = train(PPO, iterations=3, anneal_lr=False, **STEPS)
    agent.save(path)
    return path, agent


def test_a_learning_rate_given_anew_is_taken(saved):
    path, _ = saved
    loaded = rlcore.load(path, learning_rate=0.123)
    assert loaded.optimizer.learning_rate == 0.123
    metrics, _ = next(loaded.iterations(1000))
    assert metrics["learning_rate"] == 0.123


def test_a_clip_coef_given_anew_is_taken(saved):
    path, agent = saved
    assert rlcore.load(path, clip_coef=0.05).coefs == {"clip_coef": 0.05, "kl_coef": 1.0}
    assert rlcore.load(path).coefs == agent.coefs
    assert rlcore.load(path, optimizer_eps=0.5).optimizer.eps == 0.5


@pytest.mark.parametrize(
    "overrides",
    [
        dict(num_envs=5), dict(num_envs=1), dict(backend="sync"), dict(backend="native"), dict(norm_reward=True),
        dict(optimizer="rmsprop"), dict(num_steps=4), dict(num_envs=3, norm_reward=True), dict(gamma=0.5),
    ],
)  # fmt: skip
def test_other_environments_or_optimisers_begin_anew_and_learn(saved, overrides):
    path, agent = saved
    loaded = rlcore.load(path, **overrides)
    assert torch.equal(loaded.parameters.vector, agent.parameters.vector)
    assert loaded.global_step == agent.global_step and loaded.iteration == agent.iteration
    for name, value in overrides.items():
        assert getattr(loaded.config, name) == value
    loaded.learn(loaded.global_step + 100)
    assert not torch.equal(loaded.parameters.vector, agent.parameters.vector)
    if "num_envs" not in overrides and "num_steps" not in overrides:
        assert loaded.buffer.num_envs == 2


def test_norm_reward_turned_off_is_left_out(tmp_path):
    agent, _ = train(PPO, norm_reward=True, **STEPS)
    agent.save(tmp_path / "a.pt")
    loaded = rlcore.load(tmp_path / "a.pt", norm_reward=False)
    assert loaded.reward_scaler is None
    loaded.learn(loaded.global_step + 50)


def test_another_network_is_refused_in_one_sentence(saved):
    path, _ = saved
    for overrides in (dict(norm_obs=True), dict(shared=True), dict(hidden_sizes=(8, 8))):
        with pytest.raises(rlcore.RlcoreError, match=r"does not fit this network or environment: (network|optimizer)"):
            rlcore.load(path, **overrides)


# Threads, numbers, seams.


def test_threads_may_record_at_the_same_time():
    agents = [PPO("CartPole-v1", **{**SMALL, **STEPS, "seed": seed}, compile="record") for seed in range(3)]
    errors = []

    def learn(agent):
        try:
            agent.learn(64)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=learn, args=(agent,)) for agent in agents]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors
    for seed, agent in enumerate(agents):
        alone = PPO("CartPole-v1", **{**SMALL, **STEPS, "seed": seed}, compile=False).learn(64)
        torch.testing.assert_close(agent.parameters.vector, alone.parameters.vector)


def test_sums_over_processes_go_through_reduce():
    """Two processes that see the same data: sums double, and the step is the same."""
    expected, ours = train(PPO, backend="native", norm_obs=True, norm_reward=True, **STEPS)
    with rlcore.tracing.reducing(lambda x: x * 2):
        agent, theirs = train(PPO, backend="native", norm_obs=True, norm_reward=True, **STEPS)
    torch.testing.assert_close(agent.parameters.vector, expected.parameters.vector, atol=1e-6, rtol=1e-4)
    assert agent.network.preprocess[0].norm.count == 2 * expected.network.preprocess[0].norm.count
    assert theirs[-1]["grad_norm"] == pytest.approx(ours[-1]["grad_norm"], rel=1e-4)


def test_a_recorded_gradient_step_may_be_stacked_over_seeds():
    agent, _ = train(A2C, "record", backend="native", optimizer="adam")
    recorded = agent.engine.learning().recorded  # anew, since that of the engine is rewritten for Python
    body = recorded.graph.loop_0.body
    inputs = [node.meta["val"] for node in body.graph.nodes if node.op == "placeholder"]
    seeds = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        seeds.append([_like(x, generator) for x in inputs])
    stacked = [torch.stack(column) for column in zip(*seeds, strict=True)]
    together = torch.func.vmap(lambda *leaves: tuple(body(*leaves)))(*stacked)
    for k, leaves in enumerate(seeds):
        for one, all_of_them in zip(body(*leaves), together, strict=True):
            torch.testing.assert_close(all_of_them[k], one, atol=1e-5, rtol=1e-4)


def _like(x, generator):
    if x.dtype is torch.bool:
        return torch.ones(x.shape, dtype=torch.bool)
    if not x.dtype.is_floating_point:
        return torch.randint(0, 2, x.shape, generator=generator, dtype=x.dtype)
    return torch.rand(x.shape, generator=generator, dtype=x.dtype) + 0.1


class Columns:
    """A sampler of whole columns: minibatches are all rows of some environments, in order."""

    ragged = False

    def __init__(self, num_steps, num_envs, epochs):
        self.shape, self.epochs = (num_steps, num_envs), epochs

    def draw(self, mask, generator):
        return self.example(mask)

    def example(self, mask):
        rows = torch.arange(mask.numel()).view(self.shape)
        return {"rows": rows.flatten(), "minibatches": torch.cat([rows.t()] * self.epochs)}

    def take(self, batch, rows):
        return batch.take(rows)

    def free_sizes(self):
        return {}

    def suffices(self, rows):
        return True


def test_minibatches_may_be_sequences():
    class InSequence(PPO):
        def __init__(self, env, **hyperparameters):
            super().__init__(env, **hyperparameters)
            self.sampler = Columns(self.config.num_steps, self.config.num_envs, self.config.update_epochs)

        def loss(self, network, batch):
            loss, metrics = super().loss(network, batch)
            smooth = (network.value(batch.obs)[1:] - network.value(batch.obs)[:-1]).pow(2).mean()
            return loss + 0.1 * smooth, {**metrics, "smooth": smooth.detach()}

    assert_same(*(train(InSequence, how, **STEPS) for how in (False, "record")))


# Own code in the cache.

OWN = """
import sys, torch, rlcore
from rlcore.agents import A2C
from helper import weight
torch.set_num_threads(1)
class Mine(A2C):
    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss * weight(), metrics
agent = Mine("CartPole-v1", backend="vector", hidden_sizes=(4,), num_steps=4, num_envs=2,
             seed=1, device="cpu", compile=False, max_grad_norm=None, anneal_lr=False)
agent.collect()
learning, key = agent.engine.learning(), agent.engine.key("learn")
is_cached = learning.is_cached(key)
learning.prepare(key, compiled=True)
metrics = learning()
print(not is_cached, float(metrics["loss"]), float(metrics["grad_norm"]))
"""


def test_own_code_is_kept_and_known_by_what_it_computes(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    cache = tmp_path / "cache"

    def run(weight):
        (tmp_path / "helper.py").write_text(f"def weight():\n    return {weight}\n")
        environ = {**os.environ, "RLCORE_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        built, loss, norm = done.stdout.split()
        return built == "True", float(loss), float(norm)

    built, loss, norm = run("1.0")
    assert built
    assert run("1.0  # the same") == (False, loss, norm)  # from the cache
    built, twice, double = run("2.0")  # a helper that the loss calls was edited: another program, and right
    assert built and twice == pytest.approx(2 * loss, rel=1e-5) and double == pytest.approx(2 * norm, rel=1e-5)


def test_auto_treats_own_code_as_ours(monkeypatch):
    monkeypatch.setattr("rlcore.agents.engine.shutil.which", lambda name: None)  # no compiler
    for kind in (PPO, ReadsDones):
        agent = kind("CartPole-v1", **SMALL, **STEPS)
        agent.engine.prepare(100_000)
        assert agent.engine.how == "recorded", agent.engine.reason


def test_a_long_run_of_own_code_would_be_compiled():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = ReadsDones("CartPole-v1", **SMALL, **STEPS)
        assert agent.engine._choose_fastest(10**6)[0] == "compiled"


def test_returns_are_summed_in_double_precision():
    import gymnasium

    class Large(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.t += 1
            reward = 16_777_216.0 if self.t == 1 else 1.0
            return np.zeros(1, np.float32), reward, self.t == 2, False, {}

    envs = gymnasium.vector.SyncVectorEnv([Large] * 2, autoreset_mode="Disabled")
    agent = PPO(envs, num_steps=4, hidden_sizes=(4,), num_minibatches=1, seed=1, device="cpu", compile=False)
    _, episodes = next(agent.iterations(8))
    assert episodes.returns == [16_777_217.0] * 4
