import numpy as np
import pytest

from rlcore import PPO
from rlcore.errors import EnvironmentFault, UsageError
from tests.environments import MODES, Scripted, vectorize

SCRIPT = [(1, "t"), (9, "c"), (2, "tc"), (5, "t")]


@pytest.fixture(scope="module")
def agent():
    return PPO(vectorize(lambda n: Scripted(SCRIPT), 2, MODES[0]), num_steps=4, seed=0)


@pytest.mark.parametrize("mode", MODES)
def test_every_environment_plays_a_number_of_episodes_fixed_in_advance(agent, mode):
    """Taking the first seven to end would take more of the short ones."""
    result = agent.evaluate(7, seed=0, env=vectorize(lambda n: Scripted(SCRIPT), 3, mode))
    assert sorted(result.lengths.tolist()) == sorted([1, 9, 2] + [1, 9] + [1, 9])
    by_hand = [sum(10 * (e + 1) + t for t in range(1, SCRIPT[e][0] + 1)) for e in range(3)]
    assert sorted(result.returns.tolist()) == sorted(by_hand + 2 * by_hand[:2])


def test_the_same_seed_gives_the_same_episodes():
    agent = PPO("CartPole-v1", seed=0)
    for deterministic in (True, False):
        a, b, c = (agent.evaluate(20, seed=s, deterministic=deterministic).returns for s in (3, 3, 4))
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_evaluation_does_not_touch_training():
    def weights(evaluate):
        agent = PPO("CartPole-v1", seed=0)
        for _ in agent.iterations(1500):
            if evaluate:
                agent.evaluate(3, seed=1, deterministic=False)
                agent.act(np.zeros((5, 4), np.float32))
        return agent.parameters.vector

    assert (weights(False) == weights(True)).all()


def test_an_episode_without_end_is_cut_where_it_can_be(agent):
    endless = [(10**9, "t")]
    result = agent.evaluate(3, seed=0, env=vectorize(lambda n: Scripted(endless), 2, MODES[2]), max_steps=6)
    assert result.lengths.tolist() == [6, 6, 6]
    assert sorted(result.returns.tolist()) == sorted(10 * e * 6 + 21 for e in (1, 2, 1))
    with pytest.raises(EnvironmentFault, match="runs on after 6 steps"):
        agent.evaluate(3, seed=0, env=vectorize(lambda n: Scripted(endless), 2, MODES[0]), max_steps=6)


@pytest.mark.parametrize("episodes", [0, -1, 2.5, True])
def test_a_bad_number_of_episodes_is_refused(agent, episodes):
    with pytest.raises(UsageError, match="episodes is"):
        agent.evaluate(episodes)
