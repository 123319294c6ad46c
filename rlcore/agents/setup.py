"""What an agent needs to know of its device and its environments before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from rlcore.errors import UsageError
from rlcore.networks import Torso
from rlcore.spaces import Part
from rlcore.networks.torsos import is_image


def resolve_device(name: str) -> torch.device:
    """The torch device for cpu, cuda, cuda:K or auto, or a UsageError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    """Let torch use one thread of the CPU: what splits its work among several rounds differently with each number of
    them, and the weights that a run begins with must depend on its seed alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def with_num_envs_of(envs: VectorEnv, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters with the number of environments that a vector environment has."""
    given = hyperparameters.get("num_envs", envs.num_envs)
    if given != envs.num_envs:
        raise UsageError(f"num_envs is {given}, but the VectorEnv has {envs.num_envs} environments")
    return {**hyperparameters, "num_envs": envs.num_envs}


def check_group_starts(obs: Any, group_size: int) -> None:
    """Refuse environments that do not start alike from the same seed."""
    for part in obs.values() if isinstance(obs, dict) else [obs]:
        part = np.asarray(part)
        first = part[::group_size].repeat(group_size, 0)
        if not np.array_equal(part, first):
            raise UsageError(
                "members of a group were reset with the same seed but their first observations differ; "
                "this environment does not reproduce a start from a seed, so its groups would share nothing"
            )


def time_limit(envs: VectorEnv) -> int:
    """The environment's own longest episode, or a UsageError where it has none."""
    single = getattr(envs.unwrapped, "envs", None)  # a SyncVectorEnv of one's own has no spec, its environments may
    spec = single[0].spec if envs.spec is None and single else envs.spec
    limit = getattr(spec, "max_episode_steps", None)
    if limit is None:
        raise UsageError(
            "num_steps is none, which means the environment's time limit, but this environment has none; "
            "give num_steps, the longest episode to collect"
        )
    return int(limit)


def shares_torso(parts: Part | dict[str, Part], torso: Torso | str) -> bool:
    """Whether actor and critic share a torso unless told otherwise: where it is one of our convolutions."""
    parts = list(parts.values()) if isinstance(parts, dict) else [parts]
    return torso in ("auto", "nature", "impala") and any(map(is_image, parts))
