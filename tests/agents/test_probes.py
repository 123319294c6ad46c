"""Probe problems with known answers, for every agent and both ways gymnasium renews environments by itself."""

import pytest
import torch
from gymnasium.vector import AutoresetMode

from rlcore import PPO
from tests import environments as env

GAMMA = 0.9
AGENTS = {
    "ppo": lambda envs: PPO(
        envs, num_steps=16, seed=0, learning_rate=5e-3, anneal_lr=False, gamma=GAMMA, ent_coef=0.0,
        hidden_sizes=(32,), clip_vloss=False,
    ),
}  # fmt: skip
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


def trained(name, probe, mode, steps=8000):
    return AGENTS[name](env.vectorize(lambda n: probe(), 8, mode)).learn(steps)


def value(agent, obs):
    with torch.no_grad():
        return agent.network.value(torch.tensor([[float(obs)]])).item()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", AGENTS)
class TestProbes:
    def test_value_of_one_step_that_pays_one(self, name, mode):
        assert value(trained(name, env.OneStep, mode), 0) == pytest.approx(1, abs=0.05)

    def test_value_that_depends_on_the_observation(self, name, mode):
        agent = trained(name, env.ValueIsObservation, mode)
        assert value(agent, 1) == pytest.approx(1, abs=0.05)
        assert value(agent, -1) == pytest.approx(-1, abs=0.05)

    def test_value_is_discounted_one_step_before_the_reward(self, name, mode):
        agent = trained(name, env.RewardAtTheEnd, mode)
        assert value(agent, 1) == pytest.approx(1, abs=0.05)
        assert value(agent, -1) == pytest.approx(GAMMA, abs=0.05)

    def test_truncation_goes_on_in_value(self, name, mode):
        agent = trained(name, env.ForeverButCut, mode, steps=16_000)
        assert value(agent, 0) == pytest.approx(1 / (1 - GAMMA), rel=0.05)

    def test_the_action_that_pays(self, name, mode):
        agent = trained(name, env.RightAction, mode)
        assert agent.network.policy(torch.zeros(1, 1)).log_p.exp()[0, 1] > 0.95

    def test_the_action_that_pays_at_this_observation(self, name, mode):
        agent = trained(name, env.RightActionByObservation, mode)
        p = agent.network.policy(torch.tensor([[1.0], [-1.0]])).log_p.exp()
        assert p[0, 1] > 0.95 and p[1, 0] > 0.95
