"""Probe problems with known answers, for every agent and both ways gymnasium renews environments by itself."""

from itertools import cycle

import pytest
import torch
from gymnasium.vector import AutoresetMode

from rlcore import A2C, GRPO, PPO, REINFORCE, TRPO
from tests import environments as env

GAMMA = 0.9
COMMON = dict(seed=0, anneal_lr=False, gamma=GAMMA, hidden_sizes=(32,))
FREE = COMMON | dict(max_grad_norm=None)
AGENTS = {
    "ppo": lambda envs: PPO(envs, num_steps=16, learning_rate=5e-3, ent_coef=0.0, clip_vloss=False, **COMMON),
    "a2c": lambda envs: A2C(envs, num_steps=8, optimizer="adam", learning_rate=1e-2, ent_coef=0.0, **FREE),
    "trpo": lambda envs: TRPO(
        envs, num_steps=32, learning_rate=1e-2, num_minibatches=2, update_epochs=5, max_kl=0.05, **FREE
    ),
    "reinforce": lambda envs: REINFORCE(envs, num_steps=6, learning_rate=2e-2, critic_updates=8, **FREE),
    "grpo": lambda envs: GRPO(
        envs, num_steps=2, group_size=4, learning_rate=2e-2, num_minibatches=1, update_epochs=2, **FREE
    ),
}
STEPS = {"reinforce": 2000, "grpo": 1500}  # updates are small there: one episode per environment
WITH_VALUES = [name for name in AGENTS if name != "grpo"]
BOOTSTRAPPING = ["ppo", "a2c", "trpo"]  # REINFORCE takes an episode that was cut as over
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


def one_each(names):
    """One mode for each agent: transitions are the same (tests/test_collect.py)."""
    return [*zip(names, cycle(MODES))]  # fmt: skip


def in_turn(names):
    """Every mode for the first agent, one of them for each other."""
    first, *others = names
    return [*((first, mode) for mode in MODES), *one_each(others)]


def trained(name, probe, mode, steps=8000):
    return AGENTS[name](env.vectorize(lambda n: probe(), 8, mode)).learn(STEPS.get(name, steps))


def value(agent, obs):
    with torch.no_grad():
        return agent.network.value(torch.tensor([[float(obs)]])).item()


@pytest.mark.parametrize(("name", "mode"), one_each(WITH_VALUES))
def test_value_of_one_step_that_pays_one(name, mode):
    assert value(trained(name, env.OneStep, mode), 0) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("name", "mode"), in_turn(WITH_VALUES))
class TestValues:
    def test_value_that_depends_on_the_observation(self, name, mode):
        agent = trained(name, env.ValueIsObservation, mode)
        assert value(agent, 1) == pytest.approx(1, abs=0.05)
        assert value(agent, -1) == pytest.approx(-1, abs=0.05)

    def test_value_is_discounted_one_step_before_the_reward(self, name, mode):
        agent = trained(name, env.RewardAtTheEnd, mode)
        assert value(agent, 1) == pytest.approx(1, abs=0.05)
        assert value(agent, -1) == pytest.approx(GAMMA, abs=0.05)


@pytest.mark.parametrize(("name", "mode"), in_turn(BOOTSTRAPPING))
def test_truncation_goes_on_in_value(name, mode):
    agent = trained(name, env.ForeverButCut, mode, steps=16_000)
    assert value(agent, 0) == pytest.approx(1 / (1 - GAMMA), rel=0.05)


@pytest.mark.parametrize("mode", MODES)
def test_reinforce_takes_truncation_as_the_end(mode):
    """The mean over the five steps of the episode, which all look alike, of what is still to come."""
    agent = trained("reinforce", env.ForeverButCut, mode)
    to_go = [sum(GAMMA**k for k in range(left)) for left in range(1, 6)]
    assert value(agent, 0) == pytest.approx(sum(to_go) / 5, abs=0.05)


@pytest.mark.parametrize(("name", "mode"), one_each(AGENTS))
def test_the_action_that_pays(name, mode):
    agent = trained(name, env.RightAction, mode)
    assert agent.network.policy(torch.zeros(1, 1)).log_p.exp()[0, 1] > 0.95


@pytest.mark.parametrize(("name", "mode"), in_turn(AGENTS))
def test_the_action_that_pays_at_this_observation(name, mode):
    agent = trained(name, env.RightActionByObservation, mode)
    p = agent.network.policy(torch.tensor([[1.0], [-1.0]])).log_p.exp()
    assert p[0, 1] > 0.95 and p[1, 0] > 0.95
