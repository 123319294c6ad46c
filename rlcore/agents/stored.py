"""Stored agents: made anew from their checkpoint, whose every part is checked before it is believed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from rlcore.agents.engine import WAYS
from rlcore.storage.checkpoint import check_like, read_agent
from rlcore.envs.make import BACKENDS, check_env_kwargs, check_imported
from rlcore.errors import CheckpointError, RlcoreError, UsageError, one_line
from rlcore.networks import Torso

if TYPE_CHECKING:
    from rlcore.agents.agent import Agent


def check_kinds(state: dict[str, Any]) -> None:
    """Refuse a state that lacks a part, or has one of another kind; each part looks at its own inside."""
    kinds = {
        "network": dict, "optimizer": dict, "critic_optimizer": dict | None, "generator": Tensor, "collector": dict,
        "reward_scaler": dict | None, "coefs": dict, "how": str | None, "backend": str | None,
        "reference": dict | None, "iteration": int,
    }  # fmt: skip
    for name, kind in kinds.items():
        if name not in state or not isinstance(state[name], kind):
            raise ValueError(f"its part '{name}' is missing or of another kind")
    for name, known in (("how", WAYS), ("backend", BACKENDS)):
        if state[name] is not None and state[name] not in known:
            raise ValueError(f"its part '{name}' is '{state[name][:20]}', but may be one of {', '.join(known)}")
    if state["generator"].dtype != torch.uint8 or state["generator"].ndim != 1 or state["iteration"] < 0:
        raise ValueError("its part 'generator' or 'iteration' is none")


def restore_network(module: torch.nn.Module, state: Any, name: str) -> None:
    """`module.load_state_dict(state)`, for a state of exactly its tensors.

    Raises:
        ValueError: names the first part that differs.
    """
    check_like(state, dict(module.state_dict()), name)
    module.load_state_dict(state)


def load_agent(
    agents: Mapping[str, type[Agent]],
    path: str | Path,
    env: str | VectorEnv | None = None,
    torso: Torso | None = None,
    env_kwargs: dict[str, Any] | None = None,
    **overrides: Any,
) -> Agent:
    """The agent stored in `path`, made anew by one of `agents`."""
    payload = read_agent(path)
    algo, config = payload["algo"], {**payload["config"], **overrides}
    if algo not in agents:
        raise CheckpointError(f"the checkpoint {path} is of algorithm '{algo}', but known are {', '.join(agents)}")
    kwargs = _env_kwargs(payload, path, env, env_kwargs or {})
    if isinstance(env, VectorEnv):
        config["num_envs"] = env.num_envs
    elif "num_envs" not in overrides:
        _check_num_envs(payload, path)
    if torso is None and "hidden_sizes" not in overrides:
        _check_weights(payload, path)
    named = config.pop("torso", None)
    torso = named if torso is None else torso
    if "reference" not in overrides:  # its weights are stored too; the file they came from may be gone, or anyone's
        config.pop("reference", None)
    try:
        agent = agents[algo](payload["env_id"] if env is None else env, env_kwargs=kwargs, torso=torso, **config)
    except RlcoreError:
        raise
    except Exception as error:  # sizes and numbers out of a file can make anything fail
        raise CheckpointError(f"no agent can be made from the checkpoint {path}: {_reason(error)}") from error
    try:
        agent.load_state_dict(payload["agent"], restore_envs=env is None and kwargs == payload["env_kwargs"])
        if "reference" in payload["config"] and "reference" not in overrides:
            agent.config = dataclasses.replace(agent.config, reference=payload["config"]["reference"])
    except Exception as error:
        agent.close()
        problem = f"the checkpoint {path} does not fit this network or environment: {_reason(error)}"
        raise CheckpointError(problem) from error
    if "compile" in overrides:  # asked for now, so not as the run began
        agent.engine.how = None
    return agent


def _env_kwargs(
    payload: dict[str, Any], path: str | Path, env: str | VectorEnv | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Arguments for the environment's constructor; what the file says of it is taken only where that is harmless."""
    if isinstance(env, VectorEnv):
        return {}
    if env is None and payload["env_id"] is None:
        raise UsageError(f"the agent in {path} was trained on a VectorEnv of your own: pass load(path, env=...)")
    if env is None:
        check_imported(payload["env_id"], f"the checkpoint {path}")
    kwargs = {**payload["env_kwargs"], **given}
    check_env_kwargs(kwargs, given, f"the checkpoint {path}")
    return kwargs


def _reason(error: Exception) -> str:
    return one_line(error)[:300] or type(error).__name__


def _check_num_envs(payload: dict[str, Any], path: str | Path) -> None:
    """Refuse a number of environments that the file does not hold the states of, before any is made."""
    collector, claimed = payload["agent"].get("collector"), payload["config"].get("num_envs")
    collector = collector if isinstance(collector, dict) else {}
    carry = collector.get("carry") if isinstance(collector.get("carry"), dict) else {}
    firsts = collector.get("next_first", carry.get("first"))
    if not isinstance(firsts, Tensor) or firsts.shape != (claimed,):
        raise CheckpointError(f"the checkpoint {path} does not hold the {str(claimed)[:20]} environments that it names")


def _check_weights(payload: dict[str, Any], path: str | Path) -> None:
    """Refuse layers with more weights than the file holds, before any is made."""
    network, sizes = payload["agent"].get("network"), payload["config"].get("hidden_sizes", ())
    held = sum(x.numel() for x in network.values() if isinstance(x, Tensor)) if isinstance(network, dict) else 0
    if isinstance(sizes, list | tuple) and all(type(size) is int for size in sizes):
        named = max(sum(map(abs, sizes)), sum(abs(a * b) for a, b in pairwise(sizes)))
        if named > held:
            raise CheckpointError(f"the checkpoint {path} does not hold the weights of the layers that it names")
