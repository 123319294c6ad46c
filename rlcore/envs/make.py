"""Vector environments by name."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rlcore.envs import atari, envpool
from rlcore.envs.native import NATIVE_TASKS, NativeTask, find_native
from rlcore.envs.native_vector import NativeVectorEnv
from rlcore.errors import UsageError, did_you_mean

BACKENDS = ("auto", "native", "sync", "async", "vector", "envpool")


def make_vec(
    env_id: str,
    num_envs: int = 1,
    backend: str = "auto",
    seed: int | None = None,
    autoreset_mode: AutoresetMode | str | None = None,
    **env_kwargs: Any,
) -> VectorEnv:
    """A gymnasium vector environment of `num_envs` copies of `env_id`.

    Args:
        env_id: a registered id such as "CartPole-v1" or "module:Name-v0".
        num_envs: N, at least 1.
        backend: "sync" steps the copies one after the other, "async" each in a process of its own, "vector" takes the
            environment's own vector implementation, "envpool" EnvPool's (Atari, Google Football); "auto" takes the
            environment's own where there is one and "sync" where not. "native" takes rlcore's implementation in
            tensors, which some environments have (`rlcore.envs.native`).
        seed: where given, the environments are reset with it once, so that a later reset without a seed is determined.
        autoreset_mode: of "native", "sync" and "async"; None takes DISABLED, with which every row of a rollout is a
            real transition and the final observation of an episode is known without searching for it.
        env_kwargs: passed to the environment's constructor; native environments take none.

    Raises:
        UsageError: for an unknown id (with the nearest one), backend, number or constructor argument, and where the
            environment needs a package that is not installed.
    """
    if not isinstance(num_envs, int) or num_envs < 1:
        raise UsageError(f"num_envs is {num_envs!r}, but must be a whole number of at least 1")
    if backend not in BACKENDS:
        raise UsageError(
            f"backend is '{backend}', but may be one of {', '.join(BACKENDS)}{did_you_mean(backend, BACKENDS)}"
        )
    spec = find_spec(env_id)
    backend = resolve_backend(spec, backend)
    if backend == "vector" and autoreset_mode is not None:
        raise UsageError(
            f"autoreset_mode is for backends native, sync and async; the vector environment of {env_id} has its own"
        )
    if backend == "native" and env_kwargs:
        raise UsageError(
            f"{env_id} got {env_kwargs}, but native environments take no constructor arguments; "
            "backend may be auto, sync or async"
        )
    mode = AutoresetMode.DISABLED if autoreset_mode is None else AutoresetMode(autoreset_mode)
    try:
        envs = _make(spec, num_envs, backend, mode, env_kwargs)
    except UsageError:
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        raise UsageError(f"{env_id} needs a package that is not installed: {_one_line(error)}") from error
    except (gymnasium.error.Error, TypeError, ValueError) as error:
        raise UsageError(f"{env_id} cannot be made with {env_kwargs or 'its defaults'}: {_one_line(error)}") from error
    if seed is not None:
        envs.reset(seed=seed)
    return envs


def find_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The registered specification of `env_id`, or a UsageError that names the nearest id."""
    if atari.is_atari(env_id):
        atari.register_games()
    elif env_id.startswith(envpool.FOOTBALL):
        envpool.register_football()
    try:
        return gymnasium.spec(env_id)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        near = did_you_mean(env_id, gymnasium.registry)
        raise UsageError(
            f"environment '{env_id}' is not registered with gymnasium{near or f': {_one_line(error)}'}"
        ) from error


def resolve_backend(spec: gymnasium.envs.registration.EnvSpec, backend: str = "auto", own_seeds: bool = False) -> str:
    """The backend that "auto" stands for; refuses what the environment does not have.

    Args:
        spec: of the environment.
        backend: what was asked for.
        own_seeds: whether each environment needs a seed of its own, which gymnasium's vector environments do not take.
    """
    if backend == "auto":
        takes_seeds = _is_game(spec.id) or not own_seeds
        return "vector" if spec.vector_entry_point and takes_seeds else "sync"
    if backend == "envpool" and not _is_game(spec.id):
        raise UsageError(f"backend envpool is for Atari and Google Football; {spec.id} may take auto, sync or async")
    if spec.entry_point is None and backend not in ("vector", "envpool"):
        raise UsageError(f"{spec.id} comes as a vector environment alone; backend may be auto or envpool")
    if backend == "vector" and not spec.vector_entry_point:
        raise UsageError(f"{spec.id} has no vector implementation of its own; backend may be auto, sync or async")
    if backend == "native" and native_twin(spec) is None:
        changed = " as it is registered here" if find_native(spec.id) else ""
        raise UsageError(
            f"{spec.id}{changed} has no native implementation; backend native is for {', '.join(NATIVE_TASKS)}"
        )
    return backend


def native_twin(spec: gymnasium.envs.registration.EnvSpec) -> NativeTask | None:
    """The same environment as tensor functions, or None. An id that was registered anew stands for another one."""
    task = find_native(spec.id)
    if task is None:
        return None
    own = str(spec.entry_point).startswith(("gymnasium.envs.classic_control.", "rlcore.envs."))
    plain = spec.kwargs in ({}, {"task": spec.id}) and not spec.additional_wrappers
    return task if own and plain and spec.max_episode_steps == task.max_episode_steps else None


def _is_game(env_id: str) -> bool:
    """Whether an environment is of the families that have makers of their own."""
    return atari.is_atari(env_id) or env_id.startswith(envpool.FOOTBALL)


def _make(spec, num_envs: int, backend: str, mode: AutoresetMode, env_kwargs: dict[str, Any]) -> VectorEnv:
    if atari.is_atari(spec.id):
        return atari.make_atari(spec, num_envs, backend, mode, dict(env_kwargs))
    if spec.id.startswith(envpool.FOOTBALL):
        return envpool.make_football(num_envs, spec, **env_kwargs)
    if backend == "native":
        return NativeVectorEnv(spec.id, num_envs, autoreset_mode=mode, max_episode_steps=spec.max_episode_steps)
    if backend == "vector":
        return gymnasium.make_vec(spec, num_envs, vectorization_mode="vector_entry_point", **env_kwargs)

    def one() -> gymnasium.Env:
        # The passive checker looks at every step; tests of an environment want it, a million training steps do not.
        return gymnasium.make(spec, disable_env_checker=True, **env_kwargs)

    # The collector copies what it keeps, so the environment need not.
    kind = SyncVectorEnv if backend == "sync" else AsyncVectorEnv
    envs = kind([one] * num_envs, copy=False, autoreset_mode=mode)
    envs.spec = spec
    return envs


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
