"""Exactness of resuming: a run that is killed halfway and resumed ends with the weights of one that was not.

    python benchmarks/resume.py                      PPO on CartPole-v1, 120,000 steps
    python benchmarks/resume.py --flags=--memory=lstm,--backend=sync,--compile=false    with other hyperparameters

Both runs go through the command line, in processes of their own; the second gets kill -9 once the checkpoint nearest
half of its steps is on the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--total-steps", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--flags", default="", help="further ones of `rlcore train`, with commas between them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        subprocess.run(command(options, whole), check=True)
        step = kill_halfway(command(options, killed), killed, options.total_steps)
        print(f"killed at a checkpoint of step {step:,}")
        subprocess.run([sys.executable, "-m", "rlcore", "train", "--resume", str(killed)], check=True)
        files = [max((run / "checkpoints").glob("step-*.pt")) for run in (whole, killed)]
        digests = [digest(file) for file in files]
    equal = digests[0] == digests[1]
    print(f"weights after {files[0].stem} and {files[1].stem}: {'bit-identical' if equal else 'DIFFERENT'}")
    flags = options.flags.replace("--", "_").replace(",", "").replace("=", "-")
    machine.write(
        f"resume_{options.env_id}{flags}",
        {
            "env_id": options.env_id,
            "flags": options.flags,
            "total_steps": options.total_steps,
            "seed": options.seed,
            "killed_after_step": step,
        }
        | {"final": [file.stem for file in files], "sha256_of_weights": digests, "bit_identical": equal},
    )
    sys.exit(not equal)


def command(options: argparse.Namespace, run_dir: Path) -> list[str]:
    flags = ["--total-steps", str(options.total_steps), "--seed", str(options.seed), "--run-dir", str(run_dir)]
    flags += [flag for flag in options.flags.split(",") if flag]
    return [sys.executable, "-m", "rlcore", "train", "ppo", options.env_id, *flags, "--no-progress"]


def kill_halfway(train: list[str], run_dir: Path, total_steps: int) -> int:
    """Start a run, kill it with -9 past half of its steps; returns the step of its newest checkpoint."""
    process = subprocess.Popen(train)
    while not any(step >= total_steps // 2 for step in steps(run_dir)):
        if process.poll() is not None:
            raise SystemExit("the run ended before it could be killed")
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return max(steps(run_dir))


def steps(run_dir: Path) -> list[int]:
    return [int(file.stem.removeprefix("step-")) for file in (run_dir / "checkpoints").glob("step-*.pt")]


def digest(file: Path) -> str:
    """SHA-256 over names and bytes of all weights and of the optimiser's state."""
    agent = torch.load(file, weights_only=True)["agent"]
    sha = hashlib.sha256()
    for name, value in sorted({**agent["network"], **agent["optimizer"]}.items()):
        sha.update(name.encode() + torch.as_tensor(value).numpy().tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    main()
