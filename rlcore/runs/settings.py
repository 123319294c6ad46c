"""What config.toml holds, read as a file deserves that anyone may have written."""

import datetime
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from rlcore.errors import UsageError, one_line

LARGEST_FILE = 2**20  # bytes; a config has a few thousand
DEEPEST = 20  # tables in tables
LONGEST_NUMBER = 1000  # bits; Python refuses to print much longer ones
HIGHEST_COUNT = 2**63 - 1
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
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UsageError(f"the file {path} does not exist") from None
    except OSError as error:
        raise UsageError(f"the file {path} cannot be read: {error.strerror or error}") from error
    if len(data) > LARGEST_FILE:
        raise UsageError(f"{path} is longer than {LARGEST_FILE:,} bytes, the most that a config may have")
    if any(line.partition(b"=")[0].count(b".") > 100 for line in data.splitlines()):  # takes the parser minutes
        raise UsageError(f"{path} is not readable as TOML: it has a key of more than 100 parts")
    try:
        config = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, a number of thousands of digits
        why = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(error)[:200]
        raise UsageError(f"{path} is not readable as TOML: {why}") from error
    return _checked(config, str(path))


def _checked(config: dict[str, Any], source: str) -> dict[str, Any]:
    """As `read_settings`, of what was read from `source`."""
    for key in NEEDED:
        if key not in config:
            raise UsageError(f"{source} is not the config of a run: it has no '{key}'")
    _check_values(config, source)
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


def _check_values(config: dict[str, Any], source: str) -> None:
    """Refuse what could neither be stored in a checkpoint nor be named in a message."""
    values = [(key, value, 1) for key, value in config.items()]
    while values:
        name, value, depth = values.pop()
        if depth > DEEPEST:
            raise UsageError(f"{source} is not the config of a run: it has tables of more than {DEEPEST} levels")
        if isinstance(value, dict | list):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            values += [(f"{name}.{key}", part, depth + 1) for key, part in parts]
        refuse_odd_value(f"{name} in {source}", value)


def refuse_odd_value(name: str, value: Any) -> None:
    """Refuse dates and endless numbers, which TOML has and a checkpoint or a message has not."""
    if isinstance(value, datetime.date | datetime.time):
        raise UsageError(f"{name} is the date or time {value}, but may only be a text: put it in quotes")
    if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
        raise UsageError(f"{name} is a number of {value.bit_length():,} bits, but may have at most {LONGEST_NUMBER:,}")


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
