"""Environments as pure functions of tensors: the classic control tasks of gymnasium and a small pixel game.

A task is three functions, `initial`, `observe` and `step`, and remembers nothing: the state of N environments is one
tensor `[N, S]` that the caller holds. Randomness comes in from outside (`uniform`), shapes are fixed, nothing branches
on data. So the same lines run on any device, one step at a time, compiled, or inside a whole rollout.

Time limits, resets and the state's dtype are the caller's. In float64 the classic control tasks follow gymnasium's own
arithmetic operation by operation and differ from it by the rounding of sine and cosine; float32 is for speed.
`rlcore.envs.native_vector` makes a gymnasium vector environment of a task.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.errors import UsageError, did_you_mean
from rlcore.spaces import Field, Obs


class NativeTask:
    """What every task has.

    Attributes:
        id: its gymnasium id.
        observation_space, action_space: of a single environment.
        max_episode_steps: steps after which the caller cuts an episode, None where the task ends by itself.
        longest: steps after which such a task has ended, where that is known.
        draws: how many uniform numbers one reset takes.
        fields: what it tells beside its observation, such as which actions are allowed; see `extras`.
        arguments: what its constructor takes beside the id, and a user may choose as `env_kwargs`.
    """

    id: str
    observation_space: spaces.Space
    action_space: spaces.Space
    max_episode_steps: int | None
    longest: int | None = None
    draws: int
    fields: Sequence[Field] = ()
    arguments: tuple[str, ...] = ()

    def varied(self, **values: Any) -> Self:
        """The same task with other values of its `arguments`; a UsageError where it has none of that name."""
        for name in values:
            if name not in self.arguments:
                has = f"it has {', '.join(self.arguments) or 'none'}"
                raise UsageError(f"{self.id} has no argument '{name}'{did_you_mean(name, self.arguments)}; {has}")
        return type(self)(self.id, **values) if values else self  # type: ignore[call-arg]  # of those that have arguments

    def initial(self, uniform: Tensor) -> Tensor:
        """States `[N, S]` at the start of an episode from `uniform [N, draws]` in [0, 1), in the dtype of `uniform`."""
        raise NotImplementedError

    def observe(self, state: Tensor) -> Obs:
        """Observations `[N, ...]` at `state [N, S]`, in the dtype of `observation_space`; by default the state. Of a
        Dict space a dict of these; its part `action_mask` says which actions are allowed."""
        return state.float()

    def extras(self, state: Tensor) -> dict[str, Tensor]:
        """What `fields` name, at `state [N, S]`, `[N, ...]` each."""
        return {}

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next state `[N, S]` in the dtype of `state [N, S]`, rewards `[N]` float32 and terminated `[N]` bool; the
        `action` is `[N]` int64 of a Discrete space, `[N, d]` of a MultiDiscrete, `[N, d]` float32 of a Box."""
        raise NotImplementedError

    def expert(self, state: Tensor) -> Tensor:
        """What one who knows does at `state [N, S]`, `[N, ...]` as `step` takes it; only some tasks have it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"


class CartPole(NativeTask):
    """A pole on a cart, state (x, x_dot, theta, theta_dot).

    Barto, Sutton and Anderson, Neuronlike adaptive elements that can solve difficult learning control problems (1983);
    equations of Florian, Correct equations for the dynamics of the cart-pole system (2007); Euler steps.
    """

    id = "CartPole-v1"
    max_episode_steps = 500
    draws = 4

    GRAVITY = 9.8
    MASS_POLE = 0.1
    MASS = 0.1 + 1.0  # of pole and cart
    LENGTH = 0.5  # half of the pole's
    FORCE = 10.0
    TAU = 0.02  # seconds a step
    MAX_X = 2.4
    MAX_THETA = 12 * 2 * math.pi / 360

    _high = np.array([2 * MAX_X, np.inf, 2 * MAX_THETA, np.inf], np.float32)
    observation_space = spaces.Box(-_high, _high, dtype=np.float32)
    action_space = spaces.Discrete(2)

    def initial(self, uniform: Tensor) -> Tensor:
        return _between(-0.05, 0.05, uniform)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, x_dot, theta, theta_dot = state.unbind(1)
        force = action.to(state.dtype) * (2 * self.FORCE) - self.FORCE
        cos, sin = theta.cos(), theta.sin()
        pole = self.MASS_POLE * self.LENGTH
        push = (force + pole * theta_dot.square() * sin) / self.MASS
        inertia = self.LENGTH * (4.0 / 3.0 - self.MASS_POLE * cos.square() / self.MASS)
        theta_acc = (self.GRAVITY * sin - cos * push) / inertia
        x_acc = push - pole * theta_acc * cos / self.MASS
        state = state + self.TAU * torch.stack((x_dot, x_acc, theta_dot, theta_acc), 1)
        x, _, theta, _ = state.unbind(1)
        terminated = (x.abs() > self.MAX_X) | (theta.abs() > self.MAX_THETA)
        return state, torch.ones_like(x, dtype=torch.float32), terminated


class Acrobot(NativeTask):
    """Two links, a motor between them, state (theta1, theta2, dtheta1, dtheta2); Runge-Kutta steps of fourth order.

    Sutton, Generalization in reinforcement learning: successful examples using sparse coarse coding (1996), with the
    equations of Sutton and Barto's book. All lengths, masses and moments of inertia are 1, centres of mass at 1/2.
    """

    id = "Acrobot-v1"
    max_episode_steps = 500
    draws = 4

    GRAVITY = 9.8
    DT = 0.2  # seconds a step
    MAX_VEL_1 = 4 * math.pi
    MAX_VEL_2 = 9 * math.pi

    _high = np.array([1.0, 1.0, 1.0, 1.0, MAX_VEL_1, MAX_VEL_2], np.float32)
    observation_space = spaces.Box(-_high, _high, dtype=np.float32)
    action_space = spaces.Discrete(3)

    def initial(self, uniform: Tensor) -> Tensor:
        return _between(-0.1, 0.1, uniform).float().to(uniform.dtype)

    def observe(self, state: Tensor) -> Tensor:
        theta1, theta2, dtheta1, dtheta2 = state.unbind(1)
        return torch.stack((theta1.cos(), theta1.sin(), theta2.cos(), theta2.sin(), dtheta1, dtheta2), 1).float()

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        torque = action.to(state.dtype) - 1
        k1 = self._derivative(state, torque)
        k2 = self._derivative(state + self.DT / 2 * k1, torque)
        k3 = self._derivative(state + self.DT / 2 * k2, torque)
        k4 = self._derivative(state + self.DT * k3, torque)
        state = state + self.DT / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        theta1, theta2, dtheta1, dtheta2 = state.unbind(1)
        theta1, theta2 = _wrap(theta1), _wrap(theta2)
        dtheta1 = dtheta1.clamp(-self.MAX_VEL_1, self.MAX_VEL_1)
        dtheta2 = dtheta2.clamp(-self.MAX_VEL_2, self.MAX_VEL_2)
        terminated = -theta1.cos() - (theta2 + theta1).cos() > 1.0
        return torch.stack((theta1, theta2, dtheta1, dtheta2), 1), terminated.float() - 1, terminated

    def _derivative(self, state: Tensor, torque: Tensor) -> Tensor:
        theta1, theta2, dtheta1, dtheta2 = state.unbind(1)
        cos2, sin2 = theta2.cos(), theta2.sin()
        d1 = 0.25 + (1.25 + cos2) + 1.0 + 1.0
        d2 = 0.25 + 0.5 * cos2 + 1.0
        phi2 = 0.5 * self.GRAVITY * (theta1 + theta2 - math.pi / 2).cos()
        phi1 = (
            -0.5 * dtheta2.square() * sin2
            - dtheta2 * dtheta1 * sin2
            + 1.5 * self.GRAVITY * (theta1 - math.pi / 2).cos()
            + phi2
        )
        ratio = d2 / d1
        acc2 = (torque + ratio * phi1 - 0.5 * dtheta1.square() * sin2 - phi2) / (1.25 - d2.square() / d1)
        acc1 = -(d2 * acc2 + phi1) / d1
        return torch.stack((dtheta1, dtheta2, acc1, acc2), 1)


class MountainCar(NativeTask):
    """A car too weak for the hill it stands before, state (position, velocity).

    Moore, Efficient memory-based learning for robot control (1990), as gymnasium has it.
    """

    id = "MountainCar-v0"
    max_episode_steps = 200
    draws = 1

    MIN_POSITION = -1.2
    MAX_POSITION = 0.6
    MAX_SPEED = 0.07
    GOAL = 0.5
    FORCE = 0.001
    GRAVITY = 0.0025

    observation_space = spaces.Box(
        np.array([MIN_POSITION, -MAX_SPEED], np.float32), np.array([MAX_POSITION, MAX_SPEED], np.float32)
    )
    action_space: spaces.Space = spaces.Discrete(3)

    def initial(self, uniform: Tensor) -> Tensor:
        position = _between(-0.6, -0.4, uniform)
        return torch.cat((position, torch.zeros_like(position)), 1)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position, velocity = state.unbind(1)
        push = (action.to(state.dtype) - 1) * self.FORCE + (3 * position).cos() * -self.GRAVITY
        position, velocity, terminated = self._move(position, velocity + push)
        return torch.stack((position, velocity), 1), torch.full_like(position, -1.0, dtype=torch.float32), terminated

    def _move(self, position: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position, velocity and arrival after a step at `velocity`; the wall on the left stops the car."""
        velocity = velocity.clamp(-self.MAX_SPEED, self.MAX_SPEED)
        position = (position + velocity).clamp(self.MIN_POSITION, self.MAX_POSITION)
        velocity = velocity.masked_fill((position <= self.MIN_POSITION) & (velocity < 0), 0.0)
        return position, velocity, (position >= self.GOAL) & (velocity >= 0)


class MountainCarContinuous(MountainCar):
    """The mountain car with a motor of any strength in [-1, 1], which costs 0.1 of its square a step.

    Gymnasium keeps its state in float32 and computes in float32, all but the cosine; so does this, whatever the dtype
    of `state`.
    """

    id = "MountainCarContinuous-v0"
    max_episode_steps = 999

    GOAL = 0.45
    FORCE = 0.0015

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position, velocity = state.float().unbind(1)
        action = action.squeeze(1)
        slope = (3 * position).to(state.dtype).cos()
        push = action.clamp(-1.0, 1.0) * self.FORCE - (self.GRAVITY * slope).float()
        position, velocity, terminated = self._move(position, velocity + push)
        reward = 100.0 * terminated.float() - action.square() * 0.1
        return torch.stack((position, velocity), 1).to(state.dtype), reward, terminated


class Pendulum(NativeTask):
    """A pendulum to swing up and hold, state (theta, theta_dot) with theta 0 upright; never terminates."""

    id = "Pendulum-v1"
    max_episode_steps = 200
    draws = 2

    GRAVITY = 10.0
    DT = 0.05  # seconds a step
    MAX_SPEED = 8.0
    MAX_TORQUE = 2.0

    _high = np.array([1.0, 1.0, MAX_SPEED], np.float32)
    observation_space = spaces.Box(-_high, _high, dtype=np.float32)
    action_space = spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,), np.float32)

    def initial(self, uniform: Tensor) -> Tensor:
        theta, theta_dot = uniform.unbind(1)
        return torch.stack((_between(-math.pi, math.pi, theta), _between(-1.0, 1.0, theta_dot)), 1)

    def observe(self, state: Tensor) -> Tensor:
        theta, theta_dot = state.unbind(1)
        return torch.stack((theta.cos(), theta.sin(), theta_dot), 1).float()

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        theta, theta_dot = state.unbind(1)
        torque = action.squeeze(1).clamp(-self.MAX_TORQUE, self.MAX_TORQUE)
        angle = (theta + math.pi) % (2 * math.pi) - math.pi  # in [-pi, pi)
        cost = angle.square() + 0.1 * theta_dot.square() + 0.001 * torque.square()
        theta_dot = theta_dot + (1.5 * self.GRAVITY * theta.sin() + 3.0 * torque) * self.DT
        theta_dot = theta_dot.clamp(-self.MAX_SPEED, self.MAX_SPEED)
        theta = theta + theta_dot * self.DT
        return torch.stack((theta, theta_dot), 1), (-cost).float(), torch.zeros_like(theta, dtype=torch.bool)


class Catch(NativeTask):
    """A ball falls one row a step from a random column of the top row; a paddle on the bottom row has to be under it.

    Actions move the paddle left, not, right. When the ball reaches the last row the episode ends, with reward 1 where
    the paddle is under it and -1 where not, else 0. The state is (ball's column, ball's row, paddle's column). The game
    of Osband et al., Behaviour suite for reinforcement learning (2020), on a square board; pixels are 255 where ball or
    paddle is, else 0.

    Args:
        id: its gymnasium id.
        cells: rows and columns of the board.
        scale: side of a cell in pixels, so that the image has `cells * scale` rows and columns.
    """

    max_episode_steps = None
    draws = 1

    def __init__(self, id: str, cells: int, scale: int = 1):
        self.id, self.cells, self.scale = id, cells, scale
        self.observation_space = spaces.Box(0, 255, (1, cells * scale, cells * scale), np.uint8)
        self.action_space = spaces.Discrete(3)

    def initial(self, uniform: Tensor) -> Tensor:
        # A number just below 1 may have become 1 on its way to float32.
        column = (uniform * self.cells).floor().clamp(max=self.cells - 1)
        return torch.cat((column, torch.zeros_like(column), torch.full_like(column, self.cells // 2)), 1)

    def observe(self, state: Tensor) -> Tensor:
        cell = torch.arange(self.cells * self.scale, device=state.device) // self.scale
        ball_x, ball_y, paddle = (column.view(-1, 1, 1) for column in state.unbind(1))
        rows, columns = cell.view(-1, 1), cell
        image = (rows == ball_y) & (columns == ball_x) | (rows == self.cells - 1) & (columns == paddle)
        return image.unsqueeze(1).to(torch.uint8) * 255

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ball_x, ball_y, paddle = state.unbind(1)
        paddle = (paddle + action.to(state.dtype) - 1).clamp(0, self.cells - 1)
        ball_y = ball_y + 1
        terminated = ball_y >= self.cells - 1
        reward = 2 * (terminated & (paddle == ball_x)).float() - terminated.float()
        return torch.stack((ball_x, ball_y, paddle), 1), reward, terminated


def _between(low: float, high: float, uniform: Tensor) -> Tensor:
    """Numbers in [low, high) from numbers in [0, 1), rounded as numpy's `Generator.uniform` rounds them."""
    return low + (high - low) * uniform


def _wrap(angle: Tensor) -> Tensor:
    """The angle in [-pi, pi]; one that lies there already comes back as it was."""
    return angle - 2 * math.pi * (angle / (2 * math.pi)).round()


NATIVE_TASKS: dict[str, NativeTask] = {
    task.id: task
    for task in (
        CartPole(),
        Acrobot(),
        MountainCar(),
        MountainCarContinuous(),
        Pendulum(),
        Catch("rlcore/Catch-v0", cells=10),
        Catch("rlcore/CatchPixels-v0", cells=12, scale=7),  # 84 by 84 pixels
    )
}


def find_native(env_id: str) -> NativeTask | None:
    """The task with this id, or None where there is none."""
    return NATIVE_TASKS.get(env_id)
