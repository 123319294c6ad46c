"""Steps per second of training PPO on Pong from pixels, against Stable-Baselines3 in the same run.

    python benchmarks/speed_atari.py                        8 environments × 128 steps, 4 epochs × 4 minibatches
    python benchmarks/speed_atari.py --threads 1            torch threads of both (default: all cores)
    python benchmarks/speed_atari.py --repetitions 5

As in speed.py, the peer lives in a virtual environment of its own, each repetition is a fresh process that first trains
one unmeasured iteration, and the libraries alternate. Same work for both: Nature CNN shared by actor and critic, 84×84
grey, 4 frames, no logging, no evaluation. SB3 steps its environments one after the other (DummyVecEnv, its default) or
in processes (sb3-subproc). Beside the speeds stand the shares of rlcore's time and the floor: what the bare
convolutions of this work cost here, forward and backward in minibatches and forward while acting.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine
import peers

HERE = Path(__file__).parent
WORK = dict(num_envs=8, num_steps=128, minibatches=4, epochs=4, learning_rate=2.5e-4, ent_coef=0.01, clip=0.1)
BATCH = WORK["num_envs"] * WORK["num_steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4, help="measured iterations per repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="*", choices=WORKERS, default=list(WORKERS))
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        import torch

        torch.set_num_threads(options.threads)
        print(json.dumps(WORKERS[options.worker](options.iterations)))
        return
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    for repetition in range(options.repetitions):
        for name in options.only:
            rows[name].append(measure(name, options))
            speed = rows[name][-1]["steps_per_second"]
            print(f"{repetition + 1}/{options.repetitions} {name:12} {speed:8,.0f} steps/s", flush=True)
    report(rows, options)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One repetition in a process of its own."""
    ours = name.startswith("rlcore")
    command = [sys.executable if ours else str(peers.interpreter("sb3_atari")), __file__, "--worker", name]
    command += ["--iterations", str(options.iterations), "--threads", str(options.threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(HERE.parent)}
    if not ours:
        del env["PYTHONPATH"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(output.splitlines()[-1])


def report(rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    table: dict[str, Any] = {}
    for name, repetitions in rows.items():
        speeds = [r["steps_per_second"] for r in repetitions]
        table[name] = {
            "steps_per_second_median": statistics.median(speeds),
            "steps_per_second": speeds,
            "versions": repetitions[0]["versions"],
        }
        if "sb3" in rows:  # neighbours in time share the state of the machine
            ratios = [s / p["steps_per_second"] for s, p in zip(speeds, rows["sb3"], strict=True)]
            table[name] |= {"ratio_to_sb3_median": statistics.median(ratios), "ratio_to_sb3": ratios}
        print(f"{name:12} {statistics.median(speeds):8,.0f} steps/s", table[name].get("ratio_to_sb3_median", ""))
    ours = rows["rlcore"]
    shares = {k: statistics.median(r["shares"][k] for r in ours) for k in ours[0]["shares"]}
    floor = statistics.median(r["floor"]["steps_per_second"] for r in ours)
    of_floor = statistics.median(r["steps_per_second"] / r["floor"]["steps_per_second"] for r in ours)
    print("where rlcore's time goes:", ", ".join(f"{k} {v:.0%}" for k, v in shares.items()))
    print(f"convolutions alone would allow {floor:,.0f} steps/s; rlcore reaches {of_floor:.0%} of that")
    machine.write(
        f"speed_atari_{options.threads}thread{'s' * (options.threads > 1)}",
        {"env_id": "ALE/Pong-v5", "work": WORK, "threads": options.threads, "load_average_at_end": os.getloadavg()}
        | {"measured_iterations": options.iterations, "techniques": table, "shares": shares}
        | {"floor": {"of_floor_median": of_floor, "repetitions": [r["floor"] for r in ours]}},
    )


def train_rlcore(iterations: int) -> dict[str, Any]:
    import rlcore

    agent = rlcore.PPO(
        "ALE/Pong-v5", num_envs=WORK["num_envs"], num_steps=WORK["num_steps"], num_minibatches=WORK["minibatches"],
        update_epochs=WORK["epochs"], learning_rate=WORK["learning_rate"], ent_coef=WORK["ent_coef"],
        clip_coef=WORK["clip"], clip_reward=True, seed=1, device="cpu",
    )  # fmt: skip
    agent.learn(BATCH)
    seconds = dict.fromkeys(("environment", "inference", "rollout", "estimate", "learning"), 0.0)
    for name, owner, method in (
        ("environment", agent.adapter, "step"), ("inference", agent.collector, "_act"),
        ("rollout", agent.collector, "collect"), ("estimate", agent, "estimate"), ("learning", agent, "update"),
    ):  # fmt: skip
        peers.time_calls(seconds, name, owner, method)
    start, first = time.perf_counter(), agent.global_step
    agent.learn(first + iterations * BATCH)
    total = time.perf_counter() - start
    seconds["rest"] = total - seconds["environment"] - seconds["inference"] - seconds["learning"]
    return {
        "steps_per_second": (agent.global_step - first) / total,
        "shares": {k: seconds[k] / total for k in ("environment", "inference", "learning", "rest")},
        "floor": floor(),
        "versions": machine.describe()["versions"],
    }


def floor(repetitions: int = 5) -> dict[str, float]:
    """Milliseconds per sample of the Nature CNN alone, and the steps per second that these would allow."""
    import torch

    from rlcore.networks.torsos import NatureCNN

    network = NatureCNN((4, 84, 84)).to(memory_format=torch.channels_last)

    def frames(batch: int) -> torch.Tensor:
        return torch.rand(batch, 4, 84, 84).contiguous(memory_format=torch.channels_last)

    def learn(x: torch.Tensor) -> None:
        torch.autograd.grad(network(x).sum(), list(network.parameters()))

    @torch.inference_mode()
    def act(x: torch.Tensor) -> None:
        network(x)

    def milliseconds(function: Any, x: torch.Tensor, calls: int) -> float:
        function(x)
        start = time.perf_counter()
        for _ in range(calls):
            function(x)
        return (time.perf_counter() - start) / calls / len(x) * 1e3

    learning = milliseconds(learn, frames(BATCH // WORK["minibatches"]), repetitions)
    acting = milliseconds(act, frames(WORK["num_envs"]), 20 * repetitions)
    return {
        "forward_backward_ms_per_sample": learning,
        "forward_ms_per_sample_while_acting": acting,
        "steps_per_second": 1e3 / (WORK["epochs"] * learning + acting),
    }


def train_sb3(iterations: int, processes: bool = False) -> dict[str, Any]:
    import ale_py
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

    gymnasium.register_envs(ale_py)
    kind = SubprocVecEnv if processes else DummyVecEnv
    # Processes made by fork know the games that were registered above.
    arguments = dict(start_method="fork") if processes else {}
    envs = make_atari_env(
        "PongNoFrameskip-v4", n_envs=WORK["num_envs"], seed=1, vec_env_cls=kind, vec_env_kwargs=arguments
    )
    model = PPO(
        "CnnPolicy", VecFrameStack(envs, 4), n_steps=WORK["num_steps"], batch_size=BATCH // WORK["minibatches"],
        n_epochs=WORK["epochs"], learning_rate=WORK["learning_rate"], ent_coef=WORK["ent_coef"],
        clip_range=WORK["clip"], seed=1, device="cpu",
    )  # fmt: skip
    model.learn(BATCH)
    start = time.perf_counter()
    model.learn(iterations * BATCH)
    speed = model.num_timesteps / (time.perf_counter() - start)
    return {"steps_per_second": speed, "versions": machine.describe()["versions"]}


WORKERS = {
    "rlcore": train_rlcore,
    "sb3": train_sb3,
    "sb3-subproc": lambda iterations: train_sb3(iterations, processes=True),
}


if __name__ == "__main__":
    main()
