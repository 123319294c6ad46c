"""Compiled programs compute what Python computes, for every agent."""

import dataclasses
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
from rlcore.programs import program as module
from rlcore.programs.acting import ActProgram
from rlcore.agents.engine import make_native_collector
from rlcore.collect import Collector, EpisodeCounter
from rlcore.envs import VectorAdapter, make_vec
from rlcore.errors import UsageError
from rlcore.storage.files import FolderLock
from rlcore.envs.frames import FrameStacks
from rlcore.programs.learning import Learner
from rlcore.optim import adam_corrections, adam_update, optimizer_state, rmsprop_update
from rlcore.programs.passes import _direct, for_compiler, for_python
from rlcore.programs.program import CapturedRunner, Piece, Program, python_loop
from rlcore.tracing import Constant, is_recording, recording, surely

SMALL = dict(hidden_sizes=(16,), seed=3, device="cpu", compile=False)
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
        dict(num_steps=16, num_envs=3, num_minibatches=3, anneal_clip=True, learning_rate=3e-3, target_kl=1e-3),
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
    if agent.config.whole_episodes and agent.iteration:
        agent.collector.reset(agent.reset_seeds(agent.iteration))
    episodes = agent.collector.collect(agent.network)
    metrics = {name: float(value) for name, value in learn().items()}
    agent.iteration += 1
    return metrics, episodes


def assert_same(a, b, tolerance):
    for name, x in a.network.state_dict().items():
        torch.testing.assert_close(b.network.state_dict()[name], x, atol=tolerance, rtol=tolerance, msg=name)
    for x, y in zip(
        a.optimizer.state_dict()["state"].values(), b.optimizer.state_dict()["state"].values(), strict=True
    ):
        for name in x:
            torch.testing.assert_close(y[name], x[name], atol=tolerance, rtol=1e-3)
    assert {k: float(v) for k, v in a.coefs.items()} == pytest.approx({k: float(v) for k, v in b.coefs.items()})


@pytest.mark.parametrize("case", CASES)
def test_the_program_learns_what_the_agent_learns(case):
    eager, program = make(case), make(case)
    learner = Learner(program)
    for _ in range(3):
        ours, episodes = iterate(eager, eager.learn_from_buffer)
        theirs, same_episodes = iterate(program, learner.learn_from_buffer)
        assert list(ours) == list(theirs) and episodes == same_episodes
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-5)
        torch.testing.assert_close(program.buffer.rewards, eager.buffer.rewards)
    assert_same(eager, program, 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_recording_changes_nothing(case):
    """The graphs that inductor is given, run by Python."""
    program, recorded = make(case), make(case)
    learners = [Learner(program), Learner(recorded)]
    learners[1].program.record(*learners[1]._example())
    for _ in range(2):
        results = [
            iterate(agent, learner.learn_from_buffer)
            for agent, learner in zip((program, recorded), learners, strict=True)
        ]
        assert results[1][0] == pytest.approx(results[0][0], rel=1e-3, abs=1e-5)
    assert_same(program, recorded, 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_recorded_equals_eager_after_5_iterations(case):
    """Operations run one by one, rewritten for that, in acting and learning."""
    eager, recorded = make(case), make(case, compile="record")
    recorded.engine.prepare(10**6)
    assert recorded.engine.how == "recorded" and recorded.backend == eager.backend
    total = 5 * eager.config.num_envs * eager.config.num_steps
    for _ in range(5):
        ours, episodes = iterate(eager, eager.learn_from_buffer, total)
        theirs, same_episodes = iterate(recorded, recorded.engine.learn, total)
        assert episodes == same_episodes and list(ours) == list(theirs)
        assert theirs == pytest.approx(ours, rel=1e-2, abs=1e-3)
    assert_same(eager, recorded, 1e-4)


@pytest.mark.parametrize("case", ["ppo_target_kl", "a2c", "grpo", "reinforce", "trpo", "ppo_continuous"])
def test_compiled_equals_eager_after_20_iterations(case):
    agent = make(case)
    eager, compiled = make(case, backend="native"), make(case, backend="native", compile=True)
    total = 20 * agent.config.num_envs * agent.config.num_steps
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


def test_compiled_acting_on_host_environments_equals_eager():
    options = dict(num_envs=3, num_steps=16, num_minibatches=3, shared=True, backend="sync")
    eager = rlcore.PPO("CartPole-v1", **SMALL, **options)
    compiled = rlcore.PPO("CartPole-v1", **{**SMALL, "compile": True}, **options)
    compiled.engine.prepare(1000)
    assert compiled.engine.how == "compiled" and compiled.backend == "sync"
    for _ in range(5):
        _, episodes = iterate(eager, eager.learn_from_buffer)
        _, same_episodes = iterate(compiled, compiled.engine.learn)
        assert episodes == same_episodes
        for name in ("obs", "actions", "dist_params", "values", "logprobs"):
            ours, theirs = getattr(eager.buffer, name), getattr(compiled.buffer, name)
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4, msg=name)
    assert_same(eager, compiled, 2e-4)


@pytest.mark.parametrize("case", ["ppo_target_kl", "grpo_target_kl"])
def test_programs_stop_where_python_stops(case):
    """Iterations of one epoch, of some and of all; the optimiser's count tells how many steps were taken."""
    eager, program = make(case), make(case)
    learner, counts = Learner(program), []
    for _ in range(12):
        iterate(eager, eager.learn_from_buffer)
        iterate(program, learner.learn_from_buffer)
        counts.append([int(optimizer_state(a.optimizer, [a.parameter_vector])[-1][0]) for a in (eager, program)])
    assert all(ours == theirs for ours, theirs in counts)
    taken = np.diff([0, *(ours for ours, _ in counts)]) // eager.config.num_minibatches
    assert len(set(taken)) > 1 and min(taken) < eager.config.update_epochs


def buffers_of_both_collectors(algo, env_id, num_steps, starts, **options):
    """Agents alike, to fill their buffers by the collector of host environments and by the native program."""
    host = algo(env_id, backend="native", num_steps=num_steps, **SMALL, **options)
    native = algo(env_id, backend="native", num_steps=num_steps, **SMALL, **options)
    adapter = VectorAdapter(make_vec(env_id, host.config.num_envs, backend="native"), host.config.squash)
    collector = Collector(
        adapter,
        host.buffer,
        host.generator,
        host.config.whole_episodes,
        host.needs_values,
        host.config.noise_correlation,
    )
    collector.reset(5)
    task = native.collector.task
    native.collector.carry["state"] = starts(adapter.envs, task)
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


def frames():
    """Observations as those of Atari are kept."""
    return FrameStacks(2, 1, (4, 8, 8), torch.device("cpu"))


class Own(rlcore.PPO):
    """An agent of a user's own."""


def test_what_auto_takes(nothing_built, monkeypatch):
    assert [chosen(seconds)[0] for seconds in (0.1, 10, 1000)] == ["python", "recorded", "compiled"]
    assert chosen(1000, prepare=lambda agent: monkeypatch.setattr(agent.buffer, "obs", frames())) == (
        "python", "frames are stored once, which programs do not know",
    )  # fmt: skip
    assert chosen(1000, algo=Own) == chosen(1000, torso=lambda shape: torch.nn.Linear(shape[0], 3))
    assert chosen(1000, algo=Own)[0] == "python" and "one's own" in chosen(1000, algo=Own)[1]
    assert chosen(1000, prepare=lambda agent: setattr(agent, "loss", lambda *_: None))[0] == "python"
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert chosen(1000) == ("recorded", "there is no C++ compiler (g++)")


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


def test_programs_of_ones_own_code_are_never_taken_from_the_cache(nothing_built):
    keys = [Own("CartPole-v1", **SMALL).engine._key() for _ in range(2)]
    assert keys[0] != keys[1]
    keys = [rlcore.PPO("CartPole-v1", **SMALL).engine._key() for _ in range(2)]
    assert keys[0] == keys[1]


def test_what_cannot_be_compiled_is_said(monkeypatch):
    for asked, word in ((True, "true"), ("record", "record")):
        agent = rlcore.PPO("CartPole-v1", **{**SMALL, "compile": asked})
        monkeypatch.setattr(agent.buffer, "obs", frames())
        with pytest.raises(UsageError, match=f"compile is {word}, but frames are stored once"):
            agent.learn(10)
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
    monkeypatch.setattr(Learner, "build", breaks)
    agent.learn(100)
    assert agent.engine.how == "python" and agent.backend == "vector" and agent.global_step >= 100
    assert agent.engine.describe() == (f"iterations run as Python: this agent could not be {how} (no such operation)")


def test_whole_episodes_of_next_to_no_transitions_are_learned_from_as_python():
    """Three rows for four minibatches; recorded programs of free shapes want two for each."""
    options = dict(num_envs=1, num_steps=3, num_minibatches=4, update_epochs=2)
    eager = rlcore.REINFORCE("CartPole-v1", **SMALL, **options)
    recorded = rlcore.REINFORCE("CartPole-v1", **{**SMALL, "compile": "record"}, **options)
    recorded.engine.prepare(9)
    recorded.engine._learner.run = None  # not to be called
    with pytest.warns(UserWarning, match="were cut there"):
        eager.learn(9)
        recorded.learn(9)
    assert recorded.engine.how == "recorded"
    assert_same(eager, recorded, 1e-6)


def test_what_was_recorded_may_go_on_as_python():
    agent = make("ppo", compile="record")
    agent.learn(100)
    agent.learn_from_buffer()  # needs coefficients that gradients may pass


class Noting(Program):
    """Notes something when it is recorded."""

    def __init__(self):
        super().__init__()
        self.doubled = Piece(lambda x: [x * 2])

    def forward(self, x):
        return self.doubled(x)

    def record(self, x):
        self.doubled.record(x)
        self.notes = {"names": ["doubled"]}


def test_notes_are_kept_with_a_program_and_ones_own_code_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("RLCORE_CACHE", str(tmp_path))
    x = torch.arange(3.0)
    for key, kept in (({"own_code": "1"}, 0), ({"name": "noting"}, 1), ({"name": "noting"}, 1)):
        program = Noting()
        assert torch.equal(program.make_runner((x,), key)(x)[0], 2 * x)
        assert program.notes == {"names": ["doubled"]} and len(list(tmp_path.iterdir())) == kept
    assert program.doubled.graph is None  # the third came from the cache


@pytest.fixture
def building(tmp_path, monkeypatch):
    """A cache in which building takes no compiler; gives its folder and a list of what was built."""
    built = []

    def build(program, inputs, folder):
        built.append(folder.name)
        time.sleep(0.2)
        folder.mkdir()
        for name in ("program.pt2", "structure.json"):
            (folder / name).write_text("whole")
        (folder / "notes.json").write_text('{"built": true}')
        (folder / "checksum").write_text(module._checksum(folder))

    monkeypatch.setenv("RLCORE_CACHE", str(tmp_path / "programs"))
    monkeypatch.setattr(module, "_build", build)
    monkeypatch.setattr(module, "Runner", lambda folder: (folder / "program.pt2").read_text())
    return tmp_path / "programs", built


DAMAGE = {
    "cut": lambda folder: (folder / "program.pt2").write_text("whol"),
    "changed": lambda folder: (folder / "structure.json").write_text("whale"),
    "no notes": lambda folder: (folder / "notes.json").unlink(),
    "no program": lambda folder: (folder / "program.pt2").unlink(),
    "no checksum": lambda folder: (folder / "checksum").unlink(),
    "empty": lambda folder: [file.unlink() for file in folder.iterdir()],
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_program_is_built_anew(building, damage):
    cache, built = building
    key, x = {"name": "noting"}, (torch.arange(3.0),)
    for _ in range(2):
        assert Noting().make_runner(x, key) == "whole" and len(built) == 1
    assert Noting().is_cached(x, key)
    damage(cache / built[0])
    assert not Noting().is_cached(x, key)
    program = Noting()
    assert program.make_runner(x, key) == "whole" and len(built) == 2 and program.notes == {"built": True}
    assert [path.name for path in cache.iterdir()] == built[:1]


def test_a_program_that_is_whole_but_does_not_load_is_built_anew(building, monkeypatch):
    _, built = building
    Noting().make_runner((torch.arange(3.0),), {"name": "noting"})

    def of_another_system(folder):
        monkeypatch.setattr(module, "Runner", lambda folder: "loaded")
        raise RuntimeError("libstdc++ is too old")

    monkeypatch.setattr(module, "Runner", of_another_system)
    monkeypatch.setattr(module.Program, "_from_cache", fails_twice(module.Program._from_cache))
    assert Noting().make_runner((torch.arange(3.0),), {"name": "noting"}) == "loaded" and len(built) == 2


def fails_twice(real):
    """Before the lock is taken, and with it."""
    results = []

    def from_cache(self, folder):
        results.append(real(self, folder) if not results else None)
        return results[-1]

    return from_cache


def test_of_processes_that_want_one_program_one_builds_it(building):
    """Threads, which the lock keeps apart as it does processes."""
    _, built = building
    runners = []
    threads = [
        threading.Thread(target=lambda: runners.append(Noting().make_runner((torch.ones(2),), {"name": "noting"})))
        for _ in range(4)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert runners == ["whole"] * 4 and len(built) == 1


def test_what_dead_processes_left_half_built_goes_and_nothing_else(building):
    cache, built = building
    cache.mkdir()
    living, dead = "a" * 24, "b" * 24
    for name in (f"{living}.x1.building", f"{dead}.x2.building", "tmpabc", "mine", dead):
        (cache / name).mkdir()
    with FolderLock(cache / f"{living}.lock").acquire():
        Noting().make_runner((torch.ones(2),), {"name": "noting"})
        left = {path.name for path in cache.iterdir()}
    assert left == {f"{living}.x1.building", f"{living}.lock", "tmpabc", "mine", dead, *built}
    (cache / f"{built[0]}.x3.building").mkdir()
    (cache / built[0] / "checksum").unlink()
    Noting().make_runner((torch.ones(2),), {"name": "noting"})
    assert not list(cache.glob("*.building"))


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    class Failing(Noting):
        def free_dimensions(self, *inputs):
            raise ZeroDivisionError

    monkeypatch.setenv("RLCORE_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        Failing().make_runner((torch.ones(2),), {"name": "failing"})
    assert not list(tmp_path.iterdir())


def test_episode_counter_against_a_loop():
    rng = np.random.default_rng(0)
    counter, expected = EpisodeCounter(5), []
    totals, lengths, step = np.zeros(5), np.zeros(5, int), 0
    found = []
    for _ in range(6):
        rewards, ends, mask = (
            rng.normal(size=(9, 5)).astype(np.float32),
            rng.random((9, 5)) < 0.2,
            rng.random((9, 5)) < 0.8,
        )
        for t in range(9):
            row = step + int(mask[: t + 1].sum())
            for n in range(5):
                if mask[t, n]:
                    totals[n] += rewards[t, n]
                    lengths[n] += 1
                    if ends[t, n]:
                        expected.append((row, n, totals[n], lengths[n]))
                        totals[n], lengths[n] = 0, 0
        episodes = counter.count(rewards, ends, mask, step)
        found += list(zip(episodes.step, episodes.env, episodes.returns, episodes.lengths, strict=True))
        assert counter.steps == mask.sum()
        step += counter.steps
    assert [(s, n, k) for s, n, _, k in found] == [(s, n, k) for s, n, _, k in expected]
    assert [r for *_, r, _ in found] == pytest.approx([r for *_, r, _ in expected])


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_optimiser_updates_equal_torchs(name):
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7, generator=generator))
    vector, zeros = p.detach().clone(), torch.zeros(7)
    if name == "adam":
        optimizer = torch.optim.Adam([p], 0.01, eps=1e-5)
        state, update = [zeros, zeros], lambda *a: adam_update(*a[:-1], 1e-5, a[-1])
    else:
        optimizer = torch.optim.RMSprop([p], 0.01, 0.9, 1e-5)
        state, update = [zeros], lambda *a: rmsprop_update(*a[:-1], 1e-5, 0.9)
    for corrections in [*adam_corrections(torch.tensor(0.0), 3), *adam_corrections(torch.tensor(3.0), 2)]:
        p.grad = torch.randn(7, generator=generator)
        optimizer.step()
        vector, state = update(vector, state, p.grad, torch.tensor(0.01), corrections)
        torch.testing.assert_close(vector, p.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_doubling_equals_the_loop(length):
    generator = torch.Generator().manual_seed(length)
    args = [torch.randn(length, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    ends = [torch.rand(length, 4, generator=generator) < 0.2 for _ in range(2)]
    loop = estimators.gae(*args, *ends, 0.9, 0.8)
    with recording():
        doubled = estimators.gae(*args, *ends, 0.9, 0.8)
    torch.testing.assert_close(doubled, loop)


def test_while_recording_nothing_is_certain():
    assert surely(torch.tensor(True)) and not is_recording()
    with recording():
        assert not surely(torch.tensor(True)) and is_recording()


def test_small_layers_and_tanh_are_rewritten_to_the_same_values():
    layer = torch.nn.Linear(5, 7)
    piece = Piece(lambda x, w, b: {"y": torch.tanh(torch.nn.functional.linear(x, w, b))})
    inputs = torch.randn(3, 5), layer.weight.detach(), layer.bias.detach()
    expected = piece(*inputs)["y"]
    piece.record(*inputs)
    piece.graph = for_compiler(piece.graph)
    targets = [node.target for node in piece.graph.graph.nodes]
    assert torch.ops.aten.tanh.default not in targets and torch.ops.aten.addmm.default not in targets
    torch.testing.assert_close(piece(*inputs)["y"], expected, atol=1e-6, rtol=1e-5)


def test_operations_are_rewritten_for_python_to_the_same_values():
    def function(x, w, b, rows):
        hidden = torch.tanh(torch.nn.functional.linear(x, w, b)).detach()
        picked = hidden[rows].view(2, -1).view(2, -1) * 2.0 + 1 - rows.numel()
        return {"y": picked.t().t() / 3.0, "z": [(hidden > 0.25).float() * 0.5, rows * 2]}

    piece = Piece(function)
    inputs = torch.randn(64, 5), torch.randn(32, 5), torch.randn(32), torch.tensor([5, -1, 0, 5])
    expected = piece(*inputs)
    piece.record(*inputs)
    before = len(piece.graph.graph.nodes)
    piece.graph = for_python(piece.graph)
    targets = [str(node.target) for node in piece.graph.graph.nodes if node.op == "call_function"]
    assert len(piece.graph.graph.nodes) < before
    assert not [name for name in targets if "aten" in name and "_to_copy" not in name]
    result = piece(*inputs)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)
    assert [x.dtype for x in result["z"]] == [x.dtype for x in expected["z"]]


def test_only_functions_written_in_c_take_the_place_of_operators():
    aten = torch.ops.aten
    assert _direct(aten.mul.Tensor) is torch.mul and _direct(aten.expand.default) is torch.Tensor.expand
    assert _direct(aten.norm.Scalar) is None  # torch.norm is Python, and takes other arguments


class Doubling(Program):
    def forward(self, x):
        carry, ys = python_loop(lambda c, row: (c + row, c * row), x[0], x)
        return {"last": carry, "rows": ys}


def test_a_captured_program_takes_new_inputs():
    x, y = torch.arange(6.0).view(3, 2), torch.ones(3, 2)
    runner = CapturedRunner(Doubling(), (x,), graph=False)
    for inputs in (x, y):
        carry, rows = inputs[0], []
        for row in inputs:
            rows.append(carry * row)
            carry = carry + row
        result = runner(inputs)
        assert torch.equal(result["last"], carry) and torch.equal(result["rows"], torch.stack(rows))


def test_a_captured_act_reads_the_weights_where_they_are():
    agent = make("ppo_kl_shared")
    obs, noise = agent.buffer.obs[0], agent.collector.noise[0]
    program = ActProgram(agent.network, with_values=True)
    runner = CapturedRunner(program, (program.tensors(), obs, noise), graph=False)
    for _ in range(2):
        obs, noise = torch.randn_like(obs), torch.randn_like(noise)
        with torch.no_grad():
            agent.parameter_vector.add_(0.1)
            policy, values = agent.network(obs)
        actions, params, theirs = runner.flat([*program.tensors(), obs, noise])
        assert torch.equal(params, policy.params) and torch.equal(theirs, values)
        assert torch.equal(actions, policy.sample(noise))
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(runner.inputs[0], program.tensors(), strict=True))
    assert runner.inputs[1].data_ptr() != obs.data_ptr()


def test_native_collector_is_made_for_the_agents_own_buffer():
    agent = rlcore.PPO("CartPole-v1", num_steps=8, **SMALL)
    collector = make_native_collector(agent)
    assert collector.buffer is agent.buffer and collector.max_episode_steps == 500


@pytest.mark.parametrize(
    "of_inductor, of_torch, warned", [([], "AVX512", True), (["avx2"], "AVX2", False), ([], "DEFAULT", False)]
)
def test_a_compiler_without_vector_instructions_is_told_of(monkeypatch, tmp_path, of_inductor, of_torch, warned):
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.valid_vec_isa_list", lambda: of_inductor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: of_torch)

    class Unbuilt(Program):
        def forward(self, x):
            raise InterruptedError  # what is told is told before the work begins

    with warnings.catch_warnings(record=True) as caught, pytest.raises(InterruptedError):
        warnings.simplefilter("always")
        Unbuilt().make_runner((torch.ones(2),), {"of": [of_inductor, of_torch], "at": str(tmp_path)})
    assert any("vector instructions" in str(w.message) for w in caught) == warned


def test_constants_are_copied_once_and_gradients_may_pass_them():
    constant = Constant(torch.arange(3.0, dtype=torch.float64))
    x = torch.ones(3, requires_grad=True)
    with recording():
        assert constant.like(x) is not constant.like(x)
    with torch.inference_mode():
        first = constant.like(x)
    assert constant.like(x) is first and first.dtype == torch.float32
    (x * x * first).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 2.0, 4.0]))
    assert constant.like(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_a_captured_program_looks_at_no_value():
    class Looking(Program):
        def forward(self, x):
            return {"looked": torch.tensor(float(surely(x.sum() > 0))), "sum": x.sum()}

    result = CapturedRunner(Looking(), (torch.ones(2),), graph=False)(torch.ones(2))
    assert result["looked"] == 0 and result["sum"] == 2
