"""The agents, by name: those of rlcore and those that other installed packages offer."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv

from rlcore.agents.a2c import A2C, A2CConfig
from rlcore.agents.agent import Agent
from rlcore.agents.bc import BC, BCConfig, pretrain
from rlcore.agents.config import Config
from rlcore.agents.dpo import DPO, DPOConfig
from rlcore.agents.grpo import GRPO, GRPOConfig
from rlcore.agents.ppo import PPO, PPOConfig
from rlcore.agents.reinforce import REINFORCE, REINFORCEConfig
from rlcore.agents.rewardmodel import RewardModel, RewardModelConfig
from rlcore.agents.stored import load_agent
from rlcore.agents.trpo import TRPO, TRPOConfig
from rlcore.envs.make import import_module
from rlcore.errors import UsageError, did_you_mean
from rlcore.networks import Torso

ENTRY_POINTS = "rlcore.agents"  # the group under which a package names its agents


class AgentTable(Mapping[str, type[Agent]]):
    """Agent classes by their lower-case names, `own` ones first, whose names nobody can take, then any subclass of
    Agent that has been defined, then those that installed packages offer by an entry point `name = "module:Class"` in
    the group `rlcore.agents`.

    One of a package is imported when it is asked for. Going through the table gives `own` ones and those of packages,
    and leaves out, with a warning, what cannot be loaded.

    Raises:
        UsageError: where the agent asked for cannot be imported or is no agent.
        KeyError: where there is none of that name.
    """

    def __init__(self, own: dict[str, type[Agent]]):
        self._own = own
        self._loaded: dict[str, type[Agent]] = {}
        self._found: dict[str, EntryPoint] | None = None

    def __getitem__(self, name: str) -> type[Agent]:
        if name in self._own:
            return self._own[name]
        if name in (defined := _subclasses(Agent)):
            return defined[name]
        if name not in self._loaded:
            self._loaded[name] = _load_entry_point(self._entry_points()[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        for name in self._entry_points():
            try:
                self[name]
            except UsageError as error:
                warnings.warn(str(error), stacklevel=2)
            else:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _entry_points(self) -> dict[str, EntryPoint]:
        """Those found when first needed, by name; a name that is taken already is left to who has it."""
        if self._found is None:
            self._found = {}
            for point in entry_points(group=ENTRY_POINTS):
                if point.name in self._own or point.name in self._found:
                    warnings.warn(f"{_described(point)} is left out, because its name is taken", stacklevel=3)
                else:
                    self._found[point.name] = point
        return self._found


def _subclasses(agent: type[Agent]) -> dict[str, type[Agent]]:
    """All below a class by their lower-case names, the newest of each name."""
    found: dict[str, type[Agent]] = {}
    for below in agent.__subclasses__():
        found |= {below.__name__.lower(): below, **_subclasses(below)}
    return found


def _load_entry_point(point: EntryPoint) -> type[Agent]:
    try:
        agent = point.load()
    except Exception as error:  # whatever the import of foreign code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{_described(point)} cannot be loaded: {reason}") from error
    if not (isinstance(agent, type) and issubclass(agent, Agent)):
        raise UsageError(f"{_described(point)} is no agent: {point.value} must be a subclass of rlcore.agents.Agent")
    if agent.__name__.lower() != point.name:  # checkpoints and run folders name the class
        own = agent.__name__.lower()
        raise UsageError(f"{_described(point)} must bear the name of its class in lower case, '{own}'")
    return agent


def _described(point: EntryPoint) -> str:
    return f"agent '{point.name}' of package {point.dist.name if point.dist else point.value}"


OURS = (REINFORCE, A2C, PPO, TRPO, GRPO, BC, DPO, RewardModel)
AGENTS = AgentTable({agent.__name__.lower(): agent for agent in OURS})


def find_agent(name: str) -> type[Agent]:
    """The agent class of that name, or of the form "module:Class"; a UsageError with the nearest one where there is
    none."""
    if ":" in str(name):
        return _import_agent(*name.split(":", 1))
    if name not in AGENTS:
        near, known = did_you_mean(str(name), AGENTS), ", ".join(AGENTS)
        raise UsageError(
            f"'{name}' is not an algorithm of rlcore{near}; there are {known}, or module:Class of your own"
        )
    return AGENTS[name]


def _import_agent(module: str, name: str) -> type[Agent]:
    import_module(module)
    agent = getattr(sys.modules[module], name, None)
    if not (isinstance(agent, type) and issubclass(agent, Agent)):
        own = [x for x, y in vars(sys.modules[module]).items() if isinstance(y, type) and issubclass(y, Agent)]
        near = did_you_mean(name, own)
        raise UsageError(f"'{module}:{name}' is no agent: {module} has no subclass of rlcore.agents.Agent {name}{near}")
    if agent not in OURS and AGENTS[name.lower()] in OURS:  # checkpoints and run folders name the class
        raise UsageError(f"'{module}:{name}' must have another name, because '{name.lower()}' is one of rlcore's own")
    return agent


def load(
    path: str | Path,
    env: str | VectorEnv | None = None,
    torso: Torso | None = None,
    env_kwargs: dict[str, Any] | None = None,
    **overrides: Any,
) -> Agent:
    """The agent that `agent.save(path)` stored, ready to act, to be evaluated or to learn on.

    Args:
        path: a file written by `save`, a run folder, whose newest checkpoint is taken that can be read, or one of its
            checkpoints. Reading it executes nothing it brings along.
        env: needed where the agent was trained on a VectorEnv instance; may replace the environment otherwise. With it
            new episodes begin; without it they go on where they were.
        torso: needed where the agent was made with a torso of your own: code is not stored.
        env_kwargs: arguments of the environment's constructor that replace those stored under the same names. Stored
            texts that look like a path or an import are taken only where they are given here again.
        overrides: hyperparameters to change, such as `device`.

    Raises:
        CheckpointError: where the file is not a whole checkpoint of this version or does not fit `env` and `torso`.
    """
    return load_agent(AGENTS, path, env, torso, env_kwargs, **overrides)


__all__ = [
    "A2C", "AGENTS", "BC", "DPO", "GRPO", "PPO", "REINFORCE", "TRPO", "A2CConfig", "Agent", "AgentTable", "BCConfig",
    "Config", "DPOConfig", "GRPOConfig", "PPOConfig", "REINFORCEConfig", "RewardModel", "RewardModelConfig",
    "TRPOConfig", "load", "pretrain",
]  # fmt: skip
