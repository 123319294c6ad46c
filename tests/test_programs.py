"""Programs compute what Python computes, for every agent, and are built once."""

import dataclasses
import functools
import json
import shutil
import threading
import time
import warnings

import gymnasium
import numpy as np
import pytest
import torch

import rlcore
from rlcore import estimators
from rlcore.agents.engine import Engine
from rlcore.agents.setup import make_collector
from rlcore.collect import HostCollector
from rlcore.envs import VectorAdapter, make_vec
from rlcore.errors import UsageError
from rlcore.programs import program as module
from rlcore.programs.passes import _direct, for_compiler, for_python
from rlcore.programs.program import Captured, Program
from rlcore.programs.recording import record
from rlcore.state import Place
from rlcore.storage.files import FolderLock
from rlcore.tracing import is_recording, loop, recording

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*were cut there")  # so short are the episodes meant to be

SMALL = dict(hidden_sizes=(8,), seed=3, device="cpu", compile=False)
CASES = {
    "ppo": (rlcore.PPO, "CartPole-v1", dict(num_steps=16, num_envs=3, num_minibatches=3, anneal_clip=True)),
    "ppo_continuous": (
        rlcore.PPO, "Pendulum-v1",
        dict(num_steps=16, num_envs=2, num_minibatches=2, norm_obs=True, norm_reward=True, squash=True,
             noise_correlation=0.9),
    ),
    "ppo_kl_shared": (
        rlcore.PPO, "CartPole-v1",
        dict(num_steps=16, num_envs=2, num_minibatches=2, objective="kl", target_kl=1e-4, shared=True),
    ),
    "ppo_target_kl": (  # which ends some iterations after one epoch, some later
        rlcore.PPO, "CartPole-v1",
        dict(num_steps=16, num_envs=3, num_minibatches=3, anneal_clip=True, learning_rate=3e-3, target_kl=2e-4),
    ),
    "grpo_target_kl": (
        rlcore.GRPO, "CartPole-v1",
        dict(num_envs=4, group_size=2, num_steps=60, update_epochs=4, learning_rate=1e-2, target_kl=3e-3),
    ),
    "a2c": (rlcore.A2C, "Acrobot-v1", dict(num_envs=3, norm_reward=True)),
    "trpo": (rlcore.TRPO, "CartPole-v1", dict(num_envs=2, num_steps=32, num_minibatches=2, cg_iterations=4)),
    "trpo_refused": (  # a bound so tight that the line search runs to its end
        rlcore.TRPO, "CartPole-v1", dict(num_envs=2, num_steps=16, max_kl=1e-12, line_search_steps=2),
    ),
    "reinforce": (rlcore.REINFORCE, "CartPole-v1", dict(num_envs=3, num_steps=60, critic_updates=3, norm_obs=True)),
    "reinforce_mean": (rlcore.REINFORCE, "CartPole-v1", dict(num_envs=3, num_steps=60, baseline="mean")),
    "grpo": (
        rlcore.GRPO, "CartPole-v1",
        dict(num_envs=4, group_size=2, num_steps=60, supervision="aligned", kl_coef=0.1, reference_every=2),
    ),
    "rloo": (rlcore.GRPO, "Acrobot-v1", dict(num_envs=4, group_size=2, num_steps=30, variant="rloo")),
}  # fmt: skip


def make(case, **overrides):
    agent, env, options = CASES[case]
    return agent(env, **{**SMALL, **options, **overrides})


def iterate(agent, learn, total=1000):
    agent.anneal(1 - agent.global_step / total)
    episodes = agent.collect()
    metrics = {name: float(value.detach()) for name, value in learn().items()}
    agent.iteration += 1
    return metrics, episodes


def assert_same(a, b, tolerance):
    for name, x in a.network.state_dict().items():
        torch.testing.assert_close(b.network.state_dict()[name], x, atol=tolerance, rtol=tolerance, msg=name)
    ours, theirs = a.state_dict(), b.state_dict()
    for optimizer in ("optimizer", "critic_optimizer"):
        assert (optimizer in ours) == (optimizer in theirs)
        for name, x in ours.get(optimizer, {}).items():
            torch.testing.assert_close(theirs[optimizer][name], x, atol=tolerance, rtol=1e-3, msg=name)
    if "reward_scaler" in ours:
        torch.testing.assert_close(theirs["reward_scaler"], ours["reward_scaler"], atol=tolerance, rtol=1e-3)
    assert {k: float(v) for k, v in a.coefs.items()} == pytest.approx({k: float(v) for k, v in b.coefs.items()})


@pytest.mark.parametrize("case", ["ppo_continuous", "ppo_kl_shared", "a2c", "trpo", "reinforce", "grpo"])
def test_what_was_recorded_is_what_the_agent_does(case, monkeypatch):
    """The graphs that are compiled, run one by one and without any rewriting."""
    monkeypatch.setattr(module, "for_python", lambda graph: graph)
    eager, recorded = make(case), make(case)
    program = recorded.engine.learning()
    program.prepare(None, compiled=False)
    for _ in range(3):
        ours, episodes = iterate(eager, eager.learn_from_buffer)
        theirs, same_episodes = iterate(recorded, program)
        assert list(ours) == list(theirs) and episodes == same_episodes
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-5)
        torch.testing.assert_close(recorded.buffer.rewards, eager.buffer.rewards)
    assert_same(eager, recorded, 1e-5)


@pytest.mark.parametrize("case", ["ppo_continuous", "grpo_target_kl", "rloo"])
def test_recorded_equals_eager_after_5_iterations(case):
    """Operations run one by one, rewritten for that, in acting and learning; tests/agents/test_trajectories.py has many
    more, after fewer iterations."""
    eager, recorded = make(case), make(case, compile="record")
    recorded.engine.prepare(10**6)
    assert recorded.engine.how == "recorded" and recorded.backend == eager.backend
    total, sizes = 5 * eager.config.num_envs * eager.config.num_steps, set()
    for _ in range(5):
        ours, episodes = iterate(eager, eager.learn_from_buffer, total)
        theirs, same_episodes = iterate(recorded, recorded.engine.learn, total)
        assert episodes == same_episodes and list(ours) == list(theirs)
        assert theirs == pytest.approx(ours, rel=1e-2, abs=1e-3)
        sizes.add(len(recorded.draws["rows"]))
    assert recorded.engine.how == "recorded"
    assert len(sizes) > 1 or not eager.config.whole_episodes or case == "rloo"  # which is cut at 30 steps
    assert_same(eager, recorded, 1e-4)


@pytest.mark.parametrize("case", ["ppo_continuous", "a2c", "trpo"])
def test_captured_equals_eager_but_for_the_card(case, monkeypatch):
    """What CUDA graphs are made of, on the processor: inputs that stay where they are, others copied in."""
    monkeypatch.setattr(module, "Captured", functools.partial(Captured, graph=False))
    prepare_graph = Program._prepare_graph
    monkeypatch.setattr(Program, "_prepare_graph", lambda self, compiled: prepare_graph(self, True))
    for backend in ("native", "auto"):
        eager, captured = make(case, backend=backend), make(case, compile="record", backend=backend)
        captured.engine.prepare(1000)
        assert captured.engine.how == "recorded" and isinstance(captured.collector.program.run, Captured)
        for _ in range(3):
            ours, episodes = iterate(eager, eager.learn_from_buffer)
            theirs, same_episodes = iterate(captured, captured.engine.learn)
            assert episodes.lengths == same_episodes.lengths
            assert theirs == pytest.approx(ours, rel=1e-2, abs=1e-3)
        assert_same(eager, captured, 1e-4)


# Compiled. Few, since the compiler takes a third of a minute for each program; what others give it is among the
# trajectories (tests/agents/test_trajectories.py), GRPO in tests/test_text.py, loops in tests/test_loops.py.


def test_compiled_rollouts_and_learning_equal_eager():
    """Real actions, normalisation, correlated noise, epochs that may stop early."""
    options = dict(num_steps=13, backend="native", target_kl=3e-4)
    eager, compiled = make("ppo_continuous", **options), make("ppo_continuous", compile=True, **options)
    total = 20 * 2 * 13
    compiled.engine.prepare(total)
    assert compiled.engine.how == "compiled" and eager.backend == compiled.backend == "native"
    for _ in range(20):
        ours, episodes = iterate(eager, eager.learn_from_buffer, total)
        theirs, same_episodes = iterate(compiled, compiled.engine.learn, total)
        assert (episodes.step, episodes.env, episodes.lengths) == (
            same_episodes.step, same_episodes.env, same_episodes.lengths
        )  # fmt: skip
        assert same_episodes.returns == pytest.approx(episodes.returns, rel=1e-3)
    assert theirs == pytest.approx(ours, rel=2e-2, abs=1e-3)
    assert_same(eager, compiled, 2e-4)


def test_compiled_learning_from_whole_episodes_equals_eager():
    """Collected by Python: episodes of any length, and a critic that is fitted apart."""
    eager, compiled = make("reinforce"), make("reinforce")
    program, sizes = compiled.engine.learning(), set()
    program.prepare(compiled.engine.key("learn"), compiled=True)
    total = 20 * 3 * 60
    for _ in range(20):
        ours, episodes = iterate(eager, eager.learn_from_buffer, total)
        theirs, same_episodes = iterate(compiled, program, total)
        assert episodes == same_episodes
        assert theirs == pytest.approx(ours, rel=1e-2, abs=1e-3)
        sizes.add(len(compiled.draws["rows"]))
    assert len(sizes) > 10
    assert_same(eager, compiled, 2e-4)


def test_compiled_acting_on_host_environments_equals_eager():
    """With RMSprop, scaled rewards and one torso; both learn as Python."""
    options = dict(shared=True, backend="sync", num_steps=16)
    eager, compiled = make("a2c", **options), make("a2c", **options)
    acting = compiled.engine.collecting(compiled.collector)
    acting.prepare(compiled.engine.key("collect"), compiled=True)
    compiled.collector.program = acting
    assert compiled.backend == "sync"
    for _ in range(5):
        _, episodes = iterate(eager, eager.learn_from_buffer)
        _, same_episodes = iterate(compiled, compiled.learn_from_buffer)
        assert episodes == same_episodes
        for name in ("obs", "actions", "dist_params", "values", "logprobs"):
            ours, theirs = getattr(eager.buffer, name), getattr(compiled.buffer, name)
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4, msg=name)
    assert_same(eager, compiled, 2e-4)


@pytest.mark.parametrize("case", ["ppo_target_kl", "grpo_target_kl"])
def test_programs_stop_where_python_stops(case):
    """Iterations of one epoch, of some and of all; the optimiser's count tells how many steps were taken."""
    eager, recorded, counts = make(case), make(case, compile="record"), []
    recorded.engine.prepare(1000)
    for _ in range(12):
        iterate(eager, eager.learn_from_buffer)
        iterate(recorded, recorded.engine.learn)
        counts.append([int(agent.optimizer.step_count) for agent in (eager, recorded)])
    assert all(ours == theirs for ours, theirs in counts)
    taken = np.diff([0, *(ours for ours, _ in counts)]) // eager.config.num_minibatches
    assert len(set(taken)) > 1 and min(taken) < eager.config.update_epochs


def buffers_of_both_collectors(algo, env_id, num_steps, starts, **options):
    """Agents alike, to fill their buffers by the collector of host environments and by the native program."""
    host = algo(env_id, backend="native", num_steps=num_steps, **SMALL, **options)
    native = algo(env_id, backend="native", num_steps=num_steps, **SMALL, **options)
    adapter = VectorAdapter(make_vec(env_id, host.config.num_envs, backend="native"), host.config.squash)
    collector = HostCollector(
        adapter,
        host.buffer,
        host.generator,
        host.config.whole_episodes,
        host.needs_values,
        host.config.noise_correlation,
    )
    collector.reset(5)
    task = native.collector.task
    native.collector.standing["state"] = starts(adapter.envs, task)
    return host, native, collector


@pytest.mark.parametrize(
    "algo, env_id",
    [
        (rlcore.PPO, "CartPole-v1"),
        (rlcore.PPO, "Pendulum-v1"),
        (rlcore.A2C, "Acrobot-v1"),
        (rlcore.GRPO, "CartPole-v1"),
    ],
)
def test_both_collectors_fill_the_buffer_alike(algo, env_id):
    """Until the first reset, whose starts come from different generators."""
    steps = 12

    def starts(envs, task):
        return torch.as_tensor(np.asarray(envs.get_state()["state"]), dtype=torch.float64)

    options = dict(group_size=2) if algo is rlcore.GRPO else {}
    host, native, collector = buffers_of_both_collectors(algo, env_id, steps, starts, num_envs=2, **options)
    noise = torch.Generator().manual_seed(9)
    collector.generator = native.collector.generator = noise
    collector.collect(host.network)
    noise.manual_seed(9)
    native.collector.collect(native.network)
    alive = ~(host.buffer.terminated | host.buffer.truncated)[:-1].any(0)
    assert alive.any()
    for name in ("obs", "actions", "dist_params", "logprobs", "values", "rewards", "next_values", "mask", "dones"):
        torch.testing.assert_close(
            getattr(native.buffer, name)[:, alive], getattr(host.buffer, name)[:, alive], atol=1e-5, rtol=1e-5, msg=name
        )


def played(env_id="CartPole-v1", algo=rlcore.PPO, rollouts=1, **options):
    agent = algo(env_id, backend="native", **{**SMALL, **options})
    for _ in range(rollouts):
        agent.collector.collect(agent.network)
    return agent


def test_native_rows_lead_to_one_another():
    agent = played(num_envs=4, num_steps=64)
    b, task = agent.buffer, agent.collector.task
    assert b.terminated.any() and b.mask.all()
    state_after = []
    for t in range(63):
        done = b.terminated[t] | b.truncated[t]
        assert torch.equal(b.dones[t + 1], done)
        assert (b.obs[t + 1][done].abs() < 0.05).all()  # a fresh start
        state, _, terminated = task.step(b.obs[t].double(), b.actions[t])
        torch.testing.assert_close(b.obs[t + 1][~done], task.observe(state)[~done], atol=1e-5, rtol=1e-5)
        state_after.append(terminated)
    assert torch.equal(
        torch.stack(state_after)[b.obs[:63, :, 2].abs() < 0.15], b.terminated[:63][b.obs[:63, :, 2].abs() < 0.15]
    )


def test_native_next_values_at_every_kind_of_end():
    """A time limit of 7 cuts an environment twice in 16 rows."""
    agent = rlcore.PPO("CartPole-v1", backend="native", num_envs=3, num_steps=16, **SMALL)
    agent.collector.max_episode_steps = 7
    agent.collector.collect(agent.network)
    b, task, network = agent.buffer, agent.collector.task, agent.network
    assert (b.truncated & ~b.terminated).sum() >= 4
    for t in range(16):
        state, _, _ = task.step(b.obs[t].double(), b.actions[t])
        expected = network.value(task.observe(state)).detach()
        expected[b.terminated[t]] = 0.0
        torch.testing.assert_close(b.next_values[t], expected, atol=1e-4, rtol=1e-4)


def test_native_whole_episodes_wait_for_each_other():
    agent = played(algo=rlcore.REINFORCE, num_envs=5, num_steps=200)
    b = agent.buffer
    ends = (b.terminated | b.truncated) & b.mask
    assert (ends.sum(0) == 1).all() and b.mask.sum(0).unique().numel() > 1
    for n in range(5):
        length = int(b.mask[:, n].sum())
        assert b.mask[:length, n].all() and not b.mask[length:, n].any() and ends[length - 1, n]
    assert torch.isfinite(b.obs).all()


def test_native_groups_share_a_fresh_start_in_each_iteration():
    agent = rlcore.GRPO("CartPole-v1", backend="native", num_envs=6, group_size=3, num_steps=30, **SMALL)
    starts = []
    for _ in agent.iterations(400):
        starts.append(agent.buffer.obs[0].clone())
    assert len(starts) >= 2
    for obs in starts:
        assert torch.equal(obs[:3], obs[:1].expand(3, -1)) and torch.equal(obs[3:], obs[3:4].expand(3, -1))
        assert not torch.equal(obs[0], obs[3])
    assert not torch.equal(starts[0], starts[1])


def test_a_native_run_resumes_exactly(tmp_path):
    whole = rlcore.PPO("CartPole-v1", backend="native", num_envs=2, num_steps=16, **SMALL).learn(192)
    half = rlcore.PPO("CartPole-v1", backend="native", num_envs=2, num_steps=16, **SMALL)
    iterations = half.iterations(192)
    for _ in range(3):
        next(iterations)
    half.save(tmp_path / "half.pt")
    resumed = rlcore.load(tmp_path / "half.pt").learn(192)
    for name, x in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], x)


def test_the_choice_is_stored(tmp_path):
    agent = rlcore.PPO("CartPole-v1", num_steps=8, **{**SMALL, "compile": "auto"})
    agent.learn(64)
    assert agent.engine.how == "python" and "short" in agent.engine.reason
    agent.save(tmp_path / "a.pt")
    again = rlcore.load(tmp_path / "a.pt")
    again.engine.prepare(10**9)  # long enough to compile, had the run not begun as Python
    assert again.engine.how == "python"
    asked = rlcore.load(tmp_path / "a.pt", compile="record")
    asked.engine.prepare(10**9)
    assert asked.engine.how == "recorded"


@pytest.fixture
def nothing_built(tmp_path, monkeypatch):
    monkeypatch.setenv("RLCORE_CACHE", str(tmp_path / "programs"))


def chosen(seconds, algo=rlcore.PPO, env="CartPole-v1", prepare=lambda agent: None, **options):
    """What `auto` takes for a run of so many seconds as Python."""
    agent = algo(env, **{**SMALL, "compile": "auto", **options})
    prepare(agent)
    how, reason = agent.engine._choose_fastest(seconds)
    agent.close()
    return how, reason


class Own(rlcore.PPO):
    """An agent of a user's own."""


def test_what_auto_takes(nothing_built, monkeypatch):
    assert [chosen(seconds)[0] for seconds in (0.1, 10, 1000)] == ["python", "recorded", "compiled"]
    assert chosen(1000, algo=Own)[0] == chosen(1000, torso=lambda shape: torch.nn.Linear(shape[0], 3))[0] == "compiled"
    assert chosen(1000, prepare=lambda agent: setattr(agent, "loss", lambda *_: None))[0] == "compiled"
    assert chosen(1000, env="rlcore/CatchPixels-v0", num_steps=4)[0] == "python"
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert chosen(1000) == ("recorded", "there is no C++ compiler (g++)")


def test_auto_knows_that_memory_takes_longer(monkeypatch):
    told = []
    monkeypatch.setattr(Engine, "_choose_fastest", lambda self, seconds: told.append(seconds) or ("python", ""))
    for memory in (None, "gru"):
        rlcore.PPO("CartPole-v1", **{**SMALL, "compile": "auto", "memory": memory, "num_minibatches": 1}).learn(32)
    assert told[1] == 2 * told[0]


@pytest.mark.parametrize(
    "changed", [{"max_episode_steps": 50}, {"kwargs": {"sutton_barto_reward": True}}, {"entry_point": "mine:CartPole"}]
)
def test_an_id_that_was_registered_anew_has_no_native_twin(monkeypatch, changed):
    spec = gymnasium.spec("CartPole-v1")
    agent = rlcore.PPO("CartPole-v1", **SMALL)
    assert agent.engine.may_go_native
    monkeypatch.setitem(gymnasium.registry, "CartPole-v1", dataclasses.replace(spec, **changed))
    assert not agent.engine.may_go_native
    with pytest.raises(UsageError, match="CartPole-v1 as it is registered here has no native implementation"):
        rlcore.PPO("CartPole-v1", backend="native", **SMALL)


class OwnOther(Own):
    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return 2 * loss, metrics


def test_programs_of_ones_own_code_are_known_by_what_was_recorded(nothing_built):
    keys = {}
    for name, kind, options in (
        ("own", Own, {}), ("again", Own, {}), ("other", OwnOther, {}), ("plain", rlcore.PPO, {}),
        ("wider", Own, dict(hidden_sizes=(9,))), ("coefficient", Own, dict(vf_coef=0.1)),
    ):  # fmt: skip
        engine = kind("CartPole-v1", **{**SMALL, "num_steps": 8, **options}).engine
        assert (engine.key("learn") is None) == (name != "plain")
        keys[name] = engine.learning()._folder(engine.key("learn"))
    assert keys["own"] == keys["again"] and len(set(keys.values())) == 5
    assert not rlcore.GRPO("CartPole-v1", kl_coef=0.1).engine._has_own_code()  # though its reference is of its own


def test_what_cannot_be_compiled_is_said(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match="compile is true, but there is no C\\+\\+ compiler"):
        rlcore.PPO("CartPole-v1", **{**SMALL, "compile": True}).learn(10)
    with pytest.raises(UsageError, match="compile is 'maybe', but may be one of auto, true, record, false"):
        rlcore.PPO("CartPole-v1", compile="maybe")


class Peeking(rlcore.PPO):
    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        return loss * (2.0 if float(loss.detach()) > 0 else 1.0), metrics


def test_a_loss_that_looks_at_its_values_cannot_be_recorded():
    with pytest.raises(UsageError, match=r"this agent could not be recorded .*compile may be false"):
        Peeking("CartPole-v1", **{**SMALL, "compile": "record"}).learn(10)


@pytest.mark.parametrize("how", ["recorded", "compiled"])
def test_auto_runs_as_python_what_cannot_be_prepared(monkeypatch, how):
    def breaks(*_):
        raise RuntimeError("no such operation\nand more")

    agent = rlcore.PPO("CartPole-v1", num_steps=8, **{**SMALL, "compile": "auto"})
    monkeypatch.setattr(agent.engine, "_choose_fastest", lambda seconds: (how, "why not"))
    monkeypatch.setattr(Program, "prepare", breaks)
    agent.learn(100)
    assert agent.engine.how == "python" and agent.backend == "vector" and agent.global_step >= 100
    assert agent.engine.describe() == (
        f"iterations: plain Python (--compile false); this agent could not be {how} (no such operation)"
    )


def test_whole_episodes_of_next_to_no_transitions_are_learned_from_as_python():
    """Three rows for four minibatches; recorded programs of free shapes want two for each."""
    options = dict(num_envs=1, num_steps=3, num_minibatches=4, update_epochs=2)
    eager = rlcore.REINFORCE("CartPole-v1", **SMALL, **options)
    recorded = rlcore.REINFORCE("CartPole-v1", **{**SMALL, "compile": "record"}, **options)
    recorded.engine.prepare(9)
    recorded.engine.program.run = None  # not to be called
    eager.learn(9)
    recorded.learn(9)
    assert recorded.engine.how == "recorded"
    assert_same(eager, recorded, 1e-6)


def test_what_was_recorded_may_go_on_as_python():
    agent = make("ppo", compile="record")
    agent.learn(100)
    agent.learn_from_buffer()  # on what programs left there


KEY = {"name": "doubling"}


def doubling(x=None, factor=2.0, **options):
    """A program of one place."""
    held = {"x": torch.arange(3.0) if x is None else x}
    return Program(lambda: {"doubled": held["x"] * factor}, lambda: [Place("x", held, "x")], **options)


def prepared():
    program = doubling()
    program.prepare(KEY, compiled=True)
    return program


@pytest.fixture
def building(tmp_path, monkeypatch):
    """A cache in which building takes no compiler; gives its folder and a list of what was built."""
    built = []

    def build(program, folder):
        built.append(folder.name)
        time.sleep(0.2)
        folder.mkdir()
        (folder / "program.pt2").write_text("whole")
        (folder / "structure.json").write_text(json.dumps(program.recorded.describe()))
        (folder / "checksum").write_text(module._checksum(folder))

    monkeypatch.setenv("RLCORE_CACHE", str(tmp_path / "programs"))
    monkeypatch.setattr(module, "build", build)
    monkeypatch.setattr(module, "load", lambda folder: (folder / "program.pt2").read_text())
    return tmp_path / "programs", built


DAMAGE = {
    "cut": lambda folder: (folder / "program.pt2").write_text("whol"),
    "changed": lambda folder: (folder / "structure.json").write_text("whale"),
    "no structure": lambda folder: (folder / "structure.json").unlink(),
    "no program": lambda folder: (folder / "program.pt2").unlink(),
    "no checksum": lambda folder: (folder / "checksum").unlink(),
    "empty": lambda folder: [file.unlink() for file in folder.iterdir()],
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_program_is_built_anew(building, damage):
    cache, built = building
    for _ in range(2):
        assert prepared().run == "whole" and len(built) == 1
    assert doubling().is_cached(KEY)
    damage(cache / built[0])
    assert not doubling().is_cached(KEY)
    program = prepared()
    assert program.run == "whole" and len(built) == 2 and program._structure == program.recorded.describe()
    assert [path.name for path in cache.iterdir()] == built[:1]


def test_a_program_from_the_cache_was_not_recorded(building):
    first, second = prepared(), prepared()
    assert "recorded" in vars(first) and "recorded" not in vars(second)
    assert first._structure == second._structure


def test_what_a_program_depends_on_makes_another(building):
    _, built = building
    for program, key in (
        (doubling(), KEY), (doubling(torch.ones(4)), KEY), (doubling(torch.ones(3).double()), KEY),
        (doubling(), {"name": "other"}), (doubling(), None), (doubling(factor=3.0), None),
        (doubling(options={"a": 1}), KEY), (doubling(free={"x": (0,)}), KEY),
    ):  # fmt: skip
        program.prepare(key, compiled=True)
    assert len(set(built)) == len(built) == 8
    for program, key in ((doubling(), KEY), (doubling(), None), (doubling(factor=3.0), None)):
        program.prepare(key, compiled=True)
    assert len(built) == 8


def test_a_program_that_is_whole_but_does_not_load_is_built_anew(building, monkeypatch):
    _, built = building
    prepared()
    tries = []

    def of_another_system(folder):
        tries.append(folder)
        if len(tries) <= 2:  # before the lock is taken, and with it
            raise RuntimeError("libstdc++ is too old")
        return "loaded"

    monkeypatch.setattr(module, "load", of_another_system)
    assert prepared().run == "loaded" and len(built) == 2


def test_of_processes_that_want_one_program_one_builds_it(building):
    """Threads, which the lock keeps apart as it does processes."""
    _, built = building
    runs = []
    threads = [threading.Thread(target=lambda: runs.append(prepared().run)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert runs == ["whole"] * 4 and len(built) == 1


def test_what_dead_processes_left_half_built_goes_and_nothing_else(building):
    cache, built = building
    cache.mkdir()
    living, dead = "a" * 24, "b" * 24
    for name in (f"{living}.x1.building", f"{dead}.x2.building", "tmpabc", "mine", dead):
        (cache / name).mkdir()
    with FolderLock(cache / f"{living}.lock").acquire():
        prepared()
        left = {path.name for path in cache.iterdir()}
    assert left == {f"{living}.x1.building", f"{living}.lock", "tmpabc", "mine", dead, *built}
    (cache / f"{built[0]}.x3.building").mkdir()
    (cache / built[0] / "checksum").unlink()
    prepared()
    assert not list(cache.glob("*.building"))


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setenv("RLCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fails)
    with pytest.raises(ZeroDivisionError):
        prepared()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_doubling_equals_the_loop(length):
    generator = torch.Generator().manual_seed(length)
    args = [torch.randn(length, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    ends = [torch.rand(length, 4, generator=generator) < 0.2 for _ in range(2)]
    loop = estimators.gae(*args, *ends, 0.9, 0.8)
    with recording():
        doubled = estimators.gae(*args, *ends, 0.9, 0.8)
    torch.testing.assert_close(doubled, loop)


def recorded_graph(function, *inputs):
    """The graph of a function of tensors."""
    return record(function, [], list(inputs)).graph


def test_small_layers_and_tanh_are_rewritten_to_the_same_values():
    layer = torch.nn.Linear(5, 7)
    inputs = torch.randn(3, 5), layer.weight.detach(), layer.bias.detach()
    graph = recorded_graph(lambda x, w, b: torch.tanh(torch.nn.functional.linear(x, w, b)), *inputs)
    (expected,) = graph(*inputs)
    graph = for_compiler(graph)
    targets = [node.target for node in graph.graph.nodes]
    assert torch.ops.aten.tanh.default not in targets and torch.ops.aten.addmm.default not in targets
    torch.testing.assert_close(graph(*inputs)[0], expected, atol=1e-6, rtol=1e-5)


def test_operations_are_rewritten_for_python_to_the_same_values():
    def function(x, w, b, rows):
        hidden = torch.tanh(torch.nn.functional.linear(x, w, b)).detach()
        picked = hidden[rows].view(2, -1).view(2, -1) * 2.0 + 1 - rows.numel()
        return {"y": picked.t().t() / 3.0, "z": [(hidden > 0.25).float() * 0.5, rows * 2]}

    inputs = torch.randn(64, 5), torch.randn(32, 5), torch.randn(32), torch.tensor([5, -1, 0, 5])
    graph = recorded_graph(function, *inputs)
    expected, before = graph(*inputs), len(graph.graph.nodes)
    graph = for_python(graph)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert len(graph.graph.nodes) < before
    assert not [name for name in targets if "aten" in name and "_to_copy" not in name]
    result = graph(*inputs)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)
    assert [x.dtype for x in result] == [x.dtype for x in expected]


def test_only_functions_written_in_c_take_the_place_of_operators():
    aten = torch.ops.aten
    assert _direct(aten.mul.Tensor) is torch.mul and _direct(aten.expand.default) is torch.Tensor.expand
    assert _direct(aten.norm.Scalar) is None  # torch.norm is Python, and takes other arguments


def rows_of_products(x):
    carry, ys, _ = loop(lambda c, row: (c + row, c * row), x[0], x)
    return {"last": carry, "rows": ys}


def test_a_captured_program_takes_new_inputs():
    x, y = torch.arange(6.0).view(3, 2), torch.ones(3, 2)
    runner = Captured(recorded_graph(rows_of_products, x), [], [x], graph=False)
    for inputs in (x, y):
        expected = rows_of_products(inputs)
        last, rows = runner([inputs])
        assert torch.equal(last, expected["last"]) and torch.equal(rows, expected["rows"])


def test_a_captured_act_reads_the_weights_where_they_are():
    agent = make("ppo_kl_shared")
    program = agent.engine.collecting(agent.collector)
    program.prepare(None, compiled=False)
    obs, noise = agent.buffer.obs[0], agent.collector.noise[0]
    state = [place.tensor(agent.device) for place in program._inputs]
    runner = Captured(program.recorded.graph, state, [obs, noise], graph=False)
    program.run = runner
    for _ in range(2):
        obs, noise = torch.randn_like(obs), torch.randn_like(noise)
        with torch.no_grad():
            agent.parameters.vector.add_(0.1)
            policy, values = agent.network(obs)
        chosen = program(obs, noise)
        chosen = chosen if isinstance(chosen, dict) else chosen[0]
        torch.testing.assert_close(chosen["dist_params"], policy.params)
        torch.testing.assert_close(chosen["values"], values)
        assert torch.equal(chosen["actions"], policy.sample(noise))
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(runner.leaves, state, strict=False))
    assert runner.leaves[len(state)].data_ptr() != obs.data_ptr()


def test_native_collector_is_made_for_the_agents_own_buffer():
    agent = rlcore.PPO("CartPole-v1", num_steps=8, **SMALL)
    collector = make_collector(agent, "native")
    assert collector.buffer is agent.buffer and collector.max_episode_steps == 500


@pytest.mark.parametrize(
    "of_inductor, of_torch, warned", [([], "AVX512", True), (["avx2"], "AVX2", False), ([], "DEFAULT", False)]
)
def test_a_compiler_without_vector_instructions_is_told_of(monkeypatch, tmp_path, of_inductor, of_torch, warned):
    def interrupted(*_, **__):
        raise InterruptedError

    monkeypatch.setenv("RLCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.valid_vec_isa_list", lambda: of_inductor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: of_torch)
    monkeypatch.setattr(torch.export, "export", interrupted)  # what is told is told before the work begins
    with warnings.catch_warnings(record=True) as caught, pytest.raises(InterruptedError):
        warnings.simplefilter("always")
        prepared()
    assert any("vector instructions" in str(w.message) for w in caught) == warned


def test_a_captured_program_looks_at_no_value():
    def looking(x):
        return [torch.tensor(float(not is_recording())), x.sum()]

    looked, total = Captured(looking, [], [torch.ones(2)], graph=False)([torch.ones(2)])
    assert looked == 0 and total == 2
