"""Stored agents: made anew from their checkpoint, whose every part is checked before it is believed."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from rlcore.agents.config import WAYS
from rlcore.agents.setup import restart_seed
from rlcore.envs.make import BACKENDS, check_env_kwargs, check_imported
from rlcore.errors import CheckpointError, RlcoreError, UsageError, one_line
from rlcore.networks import ActorCritic, Torso
from rlcore.networks.normalize import RewardScaler
from rlcore.networks.reward import RewardNetwork
from rlcore.storage.checkpoint import check_like, read_newest, write_checkpoint
from rlcore.tracing import Share

if TYPE_CHECKING:
    from rlcore.agents.agent import Agent


WEIGHTS_FROM = ("init", "reference", "reward_model")  # hyperparameters that name files of weights
HARMLESS = 2**18  # weights that may be made whatever a file says
BEFORE = {"mask_actions": False}  # what a checkpoint means that is older than such a hyperparameter


def save(agent: Agent, path: str | Path, extra: dict[str, Any]) -> None:
    """As `Agent.save`."""
    state = of_all(agent)
    if state is None:
        return
    made_from = {"algo": type(agent).__name__.lower(), "env_id": agent.env_id, "env_kwargs": agent.env_kwargs}
    config = dataclasses.asdict(agent.config)
    write_checkpoint(path, {**made_from, "config": config, "agent": state, "extra": extra})


# What several processes store together is what one would have stored, whose first dimension are all environments. How
# gymnasium's stand is known of all those of a process at once, and kept for each: `{"ranks": [...]}`.

KEPT_BY_RANK = "ranks"


def of_all(agent: Agent) -> dict[str, Any] | None:
    """The agent's state with the environments of all processes; None in those that do not write it."""
    state, share = agent.state_dict(), agent.share
    if share.count == 1:
        return state
    own = {"collector": state["collector"], "scalers": _carries(agent, state), "network": _digest(agent)}
    parts = share.gather(own)
    if parts is None:
        return None
    odd = next((rank for rank, part in enumerate(parts) if part["network"] != parts[0]["network"]), None)
    if odd is not None:
        raise RlcoreError(f"the network of rank {odd} is no longer that of rank 0, so this run cannot go on")
    state["collector"] = _joined([part["collector"] for part in parts])
    for name, carry in _joined([part["scalers"] for part in parts]).items():
        state[name] = {**state[name], "carry": carry}
    return state


def _digest(agent: Agent) -> bytes:
    """What differs where networks differ."""
    return hashlib.sha256(agent.parameters.vector.detach().cpu().numpy().tobytes()).digest()


def _carries(agent: Agent, state: dict[str, Any]) -> dict[str, Tensor]:
    scalers = [name for name, module in agent.state.modules().items() if isinstance(module, RewardScaler)]
    return {name: state[name]["carry"] for name in scalers}


def _joined(parts: list[Any]) -> Any:
    """States of all processes as one: tensors one after the other, counts as those of rank 0."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part.cpu() for part in parts])
    if not isinstance(first, dict):
        return first
    joined = {name: _joined([part[name] for part in parts]) for name in first if name != "env"}
    if "env" in first:
        envs = [part["env"] for part in parts]
        joined["env"] = None if any(env is None for env in envs) else {KEPT_BY_RANK: envs}
    return joined


def of_one(state: dict[str, Any], agent: Agent) -> dict[str, Any]:
    """What this process has of a stored `state` of all environments."""
    share, scalers = agent.share, [n for n, m in agent.state.modules().items() if isinstance(m, RewardScaler)]
    collector = state.get("collector")
    if not isinstance(collector, dict):
        return state
    env = collector.get("env")
    by_rank = env.get(KEPT_BY_RANK) if isinstance(env, dict) else None
    if share.count == 1 and by_rank is None:
        return state
    if isinstance(by_rank, list) and len(by_rank) == share.count:
        env = by_rank[share.rank]
    elif env is not None:  # of another number of processes
        env = None
        _tell_new_episodes(share)
    collector = {n: _part(x, share) for n, x in collector.items() if n != "env"}
    collector |= {"env": env} if "env" in state["collector"] else {}
    parts = {
        n: {**state[n], "carry": _part(state[n].get("carry"), share)} for n in scalers if isinstance(state.get(n), dict)
    }
    return {**state, **parts, "collector": collector}


def _part(x: Any, share: Share) -> Any:
    """The rows of this process out of those of all, in each tensor."""
    if isinstance(x, dict):
        return {name: _part(inner, share) for name, inner in x.items()}
    if not isinstance(x, Tensor) or x.ndim == 0 or len(x) % share.count:
        return x
    return x[share.slice(len(x) // share.count)]


def _tell_new_episodes(share: Share) -> None:
    if share.rank == 0:
        count = f"{share.count} processes" if share.count > 1 else "one process"
        warnings.warn(
            f"the environments were those of another number of processes and begin new episodes in {count}; all else "
            "goes on as it was", stacklevel=4,
        )  # fmt: skip


def restore(agent: Agent, state: dict[str, Any], restore_envs: bool, changed: Iterable[str] = ()) -> None:
    """As `Agent.load_state_dict`; what depends on hyperparameters that have `changed` begins anew."""
    fresh, changed = agent.state.state_dict(), set(changed)
    state = of_one(as_of_now(state, fresh), agent)
    _check_kinds(state)
    envs_stay = restore_envs and not changed & {"num_envs", "backend", "squash", "mask_actions"}
    if "optimizer" in changed:
        state = {**state, "optimizer": fresh["optimizer"]}
    if "norm_reward" in changed and agent.reward_scaler is not None:
        state = {"reward_scaler": fresh["reward_scaler"], **state}
    for name, module in agent.state.modules().items():
        if isinstance(module, RewardScaler) and not envs_stay and isinstance(state.get(name), dict):
            state[name] = {**state[name], "carry": module.carry.clone()}
    agent.state.load_state_dict(state)
    for name in changed & set(agent.coefs):
        agent.coefs[name] = fresh["coefs"][name]
    if "learning_rate" in changed:
        for optimizer in agent.optimizers():
            optimizer.learning_rate = agent.config.learning_rate
    if envs_stay and state["backend"] == "native" and agent.backend != "native" and agent.engine.may_go_native:
        agent.use_backend("native")
    # Environments whose state is not plain data start afresh, with seeds that no earlier part of the run used.
    seed = restart_seed(agent.config.seed, state["iteration"])
    agent.collector.load_state_dict(state["collector"], seed, envs_stay)
    # After the collector, which draws its first noise from it.
    if len(state["generator"]) == len(agent.generator.get_state()):
        agent.generator.set_state(state["generator"])
    else:  # saved on another kind of device, whose generator has a state of another form
        agent.generator.manual_seed(seed)
    if agent.queries is not None:
        agent.queries.load_state_dict(state.get("queries"))
    agent.iteration = state["iteration"]
    agent.engine.go_on(None if changed else state["how"])


def as_of_now(state: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """A state as this version writes it; before, absent parts were None and optimisers those of torch."""
    state = {name: part for name, part in state.items() if part is not None or name in ("how", "backend")}
    for name in ("optimizer", "critic_optimizer"):
        if isinstance(state.get(name), dict) and "param_groups" in state[name]:
            state[name] = {**fresh.get(name, {}), **_of_torch(state[name], name)}
    return state


def _of_torch(state: dict[str, Any], name: str) -> dict[str, Any]:
    """The state of one of torch's optimisers as one of ours."""
    moments, groups = state.get("state"), state["param_groups"]
    rate = groups[0].get("lr") if isinstance(groups, list) and groups and isinstance(groups[0], dict) else None
    rows = list(moments.values()) if isinstance(moments, dict) else [None]
    names = {"step", *rows[0]} if rows and isinstance(rows[0], dict) else {"step"}
    whole = all(isinstance(row, dict) and all(isinstance(row.get(key), Tensor) for key in names) for row in rows)
    if not whole or not isinstance(rate, float | int):
        raise ValueError(f"{name} has other parts than expected")
    if not rows:  # none before the first step
        return {"learning_rate": float(rate)}
    vectors = {key: torch.cat([row[key].flatten() for row in rows]) for key in names - {"step"}}
    return {"learning_rate": float(rate), "step_count": rows[0]["step"].float(), **vectors}


def _check_kinds(state: dict[str, Any]) -> None:
    """Refuse a state that lacks a part beside what is declared, or has one of another kind."""
    kinds = {"generator": Tensor, "collector": dict, "how": str | None, "backend": str | None, "iteration": int}
    for name, kind in kinds.items():
        if name not in state or not isinstance(state[name], kind):
            raise ValueError(f"its part '{name}' is missing or of another kind")
    for name, known in (("how", WAYS), ("backend", BACKENDS)):
        if state[name] is not None and state[name] not in known:
            raise ValueError(f"its part '{name}' is '{state[name][:20]}', but may be one of {', '.join(known)}")
    if state["generator"].dtype != torch.uint8 or state["generator"].ndim != 1 or state["iteration"] < 0:
        raise ValueError("its part 'generator' or 'iteration' is none")


def read_told(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a run folder that can be read, or the file itself, and what it holds; of newer ones that
    cannot be read it is said."""
    file, payload, damaged = read_newest(path)
    for error in damaged.values():
        warnings.warn(f"{error}; {file} before it is taken", stacklevel=3)
    return file, payload


def with_weights_of(network: ActorCritic, path: str | Path) -> ActorCritic:
    """The network with the weights that a checkpoint or the newest of a run folder holds, or a CheckpointError where
    they do not fit; a reward network may begin with the torso of a policy."""
    path, payload = read_told(path)
    try:
        state = payload["agent"].get("network")
        if isinstance(network, RewardNetwork) and isinstance(state, dict):
            state = network.begun_from(state)
        check_like(state, dict(network.state_dict()), "network")
        network.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(f"the policy in {path} does not fit this environment or network: {error}") from error
    return network


def load_agent(
    agents: Mapping[str, type[Agent]],
    path: str | Path,
    env: str | VectorEnv | None = None,
    torso: Torso | None = None,
    env_kwargs: dict[str, Any] | None = None,
    **overrides: Any,
) -> Agent:
    """The agent stored in `path`, made anew by one of `agents`."""
    path, payload = read_told(path)
    algo, stored = payload["algo"], {**BEFORE, **payload["config"]}
    config = {**stored, **overrides}
    if algo not in agents:
        raise CheckpointError(
            f"the checkpoint {path} is of algorithm '{algo}', but known are {', '.join(agents)}; "
            "the module that has it must be imported first, with --import MODULE or in Python"
        )
    kwargs = _env_kwargs(payload, path, env, env_kwargs or {})
    if isinstance(env, VectorEnv):
        config["num_envs"] = env.num_envs
    elif "num_envs" not in overrides:
        _check_num_envs(payload, path)
    if torso is None and "hidden_sizes" not in overrides:
        _check_weights(payload, path)
    named = config.pop("torso", None)
    torso = named if torso is None else torso
    # They are stored too; the file they came from may be gone, or anyone's.
    left_out = [name for name in WEIGHTS_FROM if name in config and name not in overrides]
    for name in left_out:
        del config[name]
    own_envs, env = env is None, payload["env_id"] if env is None else env
    try:
        made_of = payload["agent"].get("reward_model_config")
        if isinstance(made_of, dict) and "reward_model" not in overrides:
            config["reward_model"] = agents["rewardmodel"](env, env_kwargs=kwargs, **made_of)
        agent = agents[algo](env, env_kwargs=kwargs, torso=torso, **config)
    except RlcoreError:
        raise
    except Exception as error:  # sizes and numbers out of a file can make anything fail
        raise CheckpointError(f"no agent can be made from the checkpoint {path}: {_reason(error)}") from error
    try:
        same_envs = own_envs and kwargs == payload["env_kwargs"]
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}
        changed = [name for name, value in given.items() if stored.get(name) != value]
        restore(agent, payload["agent"], same_envs, changed)
        agent.config = dataclasses.replace(agent.config, **{name: payload["config"][name] for name in left_out})
    except Exception as error:
        agent.close()
        sentence = f"the checkpoint {path} does not fit this network or environment: {_reason(error)}"
        raise CheckpointError(sentence) from error
    if "compile" in overrides:  # asked for now, so not as the run began
        agent.engine.go_on(None)
    return agent


def _env_kwargs(
    payload: dict[str, Any], path: str | Path, env: str | VectorEnv | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Arguments for the environment's constructor; what the file says of it is taken only where that is harmless."""
    if isinstance(env, VectorEnv):
        return {}
    if env is None:
        if payload["env_id"] is None:
            raise UsageError(f"the agent in {path} was trained on a VectorEnv of your own: pass load(path, env=...)")
        check_imported(payload["env_id"], f"the checkpoint {path}")
    kwargs = {**payload["env_kwargs"], **given}
    check_env_kwargs(kwargs, given, f"the checkpoint {path}")
    return kwargs


def _reason(error: Exception) -> str:
    return one_line(error)[:300] or type(error).__name__


def _check_num_envs(payload: dict[str, Any], path: str | Path) -> None:
    """Refuse a number of environments that is not that of the file's states, before any is made."""
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
        if named > max(held, HARMLESS):  # policies over texts name layers that they do not have
            raise CheckpointError(f"the checkpoint {path} does not hold the weights of the layers that it names")
