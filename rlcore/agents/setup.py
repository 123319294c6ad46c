"""What an agent is made of: its environments, configuration and network."""

from __future__ import annotations

import dataclasses
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv

from rlcore.agents.config import NETWORK, Config, make_config
from rlcore.collect import Collector, HostCollector, NativeCollector
from rlcore.envs import make_vec
from rlcore.envs.make import find_spec, native_twin, resolve_backend
from rlcore.envs.native import NativeTask
from rlcore.envs.text import TextTask
from rlcore.errors import UsageError, shown
from rlcore.networks import GRU, LSTM, ActorCritic, Memory, RecurrentActorCritic, TextActorCritic, Torso, Transformer
from rlcore.networks.text import is_text
from rlcore.networks.torsos import is_image
from rlcore.preferences.collector import PREFERENCE, PairCollector, SegmentCollector
from rlcore.preferences.data import Preferences, Segments, read_demonstrations, read_preferences
from rlcore.preferences.demonstrations import ExpertCollector, expert_of
from rlcore.presets import preset_of
from rlcore.spaces import Field, Part
from rlcore.tracing import Share, share

if TYPE_CHECKING:
    from rlcore.agents.agent import Agent
    from rlcore.agents.rewardmodel import RewardModel

SEGMENT = 50  # rows of segments to compare, unless a reward model says otherwise
ACTING_STREAM = 0x5EED  # keeps the noise of acting and evaluating apart from that of training


def configure(
    kind: type[Agent], env: Any, torso: Torso | str | None, memory: Any, hyperparameters: dict[str, Any]
) -> Config:
    """The configuration that hyperparameters give, where `torso` and `memory` may be some too; a VectorEnv gives
    num_envs: of several processes, each gives its own part of them."""
    named = {name: x for name, x in (("torso", torso), ("memory", memory)) if x is not None and not callable(x)}
    hyperparameters = {**hyperparameters, **named}
    if isinstance(env, VectorEnv) and kind.learns_from != "pairs":  # of which it may have any number
        count = share().count
        given, there = hyperparameters.get("num_envs", env.num_envs * count), env.num_envs * count
        if given != there:
            of_each = f" in each of {count} processes" if count > 1 else ""
            raise UsageError(f"num_envs is {given}, but the VectorEnv has {env.num_envs} environments{of_each}")
        hyperparameters = {**hyperparameters, "num_envs": there}
    return make_config(kind.Config, hyperparameters)


def check_share(agent: Agent) -> None:
    """Refuse what cannot be split over several processes."""
    count, config = agent.share.count, agent.config
    if count == 1:
        return
    if agent.learns_from != "rollouts" or config.comparisons:
        what = (
            f"{type(agent).__name__} learns from what is stored" if not config.comparisons else "comparisons are asked"
        )
        raise UsageError(f"there are {count} processes, but {what}, for which there may be 1")
    G = config.group_size if agent.group_starts else 1
    if config.num_envs % (count * G):
        groups = (
            f" × group_size = {count} × {G} = {count * G}, since groups are never split" if G > 1 else f" = {count}"
        )
        raise UsageError(f"num_envs is {config.num_envs}, but must be a multiple of the number of processes{groups}")


def environments(agent: Agent, env: str | VectorEnv) -> tuple[VectorEnv, str | None]:
    """The vector environment, and how one made from an id is stepped."""
    if not isinstance(env, str):
        return own_envs(env, agent.config, agent.env_kwargs), None
    restarts, own_seeds = agent.config.on_env_error == "restart", agent.group_starts or agent.share.count > 1
    backend = resolve_backend(find_spec(env), agent.config.backend, own_seeds, restarts)
    if agent.config.backend == "auto" and not restarts and text_task(agent):
        backend = "native"  # gymnasium's single ones would be the same functions, called for each
    return maker(agent, backend)(), backend


def maker(agent: Agent, backend: str) -> Callable[[], VectorEnv]:
    """What makes the environments of an agent that was given an id."""
    config = agent.config
    faults: dict[str, Any] = {"env_timeout": config.env_timeout, "on_env_error": config.on_env_error}
    count = 1 if agent.learns_from == "pairs" else config.num_envs // agent.share.count  # 1 for its spaces alone
    return partial(make_vec, agent.env_id, count, backend, **faults, **agent.env_kwargs)


def completed(agent: Agent, torso: Torso | str | None) -> Config:
    """The configuration with values in the place of those that were left open."""
    config = agent.config
    found: dict[str, Any] = {}
    if config.seed is None:
        found["seed"] = agent.share.broadcast(secrets.randbelow(2**31))
    if config.num_steps is None:
        found["num_steps"] = stored_length(agent) or time_limit(agent)
    if config.shared is None:
        found["shared"] = shares_torso(agent.adapter.parts, torso or config.torso) and not agent.critic_apart
    return dataclasses.replace(config, **found)


def with_preset(
    kind: type[Agent], env: Any, preset: str, hyperparameters: dict[str, Any]
) -> tuple[str, int | None, dict[str, Any]]:
    """The name and steps of a preset, and hyperparameters with its values where none are given."""
    if not isinstance(env, str):
        raise UsageError(f"preset is {preset!r}, which is for an environment id; this agent was given a VectorEnv")
    used, values = preset_of(kind, env, preset)
    return used, values.pop("total_steps", None), {**values, **kind.Config.implied(hyperparameters), **hyperparameters}


def steps_of(total_steps: Any, of_preset: int | None = None) -> int:
    """A number of steps, of the preset where none is given; 1e6 is welcome."""
    if total_steps is None and of_preset is None:
        raise UsageError("total_steps is needed where the agent has no preset that tells it")
    total_steps = of_preset if total_steps is None else total_steps
    if isinstance(total_steps, float) and total_steps.is_integer():
        total_steps = int(total_steps)
    if not isinstance(total_steps, int) or isinstance(total_steps, bool) or total_steps < 1:
        raise UsageError(f"total_steps is {shown(total_steps)}, but must be a whole number of at least 1")
    return total_steps


def tell_of_annealing(agent: Agent, total_steps: int) -> None:
    """Warn where training goes on that was to end, since what had been annealed to its end goes on above it."""
    ended = agent.annealed_to
    if ended is not None and agent.config.anneal_lr and agent.global_step < total_steps:
        left = 1 - agent.global_step / total_steps
        warnings.warn(
            f"the learning rate had gone down to 0 at {ended:,} steps; on the way to {total_steps:,} it goes on from "
            f"{left:.2g} of its start (anneal_lr=False keeps it the same)",
            stacklevel=4,
        )


def own_envs(env: Any, config: Config, env_kwargs: dict[str, Any]) -> VectorEnv:
    """A vector environment of the user's own, or a UsageError where it is none or cannot be what is asked for."""
    if isinstance(env, gymnasium.Env):
        way = "its id, of which num_envs copies are made, or gymnasium.vector.SyncVectorEnv([lambda: env])"
        raise UsageError(f"env is a single environment ({env}); pass {way}")
    if not isinstance(env, VectorEnv):
        raise UsageError(f"env is of type {type(env).__name__}, but must be an environment id or a gymnasium VectorEnv")
    for_id = "for an environment id; this agent was given a VectorEnv"
    if config.on_env_error == "restart":
        raise UsageError(f"on_env_error is 'restart', which is {for_id}, whose environments it cannot make anew")
    if env_kwargs:
        raise UsageError(f"env_kwargs are {for_id}, which is made already")
    return env


def added_fields(agent: Agent) -> list[Field]:
    """What a transition holds because of the environments, the policy and the agent."""
    of_environments = [dataclasses.replace(field, source="environment") for field in agent.adapter.fields]
    of_policy = [dataclasses.replace(field, source="policy") for field in agent.network.fields()]
    of_pairs = [Field(PREFERENCE)] if agent.learns_from == "pairs" else []
    return [*of_environments, *of_policy, *of_pairs, *agent.fields()]


def make_network(agent: Agent, torso: Torso | None, memory: Callable[[int], Memory] | None) -> ActorCritic:
    """The agent's network; `torso` and `memory` are the user's own, where there are any."""
    config, spaces = agent.config, (agent.adapter.observation_space, agent.adapter.action_spec)
    options: dict[str, Any] = dict(
        shared=config.shared, torso=config.torso if torso is None else torso, hidden_sizes=config.hidden_sizes,
        activation=config.activation, log_std_init=config.log_std_init,
        state_dependent_std=config.state_dependent_std, norm_obs=config.norm_obs, precision=config.precision,
    )  # fmt: skip
    if memory is None and config.memory is None:
        return ActorCritic(*spaces, **options)
    if memory is None:
        kind = {"gru": GRU, "lstm": LSTM, "transformer": Transformer}[config.memory]
        context = {"context": _context(agent)} if config.memory == "transformer" else {}
        memory = partial(kind, size=config.memory_size, **context)
    kind = TextActorCritic if is_text(agent.adapter.parts) else RecurrentActorCritic
    return kind(*spaces, memory=memory, **options)


def _context(agent: Agent) -> int:
    """What a transformer looks back upon: the whole of a text, else as configured."""
    parts: Any = agent.adapter.parts
    return parts["mask"].shape[0] if is_text(parts) else agent.config.memory_context


def reward_model_for(agent: Agent, given: Agent | str | None) -> RewardModel:
    """The RewardModel whose rewards an agent is to learn from: the one `given` or named, or else a new one."""
    config = agent.config
    if agent.learns_from != "rollouts":
        raise UsageError(f"a reward model is given to {type(agent).__name__}, which does not learn from rewards")
    model = _reward_model(agent, config.reward_model if given is None else given)
    if (model.adapter.parts, model.adapter.action_spec.nvec) != (agent.adapter.parts, agent.adapter.action_spec.nvec):
        raise UsageError("the reward model is of an environment with other observations or actions")
    if model.network.remembers and not config.whole_episodes:
        problem = "the reward model has a memory, which would have to know what was before a rollout"
        raise UsageError(f"{problem}; whole_episodes may be true")
    return model


def _reward_model(agent: Agent, given: Agent | str | None) -> RewardModel:
    """The one `given`, or stored there, or a new one whose network is made as the agent's."""
    from rlcore.agents import RewardModel, load  # noqa: PLC0415  they are made with what is here

    if given is not None:
        model = load(given, device=str(agent.device)) if isinstance(given, str) else given
        if not isinstance(model, RewardModel):
            raise UsageError(f"reward_model is a {type(model).__name__}, but must be a RewardModel")
        return model
    if agent.env_id is None:
        raise UsageError("comparisons are for an environment id, unless a reward_model is given with them")
    config, texts = agent.config, is_text(agent.adapter.parts)
    own = {name: getattr(config, name) for name in NETWORK if name != "shared" and (name != "memory" or texts)}
    length = config.num_steps if texts else min(SEGMENT, config.num_steps)
    return RewardModel(
        agent.env_id, env_kwargs=agent.env_kwargs, num_steps=length, seed=config.seed, device=str(agent.device),
        compile=False, **own,
    )  # fmt: skip


def sequence_length(agent: Agent) -> int:
    """Rows of the sequences that the agent's policy learns from, 0 where it has no memory.

    Raises:
        UsageError: where they do not divide a rollout, or cannot be split into minibatches.
    """
    config, length = agent.config, agent.config.sequence_length
    if not agent.network.remembers:
        if length is not None:
            raise UsageError(f"sequence_length is {length}, but the policy has no memory; it may be none")
        return 0
    if config.reward_kl_coef and not config.whole_episodes:  # whose reference would remember what the policy did
        problem = f"reward_kl_coef is {config.reward_kl_coef:g}, but a reference with memory needs whole episodes"
        raise UsageError(f"{problem}; whole_episodes may be true")
    if agent.network.reads_first and not config.whole_episodes:
        raise UsageError("whole_episodes is false, but a policy with memory learns texts whole; it may be true")
    if config.whole_episodes and length not in (None, config.num_steps):
        kind = type(agent).__name__
        raise UsageError(f"sequence_length is {length}, but {kind} learns from whole episodes; it may be none")
    length = config.num_steps if length is None else length
    if config.num_steps % length:
        raise UsageError(f"sequence_length is {length}, but must divide num_steps = {config.num_steps}")
    sequences = config.num_steps // length * config.num_envs
    if sequences % config.num_minibatches:
        product = f"num_envs × num_steps / sequence_length = {config.num_envs} × {config.num_steps} / {length}"
        problem = f"num_minibatches is {config.num_minibatches}, but with memory must divide the number of sequences"
        raise UsageError(f"{problem}, {product} = {sequences}")
    return length


def make_collector(agent: Agent, backend: str | None) -> Collector:
    """The collector for the agent's environments; by backend "native", for their native twin."""
    config, arguments = agent.config, [agent.adapter, agent.buffer, agent.generator]
    arguments += config.whole_episodes, agent.needs_values, config.noise_correlation
    if agent.learns_from == "pairs":
        return PairCollector(config.held_out, partial(pairs, agent), *arguments)
    if agent.learns_from == "expert" and config.demonstrations is not None:
        return SegmentCollector(partial(demonstrations, agent), *arguments)
    if agent.learns_from == "expert":
        return ExpertCollector(expert_of(native_task(agent), agent.env_id), *arguments)
    if backend == "native":
        return NativeCollector(native_task(agent), *arguments)
    group_size = config.group_size if agent.group_starts else 1
    again = maker(agent, backend) if backend in ("sync", "vector") else None
    return HostCollector(*arguments, group_size=group_size, seed=config.seed, again=again)


def acting_generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator of actions for use beside training."""
    return torch.Generator(device).manual_seed(seed ^ ACTING_STREAM)


def restart_seed(seed: int, iteration: int) -> int:
    """The seed of environments that begin anew after `iteration` rollouts.

    Gymnasium gives environment n seed + n, so seeds 0 and 1 as they stand would share all starts but one.
    """
    return int(np.random.SeedSequence([seed, iteration]).generate_state(1)[0] % 2**31)


def group_seeds(config: Any, iteration: int) -> list[int]:
    """A seed for each environment: members of a group have the same, and each iteration and group another."""
    seeds = np.random.SeedSequence([config.seed, iteration]).generate_state(config.num_envs // config.group_size)
    return [int(one % 2**31) for one in seeds.repeat(config.group_size)]


def resolve_device(name: str, own: Share | None = None) -> torch.device:
    """The torch device for cpu, cuda, cuda:K or auto, or a UsageError where it is not there; several processes on one
    machine take a card each."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and own is not None and own.count > 1 and torch.cuda.is_available():
        name = f"cuda:{own.local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    # torch keeps 8 bits of the number: cuda:300 would be cuda:44
    if device is None or device.type not in ("cpu", "cuda") or (device.index is not None and str(device) != name):
        raise UsageError(f"device is '{name}', but may be cpu, cuda, cuda:K or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device is '{name}', but no CUDA device is available here; it may be cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device is '{name}', but there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread of the CPU: its work rounds differently with each number of them, and the weights that a
    run begins with must depend on its seed alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_group_starts(obs: Any, group_size: int) -> None:
    """Refuse environments that do not start alike from the same seed."""
    for part in map(np.asarray, obs.values() if isinstance(obs, dict) else [obs]):
        if not np.array_equal(part, part[::group_size].repeat(group_size, 0)):
            problem = "members of a group were reset with the same seed but their first observations differ"
            reason = "this environment does not reproduce a start from a seed, so its groups would share nothing"
            raise UsageError(f"{problem}; {reason}")


def native_task(agent: Agent) -> NativeTask | None:
    """The native twin of the environments of an agent that was given an id, where there is one."""
    return native_twin(find_spec(agent.env_id), agent.env_kwargs) if agent.env_id else None


def text_task(agent: Agent) -> TextTask | None:
    """The same where it is made of texts, else None."""
    task = native_task(agent)
    return task if isinstance(task, TextTask) else None


def stored_length(agent: Agent) -> int | None:
    """Rows of the longest segment that the agent learns from, where these are stored."""
    if agent.learns_from == "pairs":
        given, share = pairs(agent), agent.config.held_out
        if share and not (given.label[given.held_out(share)] != 0.5).any():
            problem = f"of {len(given)} pairs, held_out = {share:g} leaves none to measure on with a preference"
            raise UsageError(f"{problem}; it may be larger, or there may be more pairs")
        return given.length
    return demonstrations(agent).length if getattr(agent.config, "demonstrations", None) is not None else None


def demonstrations(agent: Agent) -> Segments:
    """Those in the agent's file."""
    if agent.demonstrations is None:
        path = agent.config.demonstrations
        agent.demonstrations = read_demonstrations(path, agent.adapter, text_task(agent))
    return agent.demonstrations


def pairs(agent: Agent) -> Preferences:
    """Those that the agent was given, or that are in its file; a UsageError where there are none."""
    path = agent.config.preferences
    if agent.pairs is None and path is None:
        raise UsageError("preferences is none, but may be a file of pairs, or Preferences")
    if agent.pairs is None:
        agent.pairs = read_preferences(path, agent.adapter, text_task(agent))
    return agent.pairs


def time_limit(agent: Agent) -> int:
    """The environment's own longest episode, or a UsageError where it has none."""
    task, envs = native_task(agent), agent.envs
    if task is not None and task.longest is not None:
        return task.longest
    single = getattr(envs.unwrapped, "envs", None)  # a SyncVectorEnv of one's own has no spec, its environments may
    spec = single[0].spec if envs.spec is None and single else envs.spec
    limit = getattr(spec, "max_episode_steps", None)
    if limit is None:
        problem = "num_steps is none, which means the environment's time limit, but this environment has none"
        raise UsageError(f"{problem}; give num_steps, the longest episode to collect")
    return int(limit)


def shares_torso(parts: Part | dict[str, Part], torso: Torso | str) -> bool:
    """Whether actor and critic share a torso unless told otherwise: where it is one of our convolutions."""
    images = map(is_image, parts.values() if isinstance(parts, dict) else [parts])
    return torso in ("auto", "nature", "impala") and any(images)
