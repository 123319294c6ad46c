"""Environments that fail on request, for tests and benchmarks that run the command line in processes of its own."""

import os
import signal
import sys
import time

import gymnasium as gym
import numpy as np


class Faulty(gym.Env):
    """Random observations, a reward for action 1, episodes of `length` steps; fails at its `at`-th step.

    Args:
        fault: raise, exit, die, kill, hang, shape, dtype, nan, inf, or none.
        at: the step in this environment's life.
        marker: a file that is made by the first failure; while it is there none follows. Empty: each one fails.
        flaky: probability of an exception in any step, drawn from the environment's own random numbers.
    """

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, fault="none", at=40, marker="", length=25, flaky=0.0):
        self.fault, self.at, self.marker, self.length, self.flaky, self.steps = fault, at, marker, length, flaky, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def _obs(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def step(self, action):
        self.t += 1
        self.steps += 1
        obs, reward = self._obs(), float(action)
        if self.flaky and self.np_random.random() < self.flaky:
            raise RuntimeError("flaky")
        if self.fault != "none" and self.steps == self.at and self._first():
            obs, reward = self._fail(obs, reward)
        return obs, reward, self.t >= self.length, False, {}

    def _first(self):
        if not self.marker:
            return True
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _fail(self, obs, reward):
        if self.fault == "raise":
            raise KeyError("bad thing")
        if self.fault == "exit":
            sys.exit(0)
        if self.fault == "die":
            os._exit(0)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "shape":
            return obs[:1], reward
        if self.fault == "dtype":
            return np.array(["a", "b", "c"], dtype=object), reward
        if self.fault == "nan":
            obs[1] = np.nan
        return obs, float("inf") if self.fault == "inf" else reward


gym.register("Faulty-v0", entry_point=Faulty)
