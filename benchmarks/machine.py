"""What a measurement was made on: every result file of this folder says so."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("RLCORE_RESULTS") or Path(__file__).parent / "results")


def _of_package() -> Any:
    """The module of rlcore, by its path: peers' interpreters have no rlcore to import."""
    path = Path(__file__).parent.parent / "rlcore" / "runs" / "machine.py"
    spec = importlib.util.spec_from_file_location("rlcore_machine", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_module = _of_package()
describe, shown = _module.describe, _module.shown


def write(name: str, result: dict[str, Any]) -> Path:
    """Store a result with its machine as results/NAME.json, in the folder RLCORE_RESULTS where that is set."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(), **result}, indent=1) + "\n")
    print(f"wrote {shown(path)}")
    return path
