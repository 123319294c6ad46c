"""Exactness of resuming: a run that is killed halfway and resumed ends with the weights of one that was not.

    python benchmarks/resume.py                      PPO on CartPole-v1, 120,000 steps
    python benchmarks/resume.py --flags=--memory=lstm,--backend=sync,--compile=false    with other hyperparameters
    python benchmarks/resume.py --texts              supervised start, reward model, DPO, PPO with both and KL, GRPO

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import torch

RLCORE, TEXTS = [sys.executable, "-m", "rlcore"], "rlcore/Addition-v0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--total-steps", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--flags", default="", help="further ones of `rlcore train`, with commas between them")
    parser.add_argument("--texts", action="store_true", help="the whole road of RLHF instead")
    options = parser.parse_args()
    if options.texts:
        proofs = prove_texts(options.seed)
        machine.write("resume_texts", {"env_id": TEXTS, "seed": options.seed, "runs": proofs})
        sys.exit(not all(proof["bit_identical"] for proof in proofs.values()))
    flags = [flag for flag in options.flags.split(",") if flag]
    with tempfile.TemporaryDirectory() as folder:
        proof = prove(Path(folder), "ppo", options.env_id, options.total_steps, options.seed, flags)
    told = options.flags.replace("--", "_").replace(",", "").replace("=", "-")
    given = {"env_id": options.env_id, "flags": options.flags, "total_steps": options.total_steps, "seed": options.seed}
    machine.write(f"resume_{options.env_id}{told}", {**given, **proof})
    sys.exit(not proof["bit_identical"])


def prove_texts(seed: int) -> dict[str, Any]:
    """Each step of the road, the next from what the one before left behind, twice: as it was and killed."""
    proofs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start, pairs, model = (str(folder / x) for x in ("bc-whole", "pairs.jsonl", "rewardmodel-whole"))
        proofs["bc"] = prove(folder, "bc", TEXTS, 60_000, seed)
        judge = ["--pairs", "400", "--label", "reward", "--out", pairs]
        subprocess.run([*RLCORE, "compare", start, *judge], check=True)
        network, given = ["--memory=transformer", "--compile=false", f"--init={start}"], f"--preferences={pairs}"
        proofs["rewardmodel"] = prove(folder, "rewardmodel", TEXTS, 60_000, seed, [*network, given])
        proofs["dpo"] = prove(folder, "dpo", TEXTS, 60_000, seed, [*network, "--shared", given])
        taught = [f"--init={start}", f"--reward-model={model}", "--comparisons=100", "--reward-kl-target=2"]
        proofs["ppo"] = prove(folder, "ppo", TEXTS, 40_000, seed, taught)
        proofs["grpo"] = prove(folder, "grpo", TEXTS, 40_000, seed, [f"--init={start}"])
    return proofs


def prove(folder: Path, algo: str, env_id: str, total_steps: int, seed: int, flags: Sequence[str] = ()) -> dict:
    """Train in one go and killed halfway, in `folder`/ALGO-whole and -killed, and compare."""
    whole, killed = folder / f"{algo}-whole", folder / f"{algo}-killed"
    train = [*RLCORE, "train", algo, env_id, "--total-steps", str(total_steps), "--seed", str(seed), *flags]
    train += ["--no-progress", "--run-dir"]
    subprocess.run([*train, str(whole)], check=True)
    step = kill_halfway([*train, str(killed)], killed, total_steps)
    print(f"{algo} killed at a checkpoint of step {step:,}")
    subprocess.run([*RLCORE, "train", "--resume", str(killed)], check=True)
    files = [max((run / "checkpoints").glob("step-*.pt")) for run in (whole, killed)]
    digests = [digest(file) for file in files]
    equal = digests[0] == digests[1]
    print(f"weights after {files[0].stem} and {files[1].stem}: {'bit-identical' if equal else 'DIFFERENT'}")
    final = [file.stem for file in files]
    return {"killed_after_step": step, "final": final, "sha256_of_weights": digests, "bit_identical": equal}


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
    """SHA-256 over names and bytes of all weights and of the optimiser's state, a reward model's included."""
    agent = torch.load(file, weights_only=True)["agent"]
    model = {f"reward_model.{name}": x for name, x in agent.get("reward_model", {}).items()}
    sha = hashlib.sha256()
    for name, value in sorted({**agent["network"], **agent["optimizer"], **model}.items()):
        sha.update(name.encode() + torch.as_tensor(value).numpy().tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    main()
