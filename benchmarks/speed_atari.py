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
import os
import statistics
import time
from typing import Any

import harness
import machine

WORK = dict(num_envs=8, num_steps=128, minibatches=4, epochs=4, learning_rate=2.5e-4, ent_coef=0.01, clip=0.1)
BATCH = WORK["num_envs"] * WORK["num_steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4, help="measured iterations per repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="*", choices=WORKERS, default=list(WORKERS))
    options = parser.parse_args()

    def measure(name: str, _: int) -> dict[str, Any]:
        task = {"technique": name, "iterations": options.iterations, "threads": options.threads}
        peer = None if name == "rlcore" else "sb3_atari"
        return harness.worker(__file__, task, peer, threads=options.threads)

    def told(row: dict[str, Any]) -> str:
        return f"{row['steps_per_second']:8,.0f} steps/s"

    report(harness.alternate(options.only, options.repetitions, measure, told), options)


def report(rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    speeds = {name: [row["steps_per_second"] for row in repetitions] for name, repetitions in rows.items()}
    result: dict[str, Any] = {"techniques": {}}
    cells = [["technique", "median steps/s", "× sb3"]]
    for name, values in speeds.items():
        ratio = harness.ratios(values, speeds["sb3"]) if "sb3" in rows else []
        result["techniques"][name] = {
            **harness.with_median("steps_per_second", values),
            "versions": rows[name][0]["versions"],
            **(harness.with_median("ratio_to_sb3", ratio) if ratio else {}),
        }
        cells.append([name, harness.spread(values, ",.0f"), harness.spread(ratio) if ratio else ""])
    harness.table(cells)
    if "rlcore" in rows:
        ours = rows["rlcore"]
        floors = [row["floor"] for row in ours]
        allowed = [row["steps_per_second"] for row in floors]
        of_floor = statistics.median(harness.ratios(speeds["rlcore"], allowed))
        result["shares"] = {k: statistics.median(row["shares"][k] for row in ours) for k in ours[0]["shares"]}
        result["floor"] = {"of_floor_median": of_floor, "repetitions": floors}
        print("where rlcore's time goes:", ", ".join(f"{k} {v:.0%}" for k, v in result["shares"].items()))
        print(f"convolutions alone: {statistics.median(allowed):,.0f} steps/s, of which rlcore reaches {of_floor:.0%}")
    machine.write(
        f"speed_atari_{options.threads}thread{'s' * (options.threads > 1)}",
        {"env_id": "ALE/Pong-v5", "work": WORK, "threads": options.threads, "load_average_at_end": os.getloadavg()}
        | {"measured_iterations": options.iterations, **result},
    )


# In processes of their own.


def work(technique: str, iterations: int, threads: int) -> dict[str, Any]:
    """One repetition of a technique."""
    import torch

    torch.set_num_threads(threads)
    return {**WORKERS[technique](iterations), "versions": machine.describe()["versions"]}


def train_rlcore(iterations: int) -> dict[str, Any]:
    import rlcore

    agent = rlcore.PPO(
        "ALE/Pong-v5", num_envs=WORK["num_envs"], num_steps=WORK["num_steps"], num_minibatches=WORK["minibatches"],
        update_epochs=WORK["epochs"], learning_rate=WORK["learning_rate"], ent_coef=WORK["ent_coef"],
        clip_coef=WORK["clip"], clip_reward=True, seed=1, device="cpu",
    )  # fmt: skip
    agent.learn(BATCH)
    measured = harness.stretch(agent, lambda: agent.learn(agent.global_step + iterations * BATCH))
    shares = {phase: measured.phases[phase] / measured.seconds for phase in ("collect", "learn")}
    shares["rest"] = 1 - sum(shares.values())
    return {"steps_per_second": measured.steps_per_second, "shares": shares, "floor": floor()}


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
    return {"steps_per_second": model.num_timesteps / (time.perf_counter() - start)}


WORKERS = {
    "rlcore": train_rlcore,
    "sb3": train_sb3,
    "sb3-subproc": lambda iterations: train_sb3(iterations, processes=True),
}


if __name__ == "__main__":
    harness.start(main, work)
