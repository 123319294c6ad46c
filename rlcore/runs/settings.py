"""What config.toml holds, read as a file deserves that anyone may have written."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from rlcore.errors import UsageError
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
