"""What a measurement was made on: every result file of this folder says so."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("RLCORE_RESULTS") or Path(__file__).parent / "results")
PACKAGES = (
    "rlcore", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib", "ale-py", "envpool",
    "opencv-python-headless", "pettingzoo",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Hardware, versions, commit and the command that is running."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *map(shown, sys.argv)]),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "rlcore")),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def write(name: str, result: dict[str, Any]) -> Path:
    """Store a result with its machine as results/NAME.json, in the folder RLCORE_RESULTS where that is set."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(), **result}, indent=1) + "\n")
    print(f"wrote {shown(path)}")
    return path


def shown(argument: str | Path) -> str:
    """A path of this checkout relative to the current folder, anything else as it is."""
    path, here = Path(argument).resolve(), Path.cwd()
    exists = os.path.exists(path)  # False for a text that is too long to be a path
    return str(path.relative_to(here)) if exists and path.is_relative_to(here) else str(argument)


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    return result.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


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
