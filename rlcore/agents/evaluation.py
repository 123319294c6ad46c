"""Playing whole episodes with a fixed policy."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from rlcore.agents.setup import acting_generator
from rlcore.envs import make_vec
from rlcore.envs.adapter import VectorAdapter
from rlcore.errors import EnvironmentFault, UsageError
from rlcore.networks import ActorCritic
from rlcore.networks.distributions import distribution_class, noise_size
from rlcore.spaces import map_parts

if TYPE_CHECKING:
    from rlcore.agents.agent import Agent

MAX_ENVS = 100


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of evaluation episodes, float64 and int64 arrays `[episodes]`."""

    returns: np.ndarray
    lengths: np.ndarray

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Population standard deviation of the return over episodes."""
        return float(self.returns.std())

    def __repr__(self) -> str:
        return f"Evaluation(mean={self.mean:.2f}, std={self.std:.2f}, episodes={len(self.returns)})"


class Actor:
    """Turns observations `[N, ...]` of an adapter into actions `[N, ...]`, greedy or drawn, on the network's device.
    A policy with memory remembers from call to call."""

    def __init__(self, network: ActorCritic, envs: VectorAdapter, generator: torch.Generator):
        self.network, self.envs, self.generator = network, envs, generator
        self.carry: dict[str, torch.Tensor] = {}
        self.draw_noise = distribution_class(envs.action_spec).noise_

    @torch.inference_mode()
    def __call__(self, obs: Any, deterministic: bool = True, first: Any = None) -> np.ndarray:
        device = self.generator.device
        tensors = map_parts(lambda x, part: torch.from_numpy(np.array(x)).to(device, part.dtype), obs, self.envs.parts)
        some = next(iter(tensors.values())) if isinstance(tensors, dict) else tensors
        policy, _, self.carry = self.network.step(tensors, *self._memory(len(some), first))
        if deterministic:
            return policy.mode().cpu().numpy()
        noise = torch.empty(len(policy.params), noise_size(self.envs.action_spec), device=device)
        return policy.sample(self.draw_noise(noise, self.generator)).cpu().numpy()

    def _memory(self, count: int, first: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """What was remembered of so many environments, and whose episode begins."""
        begins = torch.as_tensor(False if first is None else first, dtype=torch.bool, device=self.generator.device)
        if begins.ndim and begins.shape != (count,):
            raise UsageError(f"first has shape {list(begins.shape)}, but there are {count} observations")
        carry, remembered = self.carry, len(next(iter(self.carry.values()), ()))
        if begins.all() or not carry:
            carry = self.network.initial_carry(count)
        elif remembered != count:
            problem = f"there are {count} observations, but the policy remembers {remembered} environments"
            raise UsageError(f"{problem}; pass first=True where episodes begin")
        return carry, begins.expand(count)


def evaluate(
    agent: Agent, episodes: int, seed: int | None, deterministic: bool, env: str | VectorEnv | None, max_steps: int
) -> Evaluation:
    """As `Agent.evaluate`; a UsageError where `env` is needed, or does not fit."""
    if not isinstance(episodes, int) or isinstance(episodes, bool) or episodes < 1:
        raise UsageError(f"episodes is {episodes!r}, but must be a whole number of at least 1")
    if env is None and agent.env_id is None:
        raise UsageError("this agent was given a VectorEnv and cannot make another: pass evaluate(env=...)")
    if isinstance(env, VectorEnv):
        return _play(agent, env, episodes, seed, deterministic, max_steps)
    config, kwargs = agent.config, agent.env_kwargs if env in (None, agent.env_id) else {}
    # A process each, or much memory each: no more than in training.
    heavy = config.backend == "async" or (agent.envs.metadata or {}).get("heavy", False)
    most, timeout = config.num_envs if heavy else MAX_ENVS, config.env_timeout
    # A fault ends an evaluation in any case: a score with one in it is none.
    envs = make_vec(env or agent.env_id, min(episodes, most), config.backend, env_timeout=timeout, **kwargs)
    try:
        return _play(agent, envs, episodes, seed, deterministic, max_steps)
    finally:
        envs.close()


def _play(
    agent: Agent, envs: VectorEnv, episodes: int, seed: int | None, deterministic: bool, max_steps: int
) -> Evaluation:
    adapter = VectorAdapter(envs, agent.config.squash, agent.adapter.action_spec.masked)
    if (adapter.parts, adapter.action_spec.kind) != (agent.adapter.parts, agent.adapter.action_spec.kind):
        raise UsageError("the environment to evaluate in has other observations or actions than the one trained on")
    seed = secrets.randbelow(2**31) if seed is None else seed
    actor = Actor(agent.network, adapter, acting_generator(seed, agent.device))
    return play_episodes(actor, adapter, episodes, seed, deterministic, max_steps)


def play_episodes(
    actor: Actor, envs: VectorAdapter, episodes: int, seed: int | None, deterministic: bool, max_steps: int
) -> Evaluation:
    """Play `episodes` whole episodes, a number fixed in advance in each environment, since taking whichever end first
    would favour short ones. An episode still running after `max_steps` is cut; an environment that fails, or returns a
    reward that is not finite, is an EnvironmentFault."""
    envs.clock = "at step {:,} of the evaluation"
    quota = np.full(envs.num_envs, episodes // envs.num_envs)
    quota[: episodes % envs.num_envs] += 1
    returns: list[list[float]] = [[] for _ in quota]  # per environment, because they finish out of order
    lengths: list[list[int]] = [[] for _ in quota]
    running_return, running_length = np.zeros(len(quota)), np.zeros(len(quota), dtype=np.int64)
    played = np.zeros(len(quota), dtype=np.int64)
    obs, first = envs.reset(seed), np.ones(len(quota), dtype=bool)
    while (played < quota).any():
        step = envs.step(actor(obs, deterministic, first))
        obs, first, bad = step.obs, step.first, np.flatnonzero(~np.isfinite(step.rewards))
        if len(bad):
            when = envs.clock.format(envs.steps)
            raise EnvironmentFault(f"environment {bad[0]} returned {step.rewards[bad[0]]} in its reward {when}")
        running_return += np.where(step.real, step.rewards, 0.0)
        running_length += step.real
        done = step.done & step.real
        cut = ~done & (running_length >= max_steps)
        if cut.any():
            obs, first, done = envs.restart(cut, max_steps), first | cut, done | cut
        for n in np.flatnonzero(done):
            if played[n] < quota[n]:
                returns[n].append(float(running_return[n]))
                lengths[n].append(int(running_length[n]))
                played[n] += 1
        running_return[done], running_length[done] = 0.0, 0
    return Evaluation(np.concatenate(returns).astype(np.float64), np.concatenate(lengths).astype(np.int64))
