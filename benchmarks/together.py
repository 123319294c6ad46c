"""Many seeds in one program: steps per second of `learn_together`, beside lone runs and rejax under vmap.

    python benchmarks/together.py                        PPO, A2C, GRPO, REINFORCE, 10 seeds of native CartPole
    python benchmarks/together.py --algos ppo --seeds 1,10,100

Each measurement is a process of its own that builds or loads its programs first; within a repetition

    alone      one compiled run after another: the steps per second of one, on one core
    pairs      two of them at a time, each on a core of its own
    together   `learn_together` of all seeds, on the cores there are
    one core   the same on one core
    rejax      PPO of rejax, jitted and mapped over as many seeds, on the cores there are

follow each other, so that what else the machine does meets all of them. Ratios are of the same repetition; medians are
told. Work of PPO: 4 environments × 128 steps, 4 epochs × 4 minibatches; of the others the defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import machine
import peers

ENV_ID = "CartPole-v1"
WAYS = ("alone", "pairs", "together", "one core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", default="ppo,a2c,grpo,reinforce")
    parser.add_argument("--seeds", default="10", help="numbers of seeds, with commas")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=100, help="that are timed of each run, after 10 that are not")
    parser.add_argument("--rejax", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        algo, way, seeds = options.measure.split(",")
        print(json.dumps({"steps_per_second": WORKERS[way](algo, int(seeds), options.iterations)}))
        return
    result = {
        f"{algo}, {seeds} seeds": compared(algo, seeds, options)
        for algo in options.algos.split(",") for seeds in map(int, options.seeds.split(","))
    }  # fmt: skip
    machine.write("together", {"env_id": ENV_ID, "iterations": options.iterations, "rows": result})


def compared(algo: str, seeds: int, options: argparse.Namespace) -> dict[str, Any]:
    """Steps per second of each way, and ratios of the same repetition."""
    ways = [*WAYS, *(["rejax"] if algo == "ppo" and options.rejax else [])]
    runs: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways:  # so that what must be built is there
        measured(algo, way, seeds, iterations=1)
    for _ in range(options.repetitions):
        for way in ways:
            runs[way].append(measured(algo, way, seeds, options.iterations))
        print(algo, seeds, {way: round(values[-1]) for way, values in runs.items()}, flush=True)

    def ratio(way: str, to: str) -> float:
        return statistics.median(x / y for x, y in zip(runs[way], runs[to], strict=True))

    ratios = {f"together / {way}": ratio("together", way) for way in ways if way != "together"}
    return {
        "steps_per_second": {way: statistics.median(values) for way, values in runs.items()},
        "ratios": {**ratios, "one core / alone": ratio("one core", "alone")}, "each": runs,
    }  # fmt: skip


def measured(algo: str, way: str, seeds: int, iterations: int) -> float:
    """Steps per second over all seeds, in processes of their own."""
    cores = machine.describe()["cores"] if way in ("together", "rejax") else 1
    interpreter = peers.interpreter("rejax") if way == "rejax" else sys.executable
    command = [interpreter, __file__, f"--measure={algo},{way},{seeds}", f"--iterations={iterations}"]
    environ = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    available = sorted(os.sched_getaffinity(0))
    places = [available[:2]] if cores > 1 else [[core] for core in available[: 2 if way == "pairs" else 1]]
    running = [
        subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, text=True,
            preexec_fn=lambda place=place: os.sched_setaffinity(0, place),
        )
        for place in places
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{way} of {algo} failed")
    return sum(json.loads(output.splitlines()[-1])["steps_per_second"] for output in outputs)


def agents_of(algo: str, seeds: int) -> list[Any]:
    from rlcore.agents import find_agent

    sizes = {"num_envs": 4, "num_steps": 128} if algo == "ppo" else {}
    return [find_agent(algo)(ENV_ID, seed=k, compile=True, backend="native", **sizes) for k in range(seeds)]


def alone(algo: str, seeds: int, iterations: int) -> float:
    import torch

    torch.set_num_threads(1)
    (agent,) = agents_of(algo, 1)
    return timed(agent.iterations(10**9), [agent], iterations)


def together(algo: str, seeds: int, iterations: int) -> float:
    from rlcore.distributed.together import iterations_together

    agents = agents_of(algo, seeds)
    return timed(iterations_together(agents, 10**9), agents, iterations)


def timed(run: Any, agents: list[Any], iterations: int) -> float:
    """Steps per second, after ten iterations."""
    for _ in range(10):
        next(run)
    start, first = time.perf_counter(), sum(agent.global_step for agent in agents)
    for _ in range(iterations):
        next(run)
    seconds = time.perf_counter() - start
    steps = sum(agent.global_step for agent in agents) - first
    run.close()
    return steps / seconds


def rejax(algo: str, seeds: int, iterations: int) -> float:
    import jax
    from rejax import get_algo

    steps = 512 * iterations
    agent = get_algo("ppo").create(
        env=ENV_ID, num_envs=4, num_steps=128, num_epochs=4, num_minibatches=4, learning_rate=2.5e-4, ent_coef=0.01,
        max_grad_norm=0.5, total_timesteps=steps, eval_freq=steps, skip_initial_evaluation=True,
        agent_kwargs=dict(activation="tanh", hidden_layer_sizes=(64, 64)),
    )  # fmt: skip
    agent = agent.replace(eval_callback=lambda *_: ())
    keys = jax.random.split(jax.random.PRNGKey(0), seeds)
    train = jax.jit(jax.vmap(agent.train)).lower(keys).compile()
    jax.block_until_ready(train(keys))
    start = time.perf_counter()
    jax.block_until_ready(train(keys))
    return seeds * steps / (time.perf_counter() - start)


WORKERS = {"alone": alone, "pairs": alone, "together": together, "one core": together, "rejax": rejax}

if __name__ == "__main__":
    main()
