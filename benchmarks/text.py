"""Addition of two-digit numbers, from a supervised start on: PPO with a KL penalty, and GRPO by outcome and by process.

    python benchmarks/text.py                          the start, then every method × seeds 0 to 2, and the plot
    python benchmarks/text.py --methods grpo --seeds 0-0 --jobs 2
    python benchmarks/text.py --total-steps 20000 --name trial

All hyperparameters are those of rlcore/presets/text.toml. The start is one run of behaviour cloning, stored beside the
results' folder while this runs; each method goes on from it, and it is the reference. On the way and at the end the
policy answers prompts that were held out, greedily: a mean return is then the share of exact answers. Rows that the
result file has with the same settings are left out: what was interrupted goes on. A process has one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import machine

ENV, POINTS, PROMPTS, SEED = "rlcore/Addition-v0", 20, 500, 1_000_000
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"algo": "ppo"},
    "grpo outcome": {"algo": "grpo"},
    "grpo process": {"algo": "grpo", "supervision": "process", "env_kwargs": {"rewards": "process"}},
}
COLOURS = {"ppo": "C0", "grpo outcome": "C1", "grpo process": "C2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", default="0-2", help="first-last")
    parser.add_argument("--total-steps", type=int, help="in the place of the presets'")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--name", default="text_Addition-v0", help="of the result file")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    path = machine.RESULTS / f"{options.name}.json"
    result = json.loads(path.read_text()) if path.exists() else {"start": {}, "rows": {}}
    start, rows = result["start"], result["rows"]
    file = machine.RESULTS / ".start.pt"
    if start.get("settings") != settings("bc") or not file.exists():
        start = {"settings": settings("bc"), **harness.worker(__file__, {"start": str(file)}, threads=1)}
        print(f"supervised start: {start['accuracy']:.3f} greedy, {start['sampled']:.3f} sampled", flush=True)
    one_at_a_time = threading.Lock()

    def measure(method: str, seed: int) -> None:
        own = settings(method, options.total_steps)
        if rows.get(f"{method} {seed}", {}).get("settings") == own:
            return
        row = harness.worker(__file__, {"start": str(file), "seed": seed, "settings": own}, threads=1)
        with one_at_a_time:
            rows[f"{method} {seed}"] = {"method": method, "seed": seed, "settings": own, **row}
            print(f"{method:14} seed {seed}: {row['accuracy']:.3f} after {row['seconds']:.0f} s", flush=True)
            machine.write(options.name, {"start": start, "summary": summary(rows), "rows": dict(sorted(rows.items()))})

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda task: measure(*task), itertools.product(options.methods, range(first, last + 1))))
    harness.table([["method", "accuracy of each seed", "KL to the start", "s"], *told(rows)])
    plot(start, rows, path.with_suffix(".png"))


def settings(method: str, total_steps: int | None = None) -> dict[str, Any]:
    """All that a run depends on beside its seed."""
    from rlcore.presets import find_preset

    own = dict(METHODS.get(method, {"algo": method}))
    algo = own.pop("algo")
    work = {name: None if x == "none" else x for name, x in find_preset(algo, ENV).items()}
    steps = work.pop("total_steps")
    return {"algo": algo, "total_steps": total_steps or steps, "hyperparameters": {**work, **own}}


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    found = {method: [row for row in rows.values() if row["method"] == method] for method in METHODS}
    names = ("accuracy", "seconds", "reference_kl")
    return {
        method: {"seeds": [row["seed"] for row in own], **{name: [row[name] for row in own] for name in names}}
        for method, own in found.items()
        if own
    }


def told(rows: dict[str, Any]) -> list[list[str]]:
    return [
        [method, " ".join(f"{x:.3f}" for x in own["accuracy"]), f"{statistics.mean(own['reference_kl']):.2f}",
         f"{statistics.median(own['seconds']):.0f}"] for method, own in summary(rows).items()
    ]  # fmt: skip


def plot(start: dict[str, Any], rows: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = {"accuracy": "exact answers, held out", "reference_kl": "KL to the start, nats a response",
              "length": "tokens a response"}  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for row in rows.values():
            curve, own = row["curve"], row["method"] if row["seed"] == 0 else None
            thousands = [step / 1000 for step in curve["step"]]
            axis.plot(thousands, curve[name], color=COLOURS[row["method"]], label=own, linewidth=1.2)
        axis.set(xlabel="thousand tokens", title=label)
        axis.grid(alpha=0.3)
    axes[0].axhline(start["accuracy"], color="grey", linestyle=":", label="supervised start")
    axes[0].axhline(0.95, color="grey", linewidth=0.6)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


# In a process of its own.


def work(start: str, seed: int = 0, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    return make_start(start) if settings is None else train(start, seed, **settings)


def make_start(file: str) -> dict[str, Any]:
    import rlcore

    own = settings("bc")
    agent = rlcore.BC(ENV, seed=0, **own["hyperparameters"])
    begin = time.perf_counter()
    agent.learn(own["total_steps"])
    seconds = time.perf_counter() - begin
    agent.save(file)
    return {"accuracy": accuracy(agent), "sampled": accuracy(agent, deterministic=False), "seconds": round(seconds, 1)}


def accuracy(agent: Any, deterministic: bool = True, prompts: int = 2 * PROMPTS) -> float:
    """The share of exact answers to prompts that were held out."""
    import rlcore

    with_held_out = rlcore.make_vec(ENV, 100, "native", prompts="held_out")
    return agent.evaluate(prompts, seed=SEED, env=with_held_out, deterministic=deterministic).mean


def train(start: str, seed: int, algo: str, total_steps: int, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    from rlcore.agents import AGENTS
    from rlcore.preferences.reference import kl_to_reference

    agent = AGENTS[algo](ENV, seed=seed, init=start, **hyperparameters)
    reference = agent.frozen_copy()
    names = ["step", "seconds", "accuracy", "reference_kl", "length"]
    names += ["predicted_return"] if agent.reward_model is not None else []
    curve: dict[str, list[float]] = {name: [] for name in names}
    seconds, begin, due = 0.0, time.perf_counter(), 0.0
    for metrics, episodes in agent.iterations(total_steps):
        seconds += time.perf_counter() - begin
        if agent.global_step >= due or agent.global_step >= total_steps:
            due += total_steps / POINTS
            kl = kl_to_reference(agent.buffer, reference, "k1")[1].sum() / agent.buffer.num_envs
            numbers = [agent.global_step, seconds, accuracy(agent, prompts=PROMPTS), kl.item()]
            numbers += [statistics.mean(episodes.lengths), metrics.get("predicted_return", 0.0)]
            for name, x in zip(names, numbers, strict=False):  # the last where there is one
                curve[name].append(round(x, 4))
        begin = time.perf_counter()
    return {
        "accuracy": accuracy(agent), "sampled": accuracy(agent, deterministic=False), "seconds": round(seconds, 1),
        "reference_kl": curve["reference_kl"][-1], "tokens": agent.global_step, "curve": curve,
    }  # fmt: skip


if __name__ == "__main__":
    harness.start(main, work)
