"""Steps per second of whole training, every way of running it and the peers, in one run.

    python benchmarks/speed.py                                   PPO on CartPole-v1, 4 environments × 128 steps
    python benchmarks/speed.py --env-id Pendulum-v1 --num-envs 64
    python benchmarks/speed.py --algo grpo                       compiled against Python; peers only where they have it
    python benchmarks/speed.py --threads 2                       threads of torch (default 1; JAX takes all there are)
    python benchmarks/speed.py --device cuda                     rlcore and SB3 on the card, JAX on what it finds

Peers live in virtual environments of their own (benchmarks/.venvs), which the first run makes. Each repetition is a
fresh process that trains, unmeasured, for a few iterations and then, measured, for some seconds; the techniques
alternate, because these machines are shared and their speed drifts, and ratios are taken within a repetition. Same work
for all: PPO of 4 epochs × 4 minibatches, separate 64-64 tanh networks for actor and critic, no logging, no evaluation
(rejax's is replaced by nothing). The other agents run with their defaults.

Techniques:
    python           rlcore as Python on the environment's own vector implementation, or else on single environments
    python-sync      rlcore as Python on gymnasium's single environments, where every user starts
    python-native    rlcore as Python on the native twin; measured unasked on CUDA alone, as it is slower on a CPU
    recorded         recorded operations, run one by one without a compiler, on the environments of `python`
    recorded-sync    the same on those of `python-sync`
    compiled-host    acting and learning compiled, on the environments of `python`
    compiled         everything compiled, on the native twin of the environment
    sb3, rejax       the peers

On CUDA "compiled" means captured as CUDA graphs, which agents of whole episodes (reinforce, grpo) cannot be.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import peers

HERE = Path(__file__).parent
PPO = dict(num_steps=128, num_minibatches=4, update_epochs=4, learning_rate=2.5e-4, ent_coef=0.01)
WARM_UP = 4  # iterations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=("ppo", "a2c", "trpo", "reinforce", "grpo"), default="ppo")
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--num-envs", type=int, help="default: 4 for ppo, each other agent's own")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured time per repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--techniques", nargs="+", choices=WORKERS, help="default: all that there are for the agent")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    techniques = options.techniques or techniques_for(options.algo, options.device)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in techniques}
    with tempfile.TemporaryDirectory() as programs:  # an empty cache: the first repetition compiles, the others load
        for repetition in range(options.repetitions):
            for name in techniques:
                rows[name].append(measure(name, options, programs))
                row = rows[name][-1]
                print(
                    f"{repetition + 1}/{options.repetitions} {name:14}{row['steps_per_second']:12,.0f} steps/s, "
                    f"ready after {row['ready_seconds']:.1f} s",
                    flush=True,
                )
    report(rows, options)


def techniques_for(algo: str, device: str) -> list[str]:
    """All that there are for an agent on a device."""
    own = ["python", "python-sync", "recorded", "recorded-sync", "compiled-host", "compiled"]
    if device == "cuda":
        whole_episodes = algo in ("reinforce", "grpo")
        own = ["python", "python-native", "recorded", *([] if whole_episodes else ["compiled-host", "compiled"])]
    return own + {"ppo": ["sb3", "rejax"], "a2c": ["sb3"]}.get(algo, [])


def measure(name: str, options: argparse.Namespace, programs: str) -> dict[str, Any]:
    """One repetition in a process of its own."""
    interpreter = str(peers.interpreter(name)) if name in peers.PEERS else sys.executable
    command = [interpreter, __file__, "--worker", name, "--algo", options.algo, "--env-id", options.env_id]
    command += ["--seconds", str(options.seconds), "--threads", str(options.threads), "--device", options.device]
    command += ["--num-envs", str(options.num_envs)] if options.num_envs else []
    env = {**os.environ, "RLCORE_CACHE": programs}
    if name != "rejax":
        env["OMP_NUM_THREADS"] = str(options.threads)
    if name not in peers.PEERS:
        env["PYTHONPATH"] = str(HERE.parent)
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    if result.returncode:
        raise SystemExit(f"{name} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def report(rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    speeds = {name: [row["steps_per_second"] for row in repetitions] for name, repetitions in rows.items()}
    bases = [name for name in ("sb3", "rejax", "python") if name in rows]
    table: dict[str, Any] = {}
    head = "".join(f"{'× ' + base:>22}" for base in bases)
    print(f"\n{'technique':14}{'median steps/s':>16}{'range':>24}{head}{'ready cold/warm':>18}")
    for name, values in speeds.items():
        ratios = {base: [a / b for a, b in zip(values, speeds[base], strict=True)] for base in bases}
        ready = [row["ready_seconds"] for row in rows[name]]
        table[name] = {
            "steps_per_second_median": statistics.median(values),
            "steps_per_second": values,
            "ratio_median": {base: statistics.median(r) for base, r in ratios.items()},
            "ratio": ratios,
            "ready_seconds_cold": ready[0],
            "ready_seconds_warm": statistics.median(ready[1:] or ready),
            "shares": shares(rows[name]),
            "versions": rows[name][0]["versions"],
        }
        shown = "".join(f"{spread_of(r):>22}" for r in ratios.values())
        spread = f"{min(values):,.0f}-{max(values):,.0f}"
        warm = f"{ready[0]:.1f}/{table[name]['ready_seconds_warm']:.1f} s"
        print(f"{name:14}{statistics.median(values):>16,.0f}{spread:>24}{shown}{warm:>18}")
    for name in ("recorded", "compiled-host", "compiled"):
        if name in table and "python" in table:
            print(f"{name} / python: {spread_of(table[name]['ratio']['python'])}")
    for name in table:
        if table[name]["shares"]:
            print(f"{name}: " + ", ".join(f"{part} {share:.0%}" for part, share in table[name]["shares"].items()))
    num_envs = rows[next(iter(rows))][0]["num_envs"]
    machine.write(
        f"speed_{options.algo}_{options.env_id.replace('/', '-')}_{num_envs}envs_"
        + ("cuda" if options.device == "cuda" else f"{options.threads}thread"),
        {"algo": options.algo, "env_id": options.env_id, "num_envs": num_envs, "threads": options.threads}
        | {"device": options.device}
        | {"work": rows[next(iter(rows))][0]["work"], "techniques": table},
    )


def spread_of(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def shares(repetitions: list[dict[str, Any]]) -> dict[str, float]:
    """Of the time of an iteration, the median over repetitions."""
    if not repetitions[0]["seconds"]:
        return {}
    totals = [sum(row["seconds"].values()) for row in repetitions]
    return {
        part: statistics.median(row["seconds"][part] / t for row, t in zip(repetitions, totals, strict=True))
        for part in repetitions[0]["seconds"]
    }


def train_rlcore(options: argparse.Namespace, **how: Any) -> dict[str, Any]:
    import torch

    from rlcore.agents import AGENTS

    torch.set_num_threads(options.threads)
    work = dict(PPO) if options.algo == "ppo" else {}
    count = options.num_envs or (4 if options.algo == "ppo" else None)
    if count:
        work["num_envs"] = count
    start = time.perf_counter()
    agent = AGENTS[options.algo](options.env_id, seed=1, device=options.device, **work, **how)
    far = 10**12  # the learning rate stays where it is
    iterations = agent.iterations(far)
    for _ in range(WARM_UP):
        next(iterations)
    ready = time.perf_counter() - start
    steps, elapsed = run_for(options.seconds, iterations, agent)
    seconds = time_parts(agent, iterations, options.seconds / 4)
    config = agent.config
    work = {name: getattr(config, name) for name in ("num_envs", "num_steps", "update_epochs", "num_minibatches")}
    return {
        "steps_per_second": steps / elapsed, "ready_seconds": ready, "seconds": seconds, "work": work,
        "num_envs": config.num_envs, "versions": machine.describe()["versions"],
    }  # fmt: skip


def run_for(seconds: float, iterations: Any, agent: Any) -> tuple[int, float]:
    start, first = time.perf_counter(), agent.global_step
    while time.perf_counter() - start < seconds:
        next(iterations)
    return agent.global_step - first, time.perf_counter() - start


def time_parts(agent: Any, iterations: Any, seconds: float) -> dict[str, float]:
    """Where the time goes; measured apart from the speed, since the clock itself costs time, and waiting for the card
    before each look at it more."""
    import torch

    parts: dict[str, float] = {}
    compiled_rollout = agent.backend == "native"
    settle = torch.cuda.synchronize if agent.device.type == "cuda" else None

    def clock(name: str, owner: Any, method: str) -> None:
        peers.time_calls(parts, name, owner, method, settle)

    clock("rollout", agent.collector, "collect")
    if compiled_rollout:
        clock("rollout program", agent.collector, "run")
    else:
        clock("environment", agent.adapter, "step")
        clock("act", agent.collector, "_act")
    if agent.engine.how != "python":
        learner = agent.engine.learn.__self__
        clock("learn", agent.engine, "learn")
        clock("learning program", learner, "run")
    else:
        clock("estimate", agent, "estimate")
        clock("update", agent, "update")
    _, total = run_for(seconds, iterations, agent)
    rollout, learn = parts.pop("rollout"), parts.pop("learn", None)
    inside = parts["rollout program"] if compiled_rollout else parts["environment"] + parts["act"]
    rest = {"rest of rollout": rollout - inside}
    if learn is not None:
        rest["rest of learning"] = learn - parts["learning program"]
    learning = learn if learn is not None else parts["estimate"] + parts["update"]
    return {**parts, **rest, "rest": total - rollout - learning}


def train_sb3(options: argparse.Namespace) -> dict[str, Any]:
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    nets = dict(net_arch=dict(pi=[64, 64], vf=[64, 64]))
    if options.algo == "ppo":
        count = options.num_envs or 4
        work = dict(
            n_steps=PPO["num_steps"], batch_size=count * PPO["num_steps"] // PPO["num_minibatches"],
            n_epochs=PPO["update_epochs"], learning_rate=PPO["learning_rate"], ent_coef=PPO["ent_coef"],
        )  # fmt: skip
    else:
        count, work = options.num_envs or 8, dict(n_steps=5)
    kind = getattr(stable_baselines3, options.algo.upper())
    envs = make_vec_env(options.env_id, n_envs=count, seed=1)
    model = kind("MlpPolicy", envs, seed=1, device=options.device, policy_kwargs=nets, **work)
    model.learn(work["n_steps"] * count * WARM_UP)
    ready = time.perf_counter() - start
    guess = time_learning(model, work["n_steps"] * count * WARM_UP)
    steps = max(int(guess * options.seconds), 1)
    return {
        "steps_per_second": time_learning(model, steps), "ready_seconds": ready, "seconds": {}, "work": work,
        "num_envs": count, "versions": machine.describe()["versions"],
    }  # fmt: skip


def time_learning(model: Any, steps: int) -> float:
    start = time.perf_counter()
    model.learn(steps)
    return model.num_timesteps / (time.perf_counter() - start)


def train_rejax(options: argparse.Namespace) -> dict[str, Any]:
    from importlib import metadata

    import jax
    from rejax import get_algo

    count = options.num_envs or 4
    per_iteration = count * PPO["num_steps"]
    steps = per_iteration * max(int(100_000 * options.seconds) // per_iteration, 1)
    start = time.perf_counter()
    agent = get_algo("ppo").create(
        env=options.env_id, num_envs=count, num_steps=PPO["num_steps"], num_epochs=PPO["update_epochs"],
        num_minibatches=PPO["num_minibatches"], learning_rate=PPO["learning_rate"], ent_coef=PPO["ent_coef"],
        max_grad_norm=0.5, total_timesteps=steps, eval_freq=steps, skip_initial_evaluation=True,
        agent_kwargs=dict(activation="tanh", hidden_layer_sizes=(64, 64)),
    )  # fmt: skip
    agent = agent.replace(eval_callback=lambda *_: ())
    train = jax.jit(agent.train).lower(jax.random.PRNGKey(0)).compile()
    ready = time.perf_counter() - start
    jax.block_until_ready(train(jax.random.PRNGKey(0)))
    start = time.perf_counter()
    jax.block_until_ready(train(jax.random.PRNGKey(1)))
    elapsed = time.perf_counter() - start
    return {
        "steps_per_second": steps / elapsed, "ready_seconds": ready, "seconds": {}, "work": PPO, "num_envs": count,
        "versions": {name: metadata.version(name) for name in ("rejax", "jax", "gymnax", "numpy")},
    }  # fmt: skip


WORKERS = {
    "python": lambda options: train_rlcore(options, compile=False),
    "python-sync": lambda options: train_rlcore(options, compile=False, backend="sync"),
    "python-native": lambda options: train_rlcore(options, compile=False, backend="native"),
    "recorded": lambda options: train_rlcore(options, compile="record"),
    "recorded-sync": lambda options: train_rlcore(options, compile="record", backend="sync"),
    "compiled-host": lambda options: train_rlcore(options, compile=True, backend=host_backend(options)),
    "compiled": lambda options: train_rlcore(options, compile=True, backend="native"),
    "sb3": train_sb3,
    "rejax": train_rejax,
}


def host_backend(options: argparse.Namespace) -> str:
    """What `python` steps the environments with."""
    from rlcore.agents import AGENTS
    from rlcore.envs.make import find_spec, resolve_backend

    return resolve_backend(find_spec(options.env_id), own_seeds=AGENTS[options.algo].group_starts)


if __name__ == "__main__":
    main()
