"""What the run of a peer as a cell of `rlcore bench` is asked for and leaves; see `rlcore.runs.suite.Cell.command`."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).parent


def options_of(description: str | None, algos: Sequence[str] = ("ppo",)) -> argparse.Namespace:
    """Those of the command line, with `algo` in front where there are several; `total_steps` is that of rlcore's preset
    unless another is given, so that both have the same."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if len(algos) > 1:
        parser.add_argument("algo", choices=algos)
    parser.add_argument("env_id")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--total-steps", type=int)
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    presets = tomllib.loads((HERE.parent / "rlcore" / "presets" / "classic_control.toml").read_text())
    preset = presets[getattr(options, "algo", algos[0])][options.env_id]
    options.total_steps = options.total_steps or preset["total_steps"]
    return options


def write(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Leave what `rlcore.runs.results` reads."""
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(json.dumps({**result, "machine": machine.describe()}))
