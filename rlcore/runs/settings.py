"""What config.toml holds, read as a file deserves that anyone may have written."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from rlcore.errors import UsageError, did_you_mean, shown
from rlcore.storage.toml import HIGHEST_COUNT, check_values, read_toml

CONFIG = "the config of a run"
EVAL_EPISODES = 100
NEEDED = ("algo", "env_id", "total_steps", "hyperparameters")
TEXTS, TABLES = ("algo", "env_id", "preset"), ("hyperparameters", "env_kwargs", "versions")
COUNTS = {"total_steps": 1, "checkpoint_every": 1, "eval_episodes": 0}  # and the lowest of each
KEPT_WITH_CHECKPOINTS = (*COUNTS, "preset")


def to_toml(value: Any) -> Any:
    """TOML has no null: None is written as the text "none", which is also what the command line takes."""
    if isinstance(value, dict):
        return {key: to_toml(v) for key, v in value.items()}
    return "none" if value is None else value


def from_toml(values: dict[str, Any]) -> dict[str, Any]:
    """A table as it was before `to_toml`."""
    return {name: None if value == "none" else value for name, value in values.items()}


def read_settings(path: Path) -> dict[str, Any]:
    """A config.toml whose entries are of the right kinds; what may be left out is filled in. A UsageError says that it
    is missing, malformed, or larger or deeper than any of ours, or names an entry, its value and what it may be."""
    return _checked(read_toml(path, CONFIG), str(path))


def _checked(config: dict[str, Any], source: str) -> dict[str, Any]:
    """As `read_settings`, of what was read from `source`."""
    for key in NEEDED:
        if key not in config:
            raise UsageError(f"{source} is not {CONFIG}: it has no '{key}'")
    check_values(config, source, CONFIG)
    for key, value in config.items():
        if key in TEXTS and (not isinstance(value, str) or value == ""):
            kind = "a text"
        elif key in TABLES and not isinstance(value, dict):
            kind = "a table"
        elif key in COUNTS and not (type(value) is int and COUNTS[key] <= value <= HIGHEST_COUNT):
            kind = f"a whole number of at least {COUNTS[key]} and at most {HIGHEST_COUNT:,}"
        else:
            continue
        text = repr(value)
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise UsageError(f"{key} in {source} is {shown}, but must be {kind}")
    return {"preset": "none", "eval_episodes": EVAL_EPISODES, "env_kwargs": {}, **config}


def settings_of_checkpoint(payload: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run from one of its checkpoints, or a UsageError where it does not hold enough."""
    parts = {key: payload[key] for key in ("algo", "env_id", "env_kwargs")}
    parts |= {key: payload["extra"][key] for key in KEPT_WITH_CHECKPOINTS if key in payload["extra"]}
    settings = {key: value for key, value in parts.items() if value is not None}
    try:
        text = tomli_w.dumps(to_toml({**settings, "hyperparameters": payload["config"]}))
        return _checked(tomllib.loads(text), "the checkpoint")
    except (TypeError, ValueError, AttributeError, RecursionError) as error:  # a UsageError is a ValueError
        why = error if isinstance(error, UsageError) else "it holds what no config.toml could say"
        raise UsageError(f"the checkpoint does not make up for it: {why}") from error


def refuse_unknown(settings: dict[str, Any], file: Path) -> None:
    """Refuse an entry of a config.toml that no run has, as an unknown flag is."""
    known = (*TEXTS, *TABLES, *COUNTS)
    for name in settings:
        if name not in known:
            raise UsageError(f"'{name}' in {file} is not known{did_you_mean(name, known)}")


def edited_since(file: Path, settings: dict[str, Any], payload: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters that a run's config.toml, read as `settings`, has otherwise than its checkpoint. A UsageError
    names what cannot change in a run that goes on."""
    refuse_unknown(settings, file)
    from rlcore.agents.config import NETWORK  # not on top: the command line's help needs no torch

    made_with = (*NETWORK, "num_envs", "seed", "init", "reference", "reward_model", "comparisons", "preferences")
    stored = {**payload["config"], **{name: payload[name] for name in ("algo", "env_id", "env_kwargs")}}
    now = {**settings["hyperparameters"], **{name: settings[name] for name in ("algo", "env_id", "env_kwargs")}}
    edited = {name: value for name, value in now.items() if _plain(value) != _plain(stored.get(name))}
    for name, value in edited.items():
        if name not in stored:
            raise UsageError(f"'{name}' in {file} is not a hyperparameter of the run{did_you_mean(name, stored)}")
        if name in made_with or name not in payload["config"]:
            other = "--env-arg NAME=VALUE changes it, or " if name == "env_kwargs" else ""
            raise UsageError(
                f"{name} in {file} is {shown(value)}, but the run goes on with {shown(_plain(stored[name]))}; {other}"
                f"rlcore train --config {file} makes a new run"
            )
    return from_toml(edited)


def _plain(value: Any) -> Any:
    """A value as it comes out of a TOML file, where there is neither None nor a tuple."""
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    return list(value) if isinstance(value, tuple) else to_toml(value)
