"""The state of an environment as plain data, where it is plain data.

Gymnasium has no call for an environment's state, so this takes the attributes of an environment, its wrappers and
copies: numbers, arrays, random generators and containers of these. With anything else (a physics engine, an emulator, a
process) the whole environment counts as not capturable, because half a state restored would be a wrong run. Captured
states hold only tensors and built-in types, which a file can be read into without executing anything.

A file may come from anyone, and attributes also decide which code runs: specifications, classes, names of modules,
paths. So a state is first compared with what is captured from the environment it is for: environments, constants,
random generators and texts must stand where they stand there, under the same names, and texts must be the same. Numbers
alone may differ, and single characters (cards, cells of a map), in which nothing can hide.
"""

import enum
import inspect
import math
import re
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from rlcore.spaces import Field

ENVIRONMENT = (gymnasium.Env, gymnasium.vector.VectorEnv)
CONSTANT = (gymnasium.Space, EnvSpec, enum.Enum, type, np.dtype, Field)
NUMBER = (bool, int, float, type(None))
PLAIN = (*NUMBER, str, bytes)
CONTAINERS = {"list": list, "tuple": tuple, "deque": deque}
NUMERIC = {getattr(torch, kind + size) for kind in ("int", "uint") for size in ("8", "16", "32", "64")}
NUMERIC |= {torch.bool, torch.float16, torch.float32, torch.float64}
MOST_VALUES = 100_000  # in one state; Python needs a hundred bytes and more for each, when it is taken and read back


class NotCapturable(Exception):
    """Names the attribute that is not plain data."""


class Misfit(ValueError):
    """Names the part of a state that does not belong into this environment."""


class CountedReset:
    """An environment's `reset` that also counts its calls, put into its place; no part of the environment's state."""

    def __init__(self, reset: Callable[..., Any]):
        self.reset, self.calls = reset, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return self.reset(*arguments, **options)


def capture_state(env: Any, most: int | None = MOST_VALUES) -> dict[str, Any]:
    """The attributes of a single or vector environment, its wrappers and copies, as tensors and built-in types.

    Raises:
        NotCapturable: where some attribute is not plain data, or all together are more than `most` values.
    """
    env = _unwrapped(env)
    try:
        return _Capture(math.inf if most is None else most).attributes(env, type(env).__name__)
    except RecursionError as error:
        raise NotCapturable(f"{type(env).__name__} contains itself") from error


def restore_state(env: Any, state: dict[str, Any]) -> None:
    """Put back what `capture_state` took from an environment built the same way, or from anyone: nothing is changed
    unless all of it fits. After a reset, since many environments have their attributes only then.

    Raises:
        Misfit: where the state is not one that this environment could have come to by itself.
    """
    try:
        fresh = capture_state(env, most=None)
    except NotCapturable as error:
        raise Misfit(f"the state of this environment cannot be put back: {error}") from error
    check_fits(state, fresh)
    _restore_object(_unwrapped(env), state)


def check_fits(state: Any, fresh: dict[str, Any], path: str = "the environment") -> None:
    """Refuse a captured state that differs in more than numbers from that of a `fresh` environment of its kind.

    Raises:
        Misfit: names the first part that does.
    """
    if not isinstance(state, dict) or state.keys() != fresh.keys():
        raise Misfit(f"{path} has other attributes than stored")
    for name, packed in state.items():
        # Loops go over this many copies; all other numbers are the environment's own business.
        if name == "num_envs" and not (type(packed) is int and packed == fresh[name]):
            raise Misfit(f"{path} has another number of copies than stored")
        _check(packed, fresh[name], f"{path}.{name}")


def _check(packed: Any, fresh: Any, path: str) -> None:
    (kind, content), (fresh_kind, fresh_content) = _unpack(packed, path), _unpack(fresh, path)
    if kind == fresh_kind == "env":
        check_fits(content, fresh_content, path)
    elif kind == "generator" and fresh_kind in ("generator", "none"):
        _check_generator(content, fresh_content, path)
    elif kind == fresh_kind == "dict":
        pairs, known = _by_key(content, path), _by_key(fresh_content, path)
        if pairs.keys() != known.keys():
            _check_free(packed, fresh, path)
        for key, value in pairs.items():
            _check(value, known.get(key), f"{path}[{key!r}]")
    elif kind == fresh_kind and kind in CONTAINERS and len(content) == len(fresh_content):
        for i, (value, known) in enumerate(zip(content, fresh_content, strict=True)):
            _check(value, known, f"{path}[{i}]")
    elif kind == "constant" and fresh_kind in ("constant", "none"):
        pass  # what is there stays
    elif not (kind == fresh_kind == "text" and packed == fresh):
        _check_free(packed, fresh, path)


def _check_free(packed: Any, fresh: Any, path: str) -> None:
    """Only what is numbers and single characters may become something else."""
    if not (_is_free(fresh) and _is_free(packed)):
        raise Misfit(f"{path} is stored as {_unpack(packed, path)[0]}, which a fresh environment does not have there")


def _is_free(packed: Any) -> bool:
    kind, content = _unpack(packed, "a part")
    if kind == "dict":
        return all(_is_free(key) and _is_free(value) for key, value in content)
    if kind in CONTAINERS:
        return all(map(_is_free, content))
    if kind == "text":  # of an array, whose dtype tells the most characters in an element, or a single one
        return (int(content[0][2:]) if isinstance(content, list) else len(content)) <= 1
    return kind in ("none", "number")


def _unpack(packed: Any, path: str) -> tuple[str, Any]:
    """The kind of a packed value (none, number, text, constant, env, generator, dict, list, tuple or deque) and its
    content, checked to be what `_capture` makes of such a value."""
    if packed is None:
        return "none", None
    if isinstance(packed, NUMBER):
        return "number", packed
    if isinstance(packed, str | bytes):
        return "text", packed
    kind, content = next(iter(packed.items())) if isinstance(packed, dict) and len(packed) == 1 else (None, None)
    is_dict, is_list = isinstance(content, dict), isinstance(content, list)
    is_array = isinstance(content, torch.Tensor) and content.dtype in NUMERIC
    right = {
        "env": is_dict,
        "constant": content is None,
        "generator": is_dict,
        "scalar": is_array and not content.ndim,
        "array": is_array,
        "text": is_list and _is_text(content),
        "dict": is_list and all(isinstance(part, tuple) and len(part) == 2 for part in content),
        **dict.fromkeys(CONTAINERS, is_list),
    }
    if not isinstance(kind, str) or not right.get(kind, False):
        raise Misfit(f"{path} is stored in a form that no environment's state has")
    return "number" if kind in ("scalar", "array") else kind, content


def _is_text(content: list) -> bool:
    """Whether this is dtype, shape and bytes of an array of text."""
    if len(content) != 3:
        return False
    dtype, shape, data = content
    match = re.fullmatch(r"([<>|])([SU])(\d{1,6})", dtype) if isinstance(dtype, str) else None
    if not match or not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        return False
    size = math.prod(shape) * int(match[3]) * (4 if match[2] == "U" else 1)
    if not isinstance(data, bytes) or len(data) != size or not size > 0:
        return False
    return match[2] == "S" or not (np.frombuffer(data, f"{match[1]}u4") > sys.maxunicode).any()


def _by_key(pairs: list, path: str) -> dict[Any, Any]:
    values = {_key(key, path): value for key, value in pairs}
    if len(values) != len(pairs):
        raise Misfit(f"{path} has a key twice")
    return values


def _key(packed: Any, path: str) -> Any:
    """A dict's key in a form that can be compared."""
    kind, content = _unpack(packed, path)
    if kind == "tuple":
        return tuple(_key(part, path) for part in content)
    if isinstance(content, torch.Tensor) and not content.ndim:
        return content.item()
    if kind not in ("none", "number", "text") or isinstance(content, torch.Tensor):
        raise Misfit(f"{path} has a key that no environment's state has")
    return (content[0], content[2]) if isinstance(content, list) else content


def _check_generator(content: Any, fresh: Any, path: str) -> None:
    """The same kind of generator as there, or numpy's default where none has been made yet."""
    try:
        state = _restore(content, None)
        name = "PCG64" if fresh is None else _restore(fresh, None)["bit_generator"]
        if state["bit_generator"] != name:
            raise ValueError(name)
        getattr(np.random, name)().state = state
    except Exception as error:  # numpy refuses in several ways
        raise Misfit(f"{path} is stored as a random generator in a state that none can have") from error


def _unwrapped(env: Any) -> Any:
    """The environment inside wrappers of ours that have no state of their own."""
    while getattr(type(env), "transparent", False):
        env = env.env
    return env


def _is_constant(value: Any) -> bool:
    """Whether a value cannot change while an environment runs, so that the freshly built one has it already."""
    if inspect.isfunction(value):
        return all(_is_frozen(cell.cell_contents) for cell in value.__closure__ or ())
    return isinstance(value, CONSTANT)


def _is_frozen(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_frozen(v) for v in value.values())
    return isinstance(value, PLAIN) or _is_constant(value)


class _Capture:
    """Makes plain data of values, of at most so many."""

    def __init__(self, most: float):
        self.most, self.taken = most, 0

    def attributes(self, env: Any, path: str) -> dict[str, Any]:
        own = {name: value for name, value in vars(env).items() if not isinstance(value, CountedReset)}
        return {name: self.value(value, f"{path}.{name}") for name, value in own.items()}

    def value(self, value: Any, path: str) -> Any:
        self.taken += 1
        if self.taken > self.most:
            raise NotCapturable(f"at {path}, more than {self.most:,} values are reached")
        if isinstance(value, ENVIRONMENT):
            return {"env": self.attributes(_unwrapped(value), path)}
        if _is_constant(value):
            return {"constant": None}
        if type(value) in PLAIN:  # not isinstance: np.float64 is a float
            return value
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            return {"scalar": torch.from_numpy(np.array(value))}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"array": torch.from_numpy(value.copy())}
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "SU" and value.nbytes:
            value = np.asarray(value)
            return {"text": [value.dtype.str, list(value.shape), value.tobytes()]}
        if isinstance(value, np.random.Generator):
            return {"generator": self.value(value.bit_generator.state, path)}
        if isinstance(value, dict):
            return {"dict": [(self.value(k, path), self.value(v, f"{path}[{k!r}]")) for k, v in value.items()]}
        for name, kind in CONTAINERS.items():
            if type(value) is kind:
                return {name: [self.value(v, f"{path}[{i}]") for i, v in enumerate(value)]}
        raise NotCapturable(f"{path} is {type(value).__name__}")


def _restore_object(env: Any, state: dict[str, Any]) -> None:
    for name, packed in state.items():
        current = vars(env).get(name)
        value = _restore(packed, current)
        both_arrays = isinstance(current, np.ndarray) and isinstance(value, np.ndarray)
        if both_arrays and current.shape == value.shape and current.dtype == value.dtype:
            np.copyto(current, value)  # in place: others may hold a view of it
        elif value is not current:
            setattr(env, name, value)


def _restore(packed: Any, current: Any) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "env":
        _restore_object(_unwrapped(current), content)
    if kind in ("env", "constant"):
        return current
    if kind == "scalar":
        return content.numpy()[()]
    if kind == "array":
        return content.numpy().copy()
    if kind == "text":
        dtype, shape, data = content
        return np.frombuffer(data, dtype).reshape(shape).copy()[()]  # [()] makes a scalar of what has no dimensions
    if kind == "generator":
        generator = current if isinstance(current, np.random.Generator) else np.random.default_rng()
        generator.bit_generator.state = _restore(content, None)
        return generator
    if kind == "dict":
        old = current if isinstance(current, dict) else {}
        pairs = ((_restore(k, None), v) for k, v in content)
        return {key: _restore(v, old.get(key)) for key, v in pairs}
    is_alike = isinstance(current, list | tuple | deque) and len(current) == len(content)
    each = current if is_alike else [None] * len(content)
    values = [_restore(v, o) for v, o in zip(content, each, strict=True)]
    return deque(values, getattr(current, "maxlen", None)) if kind == "deque" else CONTAINERS[kind](values)
