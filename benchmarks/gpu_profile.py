"""Where the time of PPO's iterations goes on a CUDA card: share of kernels, and which.

    python benchmarks/gpu_profile.py                                      native CartPole-v1, 4,096 environments
    python benchmarks/gpu_profile.py --num-envs 65536 --num-steps 16
    python benchmarks/gpu_profile.py --env-id ALE/Pong-v5 --backend envpool --num-envs 64

First steps per second are measured without the profiler, then some iterations are profiled. The share of kernels is the
time in kernels and copies per iteration of the profile over the time of an iteration without it, since the profiler
slows Python but not the card. Writes results/profile_ppo_ENV_BACKEND_NUMenvs_DEVICE.json. With --device cpu it lists
operators in place of kernels and has no such share.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import harness
import machine
from speed import PPO
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import rlcore

WARM_UP, TOP = 4, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--backend", default="native")
    parser.add_argument("--num-envs", type=int, default=4096)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--compile", choices=("true", "false", "auto"), default="true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured without the profiler")
    parser.add_argument("--profiled", type=int, default=3, help="profiled iterations")
    options = parser.parse_args()
    agent = rlcore.PPO(
        options.env_id, num_envs=options.num_envs, **{**PPO, "num_steps": options.num_steps}, seed=1,
        device=options.device, backend=options.backend,
        compile={"true": True, "false": False, "auto": "auto"}[options.compile],
    )  # fmt: skip
    iterations = agent.iterations(harness.FAR)
    for _ in range(WARM_UP):
        next(iterations)
    print(agent.engine.describe())
    measured = harness.stretch(agent, functools.partial(next, iterations), options.seconds, calls=2)
    speed, seconds = measured.steps_per_second, measured.seconds / measured.calls
    rows = profiled(iterations, options)
    on_card = sum(row["seconds_per_iteration"] for row in rows) if options.device == "cuda" else None
    share = None if on_card is None else on_card / seconds
    print(f"{speed:,.0f} steps/s, {1e3 * seconds:.2f} ms an iteration", end="")
    calls = sum(row["calls"] for row in rows)
    print("" if share is None else f", kernels and copies {share:.0%} of it, {calls:,.0f} of them")
    for row in rows[:TOP]:
        print(f"{1e3 * row['seconds_per_iteration']:10.3f} ms {row['calls']:9,.0f} × {row['name']}")
    machine.write(
        f"profile_ppo_{options.env_id.replace('/', '-')}_{options.backend}_{options.num_envs}envs_{options.device}",
        {"env_id": options.env_id, "backend": options.backend, "num_envs": options.num_envs}
        | {"num_steps": options.num_steps, "device": options.device, "engine": agent.engine.describe()}
        | {"steps_per_second": speed, "seconds_per_iteration": seconds, "share_of_kernels": share}
        | {"kernels_per_iteration": calls if share is not None else None, "top": rows[:TOP]},
    )
    agent.close()


def profiled(iterations: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Kernels and copies (on the CPU: operators) by their time per iteration, the longest first."""
    cuda = options.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(options.profiled):
            next(iterations)
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    rows = [
        {
            "name": event.key[:120],
            "calls": event.count / options.profiled,
            "seconds_per_iteration": (event.self_device_time_total if cuda else event.self_cpu_time_total)
            / 1e6
            / options.profiled,
        }
        for event in profiler.key_averages()
        if event.device_type == wanted
    ]
    return sorted(rows, key=lambda row: -row["seconds_per_iteration"])


if __name__ == "__main__":
    main()
