"""Numbers that a program has from when it was made: whether they are still the same."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None))
LARGE = 1000
OURS = ("rlcore", "torch", "numpy", "builtins")


class Watch:
    """Remembers what Python gave to a recording that no place tells of.

    Args:
        owner: whose methods were recorded.
        reads: names of its attributes that they read.
        modules: that took part.
        declared: names of attributes that are state, which programs follow.
    """

    def __init__(self, owner: Any, reads: set[str], modules: dict[str, nn.Module], declared: set[str]):
        self.direct = [("config", vars(owner), "config")]  # name, holder and key of what is compared as it stands
        self.sources: list[tuple[str, Callable[[], Any]]] = []
        for name in sorted(reads - declared - {"config"}):
            if plain(getattr(owner, name, None)) is not None:
                self.sources.append((name, lambda name=name: plain(getattr(owner, name, None))))
        for name, module in modules.items():
            self.direct += _of_module(name, module)
        for kind in type(owner).__mro__:
            for function in vars(kind).values():
                if isinstance(function, types.FunctionType) and not _is_ours(function.__module__):
                    self.sources += list(_of_function(function))
        self.stood = [holder.get(key) for _, holder, key in self.direct]
        self.values = [source() for _, source in self.sources]

    def changed(self) -> str | None:
        """What is another number than it was, in words; None where nothing is."""
        for (name, holder, key), before in zip(self.direct, self.stood, strict=True):
            if holder.get(key) is not before and not _same(holder.get(key), before):
                return _told(name, before, holder.get(key))
        for (name, source), before in zip(self.sources, self.values, strict=True):
            now = source()
            if not _same(now, before):
                return _told(name, before, now)
        return None


def _told(name: str, before: Any, now: Any) -> str:
    if isinstance(before, bool | int | float):
        return f"'{name}' was {before} and has become {now}"
    return f"'{name}' has changed"


def plain(value: Any, depth: int = 3) -> Any:
    """Numbers and texts in a value, in a form that can be compared; None where there are none."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return (value.shape, value.dtype.str, value.tobytes())
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if depth == 0 or isinstance(value, Tensor | nn.Module | type) or callable(value):
        return None
    if isinstance(value, dict | list | tuple | set | frozenset) and len(value) > LARGE:
        return [id(value), len(value)]  # to look at all of it would take longer than an iteration
    if isinstance(value, dict):
        return [(str(key), plain(x, depth - 1)) for key, x in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(x, depth - 1) for x in (value if isinstance(value, list | tuple) else sorted(value, key=repr))]
    if _is_ours(type(value).__module__) or not hasattr(value, "__dict__"):
        return None
    return [(name, plain(x, depth - 1)) for name, x in vars(value).items()]


def _same(now: Any, before: Any) -> bool:
    return type(now) is type(before) and bool(now == before)


def _is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] in OURS


def _of_module(name: str, module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Numbers among the attributes of a module and those inside it."""
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, bool | int | float) and not key.startswith("_"):
                yield ".".join(filter(None, (name, path, key))), vars(part), key


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Numbers that a function reads from its module or from around it."""
    for name in function.__code__.co_names:
        if plain(function.__globals__.get(name)) is not None:
            yield name, lambda name=name: plain(function.__globals__.get(name))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if plain(_content(cell)) is not None:
            yield name, lambda cell=cell: plain(_content(cell))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not there yet
        return None
