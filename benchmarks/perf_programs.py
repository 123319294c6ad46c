"""Where the time goes inside a compiled program, sampled by Linux `perf` (which must be installed).

    python benchmarks/perf_programs.py                                   PPO on CartPole-v1, 4 environments
    python benchmarks/perf_programs.py --env-id Acrobot-v1 --num-envs 64

A child process runs one program over and over on the same inputs while perf samples it. Functions are put into a few
kinds by their names; the shares are of the samples. Writes results/perf_ENV_Nenvs.json.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
from speed import PPO

KINDS = (  # the first that fits
    ("products of matrices", r"rl_|gemm"),
    ("fused elementwise kernels", r"cpp_fused"),
    ("exponentials", r"Sleef"),
    ("allocating and freeing", r"malloc|_int_free|cfree|unlink_chunk|memalign|\bfree\b|tcache"),
    ("tensor handles", r"c10|aoti_|AOTI|TensorImpl|reinterpret|empty_strided|aot_inductor|set_sizes"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--worker", choices=("learning", "rollout"), help=argparse.SUPPRESS)
    parser.add_argument("--started", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        run_program(options)
        return
    shares = {}
    for part in ("learning", "rollout"):
        shares[part] = sample(part, options)
        print(f"{part}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares[part].items()))
    machine.write(
        f"perf_{options.env_id.replace('/', '-')}_{options.num_envs}envs",
        {"env_id": options.env_id, "num_envs": options.num_envs, "work": PPO, "shares": shares},
    )


def run_program(options: argparse.Namespace) -> None:
    """Run one program for twice the time that is sampled."""
    import torch

    import rlcore

    torch.set_num_threads(1)
    how = dict(num_envs=options.num_envs, seed=1, device="cpu", compile=True, backend="native")
    agent = rlcore.PPO(options.env_id, **PPO, **how)
    next(agent.iterations(10**12))
    learner, collector = agent.engine.learn.__self__, agent.collector
    options.started.touch()
    end = time.perf_counter() + 2 * options.seconds + 2
    while time.perf_counter() < end:
        if options.worker == "learning":
            learner.learn_from_buffer()
        else:
            collector.collect(agent.network)


def sample(part: str, options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        started, data = Path(folder) / "started", Path(folder) / "perf.data"
        command = [sys.executable, __file__, "--worker", part, "--started", str(started), "--env-id", options.env_id]
        command += ["--num-envs", str(options.num_envs), "--seconds", str(options.seconds)]
        child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while not started.exists():
            if child.poll() is not None:
                raise SystemExit(f"the {part} program could not be run")
            time.sleep(0.2)
        record = ["perf", "record", "-q", "-o", str(data), "-p", str(child.pid), "--", "sleep", str(options.seconds)]
        subprocess.run(record, check=True, stderr=subprocess.DEVNULL)
        child.wait()
        report = ["perf", "report", "-i", str(data), "--stdio", "--no-children", "-F", "overhead,symbol"]
        lines = subprocess.run(report, capture_output=True, text=True, check=True).stdout.splitlines()
    return by_kind(lines)


def by_kind(lines: list[str]) -> dict[str, float]:
    """Shares by kind from lines `12.34%  [.] name`; what fits none is Python and the rest."""
    shares = dict.fromkeys([kind for kind, _ in KINDS] + ["Python and the rest"], 0.0)
    for line in lines:
        found = re.match(r"\s*([\d.]+)%\s+\[.\]\s+(.*)", line)
        if found:
            kind = next((kind for kind, names in KINDS if re.search(names, found[2])), "Python and the rest")
            shares[kind] += float(found[1]) / 100
    return shares


if __name__ == "__main__":
    main()
