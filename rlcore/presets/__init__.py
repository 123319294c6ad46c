"""Tuned hyperparameters, one TOML file per family of environments, one table `[algo."env id"]` per pair."""

import tomllib
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from rlcore.errors import UsageError, did_you_mean


@cache
def all_presets() -> dict[str, dict[str, dict[str, Any]]]:
    """`{algo: {env id: {"total_steps": ..., hyperparameter: value, ...}}}` of all files of this folder."""
    presets: dict[str, dict[str, dict[str, Any]]] = {}
    for file in sorted(resources.files(__package__).iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            for algo, by_env in tomllib.loads(file.read_text()).items():
                presets.setdefault(algo, {}).update(by_env)
    return presets


def find_preset(algo: str, env_id: str) -> dict[str, Any] | None:
    """The tuned values for an algorithm on an environment, or on its family (a key such as "ALE/*"), or None. Of
    "module:Name-v0", what stands behind the colon is the environment's name."""
    presets, name = all_presets().get(algo, {}), env_id.rpartition(":")[2]
    family = next((key for key in presets if "*" in key and fnmatchcase(name, key)), None)
    preset = presets.get(name, presets.get(family))
    return dict(preset) if preset is not None else None


def load_preset(algo: str, name: str) -> dict[str, Any]:
    """As `find_preset`, but a name that does not exist is refused with the nearest one."""
    preset = find_preset(algo, name)
    if preset is None:
        known = all_presets().get(algo, {})
        names = ", ".join([*known, "none"])
        raise UsageError(f"preset '{name}' does not exist for {algo}{did_you_mean(name, known)}; there are {names}")
    return preset
