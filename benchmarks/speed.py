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
    own              as compiled, with PPO's work, the agent of the guide on agents, "in 60 lines": what a user's
                     agent costs beside PPO, to be trained and to be ready from the cache
    sb3, rejax       the peers

On CUDA "compiled" means captured as CUDA graphs, which agents of whole episodes (reinforce, grpo) cannot be.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import statistics
import sys
import tempfile
import time
import types
from typing import Any

import harness
import machine
import peers

PPO = dict(num_steps=128, num_minibatches=4, update_epochs=4, learning_rate=2.5e-4, ent_coef=0.01)
WARM_UP = 4  # iterations
BASES = ("sb3", "rejax", "python", "compiled")  # what ratios are taken to


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
    options = parser.parse_args()
    techniques = options.techniques or techniques_for(options.algo, options.device)
    with tempfile.TemporaryDirectory() as programs:  # an empty cache: the first repetition compiles, the others load

        def measure(name: str, _: int) -> dict[str, Any]:
            peer = name if name in peers.PEERS else None
            threads = None if name == "rejax" else options.threads
            task = {"technique": name, **vars(options)}
            return harness.worker(__file__, task, peer, threads=threads, cache=programs)

        rows = harness.alternate(techniques, options.repetitions, measure, told)
    report(rows, options)


def told(row: dict[str, Any]) -> str:
    return f"{row['steps_per_second']:12,.0f} steps/s, ready after {row['ready_seconds']:.1f} s"


def techniques_for(algo: str, device: str) -> list[str]:
    """All that there are for an agent on a device."""
    techniques = ["python", "python-sync", "recorded", "recorded-sync", "compiled-host", "compiled"]
    techniques += ["own"] if algo == "ppo" else []
    if device == "cuda":
        whole_episodes = algo in ("reinforce", "grpo")
        techniques = ["python", "python-native", "recorded", *([] if whole_episodes else ["compiled-host", "compiled"])]
    return techniques + {"ppo": ["sb3", "rejax"], "a2c": ["sb3"]}.get(algo, [])


def summary(
    rows: dict[str, list[dict[str, Any]]], bases: list[str]
) -> tuple[dict[str, dict[str, Any]], list[list[str]]]:
    """Of each technique's repetitions: what the result file keeps of them, with ratios to the `bases`, and the lines of
    a table."""
    speeds = {name: [row["steps_per_second"] for row in repetitions] for name, repetitions in rows.items()}
    table: dict[str, Any] = {}
    cells = [["technique", "median steps/s", *(f"× {base}" for base in bases), "ready cold/warm"]]
    for name, values in speeds.items():
        ratio = {base: harness.ratios(values, speeds[base]) for base in bases}
        cold, *warm = [row["ready_seconds"] for row in rows[name]]
        table[name] = {
            **harness.with_median("steps_per_second", values),
            "ratio_median": {base: statistics.median(r) for base, r in ratio.items()},
            "ratio": ratio,
            "ready_seconds_cold": cold,
            "ready_seconds_warm": statistics.median(warm or [cold]),
            "shares": shares(rows[name]),
            "versions": rows[name][0]["versions"],
        }
        ready = f"{cold:.1f}/{table[name]['ready_seconds_warm']:.1f} s"
        cells.append([name, harness.spread(values, ",.0f"), *map(harness.spread, ratio.values()), ready])
    return table, cells


def report(rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    table, cells = summary(rows, [name for name in BASES if name in rows])
    harness.table(cells)
    for name, base in (
        ("recorded", "python"),
        ("compiled-host", "python"),
        ("compiled", "python"),
        ("own", "compiled"),
    ):
        if name in table and base in table:
            print(f"{name} / {base}: {harness.spread(table[name]['ratio'][base])}")
    for name, row in table.items():
        if row["shares"]:
            print(f"{name}: " + ", ".join(f"{part} {share:.0%}" for part, share in row["shares"].items()))
    first = rows[next(iter(rows))][0]
    machine.write(
        f"speed_{options.algo}_{options.env_id.replace('/', '-')}_{first['num_envs']}envs_"
        + ("cuda" if options.device == "cuda" else f"{options.threads}thread"),
        {"algo": options.algo, "env_id": options.env_id, "num_envs": first["num_envs"], "threads": options.threads}
        | {"device": options.device, "work": first["work"], "techniques": table},
    )


def shares(repetitions: list[dict[str, Any]]) -> dict[str, float]:
    """Of the time of an iteration, the median over repetitions."""
    totals = [sum(row["seconds"].values()) for row in repetitions]
    return {
        part: statistics.median(harness.ratios([row["seconds"][part] for row in repetitions], totals))
        for part in repetitions[0]["seconds"]
    }


# In processes of their own.


def work(technique: str, **options: Any) -> dict[str, Any]:
    """One repetition of a technique."""
    return WORKERS[technique](argparse.Namespace(**options))


def train_rlcore(options: argparse.Namespace, kind: Any = None, **how: Any) -> dict[str, Any]:
    import torch

    from rlcore.agents import AGENTS

    torch.set_num_threads(options.threads)
    work: dict[str, Any] = {}
    if kind is not None or options.algo == "ppo":
        work = {"num_envs": 4, **PPO}
    work |= {"num_envs": options.num_envs} if options.num_envs else {}
    kind = kind or AGENTS[options.algo]
    known = {field.name for field in dataclasses.fields(kind.Config)}
    start = time.perf_counter()
    agent = kind(options.env_id, seed=1, device=options.device, **{k: v for k, v in work.items() if k in known}, **how)
    iterations = agent.iterations(harness.FAR)
    for _ in range(WARM_UP):
        next(iterations)
    ready = time.perf_counter() - start
    measured = harness.stretch(agent, functools.partial(next, iterations), options.seconds)
    config = agent.config
    return {
        "steps_per_second": measured.steps_per_second, "ready_seconds": ready,
        "seconds": {phase: measured.phases[phase] for phase in ("collect", "learn")}, "num_envs": config.num_envs,
        "work": {k: getattr(config, k) for k in ("num_envs", "num_steps", "update_epochs", "num_minibatches")},
        "versions": machine.describe()["versions"],
    }  # fmt: skip


def own_agent() -> Any:
    """The agent whose file the guide on agents shows, as a module that is none of rlcore's."""
    guide = (harness.ROOT / "docs" / "pages" / "guides" / "agent.md").read_text()
    text = re.search(r"<!-- file: rlcore_awr.py -->\n```python\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)[1]
    module = sys.modules["rlcore_awr"] = types.ModuleType("rlcore_awr")
    exec(compile(text, "rlcore_awr.py", "exec"), vars(module))
    return module.AWR


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
    "own": lambda options: train_rlcore(options, own_agent(), compile=True, backend="native"),
    "sb3": train_sb3,
    "rejax": train_rejax,
}


def host_backend(options: argparse.Namespace) -> str:
    """What `python` steps the environments with."""
    from rlcore.agents import AGENTS
    from rlcore.envs.make import find_spec, resolve_backend

    return resolve_backend(find_spec(options.env_id), own_seeds=AGENTS[options.algo].group_starts)


if __name__ == "__main__":
    harness.start(main, work)
