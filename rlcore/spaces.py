"""Gymnasium spaces as tensors: what an observation or an action looks like in the buffer.

A single observation space (Box, Discrete, MultiDiscrete, MultiBinary) is one tensor; Tuple and Dict spaces, nested or
not, become a flat dict of named parts (`"camera"`, `"robot/joints"`, `"0"`). `map_parts` treats both alike.
"""

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.errors import UsageError
from rlcore.tracing import Constant

Obs = Tensor | dict[str, Tensor]
"""One tensor, or a dict of named tensors for Tuple and Dict observation spaces."""

ACTION_MASK = "action_mask"  # the part of an observation that says which choices are allowed, where actions are masked


@dataclass(frozen=True)
class Sequences:
    """Observations in the order they were made, for a policy that remembers: what it gets in the place of a tensor.

    B = K · L · S rows: K stretches of L steps of S environments, time going first within each, so that a rollout
    `[T, N]` flattened is one of these with K · L = T and S = N.

    Attributes:
        obs: `[B, ...]`.
        first: `[B]` bool, where an episode begins and what was remembered is forgotten.
        carry: `[K · S, ...]` each, what was remembered before the first step of each sequence.
        length: L.
        width: S.
    """

    obs: Any
    first: Tensor
    carry: dict[str, Tensor]
    length: int
    width: int

    def by_sequence(self, x: Tensor) -> Tensor:
        """`x [B, ...]` as `[L, K · S, ...]`."""
        return x.unflatten(0, (-1, self.length, self.width)).transpose(0, 1).flatten(1, 2)

    def by_row(self, x: Tensor) -> Tensor:
        """`x [L, K · S, ...]` as `[B, ...]`."""
        return x.unflatten(1, (-1, self.width)).transpose(0, 1).flatten(0, 2)

    def rows_of(self, which: Tensor) -> Tensor:
        """The rows `[L · M]` of the sequences `which [M]`, step by step."""
        begin = which // self.width * (self.length * self.width) + which % self.width
        steps = torch.arange(self.length, device=which.device) * self.width
        return (begin + steps.unsqueeze(1)).flatten()

    def part(self, which: Tensor, rows: Tensor, first: Tensor) -> "Sequences":
        """The sequences `which [M]`, whose observations are read from `rows [L · M]`, and their `first [L · M]`."""
        obs, carry = (map_parts(lambda x, i=i: x[i], y) for y, i in ((self.obs, rows), (self.carry, which)))
        return Sequences(obs, first, carry, self.length, len(which))


def map_parts(function: Callable, obs: Any, *others: Any) -> Any:
    """`function` of an observation, part by part where it has parts."""
    if isinstance(obs, dict):
        return {name: function(part, *(other[name] for other in others)) for name, part in obs.items()}
    return function(obs, *others)


@dataclass(frozen=True)
class Part:
    """One leaf of an observation space.

    Attributes:
        shape: shape of one observation in the buffer, without the [T, N] in front.
        dtype: dtype in the buffer: float32, uint8 (images, bits) or int64 (indices).
        categories: numbers of categories of an index part, () otherwise; shape (1,) for Discrete.
        start: first index of each category, subtracted on the way in.
        floating: whether the values are real numbers, for which running normalisation makes sense.
        image: whether the values are bytes from 0 to 255, which the network scales to [0, 1].
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    categories: tuple[int, ...] = ()
    start: Any = 0
    floating: bool = False
    image: bool = False


def observation_parts(space: spaces.Space) -> Part | dict[str, Part]:
    """The part of a single space, or the named parts of a Tuple or Dict.

    Raises:
        UsageError: where the space, or one inside it, has no fixed-size tensor form.
    """
    parts = {name: _leaf(leaf, name) for name, _, leaf in _leaves(space)}
    if not parts:
        raise UsageError(f"the observation space {space} is empty; it needs at least one part")
    return parts.get("", parts)


def _leaves(space: spaces.Space, name: str = "", path: tuple = ()) -> Iterator[tuple[str, tuple, spaces.Space]]:
    """Name, keys on the way there, and space of each part; a space without parts is one of no name."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        yield name, path, space
        return
    for key, child in space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
        yield from _leaves(child, f"{name}/{key}" if name else str(key), (*path, key))


def _leaf(space: spaces.Space, name: str) -> Part:
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8:
            return Part(space.shape, torch.uint8, image=True)
        return Part(space.shape, torch.float32, floating=True)
    if isinstance(space, spaces.Discrete):
        return Part((), torch.int64, (int(space.n),), int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return Part(space.nvec.shape, torch.int64, tuple(int(n) for n in space.nvec.flat), _start(space))
    if isinstance(space, spaces.MultiBinary):
        return Part(tuple(space.shape), torch.uint8)
    where = f"part '{name}' of the observation space" if name else "the observation space"
    raise UsageError(
        f"{where} is {type(space).__name__}, which has no fixed-size tensor form; "
        "supported are Box, Discrete, MultiDiscrete, MultiBinary, and Tuple or Dict of these"
    )


def _start(space: spaces.MultiDiscrete) -> Any:
    start = np.asarray(getattr(space, "start", 0))
    return start if np.any(start) else 0


def split_observation(space: spaces.Space, obs: Any) -> Any:
    """An observation as gymnasium gives it, as one array or a flat dict of named arrays."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return obs
    return {name: functools.reduce(operator.getitem, path, obs) for name, path, _ in _leaves(space)}


@dataclass(frozen=True)
class Field:
    """One thing that every transition holds, `[T, N, *shape]` in the buffer and `[B, *shape]` in a batch.

    Attributes:
        name: under which buffer and batch have it.
        shape: of one transition's.
        dtype: of its numbers.
        source: who fills it: the environment at each step, the policy when it acts, or the agent after a rollout.
        per_sequence: whether it is stored where sequences begin alone, `[T / L, N, *shape]`: a policy's memory.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    source: Literal["environment", "policy", "agent"] = "agent"
    per_sequence: bool = False


@dataclass(frozen=True)
class ActionSpec:
    """How the actions of a space are stored, distributed and handed to the environment.

    Attributes:
        kind: the distribution: categorical, multi_categorical, bernoulli, gaussian or tanh_gaussian.
        shape: shape of one action in the buffer, without the [T, N] in front.
        dtype: dtype in the buffer: int64 for choices, float32 for Box.
        num_params: number P of raw network outputs that parametrise the distribution.
        nvec: numbers of choices, for the categorical kinds.
        space: the gymnasium space of a single environment.
        masked: whether a part `action_mask` of the observation, `[P]`, says which choices are allowed.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    num_params: int
    nvec: tuple[int, ...]
    space: Any
    masked: bool = False

    @property
    def squash(self) -> bool:
        """Whether a tanh maps the stored action into the bounds of the Box."""
        return self.kind == "tanh_gaussian"

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Stored `actions [N, ...]` as the environment takes them: shifted by `start`, squashed or clipped.

        The buffer keeps what the policy drew; only the copy at the environment's door is bounded.
        """
        space = self.space
        if self.kind == "categorical":
            return actions + space.start if space.start else actions
        if self.squash:
            actions = space.low.ravel() + (space.high - space.low).ravel() * (np.tanh(actions) + 1) / 2
        actions = actions.reshape(-1, *space.shape)
        if isinstance(space, spaces.Box):
            actions = np.clip(actions, space.low, space.high)
        elif isinstance(space, spaces.MultiDiscrete):
            actions = actions + _start(space)
        return actions.astype(space.dtype, copy=False)

    @functools.cached_property
    def _bounds(self) -> tuple[Constant, Constant]:
        return Constant(torch.from_numpy(self.space.low.ravel())), Constant(torch.from_numpy(self.space.high.ravel()))

    def to_env_tensor(self, actions: Tensor) -> Tensor:
        """`to_env` of `actions [N, ...]` for tensor environments; choices are handed over as counted here, from 0."""
        if not isinstance(self.space, spaces.Box):
            return actions
        low, high = (bound.like(actions) for bound in self._bounds)
        if self.squash:
            actions = low + (high - low) * (torch.tanh(actions) + 1) / 2
        return actions.clamp(low, high)


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """The same type of numbers in numpy."""
    return torch.zeros((), dtype=dtype).numpy().dtype


def action_spec(space: spaces.Space, squash: bool = False) -> ActionSpec:
    """The storage and distribution of an action space; `squash` chooses a tanh instead of clipping for a Box.

    Raises:
        UsageError: where the space has no distribution here, or `squash` meets an unbounded or a discrete space.
    """
    if squash and not (isinstance(space, spaces.Box) and space.is_bounded("both")):
        raise UsageError(f"squash maps onto the bounds of a finite Box, but the action space is {space}")
    if isinstance(space, spaces.Discrete):
        return ActionSpec("categorical", (), torch.int64, int(space.n), (int(space.n),), space)
    if isinstance(space, spaces.MultiDiscrete):
        nvec = tuple(int(n) for n in space.nvec.flat)
        return ActionSpec("multi_categorical", (len(nvec),), torch.int64, sum(nvec), nvec, space)
    if isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
        return ActionSpec("bernoulli", (size,), torch.int64, size, (), space)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        size = int(np.prod(space.shape))
        return ActionSpec("tanh_gaussian" if squash else "gaussian", (size,), torch.float32, 2 * size, (), space)
    raise UsageError(
        f"the action space is {space}, which has no policy here; "
        "supported are Discrete, MultiDiscrete, MultiBinary and Box of floats"
    )
