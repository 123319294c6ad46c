"""Small environments with known answers."""

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

MODES = list(AutoresetMode)


def vectorize(make, num_envs, mode):
    """`num_envs` environments; `make(n)` makes the n-th."""
    return SyncVectorEnv([lambda n=n: make(n) for n in range(num_envs)], autoreset_mode=mode, copy=False)


class Scripted(gym.Env):
    """Episode e shows [e, t] and pays 10 e + t for reaching step t; `script` gives each episode's length and end."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, script):
        self.script, self.episode, self.t = script, 0, 0

    def _obs(self):
        return np.array([self.episode, self.t], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        length, end = self.script[(self.episode - 1) % len(self.script)]
        ends = self.t >= length
        return self._obs(), 10.0 * self.episode + self.t, ends and "t" in end, ends and "c" in end, {}


class Probe(gym.Env):
    """Base of the probe problems: `length` steps, ended by termination or truncation."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    length, truncates = 1, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.obs = 0, self.first()
        return self._obs(), {}

    def first(self):
        return 0.0

    def _obs(self):
        return np.array([self.obs], np.float32)

    def step(self, action):
        reward = self.reward(action)
        self.t += 1
        self.obs = self.following()
        ends = self.t >= self.length
        return self._obs(), reward, ends and not self.truncates, ends and self.truncates, {}

    def following(self):
        return self.obs

    def reward(self, action):
        return 1.0


class OneStep(Probe):
    """V = 1."""


class ValueIsObservation(Probe):
    """V(obs) = obs for obs = ±1."""

    def first(self):
        return float(self.np_random.choice([-1.0, 1.0]))

    def reward(self, action):
        return self.obs


class RewardAtTheEnd(Probe):
    """V(-1) = γ, V(1) = 1."""

    length = 2

    def first(self):
        return -1.0

    def following(self):
        return 1.0

    def reward(self, action):
        return float(self.t == 1)


class ForeverButCut(Probe):
    """V = 1/(1 − γ): reward 1 for ever, cut every 5 steps by truncation."""

    length, truncates = 5, True


class RightAction(Probe):
    """Action 1 pays."""

    def reward(self, action):
        return 1.0 if action == 1 else -1.0


class RightActionByObservation(ValueIsObservation):
    """Action 1 pays at obs 1, action 0 at obs −1."""

    def reward(self, action):
        return 1.0 if (action == 1) == (self.obs > 0) else -1.0


class Echo(gym.Env):
    """Any spaces; remembers the actions it was given, samples observations, ends after 3 steps."""

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or gym.spaces.Box(-1, 1, (2,))
        self.action_space = action_space or gym.spaces.Discrete(2)
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.actions.append(action)
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == 3, False, {}


class BreaksAt(Probe):
    """Returns NaN as observation or reward at step `at`."""

    length = 1000

    def __init__(self, at, what):
        self.at, self.what = at, what

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        broken = self.t == self.at
        if broken and self.what == "observation":
            obs[:] = np.nan
        return obs, float("nan") if broken and self.what == "reward" else reward, terminated, truncated, info
