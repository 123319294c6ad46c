"""What the command line offers is there from Python too, and habits from other libraries get a sentence."""

import io
import json
import sys
import warnings

import gymnasium
import numpy as np
import pytest

import rlcore
from rlcore.errors import UsageError
from rlcore.presets import find_preset

SMALL = {"num_envs": 2, "num_steps": 16, "num_minibatches": 1, "update_epochs": 1, "compile": False, "seed": 1}


def small(**options):
    return rlcore.PPO("CartPole-v1", **{**SMALL, **options})


def test_a_preset_gives_hyperparameters_and_steps():
    tuned = find_preset("ppo", "CartPole-v1")
    agent = rlcore.PPO("CartPole-v1", preset="auto", gamma=0.5, seed=1)
    assert agent.config.gamma == 0.5 and agent.config.num_steps == tuned["num_steps"]
    assert agent.preset_steps == tuned["total_steps"]
    assert rlcore.PPO("CartPole-v1", preset="Acrobot-v1", seed=1).config.norm_obs
    assert rlcore.PPO("CartPole-v1", seed=1).config.num_steps == 128
    assert rlcore.PPO("CartPole-v1", preset="none", seed=1).preset == rlcore.PPO("CartPole-v1", seed=1).preset == "none"
    plain = rlcore.PPO("Taxi-v4", preset="auto", num_steps=8, num_envs=2, num_minibatches=1, seed=1)
    assert plain.preset_steps == (find_preset("ppo", "Taxi-v4") or {}).get("total_steps")


def test_learn_takes_the_steps_of_the_preset(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[ppo."CartPole-v1"]\ntotal_steps = 64\nnum_envs = 2\nnum_steps = 16\nnum_minibatches = 1\n')
    agent = rlcore.PPO("CartPole-v1", preset=str(file), compile=False, seed=1).learn(run_dir=tmp_path / "run")
    assert 64 <= agent.global_step < 100
    assert f'preset = "{file}"' in (tmp_path / "run" / "config.toml").read_text()
    with pytest.warns(UserWarning, match="learning rate"):
        assert agent.learn(1e2).global_step >= 100


def test_a_run_folder_is_one_that_the_command_line_goes_on_with(tmp_path, capsys):
    from rlcore.cli import main

    stopped = []
    agent = small().learn(256, run_dir=tmp_path / "run", callbacks=lambda agent, *_: stopped.append(agent.global_step))
    capsys.readouterr()
    alone = small().learn(256)
    assert stopped[-1] == agent.global_step == alone.global_step
    assert (agent.parameters.vector == alone.parameters.vector).all()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.toml", "checkpoints", "episodes.csv", "evaluation.json"} <= names
    assert len(json.loads((tmp_path / "run" / "evaluation.json").read_text())["returns"]) == 100
    assert main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "400", "--no-progress"]) == 0
    with pytest.raises(UsageError, match="exists already"):
        agent.learn(512, run_dir=tmp_path / "run")


def test_a_callback_ends_a_run_in_a_folder(tmp_path):
    agent = small().learn(10_000, run_dir=tmp_path / "run", callbacks=lambda *_: True)
    assert agent.iteration == 1
    assert rlcore.load(tmp_path / "run").global_step == agent.global_step


def test_progress_is_shown_where_it_is_asked_for(capsys, monkeypatch):
    small().learn(64)
    assert capsys.readouterr() == ("", "")
    small().learn(640, progress=True)
    assert "steps/s  return" in capsys.readouterr().out

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    small().learn(640, progress=True)
    assert "640" in sys.stdout.getvalue()


@pytest.mark.parametrize("backend", ["sync", "async", "vector", "native", "own"])
def test_environments_reset_between_two_calls_of_learn_leave_no_false_transition(backend, tmp_path):
    """A transition that is stored leads where the environment goes: its pole moves by its velocity."""
    env = gymnasium.make_vec("CartPole-v1", num_envs=2) if backend == "own" else "CartPole-v1"
    options = {} if backend == "own" else {"backend": backend, "num_envs": 2}
    agent = rlcore.A2C(env, num_steps=5, compile=False, seed=1, anneal_lr=False, **options).learn(10)
    agent.envs.reset()
    agent.save(tmp_path / "after")
    for one in (agent, rlcore.load(tmp_path / "after", **({"env": env} if backend == "own" else {}))):
        one.learn(20)
        start, following = one.buffer.obs[:-1].double(), one.buffer.obs[1:].double()
        moved = start[..., [0, 2]] + 0.02 * start[..., [1, 3]]  # Euler's step of position and angle
        done = (one.buffer.terminated | one.buffer.truncated)[:-1]
        assert (following[..., [0, 2]] - moved).abs().amax(-1)[~done].max() < 1e-6
        begins = one.buffer.obs[0].abs().max() <= 0.05  # where all episodes begin; ten steps lead further
        assert begins == (backend != "native")  # which are numbers of the rollout, not those shown
        assert one.collector.counter.lengths.max() <= 5 + 5 * (backend == "native")
    agent.close()


def test_an_agent_says_what_it_is():
    agent = small()
    assert repr(agent) == "<PPO on 2 × CartPole-v1, backend vector, python, at step 0>"
    assert "at step 0" not in repr(agent.learn(32))


def test_going_on_after_the_end_says_what_becomes_of_the_learning_rate():
    agent = small()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.learn(64)
        agent.learn(64)  # nothing is left to do
    with pytest.warns(UserWarning, match=r"gone down to 0 at 64 steps; on the way to 200,? ?it goes on from 0\.\d+"):
        agent.learn(200)
    constant = small(anneal_lr=False).learn(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant.learn(200)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: rlcore.PPO("MlpPolicy", "CartPole-v1"), "PPO takes one argument without a name, the environment"),
        (lambda: small(n_steps=3), "'n_steps' is not a hyperparameter of PPO, did you mean 'num_steps'"),
        (lambda: small(lr=3), "did you mean 'learning_rate'"),
        (lambda: rlcore.PPO(gymnasium.make("CartPole-v1")), "env is a single environment .*pass its id"),
        (lambda: rlcore.PPO(3), "env is of type int, but must be an environment id"),
        (
            lambda: small().act(np.zeros(4)),
            r"observations are of shape \[4\], but must be a batch \[N, 4\]; observation",
        ),
        (lambda: small().act(np.zeros((2, 3))), r"observations are of shape \[2, 3\], but must be a batch \[N, 4\]"),
        (lambda: small().act(None), "observations are a NoneType, but must be a batch"),
        (lambda: small().act({"x": 1}), "observations are a dict, but must be of Box"),
        (lambda: small().learn(), "total_steps is needed"),
        (lambda: small().learn("many"), "total_steps is 'many', but must be a whole number"),
        (lambda: small().learn(0), "total_steps is 0, but must be a whole number of at least 1"),
        (lambda: small().learn(10.5), "total_steps is 10.5"),
        (lambda: small().learn(True), "total_steps is True"),
        (lambda: small().learn(100, callbacks=3), "callbacks is 3, but must be a function or a list"),
        (lambda: small().learn(100, callbacks=[3]), "callbacks has 3"),
        (lambda: small().learn(100, run_dir=""), "the run folder has no name"),
        (lambda: small(preset="nope"), "preset 'nope' does not exist for ppo"),
        (lambda: rlcore.PPO(rlcore.make_vec("CartPole-v1", 2), preset="auto"), "preset is 'auto', which is for an"),
        (lambda: rlcore.PPO(rlcore.make_vec("CartPole-v1", 4)).learn(9, run_dir="x"), "run_dir is for an agent that"),
        (lambda: small().save(""), "no name"),
    ],
)
def test_a_mistake_in_python_is_one_sentence(act, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rlcore.RlcoreError, match=sentence) as told:
        act()
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())
