"""TOML files that anyone may have written, read with care."""

import datetime
import tomllib
from pathlib import Path
from typing import Any

from rlcore.errors import UsageError, one_line

LARGEST_FILE = 2**20  # bytes; a config has a few thousand
DEEPEST = 20  # tables in tables
HIGHEST_COUNT = 2**63 - 1  # of steps and episodes
LONGEST_NUMBER = 1000  # bits; Python refuses to print much longer ones


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a file that is to be `what`, such as "the config of a run".

    Raises:
        UsageError: where it is missing or malformed, or larger than any of ours.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UsageError(f"the file {path} does not exist") from None
    except OSError as error:
        raise UsageError(f"the file {path} cannot be read: {error.strerror or error}") from error
    if len(data) > LARGEST_FILE:
        raise UsageError(f"{path} is longer than {LARGEST_FILE:,} bytes, the most that {what} may have")
    if any(line.partition(b"=")[0].count(b".") > 100 for line in data.splitlines()):  # takes the parser minutes
        raise UsageError(f"{path} is not readable as TOML: it has a key of more than 100 parts")
    try:
        tables = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, a number of thousands of digits
        why = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(error)[:200]
        raise UsageError(f"{path} is not readable as TOML: {why}") from error
    return tables


def check_values(tables: dict[str, Any], source: str, what: str) -> None:
    """Refuse tables in tables beyond 20 levels, dates, and numbers that could neither be stored in a checkpoint nor be
    named in a message; the UsageError names `source`, which is to be `what`."""
    values = [(key, value, 1) for key, value in tables.items()]
    while values:
        name, value, depth = values.pop()
        if depth > DEEPEST:
            raise UsageError(f"{source} is not {what}: it has tables of more than {DEEPEST} levels")
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
