"""What a run was made on: hardware, versions, the commit of the code.

Imports nothing of rlcore, and torch only where it is there: benchmarks load this file into the interpreters of peers.
"""

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "rlcore", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib", "ale-py", "envpool",
    "opencv-python-headless", "pettingzoo", "mujoco", "box2d", "rejax", "gymnax", "jax",
)  # fmt: skip
CHECKOUT = Path(__file__).parent.parent.parent


def describe() -> dict[str, Any]:
    """Date, command that is running, commit, hardware and versions."""
    here = _git("rev-parse", "--show-toplevel") == str(CHECKOUT)  # not another repository that it is installed in
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *map(shown, sys.argv)]),
        "commit": _git("rev-parse", "--short", "HEAD") if here else None,
        "uncommitted_changes": here and bool(_git("status", "--porcelain", "--untracked-files=no", "--", "rlcore")),
        "cpu": _cpu(),
        "cores": len(cores()),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def shown(argument: str | Path) -> str:
    """A path below the current folder relative to it, anything else as it is."""
    path, here = Path(argument).resolve(), Path.cwd()
    exists = os.path.exists(path)  # False for a text that is too long to be a path
    return str(path.relative_to(here)) if exists and path.is_relative_to(here) else str(argument)


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=CHECKOUT)
    except OSError:  # no git
        return ""
    return result.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _gpu() -> str | None:
    try:
        import torch
    except ModuleNotFoundError:  # in a peer's environment
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
