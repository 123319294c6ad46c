"""Vector environments by name."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode, VectorEnv

from rlcore.envs import atari, envpool
from rlcore.envs.async_vector import GuardedAsyncVectorEnv
from rlcore.envs.guard import GuardedSyncVectorEnv, guarded
from rlcore.envs.native import NATIVE_TASKS, NativeTask, find_native
from rlcore.envs.native_vector import NativeVectorEnv
from rlcore.errors import RlcoreError, UsageError, did_you_mean, one_line

BACKENDS = ("auto", "native", "sync", "async", "vector", "envpool")
ON_ENV_ERROR = ("stop", "restart")
MOST_ENVS = {"sync": 2**16, "async": 2**10}  # objects and processes; of all others 2**24


def make_vec(
    env_id: str,
    num_envs: int = 1,
    backend: str = "auto",
    seed: int | None = None,
    autoreset_mode: AutoresetMode | str | None = None,
    *,
    env_timeout: float | None = None,
    on_env_error: str = "stop",
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
        env_timeout: of "async": seconds that a step or a reset may take; None: no limit.
        on_env_error: of "sync" and "async", what becomes of an environment that raises, returns what does not fit its
            spaces, dies or hangs. "stop" raises an EnvironmentFault; "restart", which also looks for NaN and infinity
            in every step, puts the sentence into the infos (`rlcore.envs.guard.FAULT_KEY`) of a step of zeros, and the
            environment has to be reset before the next.
        env_kwargs: passed to the environment's constructor; native environments take none.

    Raises:
        UsageError: for an unknown id (with the nearest one), backend, number or constructor argument, and where the
            environment needs a package that is not installed.
    """
    if not isinstance(num_envs, int) or num_envs < 1:
        raise UsageError(f"num_envs is {num_envs!r}, but must be a whole number of at least 1")
    if on_env_error not in ON_ENV_ERROR:
        raise UsageError(f"on_env_error is {on_env_error!r}, but may be one of {', '.join(ON_ENV_ERROR)}")
    if env_timeout is not None and not env_timeout > 0:
        raise UsageError(f"env_timeout is {env_timeout!r}, but must be more than 0, or none")
    if backend not in BACKENDS:
        raise UsageError(
            f"backend is '{backend}', but may be one of {', '.join(BACKENDS)}{did_you_mean(backend, BACKENDS)}"
        )
    spec = find_spec(env_id)
    backend = resolve_backend(spec, backend, restarts=on_env_error == "restart")
    if num_envs > (most := MOST_ENVS.get(backend, 2**24)):
        raise UsageError(f"num_envs is {num_envs:,}, but backend {backend} takes at most {most:,}")
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
    vectorize = _vectorizer(num_envs, backend, mode, env_timeout, on_env_error == "restart")
    try:
        envs = _make(copy.deepcopy(spec), num_envs, backend, mode, vectorize, env_kwargs)
    except RlcoreError:
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        raise UsageError(f"{env_id} needs a package that is not installed: {one_line(error)}") from error
    except Exception as error:
        known = isinstance(error, gymnasium.error.Error | TypeError | ValueError) and str(error)
        what = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"{env_id} cannot be made with {env_kwargs or 'its defaults'}: {what}") from error
    if seed is not None:
        envs.reset(seed=seed)
    return envs


def split_id(env_id: str) -> tuple[str, str]:
    """The module of "module:Name-v0", or "", and the id under which gymnasium has the environment."""
    module, _, name = env_id.rpartition(":")
    return (module, name) if module and env_id not in gymnasium.registry else ("", env_id)


def find_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The registered specification of `env_id`; of "module:Name-v0" the module, which registers it, is imported first.

    Raises:
        UsageError: where that fails, and for an unknown id, with the nearest one.
    """
    module, name = split_id(env_id)
    if module:
        try:
            import_module(module)
        except UsageError as error:
            raise UsageError(f"environment '{env_id}' is not registered with gymnasium: {error}") from error
    if atari.is_atari(name):
        atari.register_games()
    elif name.startswith(envpool.FOOTBALL):
        envpool.register_football()
    try:
        return gymnasium.spec(name)
    except (gymnasium.error.Error, ModuleNotFoundError, ValueError) as error:
        near = did_you_mean(name, gymnasium.registry)
        raise UsageError(
            f"environment '{env_id}' is not registered with gymnasium{near or f': {one_line(error)}'}"
        ) from error


def import_module(name: str) -> None:
    """Import a module that registers environments.

    Raises:
        UsageError: where there is none of that name, or it fails.
    """
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever foreign code does
        raise UsageError(
            f"the module '{name}' cannot be imported: {type(error).__name__}: {one_line(error)}"
        ) from error


def check_imported(env_id: str, source: str) -> None:
    """Refuse an id of the form "module:Name-v0" out of a file, unless its module has been imported already: opening a
    file must not run code that it names.

    Raises:
        UsageError: says how to import it oneself.
    """
    module, _ = split_id(env_id)
    if module and module not in sys.modules:
        raise UsageError(
            f"{source} names environment '{env_id}', but a file may not have a module imported; if you trust that "
            f"module, import it with --import {module}, or in Python before loading"
        )


def check_env_kwargs(kwargs: dict[str, Any], given: dict[str, Any], source: str) -> None:
    """Refuse texts out of a file that look like a path or an import among the arguments of an environment's
    constructor, unless the user has `given` them too.

    Raises:
        UsageError: says how to give them.
    """
    check_names(kwargs)
    for name, value in kwargs.items():
        text = next((text for text in _texts(value) if any(mark in text for mark in ("/", "\\", ":"))), None)
        if text is not None and name not in given:
            raise UsageError(
                f"{source} gives the environment {name} = {text[:100]!r}, which looks like a path or an import; "
                f"if you trust it, give it again with --env-arg {name}=..., or as load(..., env_kwargs=...)"
            )


def check_names(env_kwargs: dict[str, Any]) -> None:
    """Refuse arguments for an environment's constructor that would be taken for those of `make_vec`."""
    own = [name for name in inspect.signature(make_vec).parameters if name != "env_kwargs"]
    for name in env_kwargs:
        if name in own:
            raise UsageError(
                f"'{name}' cannot be an argument of the environment's constructor: {', '.join(own)} are rlcore's own"
            )


def _texts(value: Any) -> Iterator[str]:
    """All texts inside nested plain data, which may be nested deeply, or in itself."""
    parts, seen = [value], set()
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, bytes | bytearray):
            yield part.decode("latin1")
        elif isinstance(part, dict | list | tuple | set | frozenset) and id(part) not in seen:
            seen.add(id(part))
            parts += [*part, *part.values()] if isinstance(part, dict) else part


def resolve_backend(
    spec: gymnasium.envs.registration.EnvSpec, backend: str = "auto", own_seeds: bool = False, restarts: bool = False
) -> str:
    """The backend that "auto" stands for; refuses what the environment does not have.

    Args:
        spec: of the environment.
        backend: what was asked for.
        own_seeds: whether each environment needs a seed of its own, which gymnasium's vector environments do not take.
        restarts: whether single environments may have to be made anew, which "sync" and "async" can.
    """
    if restarts:
        return _backend_that_restarts(spec, backend)
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


def _backend_that_restarts(spec, backend: str) -> str:
    if backend not in ("auto", "sync", "async"):
        raise UsageError(f"on_env_error is 'restart', which is for backends sync and async, but backend is '{backend}'")
    if spec.entry_point is None:
        raise UsageError(
            f"on_env_error is 'restart', which is for backends sync and async, but {spec.id} comes as a vector "
            "environment alone; it may be stop"
        )
    return "sync" if backend == "auto" else backend


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


Vectorize = Callable[[Callable[[], gymnasium.Env]], VectorEnv]
"""Makes the vector environment of the copies that a maker makes."""


def _vectorizer(num_envs: int, backend: str, mode: AutoresetMode, timeout: float | None, restarts: bool) -> Vectorize:
    """For backends sync and async."""

    def vectorize(one: Callable[[], gymnasium.Env]) -> VectorEnv:
        makers = guarded(one, num_envs, restarts)
        if backend == "async":
            return GuardedAsyncVectorEnv(makers, mode, timeout, restarts)
        return GuardedSyncVectorEnv(makers, mode)

    return vectorize


def _make(
    spec, num_envs: int, backend: str, mode: AutoresetMode, vectorize: Vectorize, env_kwargs: dict[str, Any]
) -> VectorEnv:
    if atari.is_atari(spec.id):
        return atari.make_atari(spec, num_envs, backend, vectorize, dict(env_kwargs))
    if spec.id.startswith(envpool.FOOTBALL):
        return envpool.make_football(num_envs, spec, **env_kwargs)
    if backend == "native":
        return NativeVectorEnv(spec.id, num_envs, autoreset_mode=mode, max_episode_steps=spec.max_episode_steps)
    if backend == "vector":
        return gymnasium.make_vec(spec, num_envs, vectorization_mode="vector_entry_point", **env_kwargs)

    def one() -> gymnasium.Env:
        # The passive checker looks at every step; tests of an environment want it, a million training steps do not.
        return gymnasium.make(spec, disable_env_checker=True, **env_kwargs)

    envs = vectorize(one)
    envs.spec = spec
    return envs
