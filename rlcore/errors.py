"""What a user can act on: each message is one sentence that names what is wrong, its value, and what it may be."""

import difflib
from collections.abc import Iterable
from typing import Any


def printable(text: str) -> str:
    """Text as one line that moves no terminal's cursor; names out of files come into messages."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """The message of somebody else's error, which may go over several lines."""
    return " ".join(str(error).split())


class RlcoreError(Exception):
    """Base of all errors that rlcore raises on purpose; the command line prints its message and leaves with code 2."""

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(RlcoreError, ValueError):
    """An argument, hyperparameter or space that rlcore cannot use."""


class CheckpointError(RlcoreError):
    """A file that is not a readable checkpoint of this version of rlcore."""


class EnvironmentFault(RlcoreError, RuntimeError):
    """An environment that returned something no agent can learn from, such as NaN."""


class DivergenceError(RlcoreError, RuntimeError):
    """Training produced a loss or a gradient that is not finite."""


class RankError(RlcoreError, RuntimeError):
    """Another process that learns together with this one, `rank`, is gone or does not answer. `told` where one of the
    others tells of it."""

    def __init__(self, message: str, rank: int, told: bool = False):
        super().__init__(message)
        self.rank, self.told = rank, told


def shown(value: Any) -> str:
    """A value in a message; what is long is cut off, and a number too long for Python to print is described."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else "a value too long to be shown"
    return text if len(text) <= 100 else f"{text[:100]}..."


def difference(name: str, old: Any, new: Any) -> str:
    """The first entry that differs between two settings called `name`, by its path, and both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in [*old, *new] if old.get(key) != new.get(key))
        return difference(f"{name}.{key}", old.get(key), new.get(key))
    return f"{name} ({shown(old)}, not {shown(new)})"


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A half-sentence that names the option nearest to `name`, or an empty string where none is near."""
    options = list(options)
    lowered = {option.lower(): option for option in options}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return f", did you mean '{lowered[near[0]]}'?" if near else ""
