"""The game for which a policy has to be stochastic."""

from itertools import product

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import rlcore
from rlcore.envs.rock_paper_scissors import PAYOFF, ROUNDS, RockPaperScissors, exploitability
from rlcore.errors import UsageError

ENV_ID = "rlcore/RockPaperScissors-v0"
BEATS = {0: 2, 1: 0, 2: 1}  # rock beats scissors, paper beats rock, scissors beat paper


def play(actions, seed, **kwargs):
    """Rewards and the opponent's plays of one episode of `actions(t, rng)`."""
    env, rng, steps = gymnasium.make(ENV_ID, **kwargs), np.random.default_rng(seed), []
    env.reset(seed=seed)
    for t in range(ROUNDS):
        _, reward, terminated, truncated, info = env.step(actions(t, rng))
        steps.append((reward, info["opponent"]))
    assert truncated and not terminated
    return np.array(steps).T


def test_it_is_a_gymnasium_environment_that_needs_rlcore_alone():
    env = gymnasium.make(ENV_ID)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.spec.max_episode_steps == ROUNDS == 100


def test_payoffs():
    for a, b in product(range(3), repeat=2):
        assert PAYOFF[a, b] == (1 if BEATS[a] == b else -1 if BEATS[b] == a else 0)


def test_the_opponent_best_responds_to_what_it_remembers():
    env = RockPaperScissors(memory=5)
    env.reset(seed=0)
    rng, played = np.random.default_rng(0), []
    for _ in range(300):
        recent = played[-5:]
        wins = [sum((BEATS[b] == a) - (BEATS[a] == b) for a in recent) for b in range(3)]
        action = int(rng.integers(3))
        opponent = env.step(action)[4]["opponent"]
        assert wins[opponent] == max(wins)
        played.append(action)


def test_its_ties_are_drawn_and_a_reset_clears_its_memory():
    env, first = RockPaperScissors(), []
    env.reset(seed=0)
    for _ in range(300):
        first.append(env.step(0)[4]["opponent"])
        env.step(0)
        env.reset()
    assert min(np.bincount(first, minlength=3)) > 60


@pytest.mark.parametrize("action", range(3))
def test_a_deterministic_policy_loses(action):
    for seed in range(5):
        rewards, _ = play(lambda t, rng: action, seed)
        assert (rewards[1:] == -1).all()


def test_the_equilibrium_does_not_lose_and_a_habit_does():
    uniform = np.mean([play(lambda t, rng: rng.integers(3), seed)[0].mean() for seed in range(50)])
    habit = np.mean([play(lambda t, rng: rng.choice(3, p=[0.6, 0.2, 0.2]), seed)[0].mean() for seed in range(50)])
    assert abs(uniform) < 0.04 and habit < -0.2  # standard errors 0.012; a fully informed opponent takes 0.4


def test_exploitability():
    assert exploitability([1 / 3, 1 / 3, 1 / 3]) == pytest.approx(0, abs=1e-12)
    assert exploitability([1, 0, 0]) == exploitability(np.array([0, 0, 1])) == 1
    assert exploitability([0.5, 0.3, 0.2]) == pytest.approx(0.5 - 0.2)  # paper wins against rock, loses to scissors
    assert exploitability([0.2, 0.3, 0.5]) == pytest.approx(0.5 - 0.3)  # rock wins against scissors, loses to paper


@pytest.mark.parametrize("seed", [0, 1])
def test_policy_gradient_finds_the_equilibrium(seed):
    agent = rlcore.REINFORCE(ENV_ID, num_envs=16, baseline="mean", psi="baseline", gamma=0.95, seed=seed)
    with torch.no_grad():  # far from where it has to go
        agent.network.policy_head.bias.copy_(torch.tensor([2.0, 0.0, -1.0]))

    def probabilities():
        with torch.no_grad():
            return agent.network.policy(torch.zeros(1, dtype=torch.long)).log_p.exp()[0].numpy()

    assert exploitability(probabilities()) > 0.7
    agent.learn(200_000)
    assert exploitability(probabilities()) < 0.05
    greedy = agent.evaluate(10, seed=0, deterministic=True)  # the same policy, made deterministic
    assert greedy.returns.max() <= -(ROUNDS - 2)
    agent.close()


def test_its_state_can_be_stored():
    agent = rlcore.REINFORCE(ENV_ID, num_envs=2, baseline="mean", seed=0).learn(200)
    assert agent.collector.is_capturable()
    agent.close()


@pytest.mark.parametrize("memory", [0, 2.5, "long"])
def test_a_wrong_memory_is_refused_in_a_sentence(memory):
    with pytest.raises(UsageError, match=r"^memory is .*, but must be a whole number of at least 1$"):
        RockPaperScissors(memory)
