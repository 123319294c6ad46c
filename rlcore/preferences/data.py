"""Segments of episodes, and which of two was preferred, as tensors and as lines of JSON.

A segment is a stretch of an episode (Christiano et al. 2017, arXiv:1706.03741), and so is a response to a prompt.
A line of a file is one of

    {"prompt": "37+58=", "first": "5190", "second": "5180", "preference": 1}
    {"first": {"obs": [...], "actions": [...]}, "second": {"obs": [...], "actions": [...]}, "preference": 0.5}

with a preference of 1 for the first, 0 for the second and 0.5 for neither. A segment has fewer rows than the other of
its pair only where it says `"ended": true`: the episode was over. A line of a file of demonstrations is one of

    {"prompt": "37+58=", "response": "5190"}
    {"obs": [...], "actions": [...]}
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.envs.adapter import VectorAdapter
from rlcore.envs.text import END, TextTask
from rlcore.errors import UsageError, shown
from rlcore.spaces import map_parts, observation_parts
from rlcore.storage.checkpoint import check_like
from rlcore.storage.files import write_atomically
from rlcore.tracing import leaves_of

PREFERENCES = (0, 0.5, 1)


@dataclass
class Segments:
    """K segments of at most L rows, padded behind.

    Attributes:
        obs: `[K, L, ...]`, a dict of such where observations have parts.
        actions: `[K, L, ...]` as the policy draws them.
        mask: `[K, L]` bool, rows that are there.
    """

    obs: Any
    actions: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def length(self) -> int:
        """L, the most rows of one."""
        return self.mask.shape[1]

    def __getitem__(self, which: Any) -> "Segments":
        return Segments(map_parts(lambda x: x[which], self.obs), self.actions[which], self.mask[which])

    def to(self, device: torch.device) -> "Segments":
        """The same on a device."""
        return Segments(map_parts(lambda x: x.to(device), self.obs), self.actions.to(device), self.mask.to(device))

    @staticmethod
    def join(parts: Sequence["Segments"]) -> "Segments":
        """All of them one after the other, those of fewer rows padded."""
        length = max(part.mask.shape[1] for part in parts)

        def cat(*xs: Tensor) -> Tensor:
            return torch.cat([torch.cat([x, x.new_zeros(len(x), length - x.shape[1], *x.shape[2:])], 1) for x in xs])

        obs = map_parts(cat, *(part.obs for part in parts))
        return Segments(obs, cat(*(part.actions for part in parts)), cat(*(part.mask for part in parts)))


@dataclass
class Preferences:
    """P pairs: `first` and `second` Segments of P each, and `label [P]`, 1 where the first is preferred, 0 where the
    second is, 0.5 where neither."""

    first: Segments
    second: Segments
    label: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, which: Any) -> "Preferences":
        return Preferences(self.first[which], self.second[which], self.label[which])

    @property
    def length(self) -> int:
        """L, the most rows of a segment."""
        return self.first.length

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and dicts of these."""
        return {"first": vars(self.first), "second": vars(self.second), "label": self.label}

    @staticmethod
    def from_state(state: Any, obs: Any, actions: Tensor) -> "Preferences":
        """What `state_dict` gave, of segments of what a buffer has as `obs` and `actions [T, N, ...]`; a ValueError
        where it does not fit."""
        first = state.get("first") if isinstance(state, dict) else None
        mask = first.get("mask") if isinstance(first, dict) else None
        size = mask.shape if isinstance(mask, Tensor) and mask.ndim == 2 else (0, 0)

        def room(x: Tensor) -> Tensor:
            return torch.empty(*size, *x.shape[2:], dtype=x.dtype, device="meta")

        like = Segments(map_parts(room, obs), room(actions), torch.empty(size, dtype=torch.bool, device="meta"))
        check_like(state, Preferences(like, like, torch.empty(size[0], device="meta")).state_dict(), "preferences")
        return Preferences(Segments(**state["first"]), Segments(**state["second"]), state["label"])

    def to(self, device: torch.device) -> "Preferences":
        """The same on a device."""
        return Preferences(self.first.to(device), self.second.to(device), self.label.to(device))

    def held_out(self, share: float) -> Tensor:
        """`[P]` bool, which pairs such a share is, taken evenly from the first on, so that more of them behind change
        nothing for these."""
        return (torch.arange(len(self) + 1, dtype=torch.float64) * share).ceil().diff() > 0

    @staticmethod
    def join(parts: Sequence["Preferences"]) -> "Preferences":
        """All of them one after the other."""
        both = Segments.join([*(part.first for part in parts), *(part.second for part in parts)])
        count = sum(map(len, parts))
        return Preferences(both[:count], both[count:], torch.cat([part.label for part in parts]))

    def save(self, path: str | Path, task: TextTask | None = None) -> None:
        """Write them as lines of JSON, of a `task` of texts as texts."""
        write_atomically(Path(path), "".join(json.dumps(line) + "\n" for line in self.lines(task)).encode())

    def lines(self, task: TextTask | None = None) -> list[dict[str, Any]]:
        """What stands in the lines of a file."""
        write: Any = _text_line if task else _line
        return [write(self[n : n + 1], task) for n in range(len(self))]


def _line(pair: Preferences, _: None) -> dict[str, Any]:
    sides = {"first": pair.first, "second": pair.second}
    return {**{name: _rows(side) for name, side in sides.items()}, "preference": _number(pair.label)}


def _rows(segment: Segments) -> dict[str, Any]:
    there = segment.mask[0]
    obs = map_parts(lambda x: x[0][there].tolist(), segment.obs)
    ended = {} if there.all() else {"ended": True}
    return {"obs": obs, "actions": segment.actions[0][there].tolist(), **ended}


def _text_line(pair: Preferences, task: TextTask) -> dict[str, Any]:
    texts = {name: task.decode(side.actions[0][side.mask[0]].tolist()) for name, side in
             (("first", pair.first), ("second", pair.second))}  # fmt: skip
    return {"prompt": task.decode(pair.first.obs["prompt"][0, 0].tolist()), **texts, "preference": _number(pair.label)}


def _number(label: Tensor) -> float | int:
    value = label.item()
    return int(value) if value == int(value) else value


def read_preferences(path: str | Path, envs: VectorAdapter, task: Any = None) -> Preferences:
    """The pairs in a file, for environments behind this adapter, or for a `task` of texts.

    Raises:
        UsageError: where the file cannot be read, or a line is none of a pair, or does not fit; names the line. Nothing
            of such a file is taken.
    """
    read = _read_texts if isinstance(task, TextTask) else _read_rows
    return Preferences.join(_read_lines(path, "pair", lambda line: _read_pair(line, lambda x: read(x, envs, task))))


def read_demonstrations(path: str | Path, envs: VectorAdapter, task: Any = None) -> Segments:
    """What an expert did, out of a file; arguments and the UsageError as of `read_preferences`."""

    def read(line: dict[str, Any]) -> Segments:
        if not isinstance(task, TextTask):
            return _segment(line, envs)
        if not all(isinstance(line.get(name), str) for name in ("prompt", "response")):
            raise ValueError("it needs texts as 'prompt' and 'response'")
        return response_segment(task, task.encode(line["prompt"]), [*task.encode(line["response"]), END])

    return Segments.join(_read_lines(path, "demonstration", read))


def _read_lines(path: str | Path, kind: str, read: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """What `read` makes of each line of a file; all of them or an error that names the line."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not lines:
        raise UsageError(f"{path} is empty; it needs at least one line with a {kind}")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(read(_object(line)))
        except ValueError as error:
            raise UsageError(f"line {number} of {path} is not a {kind}: {error}") from None
    return found


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is not readable as JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is {shown(value)}, but must be an object")
    return value


def _read_pair(pair: dict[str, Any], read: Callable[[dict[str, Any]], tuple[Segments, Segments]]) -> Preferences:
    for name in ("first", "second", "preference"):
        if name not in pair:
            raise ValueError(f"it has no '{name}'")
    label = pair["preference"]
    if isinstance(label, bool) or label not in PREFERENCES:
        raise ValueError(f"its preference is {shown(label)}, but may be 1, 0.5 or 0")
    return Preferences(*read(pair), torch.tensor([float(label)]))


def _read_rows(pair: dict[str, Any], envs: VectorAdapter, _: None) -> tuple[Segments, Segments]:
    first, second = (_segment(pair[name], envs, f" of '{name}'") for name in ("first", "second"))
    lengths = [side.mask.shape[1] for side in (first, second)]
    ended = [isinstance(pair[name], dict) and pair[name].get("ended") is True for name in ("first", "second")]
    if lengths[0] != lengths[1] and not ended[lengths[0] > lengths[1]]:
        raise ValueError(f"its segments have {lengths[0]} and {lengths[1]} rows, but the shorter one has not ended")
    both = Segments.join([first, second])
    return both[:1], both[1:]


def _segment(data: Any, envs: VectorAdapter, whose: str = "") -> Segments:
    if not isinstance(data, dict) or not {"obs", "actions"} <= data.keys():
        raise ValueError(f"'obs' and 'actions'{whose} are missing")
    spec, parts = envs.action_spec, envs.parts
    given: Any
    actions = _array(data["actions"], spec.shape, spec.dtype, f"the actions{whose}")
    if spec.nvec and ((actions < 0).any() or (actions >= torch.tensor(spec.nvec)).any()):
        given = shown(data["actions"])
        raise ValueError(f"the actions{whose} are {given}, but must be from 0 to {spec.nvec[0] - 1}")
    given = data["obs"]
    if isinstance(parts, dict) and (not isinstance(given, dict) or given.keys() != parts.keys()):
        raise ValueError(f"the obs{whose} must have the parts {', '.join(parts)}")
    obs = map_parts(lambda part, x: _array(x, part.shape, part.dtype, f"the obs{whose}"), parts, given)
    if any(len(x) != len(actions) for x in leaves_of(obs)):
        raise ValueError(f"obs and actions{whose} differ in number")
    if len(actions) == 0:
        raise ValueError(f"there are no actions{whose}")
    mask = torch.ones(1, len(actions), dtype=torch.bool)
    return Segments(map_parts(lambda x: x.unsqueeze(0), obs), actions.unsqueeze(0), mask)


def _array(data: Any, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> Tensor:
    try:
        array = np.asarray(data, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name} are not numbers of one shape") from None
    if array.shape[1:] != shape or array.ndim == 0:
        raise ValueError(f"{name} have shape {list(array.shape)}, but must have {['rows', *shape]}")
    if not np.isfinite(array).all() or (not dtype.is_floating_point and (array != np.floor(array)).any()):
        raise ValueError(f"{name} are not {'finite' if dtype.is_floating_point else 'whole'} numbers")
    return torch.from_numpy(array).to(dtype)


def _read_texts(pair: dict[str, Any], _: Any, task: TextTask) -> tuple[Segments, Segments]:
    texts = [pair.get(name) for name in ("prompt", "first", "second")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("it needs texts as 'prompt', 'first' and 'second'")
    prompt, *responses = map(task.encode, texts)
    first, second = (response_segment(task, prompt, [*response, END]) for response in responses)
    return first, second


def response_segment(task: TextTask, prompt: Sequence[int], response: Sequence[int]) -> Segments:
    """A response to a prompt, both tokens, as the segment of an episode of the `task`; an end token beyond the last
    place is left out. A UsageError where either is too long."""
    P, R = task.prompt_length, task.response_length
    response = response[:R] if len(response) == R + 1 and response[-1] == END else response
    for name, tokens, most in (("prompt", prompt, P), ("response", response, R)):
        if len(tokens) > most:
            raise UsageError(f"the {name} has {len(tokens)} tokens, but {task.id} has room for {most}")
    rows = torch.arange(R).unsqueeze(1)  # of which row t has t tokens of the response
    written = torch.tensor([*response, *[0] * (R - len(response))])
    state = torch.zeros(R, P + 2 * R + 2)
    state[:, P - len(prompt) : P] = torch.tensor(prompt, dtype=torch.float32)
    state[:, P : P + R] = torch.where(torch.arange(R) < rows, written, 0)
    state[:, P + 2 * R] = rows.squeeze(1)
    parts = observation_parts(task.observation_space)
    obs = map_parts(lambda x, part: x.unsqueeze(0).to(part.dtype), task.observe(state), parts)
    return Segments(obs, written.unsqueeze(0), (rows < len(response)).T)
