"""Tuned hyperparameters, one TOML file per family of environments, one table `[algo."env id"]` per pair."""

import dataclasses
import tomllib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.errors import UsageError, did_you_mean, shown
from rlcore.storage.toml import HIGHEST_COUNT, check_values, read_toml

if TYPE_CHECKING:
    from rlcore.agents import Agent


@cache
def all_presets() -> dict[str, dict[str, dict[str, Any]]]:
    """`{algo: {env id: {"total_steps": ..., hyperparameter: value, ...}}}` of all files of this folder."""
    presets: dict[str, dict[str, dict[str, Any]]] = {}
    for file in sorted(resources.files(__package__).iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            for algo, by_env in tomllib.loads(file.read_text(encoding="utf-8")).items():
                presets.setdefault(algo, {}).update(by_env)
    return presets


def find_preset(algo: str, env_id: str) -> dict[str, Any] | None:
    """The tuned values for an algorithm on an environment, or on its family (a key such as "ALE/*"), or None. Of
    "module:Name-v0", what stands behind the colon is the environment's name."""
    return _find(all_presets().get(algo, {}), env_id)


def load_preset(algo: str, name: str, env_id: str, hyperparameters: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """A preset that is asked for: those of rlcore by the environment id they are for, or those of a file; the name by
    which it is known ("none" where there is none), and its values.

    Args:
        algo: the algorithm.
        name: an environment id, the path of a TOML file such as those of this folder, "auto" for those of `env_id`
            where there are any, or "none".
        env_id: the environment to train on; it is the table that is taken from a file.
        hyperparameters: those that the algorithm has; a file may name no other.

    Raises:
        UsageError: where there is no such preset, with the nearest name; where the file cannot be read, has none for
            this pair, or has entries that no preset has.
    """
    preset = find_preset(algo, env_id if name == "auto" else name)
    if preset is not None:
        return env_id.rpartition(":")[2] if name == "auto" else name, preset
    if name in ("auto", "none"):
        return "none", {}
    if name.endswith(".toml") or Path(name).is_file():
        return name, _of_file(Path(name), algo, env_id, hyperparameters)
    known = all_presets().get(algo, {})
    names = ", ".join([*known, "a .toml file", "auto", "none"])
    raise UsageError(f"preset '{name}' does not exist for {algo}{did_you_mean(name, known)}; there are {names}")


def preset_of(agent: "type[Agent]", env_id: str, name: str) -> tuple[str, dict[str, Any]]:
    """As `load_preset`, for an agent's class."""
    return load_preset(agent.__name__.lower(), name, env_id, [field.name for field in dataclasses.fields(agent.Config)])


def _find(presets: dict[str, Any], env_id: str) -> dict[str, Any] | None:
    name = env_id.rpartition(":")[2]
    family = next((key for key in presets if "*" in key and fnmatchcase(name, key)), None)
    preset = presets.get(name, presets.get(family))
    return dict(preset) if preset is not None else None


def _of_file(path: Path, algo: str, env_id: str, hyperparameters: Iterable[str]) -> dict[str, Any]:
    presets = read_toml(path, "a file of presets")
    check_values(presets, str(path), "a file of presets")
    tables = {(a, env): table for a, envs in presets.items() if isinstance(envs, dict) for env, table in envs.items()}
    odd = next((key for key, table in tables.items() if not isinstance(table, dict)), None)
    if odd is not None or len({a for a, _ in tables}) < len(presets):
        raise UsageError(f'{path} is not a file of presets: it may only have tables such as [ppo."CartPole-v1"]')
    preset = _find({env: table for (a, env), table in tables.items() if a == algo}, env_id)
    if preset is None:
        there = ", ".join(f"{a} on {env}" for a, env in tables) or "none"
        raise UsageError(f"{path} has no preset for {algo} on {env_id}; it has {shown(there)[1:-1]}")
    known = [*hyperparameters, "total_steps"]
    for key in preset:
        if key not in known:
            raise UsageError(f"'{key}' in {path} is not a hyperparameter of {algo}{did_you_mean(key, known)}")
    steps = preset.get("total_steps", 1)
    if type(steps) is not int or not 1 <= steps <= HIGHEST_COUNT:
        raise UsageError(f"total_steps in {path} is {shown(steps)}, but must be a whole number of at least 1")
    return preset
