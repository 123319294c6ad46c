"""The state of an environment as plain data, where it is plain data.

An exact resume needs the environments as they were. Gymnasium has no call for that, so this walks an environment, its
wrappers and copies, and takes their attributes: numbers, arrays, random generators and containers of these. Where
anything else is met (a physics engine, an emulator, a process) the whole environment counts as not capturable, because
half a state restored would be a wrong run. Captured states hold only tensors and built-in types, so that they can be
stored in a file that is read without executing anything.
"""

from __future__ import annotations

import enum
import inspect
from collections import deque
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

CONSTANT = (gymnasium.Space, EnvSpec, enum.Enum, type, np.dtype)
PLAIN = (bool, int, float, str, bytes, type(None))


class NotCapturable(Exception):
    """Names the attribute that is not plain data."""


def capture_state(env: Any) -> dict[str, Any]:
    """The attributes of an environment, its wrappers and copies, as tensors and built-in types.

    Raises:
        NotCapturable: where some attribute is not plain data.
    """
    return _capture_object(env, type(env).__name__)


def restore_state(env: Any, state: dict[str, Any]) -> None:
    """Put back what `capture_state` took from an environment built the same way."""
    _restore_object(env, state)


def _is_env(value: Any) -> bool:
    return isinstance(value, gymnasium.Env | gymnasium.vector.VectorEnv)


def _is_constant(value: Any) -> bool:
    """Whether a value cannot change while an environment runs, so that the freshly built one has it already."""
    if inspect.isfunction(value):
        return all(_is_frozen(cell.cell_contents) for cell in value.__closure__ or ())
    return isinstance(value, CONSTANT)


def _is_frozen(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_frozen(v) for v in value.values())
    return isinstance(value, PLAIN) or _is_constant(value)


def _capture_object(env: Any, path: str) -> dict[str, Any]:
    return {name: _capture(value, f"{path}.{name}") for name, value in vars(env).items()}


def _capture(value: Any, path: str) -> Any:
    if _is_env(value):
        return {"env": _capture_object(value, path)}
    if _is_constant(value):
        return {"constant": None}
    if type(value) in PLAIN:  # not isinstance: np.float64 is a float
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"scalar": torch.from_numpy(np.array(value))}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"array": torch.from_numpy(value.copy())}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "SU":
        value = np.asarray(value)
        return {"text": [value.dtype.str, list(value.shape), value.tobytes()]}
    if isinstance(value, np.random.Generator):
        return {"generator": _capture(value.bit_generator.state, path)}
    if isinstance(value, dict):
        return {"dict": [(_capture(k, path), _capture(v, f"{path}[{k!r}]")) for k, v in value.items()]}
    for name, kind in (("list", list), ("tuple", tuple), ("deque", deque)):
        if type(value) is kind:
            return {name: [_capture(v, f"{path}[{i}]") for i, v in enumerate(value)]}
    raise NotCapturable(f"{path} is {type(value).__name__}")


def _restore_object(env: Any, state: dict[str, Any]) -> None:
    for name, packed in state.items():
        current = vars(env).get(name)
        value = _restore(packed, current)
        if _same_layout(current, value):
            np.copyto(current, value)  # in place: others may hold a view of it
        elif value is not current:
            setattr(env, name, value)


def _same_layout(a: Any, b: Any) -> bool:
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape and a.dtype == b.dtype


def _restore(packed: Any, current: Any) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "env":
        _restore_object(current, content)
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
    old = (
        list(current)
        if isinstance(current, list | tuple | deque) and len(current) == len(content)
        else [None] * len(content)
    )
    values = [_restore(v, o) for v, o in zip(content, old, strict=True)]
    return (
        deque(values, getattr(current, "maxlen", None))
        if kind == "deque"
        else {"list": list, "tuple": tuple}[kind](values)
    )
