"""Whether Python is running an algorithm, or writing down what it does.

A compiled iteration is made by running the agent's own methods once and recording their tensor operations
(rlcore/programs/program.py). The few places whose Python flow could depend on data ask here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_recording = False


def is_recording() -> bool:
    """Whether tensor operations are being recorded for a program, so that no value can be looked at."""
    return _recording


def surely(flag: Tensor) -> bool:
    """The truth of a 0-dim tensor where it can be looked at; False while recording, where nothing is certain."""
    return not _recording and bool(flag)


class Constant:
    """A tensor that never changes, copied once to each device and type: a copy from ordinary host memory is what a
    CUDA graph cannot hold.

    Args:
        value: on the CPU.
    """

    def __init__(self, value: Tensor):
        self.value = value
        self._copies: dict[Any, Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """The value on the device of `x` and in its type."""
        key = x.device, x.dtype
        if key in self._copies:
            return self._copies[key]
        with torch.inference_mode(False):  # gradients may pass it later
            copy = self.value.to(x)
        if not _recording:  # a tensor made while recording may stand for others
            self._copies[key] = copy
        return copy


@contextmanager
def recording() -> Iterator[None]:
    """What runs inside is recorded."""
    global _recording
    before, _recording = _recording, True
    try:
        yield
    finally:
        _recording = before
