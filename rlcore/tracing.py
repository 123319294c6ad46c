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
            copy.is_constant = True
            self._copies[key] = copy
        return self._copies[key]


_reduce: Callable[[Tensor], Tensor] | None = None


def reduce(x: Tensor) -> Tensor:
    """The sum of `x [...]` over all processes that learn together, x itself where there is one; for the gradient,
    numerators and denominators of masked means, and running statistics."""
    return x if _reduce is None else _reduce(x)


@contextmanager
def reducing(function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Sums are taken by `function` inside."""
    global _reduce
    before, _reduce = _reduce, function
    try:
        yield
    finally:
        _reduce = before
