"""Steps per second of whole training, against Stable-Baselines3 in the same run.

    python benchmarks/speed.py                       PPO on CartPole-v1, 4 environments × 128 steps
    python benchmarks/speed.py --repetitions 7       medians and ranges of so many
    python benchmarks/speed.py --threads 2           torch threads of both (default 1)

The peer lives in a virtual environment of its own, benchmarks/.venvs/sb3, which the first run makes. Each repetition is
a fresh process that trains, unmeasured, for a tenth of the steps and then, measured, for all of them; ours and theirs
alternate, because these machines are shared and their speed drifts. Same work for both: 4 epochs × 4 minibatches of
128, separate 64-64 tanh networks for actor and critic, no logging, no evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).parent
SB3 = ("stable-baselines3==2.9.2",)
WORK = dict(num_envs=4, num_steps=128, minibatches=4, epochs=4, learning_rate=2.5e-4, ent_coef=0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=51_200, help="measured steps per repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options.env_id, options.steps, options.threads)))
        return
    interpreters = {"rlcore": sys.executable, "rlcore-sync": sys.executable, "sb3": str(peer_interpreter())}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in interpreters}
    for repetition in range(options.repetitions):
        for name, interpreter in interpreters.items():
            rows[name].append(measure(name, interpreter, options))
            print(
                f"{repetition + 1}/{options.repetitions} {name:12} {rows[name][-1]['steps_per_second']:10,.0f} steps/s"
            )
    report(rows, options)


def measure(name: str, interpreter: str, options: argparse.Namespace) -> dict[str, Any]:
    """One repetition in a process of its own."""
    command = [interpreter, __file__, "--worker", name, "--env-id", options.env_id]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(HERE.parent)}
    if interpreter != sys.executable:
        del env["PYTHONPATH"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    return json.loads(output.splitlines()[-1])


def report(rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    speeds = {name: [row["steps_per_second"] for row in repetitions] for name, repetitions in rows.items()}
    # Neighbours in time share the state of the machine, so the ratio is taken within each repetition.
    table = {}
    print(f"\n{'technique':14}{'median steps/s':>16}{'range':>22}{'ratio to SB3':>14}{'its range':>16}")
    for name, values in speeds.items():
        ratios = [ours / peer for ours, peer in zip(values, speeds["sb3"], strict=True)]
        table[name] = {
            "steps_per_second_median": statistics.median(values),
            "steps_per_second": values,
            "ratio_to_sb3_median": statistics.median(ratios),
            "ratio_to_sb3": ratios,
            "seconds": {k: statistics.median(r["seconds"][k] for r in rows[name]) for k in rows[name][0]["seconds"]},
            "versions": rows[name][0]["versions"],
        }
        spread, ratio_spread = f"{min(values):,.0f}-{max(values):,.0f}", f"{min(ratios):.2f}-{max(ratios):.2f}"
        median, ratio = statistics.median(values), statistics.median(ratios)
        print(f"{name:14}{median:>16,.0f}{spread:>22}{ratio:>14.2f}{ratio_spread:>16}")
    parts = table["rlcore"]["seconds"]
    print("\nwhere rlcore's time goes:", ", ".join(f"{k} {v / sum(parts.values()):.0%}" for k, v in parts.items()))
    machine.write(
        f"speed_{options.env_id}_{options.threads}thread",
        {"env_id": options.env_id, "work": WORK, "threads": options.threads, "measured_steps": options.steps}
        | {"techniques": table},
    )


def train_rlcore(env_id: str, steps: int, threads: int, backend: str = "auto") -> dict[str, Any]:
    import time

    import torch

    import rlcore

    torch.set_num_threads(threads)
    agent = rlcore.PPO(
        env_id, num_envs=WORK["num_envs"], num_steps=WORK["num_steps"], num_minibatches=WORK["minibatches"],
        update_epochs=WORK["epochs"], learning_rate=WORK["learning_rate"], ent_coef=WORK["ent_coef"],
        seed=1, device="cpu", backend=backend,
    )  # fmt: skip
    agent.learn(steps // 10)
    seconds = dict.fromkeys(("environment", "act", "estimate", "update"), 0.0)
    start, first = time.perf_counter(), agent.global_step
    agent.learn(first + steps)
    speed = (agent.global_step - first) / (time.perf_counter() - start)
    # The shares are measured apart, since the clock itself costs time.
    for name, owner, method in (
        ("environment", agent.adapter, "step"), ("act", agent.collector, "_act"),
        ("rollout", agent.collector, "collect"), ("estimate", agent, "estimate"), ("update", agent, "update"),
    ):  # fmt: skip
        _time_calls(seconds, name, owner, method)
    start = time.perf_counter()
    agent.learn(agent.global_step + steps // 5)
    total = time.perf_counter() - start
    rollout = seconds.pop("rollout")
    seconds["rest of rollout"] = rollout - seconds["environment"] - seconds["act"]
    seconds["rest"] = total - rollout - seconds["estimate"] - seconds["update"]
    return {"steps_per_second": speed, "seconds": seconds, "versions": machine.describe()["versions"]}


def _time_calls(seconds: dict[str, float], name: str, owner: Any, method: str) -> None:
    import time

    function = getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    setattr(owner, method, timed)


def train_sb3(env_id: str, steps: int, threads: int) -> dict[str, Any]:
    import time

    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(threads)
    model = PPO(
        "MlpPolicy", make_vec_env(env_id, n_envs=WORK["num_envs"], seed=1), n_steps=WORK["num_steps"],
        batch_size=WORK["num_envs"] * WORK["num_steps"] // WORK["minibatches"], n_epochs=WORK["epochs"],
        learning_rate=WORK["learning_rate"], ent_coef=WORK["ent_coef"], seed=1, device="cpu",
        policy_kwargs=dict(net_arch=dict(pi=[64, 64], vf=[64, 64])),
    )  # fmt: skip
    model.learn(steps // 10)
    start = time.perf_counter()
    model.learn(steps)
    elapsed = time.perf_counter() - start
    versions = machine.describe()["versions"]
    return {"steps_per_second": model.num_timesteps / elapsed, "seconds": {"all": elapsed}, "versions": versions}


WORKERS = {
    "rlcore": train_rlcore,
    "rlcore-sync": lambda *work: train_rlcore(*work, backend="sync"),
    "sb3": train_sb3,
}


def peer_interpreter() -> Path:
    """The interpreter of the peer's virtual environment, made where it is missing."""
    folder = HERE / ".venvs" / "sb3"
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {machine._relative(str(folder))} ...")
        venv.create(folder, with_pip=True)
        pins = str(HERE.parent / "constraints.txt")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", pins, *SB3], check=True)
    return python


if __name__ == "__main__":
    main()
