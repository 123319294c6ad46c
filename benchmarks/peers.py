"""The libraries that rlcore is compared with, each in a virtual environment of its own.

python benchmarks/peers.py sb3_contrib      make that of a peer, where it is missing
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import machine

HERE = Path(__file__).parent
PEERS = {
    "sb3": ("stable-baselines3==2.9.2",),
    "sb3_contrib": ("stable-baselines3==2.9.2", "sb3-contrib==2.9.2"),
    "sb3_atari": ("stable-baselines3==2.9.2", "ale-py==0.12.1", "opencv-python-headless"),
    "rejax": ("rejax==0.1.3", "gymnax==0.0.9", "jax==0.10.2"),
    "trl": ("trl==1.16.0", "transformers==5.24.0"),
}
ON_TORCH = (
    "sb3",
    "sb3_contrib",
    "sb3_atari",
    "trl",
)  # these get the versions of torch, numpy and gymnasium that rlcore is measured with


def interpreter(name: str) -> Path:
    """The interpreter of a peer's virtual environment, which is made where it is missing."""
    folder = HERE / ".venvs" / name
    python = folder / "bin" / "python"
    if python.exists():
        return python
    print(f"making {machine.shown(folder)} ...", flush=True)
    venv.create(folder, with_pip=True)
    pins = ["-c", str(HERE.parent / "constraints.txt")] if name in ON_TORCH else []
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, *PEERS[name]], check=True)
    return python


if __name__ == "__main__":
    for peer in sys.argv[1:]:
        if peer not in PEERS:
            raise SystemExit(f"'{peer}' is no peer; there are {', '.join(PEERS)}")
        print(machine.shown(interpreter(peer)))
