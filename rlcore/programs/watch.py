"""Numbers that a program has from when it was made: whether they are still the same."""

import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None))
LARGE = 1000
OURS = ("rlcore", "torch", "numpy", "builtins")


class Watch:
    """Remembers what Python gave to a recording that no place tells of.

    Args:
        owner: whose methods were recorded, which read its attributes `reads`.
        modules: that took part.
        declared: names of attributes that are state, which programs follow.
    """

    def __init__(self, owner: Any, reads: set[str], modules: dict[str, nn.Module], declared: set[str]):
        sources: list[tuple[str, Callable[[], Any]]] = [("config", partial(vars(owner).get, "config"))]
        sources += _of_modules(modules)
        for name in sorted(reads - declared - {"config"}):
            sources.append((name, lambda name=name: plain(getattr(owner, name, None))))  # type: ignore[misc]  # of its default
        for kind in type(owner).__mro__:
            for function in vars(kind).values():
                if isinstance(function, types.FunctionType) and not is_ours(function.__module__):
                    sources += _of_function(function)
        self.found = [(name, source, value) for name, source in sources if (value := source()) is not None]

    def changed(self) -> str | None:
        """What is another number than it was, in words; None where nothing is."""
        for name, source, before in self.found:
            now = source()
            if now is not before and (type(now) is not type(before) or now != before):
                is_number = isinstance(before, bool | int | float)
                return f"'{name}' was {before} and has become {now}" if is_number else f"'{name}' has changed"
        return None


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
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)
    if isinstance(value, list | tuple):
        return [plain(x, depth - 1) for x in value]
    if not isinstance(value, dict):
        if is_ours(type(value).__module__) or not hasattr(value, "__dict__"):
            return None
        value = vars(value)
    return [(str(key), plain(x, depth - 1)) for key, x in value.items()]


def is_ours(module: str | None) -> bool:
    """Whether a module is of this package or of those below it, which are no code of a user."""
    return (module or "").partition(".")[0] in OURS


def _of_modules(modules: dict[str, nn.Module]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Numbers among the attributes of modules and of those inside them."""
    for name, module in modules.items():
        for path, part in module.named_modules():
            for key, value in vars(part).items():
                if isinstance(value, bool | int | float) and not key.startswith("_"):
                    yield ".".join(filter(None, (name, path, key))), partial(vars(part).get, key)


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Numbers that a function reads from its module or from around it."""
    for name in function.__code__.co_names:
        yield name, lambda name=name: plain(function.__globals__.get(name))  # type: ignore[misc]  # of its default
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, lambda cell=cell: plain(_content(cell))  # type: ignore[misc]  # of its default


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not there yet
        return None
