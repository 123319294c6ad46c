"""Callbacks of `learn`: when they are called, what they change, and that training is as without them."""

import numpy as np
import pytest
import torch

import rlcore
from rlcore.errors import UsageError

SMALL = dict(
    num_envs=2, num_steps=8, num_minibatches=2, update_epochs=1, seed=1, compile=False, device="cpu", backend="sync"
)


def make(**options):
    return rlcore.PPO("CartPole-v1", **{**SMALL, **options})


def test_callbacks_see_each_iteration_and_all_are_called_where_one_stops():
    seen = []

    def note(agent, metrics, episodes):
        seen.append((agent.global_step, len(episodes.returns), metrics["policy_loss"]))

    def stop(agent, metrics, episodes):
        return agent.iteration == 3

    agent = make().learn(1000, callbacks=[stop, note])
    assert [step for step, _, _ in seen] == [16, 32, 48] and agent.global_step == 48
    assert make().learn(40, callbacks=note).global_step == 48 and len(seen) == 6


def test_evaluations_come_when_they_are_due_and_change_nothing():
    evaluate = rlcore.callbacks.Evaluate(every=40, episodes=3)
    metrics_of = []
    agent = make().learn(120, [evaluate, lambda agent, metrics, episodes: metrics_of.append(metrics)])
    assert evaluate.steps == [48, 80, 128]  # the first iterations that end at or after 40, 80 and 120
    assert [m.get("evaluation") for m in metrics_of[:3]] == [None, None, evaluate.results[0].mean]
    assert evaluate.best == max(result.mean for result in evaluate.results)
    alone = make().learn(120)
    assert torch.equal(agent.parameters.vector, alone.parameters.vector)
    np.testing.assert_array_equal(evaluate.results[-1].returns, alone.evaluate(3, seed=0).returns)


def test_the_best_agent_is_kept_and_training_stops_at_a_threshold(tmp_path, monkeypatch):
    """Only a better evaluation is saved; the first that reaches the threshold is the last."""
    scores = iter([3.0, 9.0, 5.0, 20.0, 1.0])

    def evaluated(self, episodes, seed, deterministic):
        return rlcore.agents.evaluation.Evaluation(np.array([next(scores)]), np.array([1]))

    agent, saved = make(), []
    monkeypatch.setattr(rlcore.PPO, "evaluate", evaluated)
    monkeypatch.setattr(rlcore.PPO, "save", lambda self, path: saved.append((str(path), self.global_step)))
    evaluate = rlcore.callbacks.Evaluate(every=16, save_best=tmp_path / "best.pt", stop_at=20)
    agent.learn(1000, evaluate)
    best = str(tmp_path / "best.pt")
    assert saved == [(best, 16), (best, 32), (best, 64)] and agent.global_step == 64 and evaluate.best == 20.0


def test_training_stops_when_the_latest_episodes_are_good_enough():
    stop = rlcore.callbacks.StopOnReturn(20, episodes=4)
    episodes_of = lambda *returns: type("Episodes", (), {"returns": list(returns)})()  # noqa: E731
    assert not stop(None, {}, episodes_of(40.0, 40.0, 40.0))  # too few yet
    assert not stop(None, {}, episodes_of(1.0, 1.0, 1.0)) and stop.returns == [40.0, 1.0, 1.0, 1.0]
    assert stop(None, {}, episodes_of(20.0, 20.0, 20.0, 20.0))
    agent = make().learn(100_000, rlcore.callbacks.StopOnReturn(15, episodes=5))
    assert agent.global_step < 5000


@pytest.mark.parametrize(
    ("make_it", "sentence"),
    [
        (lambda: make().learn(10, callbacks=[3]), "callbacks has 3, but may only have functions"),
        (lambda: rlcore.callbacks.Evaluate(every=0), "every is 0, but must be"),
        (lambda: rlcore.callbacks.Evaluate(10, episodes=True), "episodes is True, but must be"),
        (lambda: rlcore.callbacks.StopOnReturn(1, episodes=0), "episodes is 0, but must be"),
    ],
)
def test_mistakes(make_it, sentence):
    with pytest.raises(UsageError, match=sentence):
        make_it()
