"""What the rest of the package needs to be recordable: loops, sums over processes, constants, and whether tensor
operations are run or recorded for a program (rlcore/programs), in which a loop's body stands once.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

Tree = Any
"""Tensors in nested dicts, lists and tuples."""


class _Thread(threading.local):
    """What is going on in this thread."""

    looks = True  # whether values may be looked at
    recorder: Any = None  # what writes down the operations, see rlcore/programs/recording.py
    twice: bool = False  # whether derivatives of derivatives will be taken


thread = _Thread()


def is_recording() -> bool:
    """Whether tensor operations are being recorded for a program, so that no value can be looked at."""
    return not thread.looks


@contextmanager
def recording(recorder: Any = None) -> Iterator[None]:
    """What runs inside is recorded: no value is looked at, and loops are handed to the `recorder`, if there is one."""
    before = thread.looks, thread.recorder
    thread.looks, thread.recorder = False, recorder
    try:
        yield
    finally:
        thread.looks, thread.recorder = before


@contextmanager
def twice_differentiated() -> Iterator[None]:
    """Derivatives of derivatives will be taken of what runs inside, which not every fast kernel has."""
    before, thread.twice = thread.twice, True
    try:
        yield
    finally:
        thread.twice = before


def is_twice_differentiated() -> bool:
    """Whether derivatives of derivatives will be taken."""
    return thread.twice


def loop(
    body: Callable[[Tree, Tree], tuple[Tree, Tree]],
    carry: Tree,
    xs: Tree,
    until: Callable[[Tree], Tensor] | None = None,
    unroll: int = 1,
    apart: Sequence[str] = (),
) -> tuple[Tree, Tree, int | Tensor]:
    """`carry, y = body(carry, x)` for each row x of `xs`: Python's `for`, or one scan of a program.

    Args:
        body: may read and write declared state beside its carry; y is a tensor or a dict of them.
        carry: what one turn hands to the next.
        xs: a tensor, or a dict of them, whose first dimension is gone through; or a number of turns. At least one.
        until: ends the loop after a turn whose carry it holds for, a 0-dim bool tensor.
        unroll: turns to write out one after the other in a compiled program.
        apart: names of ys that a compiled program does not pack with the others, which would compute them twice.

    Returns:
        The last carry; the ys stacked; and how many turns were taken. A program goes through all turns: those after
        the end change nothing, and their ys are 0.
    """
    if thread.recorder is not None:
        return thread.recorder.loop(body, carry, xs, until, unroll, apart)
    rows, ys = itertools.repeat(None, xs) if isinstance(xs, int) else rows_of(xs), []
    for x in rows:
        carry, y = body(carry, x)
        ys.append(y)
        if until is not None and until(carry):
            break
    return carry, _stacked(ys), len(ys)


def rows_of(xs: Tree) -> Iterator[Tree]:
    """The rows of a tensor, or of all tensors in a dict together."""
    if isinstance(xs, dict):
        return (dict(zip(xs, row, strict=True)) for row in zip(*(x.unbind() for x in xs.values()), strict=True))
    # Stacked frames are no tensor, and put together row by row.
    return iter(xs.unbind()) if isinstance(xs, Tensor) else (xs[t] for t in range(len(xs)))


def _stacked(rows: list[Tree]) -> Tree:
    if isinstance(rows[0], Tensor):
        return torch.stack(rows)
    return {name: _stacked([row[name] for row in rows]) for name in rows[0]}


# What torch's pytree does, for dicts, lists and tuples alone: its generality takes a tenth of a small iteration.


def leaves_of(tree: Tree) -> list[Tensor]:
    """All tensors in a tree, in order."""
    if tree is None:
        return []
    if not isinstance(tree, dict | list | tuple):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves_of(part)]


def numbered(tree: Tree, numbers: Iterator[int] | None = None) -> Any:
    """The tree with a number in the place of each tensor, out of `numbers`: 0, 1, ..."""
    numbers = itertools.count() if numbers is None else numbers
    if isinstance(tree, dict):
        return {name: numbered(part, numbers) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return [numbered(part, numbers) for part in tree]
    return None if tree is None else next(numbers)


def in_places(places: Any, leaves: Sequence[Tensor]) -> Tree:
    """The tree in which each place's number is replaced by the tensor of that number."""
    if isinstance(places, int):
        return leaves[places]
    if isinstance(places, dict):
        return {name: in_places(part, leaves) for name, part in places.items()}
    return None if places is None else [in_places(part, leaves) for part in places]


class Constant:
    """A tensor that never changes, of `value [...]` on the CPU, copied once to each device and type, since a CUDA graph
    cannot hold a copy from host memory. A recording takes it, where it refuses other tensors from outside."""

    def __init__(self, value: Tensor):
        self.value = value
        self._copies: dict[Any, Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """The value on the device of `x [...]` and in its type."""
        key = x.device, x.dtype
        if key not in self._copies:
            # Outside of inference mode, since gradients may pass it later.
            with torch.inference_mode(False), thread.recorder.paused() if thread.recorder else nullcontext():
                copy = self.value.to(x.device, x.dtype, copy=True)
            copy.is_constant = True  # type: ignore[attr-defined]  # a mark of ours
            self._copies[key] = copy
        return self._copies[key]


class Share:
    """What this process has of what several do together: alone, all of it. `rlcore/distributed` has the other kind.

    Attributes:
        rank: which of them this one is, from 0.
        count: how many they are.
        local_rank: which of those on this machine.
    """

    rank, count, local_rank = 0, 1, 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x [...]` over all processes, the same to the last bit in each."""
        return x

    def gather(self, thing: Any) -> list[Any] | None:
        """The `thing` of each process, by rank, where this one is rank 0, else None."""
        return [thing]

    def broadcast(self, thing: Any) -> Any:
        """The `thing` of rank 0, in all processes."""
        return thing

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return flag if self.count == 1 else bool(self.sum(torch.tensor(int(flag))))

    def slice(self, size: int) -> slice:
        """Where the `size` that this process has stand among those of all."""
        return slice(self.rank * size, (self.rank + 1) * size)

    def columns(self, x: Tensor) -> Tensor:
        """`x [T, N / K]` of this process as that of all, `[T, N]`."""
        if self.count == 1:
            return x
        whole = x.new_zeros(len(x), x.shape[1] * self.count, dtype=torch.uint8 if x.dtype is torch.bool else x.dtype)
        whole[:, self.slice(x.shape[1])] = x
        return self.sum(whole).to(x.dtype)


_alone = Share()
_share = _alone


def share() -> Share:
    """That of this process, now."""
    return _share


def reduce(x: Tensor) -> Tensor:
    """The sum of `x [...]` over all processes that learn together, x itself where there is one; for the gradient,
    numerators and denominators of masked means, and running statistics."""
    return x if _share is _alone else _share.sum(x)


def reduce_each(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`reduce` of several at one stroke, since each stroke takes as long as a small layer; in the type of the first."""
    if _share is _alone:
        return list(tensors)
    flat = torch.cat([x.detach().flatten().to(tensors[0].dtype) for x in tensors])
    parts = reduce(flat).split([x.numel() for x in tensors])
    return [part.reshape(x.shape) if x.ndim else part.squeeze(0) for part, x in zip(parts, tensors, strict=True)]


@contextmanager
def sharing(own: Share) -> Iterator[Share]:
    """Inside, this process has this share of what several do together."""
    global _share
    before, _share = _share, own
    try:
        yield own
    finally:
        _share = before


@contextmanager
def reducing(function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Sums are taken by `function` inside."""
    own = Share()
    own.sum = function  # type: ignore[method-assign, assignment]  # of this one alone
    with sharing(own):
        yield
