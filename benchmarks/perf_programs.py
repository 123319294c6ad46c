"""Where the time goes inside a compiled program, sampled by Linux `perf` (which must be installed).

    python benchmarks/perf_programs.py                                   PPO on CartPole-v1, 4 environments
    python benchmarks/perf_programs.py --env-id Acrobot-v1 --num-envs 64
    python benchmarks/perf_programs.py --num-envs 8 --memory lstm        a policy that remembers, as in speed_memory.py

A child process runs one program over and over on the same inputs while perf samples it. Functions are put into a few
kinds by their names; the shares are of the samples. Writes results/perf_ENV_Nenvs.json, or with a memory
perf_ENV_Nenvs_MEMORY.json.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import time
from pathlib import Path

import harness
import machine
from speed import PPO

KINDS = (  # the first that fits
    ("gates of recurrent layers", r"rl_(gru|lstm)"),
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
    parser.add_argument("--memory", choices=("gru", "lstm", "transformer"))
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    shares = {}
    for part in ("learning", "rollout"):
        shares[part] = sample(part, options)
        print(f"{part}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares[part].items()))
    name = f"perf_{options.env_id.replace('/', '-')}_{options.num_envs}envs"
    machine.write(
        f"{name}_{options.memory}" if options.memory else name,
        {"env_id": options.env_id, "num_envs": options.num_envs, "memory": options.memory}
        | {"work": PPO, "shares": shares},
    )


def run_program(part: str, started: str, env_id: str, num_envs: int, memory: str | None, seconds: float) -> None:
    """Run one program for twice the time that is sampled."""
    import torch

    import rlcore

    torch.set_num_threads(1)
    work = {**PPO, "num_envs": num_envs, "memory": memory, "seed": 1}
    agent = rlcore.PPO(env_id, **work, device="cpu", compile=True, backend="native")
    next(agent.iterations(harness.FAR))
    program = agent.engine.learn if part == "learning" else agent.collect
    Path(started).touch()
    end = time.perf_counter() + 2 * seconds + 2
    while time.perf_counter() < end:
        program()


def sample(part: str, options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        started, data = Path(folder) / "started", Path(folder) / "perf.data"
        command = harness.worker_command(__file__, {"part": part, "started": str(started), **vars(options)})
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=harness.environment())
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
    harness.start(main, run_program)
