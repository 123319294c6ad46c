"""Vector environments by name."""

import contextlib
import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from rlcore.envs import atari, envpool
from rlcore.envs.async_vector import GuardedAsyncVectorEnv
from rlcore.envs.guard import GuardedSyncVectorEnv, guarded
from rlcore.envs.native import NATIVE_TASKS, NativeTask, find_native
from rlcore.envs.native_vector import NativeVectorEnv
from rlcore.errors import RlcoreError, UsageError, did_you_mean, one_line

BACKENDS = ("auto", "native", "sync", "async", "vector", "envpool")
MOST_ENVS = dict.fromkeys(BACKENDS, 2**24) | {"sync": 2**16, "async": 2**10}  # objects and processes
GAMES = (atari.PREFIX, envpool.FOOTBALL)  # families that have makers of their own
MINATAR = "MinAtar/"
EXTRAS = ("box2d", "mujoco")  # of rlcore, and parts of the modules of gymnasium that need them

Refusals = dict[str, Callable[[SimpleNamespace], Any]]
"""Sentences, with names in braces, and on what condition each is told; of several the first is."""

WRONG_ARGUMENTS: Refusals = {
    "num_envs is {num_envs!r}, but must be a whole number of at least 1": (
        lambda asked: not isinstance(asked.num_envs, int) or asked.num_envs < 1
    ),
    "on_env_error is {on_env_error!r}, but may be one of stop, restart": (
        lambda asked: asked.on_env_error not in ("stop", "restart")
    ),
    "env_timeout is {env_timeout!r}, but must be more than 0, or none": (
        lambda asked: asked.env_timeout is not None and not asked.env_timeout > 0
    ),
    "backend is '{backend}', but may be one of {backends}{near}": lambda asked: asked.backend not in BACKENDS,
}
WRONG_FOR_ENVIRONMENT: Refusals = {
    "on_env_error is 'restart', which is for backends sync and async, but backend is '{backend}'": (
        lambda asked: asked.restarts and asked.backend not in ("sync", "async")
    ),
    "on_env_error is 'restart', which is for backends sync and async, but {spec.id} comes as a vector environment "
    "alone; it may be stop": lambda asked: asked.restarts and asked.spec.entry_point is None,
    "backend envpool is for Atari and Google Football; {spec.id} may take auto, sync or async": (
        lambda asked: asked.backend == "envpool" and not asked.spec.id.startswith(GAMES)
    ),
    "{spec.id} comes as a vector environment alone; backend may be auto or envpool": (
        lambda asked: asked.spec.entry_point is None and asked.backend not in ("vector", "envpool")
    ),
    "{spec.id} has no vector implementation of its own; backend may be auto, sync or async": (
        lambda asked: asked.backend == "vector" and not asked.spec.vector_entry_point
    ),
    "{spec.id} has no native implementation; backend native is for {natives}": (
        lambda asked: asked.backend == "native" and find_native(asked.spec.id) is None
    ),
    "{spec.id} as it is registered here has no native implementation; backend native is for {natives}": (
        lambda asked: asked.backend == "native" and native_twin(asked.spec) is None
    ),
    "num_envs is {num_envs:,}, but backend {backend} takes at most {most:,}": (
        lambda asked: asked.num_envs > MOST_ENVS[asked.backend]
    ),
    "autoreset_mode is for backends native, sync and async; the vector environment of {env_id} has its own": (
        lambda asked: asked.backend == "vector" and asked.autoreset_mode is not None
    ),
    "{env_id} got {env_kwargs}, but as a native environment takes no constructor arguments; backend may be auto, sync "
    "or async": (
        lambda asked: asked.backend == "native" and asked.env_kwargs and not find_native(asked.spec.id).arguments
    ),
}


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
            environment's own vector implementation, "envpool" EnvPool's (Atari, Google Football), "native" rlcore's in
            tensors (`rlcore.envs.native`); "auto" takes the environment's own where there is one and "sync" where not.
        seed: where given, the environments are reset with it once, so that a later reset without a seed is determined.
        autoreset_mode: of "native", "sync" and "async"; None takes DISABLED, with which every row of a rollout is a
            real transition and the final observation of an episode is known without searching for it.
        env_timeout: of "async": seconds that a step or a reset may take; None: no limit.
        on_env_error: of "sync" and "async", what becomes of an environment that raises, returns what does not fit its
            spaces, dies or hangs. "stop" raises an EnvironmentFault; "restart", which also looks for NaN and infinity
            in every step, puts the sentence into the infos (`rlcore.envs.guard.FAULT_KEY`) of a step of zeros, and the
            environment has to be reset before the next.
        env_kwargs: passed to the environment's constructor; of native environments some take none.

    Raises:
        UsageError: for an unknown id (with the nearest one), backend, number or constructor argument, and where the
            environment needs a package that is not installed.
    """
    asked = SimpleNamespace(
        env_id=env_id, num_envs=num_envs, backend=backend, autoreset_mode=autoreset_mode, env_timeout=env_timeout,
        on_env_error=on_env_error, restarts=on_env_error == "restart", env_kwargs=env_kwargs,
    )  # fmt: skip
    _refuse(WRONG_ARGUMENTS, asked)
    asked.spec = copy.deepcopy(find_spec(env_id))
    asked.backend = resolve_backend(asked.spec, backend, restarts=asked.restarts)
    _refuse(WRONG_FOR_ENVIRONMENT, asked)
    asked.mode = AutoresetMode.DISABLED if autoreset_mode is None else AutoresetMode(autoreset_mode)
    try:
        envs = _make(asked)
    except RlcoreError:
        raise
    except Exception as error:
        raise _not_made(env_id, env_kwargs, error) from error
    if seed is not None:
        envs.reset(seed=seed)
    return envs


def _refuse(table: Refusals, asked: SimpleNamespace) -> None:
    for sentence, is_so in table.items():
        if is_so(asked):
            lists = {"backends": ", ".join(BACKENDS), "natives": ", ".join(NATIVE_TASKS)}
            near, most = did_you_mean(str(asked.backend), BACKENDS), MOST_ENVS.get(asked.backend)
            raise UsageError(sentence.format(**vars(asked), **lists, near=near, most=most))


def resolve_backend(spec: EnvSpec, backend: str = "auto", own_seeds: bool = False, restarts: bool = False) -> str:
    """The backend that "auto" stands for: the environment's own, but not where each copy needs a seed of its own
    (`own_seeds`), which gymnasium's do not take, or may have to be made anew (`restarts`)."""
    if backend != "auto":
        return backend
    takes_seeds = not own_seeds or spec.id.startswith(GAMES)
    return "vector" if spec.vector_entry_point and takes_seeds and not restarts else "sync"


def _make(asked: SimpleNamespace) -> VectorEnv:
    spec, num_envs, kwargs = asked.spec, asked.num_envs, asked.env_kwargs
    if spec.id.startswith(atari.PREFIX):
        return atari.make_atari(spec, num_envs, asked.backend, partial(_vectorize, asked), kwargs)
    if spec.id.startswith(envpool.FOOTBALL):
        return envpool.make_football(num_envs, spec, **kwargs)
    if asked.backend == "native":
        options = {"autoreset_mode": asked.mode, "max_episode_steps": spec.max_episode_steps}
        return NativeVectorEnv(spec.id, num_envs, **options, **kwargs)
    if asked.backend == "vector":
        return gymnasium.make_vec(spec, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    # The passive checker looks at every step; tests of an environment want it, a million training steps do not.
    return _vectorize(asked, lambda: gymnasium.make(spec, disable_env_checker=True, **kwargs))


def _vectorize(asked: SimpleNamespace, one: Callable[[], gymnasium.Env]) -> VectorEnv:
    """Copies of the environment that `one` makes, for backends sync and async."""
    makers = guarded(one, asked.num_envs, asked.restarts)
    envs: VectorEnv
    if asked.backend == "async":
        envs = GuardedAsyncVectorEnv(makers, asked.mode, asked.env_timeout, asked.restarts)
    else:
        envs = GuardedSyncVectorEnv(makers, asked.mode)
    envs.spec = asked.spec
    return envs


def _not_made(env_id: str, env_kwargs: dict[str, Any], error: Exception) -> UsageError:
    """What to raise in place of an error on the way to an environment."""
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        module = str(gymnasium.spec(env_id).entry_point).split(".")
        extra = next((f"pip install 'rlcore[{name}]'" for name in EXTRAS if name in module), one_line(error))
        return UsageError(f"{env_id} needs a package that is not installed: {extra}")
    known = isinstance(error, gymnasium.error.Error | TypeError | ValueError) and str(error)
    what = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
    return UsageError(f"{env_id} cannot be made with {env_kwargs or 'its defaults'}: {what}")


def find_spec(env_id: str) -> EnvSpec:
    """The registered specification of `env_id`; of "module:Name-v0" the module, which registers it, is imported first.

    Raises:
        UsageError: where that fails, and for an unknown id, with the nearest one.
    """
    is_known = env_id in gymnasium.registry and not env_id.startswith(GAMES)
    return gymnasium.spec(env_id) if is_known else _register(env_id)


def _register(env_id: str) -> EnvSpec:
    """Have an environment registered by its module, or its family."""
    module, name = split_id(env_id)
    try:
        if module:
            import_module(module)
    except UsageError as error:
        raise UsageError(f"environment '{env_id}' is not registered with gymnasium: {error}") from error
    for prefix, register in FAMILIES.items():
        if name.startswith(prefix):
            register()
    try:
        return gymnasium.spec(name)
    except (gymnasium.error.Error, ModuleNotFoundError, ValueError) as error:
        of_module = f", also not by the module '{module}'" if module else ""
        near = did_you_mean(name, gymnasium.registry) or f": {one_line(error)}"
        raise UsageError(f"environment '{env_id}' is not registered with gymnasium{of_module}{near}") from error


def _register_minatar() -> None:
    envpool.needed("minatar.gym", "MinAtar", "MinAtar", extra="minatar").register_envs()


# Environments that gymnasium knows when their package has been asked to, by how their ids begin.
FAMILIES = {atari.PREFIX: atari.register_games, envpool.FOOTBALL: envpool.register_football, MINATAR: _register_minatar}


def register_families() -> None:
    """Have those of all families registered that are installed."""
    for prefix, register in FAMILIES.items():
        if not any(env_id.startswith(prefix) for env_id in gymnasium.registry):
            with contextlib.suppress(UsageError):
                register()


def split_id(env_id: str) -> tuple[str, str]:
    """The module of "module:Name-v0", or "", and the id under which gymnasium has the environment."""
    module, _, name = env_id.rpartition(":")
    return (module, name) if module and env_id not in gymnasium.registry else ("", env_id)


def import_module(name: str) -> None:
    """Import a module that registers environments; a UsageError where there is none, or it fails."""
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever foreign code does
        what = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"the module '{name}' cannot be imported: {what}") from error


def check_imported(env_id: str, source: str) -> None:
    """Refuse an id of the form "module:Name-v0" out of a file with a UsageError, unless its module has been imported
    already: opening a file must not run code that it names."""
    module, _ = split_id(env_id)
    if module and module not in sys.modules:
        raise UsageError(
            f"{source} names environment '{env_id}', but a file may not have a module imported; if you trust that "
            f"module, import it with --import {module}, or in Python before loading"
        )


def check_env_kwargs(kwargs: dict[str, Any], given: dict[str, Any], source: str) -> None:
    """Refuse texts out of a file that look like a path or an import among the arguments of an environment's
    constructor with a UsageError, unless the user has `given` them too."""
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


def native_twin(spec: EnvSpec, env_kwargs: dict[str, Any] | None = None) -> NativeTask | None:
    """The same environment as tensor functions, or None. An id that was registered anew stands for another one."""
    task = find_native(spec.id)
    if task is None or not set(env_kwargs or {}) <= set(task.arguments):
        return None
    own = str(spec.entry_point).startswith(("gymnasium.envs.classic_control.", "rlcore.envs."))
    plain = spec.kwargs in ({}, {"task": spec.id}) and not spec.additional_wrappers
    is_same = own and plain and spec.max_episode_steps == task.max_episode_steps
    return task.varied(**(env_kwargs or {})) if is_same else None
