"""Agents that train together end as they would have alone."""

import contextlib
import os

import pytest
import torch

import rlcore
from rlcore.agents import find_agent
from rlcore.distributed import together
from rlcore.distributed.together import iterations_together, learn_together
from rlcore.errors import RlcoreError, UsageError

SIZES = {
    "ppo": {"num_envs": 2, "num_steps": 32, "norm_obs": True, "norm_reward": True},
    "a2c": {"num_envs": 2, "num_steps": 16},
    "trpo": {"num_envs": 2, "num_steps": 64, "update_epochs": 2},
    "grpo": {"num_envs": 4, "num_steps": 60, "group_size": 2},
    "reinforce": {"num_envs": 2, "num_steps": 60},
}


def agents_of(algo, seeds=3, **options):
    options = {"compile": "record", "backend": "native", **SIZES[algo], **options}
    return [find_agent(algo)("CartPole-v1", seed=k, **options) for k in range(seeds)]


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("algo", SIZES)
def test_each_ends_as_if_it_had_trained_alone(algo):
    """Weights, moments, steps, episodes and metrics; minibatches of whole episodes differ in size among agents. Alone
    they run as Python, since recording takes longer than that."""
    ours, alone = agents_of(algo), agents_of(algo, compile=False)
    with threads(1):
        told = list(iterations_together(ours, 500))
    for k, (mine, other) in enumerate(zip(ours, alone, strict=True)):
        expected, got = list(other.iterations(500)), [row[k] for row in told if row[k] is not None]
        assert mine.global_step == other.global_step >= 500 and mine.iteration == other.iteration == len(expected)
        for (metrics, episodes), (others, theirs) in zip(got, expected, strict=True):
            assert episodes.returns == theirs.returns and episodes.step == theirs.step
            for name in others.keys() - {"steps_per_second"}:
                assert metrics[name] == pytest.approx(others[name], rel=1e-3, abs=1e-4), name
        mine, other = mine.state_dict(), other.state_dict()
        torch.testing.assert_close(mine["network"], other["network"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine["optimizer"], other["optimizer"], rtol=1e-3, atol=1e-5)
        assert (mine["generator"] == other["generator"]).all()
    weights = [agent.parameters.vector for agent in ours]
    assert not torch.allclose(weights[0], weights[1])


def test_hyperparameters_that_no_program_knows_may_differ():
    ours = [*agents_of("ppo", 1, learning_rate=1e-2), *agents_of("ppo", 1, learning_rate=1e-4)]
    start = ours[0].parameters.vector.clone()
    alone = agents_of("ppo", 1, learning_rate=1e-2, compile=False)[0].learn(200)
    with threads(1):
        learn_together(ours, 200)
    torch.testing.assert_close(ours[0].parameters.vector, alone.parameters.vector, rtol=1e-4, atol=1e-5)
    moved = [(agent.parameters.vector - start).abs().mean() for agent in ours]
    assert moved[0] > 20 * moved[1]


@pytest.mark.parametrize(
    ("algo", "numbers"),
    [
        ("ppo", {"gamma": 0.9, "gae_lambda": 0.8, "clip_coef": 0.1, "vf_coef": 0.7, "ent_coef": 0.1}),
        ("a2c", {"gamma": 0.9, "gae_lambda": 0.8, "vf_coef": 0.7, "max_grad_norm": 0.1}),
    ],
)
def test_numbers_in_the_program_may_differ(algo, numbers):
    options = [{}, numbers]
    ours, alone = ([agents_of(algo, 1, **one)[0] for one in options] for _ in range(2))
    with threads(1):
        learn_together(ours, 200)
    for mine, other in zip(ours, alone, strict=True):
        other.learn(200)
        torch.testing.assert_close(mine.parameters.vector, other.parameters.vector, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[0].parameters.vector, ours[1].parameters.vector, atol=1e-4)


def test_agents_are_their_own_again_and_go_on_alone(tmp_path):
    """Also where the iterator is closed early; a checkpoint on the way holds one agent."""
    ours, alone = agents_of("ppo", 2), agents_of("ppo", 2, compile=False)
    with threads(1):
        run = iterations_together(ours, 10_000)
        next(run)
        ours[1].save(tmp_path / "one.pt")
        next(run)
        run.close()
    again, size = rlcore.load(tmp_path / "one.pt"), os.path.getsize(tmp_path / "one.pt")
    assert again.global_step == 64 and size < 1.1 * _size(alone[1], tmp_path)
    tensors = [agent.parameters.vector for agent in ours]
    assert tensors[0].untyped_storage().data_ptr() != tensors[1].untyped_storage().data_ptr()
    assert all(x.untyped_storage().nbytes() == 4 * x.numel() for x in tensors)
    for mine, other in zip(ours, alone, strict=True):
        mine.learn(400)
        list(_until(other.iterations(10_000), 2))
        other.learn(400)
        torch.testing.assert_close(mine.parameters.vector, other.parameters.vector, rtol=1e-3, atol=1e-4)


def _size(agent, folder):
    agent.save(folder / "size.pt")
    return os.path.getsize(folder / "size.pt")


def _until(run, count):
    for _ in range(count):
        yield next(run)


def test_a_rollout_that_is_too_short_for_programs_is_learned_from_as_python(monkeypatch):
    """By those that have steps left alone: who is done learns no more."""
    ours, alone = agents_of("reinforce", 2), agents_of("reinforce", 2, compile=False)
    for agent in (*ours, *alone):
        monkeypatch.setattr(agent.sampler, "suffices", lambda mask: False)
    monkeypatch.setattr(ours[0].collector, "global_step", 400)  # it is done first
    monkeypatch.setattr(alone[0].collector, "global_step", 400)
    with threads(1):
        rows = list(iterations_together(ours, 500))
    assert rows[-1][0] is None and rows[-1][1] is not None
    for mine, other in zip(ours, alone, strict=True):
        other.learn(500)
        assert mine.iteration == other.iteration and mine.global_step == other.global_step
        torch.testing.assert_close(mine.parameters.vector, other.parameters.vector, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_processes_give_the_same_and_their_state_comes_back():
    ours, alone = agents_of("ppo", 3), agents_of("ppo", 3)
    with threads(2):
        rows = list(iterations_together(ours, 300))
        assert torch.get_num_threads() == 2
    with threads(1):
        expected = list(iterations_together(alone, 300))
    for row, other in zip(rows, expected, strict=True):
        assert [x[1].returns for x in row] == [x[1].returns for x in other]
    for mine, other in zip(ours, alone, strict=True):
        assert mine.global_step == other.global_step and mine.iteration == other.iteration
        torch.testing.assert_close(mine.parameters.vector, other.parameters.vector, rtol=1e-4, atol=1e-5)
    for mine in (ours[0], ours[-1]):  # of this process, and of another
        mine.learn(500)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_errors_of_a_process_are_raised_here(monkeypatch):
    iterate = together._Stack.iterate
    fails = {"raises": lambda: (_ for _ in ()).throw(RlcoreError("it broke")), "dies": lambda: os._exit(7)}
    for how, sentence in (("raises", "it broke"), ("dies", "died with code 7")):
        ours = agents_of("ppo", 2)

        def broken(stack, how=how, mine=ours[1]):
            return fails[how]() if mine in stack.agents else iterate(stack)

        monkeypatch.setattr(together._Stack, "iterate", broken)
        with threads(2), pytest.raises(RlcoreError, match=sentence):
            learn_together(ours, 300)
        ours[0].learn(200)


@pytest.mark.parametrize(
    ("agents", "sentence"),
    [
        (lambda: [], "agents must be one or more"),
        (lambda: agents_of("ppo", 1) * 2, "agents must be one or more, each once"),
        (lambda: [*agents_of("ppo", 1), *agents_of("a2c", 1)], r"agents\[1\] is of another algorithm"),
        (
            lambda: [*agents_of("ppo", 1), *agents_of("ppo", 1, num_steps=16)],
            r"agents\[1\] has num_steps = 16, but agents\[0\] has 32",
        ),
        (
            lambda: [*agents_of("ppo", 1), *agents_of("ppo", 1, max_grad_norm=None)],
            "PPO computes other things with max_grad_norm = None than with max_grad_norm = 0.5",
        ),
        (lambda: [rlcore.PPO("Taxi-v4", num_envs=2, num_steps=8)], "Taxi-v4, which has no native implementation"),
        (lambda: [rlcore.PPO("CartPole-v1", num_envs=2, num_steps=8, num_minibatches=1, memory="gru")], "remembers"),
    ],
)
def test_what_does_not_go_together_is_refused(agents, sentence):
    with pytest.raises(UsageError, match=sentence):
        learn_together(agents(), 100)
