"""The libraries that rlcore is compared with, each in a virtual environment of its own, and a clock around calls."""

from __future__ import annotations

import subprocess
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).parent
PEERS = {
    "sb3": ("stable-baselines3==2.9.2",),
    "sb3_atari": ("stable-baselines3==2.9.2", "ale-py==0.12.1", "opencv-python-headless"),
    "rejax": ("rejax==0.1.3", "gymnax==0.0.9", "jax==0.10.2"),
}
ON_TORCH = ("sb3", "sb3_atari")  # these get the versions of torch, numpy and gymnasium that rlcore is measured with


def find_interpreter(name: str) -> Path | None:
    """The interpreter of a peer's virtual environment, None where it has not been made."""
    python = HERE / ".venvs" / name / "bin" / "python"
    return python if python.exists() else None


def interpreter(name: str) -> Path:
    """The interpreter of a peer's virtual environment, which is made where it is missing."""
    found = find_interpreter(name)
    if found:
        return found
    folder = HERE / ".venvs" / name
    print(f"making {machine.shown(folder)} ...", flush=True)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pins = ["-c", str(HERE.parent / "constraints.txt")] if name in ON_TORCH else []
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, *PEERS[name]], check=True)
    return python


def time_calls(
    seconds: dict[str, float], name: str, owner: Any, method: str, settle: Callable[[], Any] | None = None
) -> None:
    """Add the time of each call of `owner.method` to `seconds[name]` from now on.

    Args:
        settle: called before each look at the clock, such as to wait for a card.
    """
    settle = settle or (lambda: None)
    function = getattr(owner, method)
    seconds.setdefault(name, 0.0)

    def timed(*args: Any, **kwargs: Any) -> Any:
        settle()
        start = time.perf_counter()
        result = function(*args, **kwargs)
        settle()
        seconds[name] += time.perf_counter() - start
        return result

    setattr(owner, method, timed)
