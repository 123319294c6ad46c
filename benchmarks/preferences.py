"""From preferences alone: DPO and CPL on pairs of CartPole segments that a mediocre policy played.

    python benchmarks/preferences.py                        both, seeds 0 to 4
    python benchmarks/preferences.py --seeds 100-100 --name trial

A seed: PPO learns until a greedy evaluation is from 100 to 250; that policy plays, an oracle compares 1,500 pairs of
64 steps by how long the pole stood (equal ones are left out of what is learned), and DPO or CPL goes on from the
policy, with no environment and no reward. Returns are those of 100 greedy episodes on seeds that nothing was trained
on. No seed is left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import harness
import machine

ENV, LENGTH, COMPARISONS, EPISODES, SEED = "CartPole-v1", 64, 1500, 100, 1_000_000
LOW, HIGH = 100, 250
COMMON = dict(num_envs=128, learning_rate=1e-3, compile=False)
METHODS: dict[str, dict[str, Any]] = {
    "dpo": dict(objective="dpo", beta=0.1),
    "cpl": dict(objective="cpl", beta=0.1),
}
STEPS = 1_200_000  # of segments, each gone through some fifty times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-4", help="first-last")
    parser.add_argument("--name", default=f"preferences_{ENV}", help="of the result file")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    rows = []
    for seed in range(first, last + 1):
        rows.append({"seed": seed, **harness.worker(__file__, {"seed": seed}, threads=1)})
        told = ", ".join(f"{name} {rows[-1][name]['mean']:.1f}" for name in METHODS)
        print(f"seed {seed}: {rows[-1]['start']['mean']:.1f} before, {told}", flush=True)
    settings = {"length": LENGTH, "comparisons": COMPARISONS, "steps": STEPS, "common": COMMON, "methods": METHODS}
    machine.write(
        options.name, {"env_id": ENV, "episodes": EPISODES, **settings, "summary": summary(rows), "rows": rows}
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = {name: [row[name]["mean"] for row in rows] for name in ("start", *METHODS)}
    times = {
        name: [after / before for before, after in zip(found["start"], found[name], strict=True)] for name in METHODS
    }
    return {name: {"mean": statistics.mean(means), "means": means} for name, means in found.items()} | {
        f"{name} / start": {"smallest": min(x), "mean": statistics.mean(x)} for name, x in times.items()
    }


# In a process of its own.


def work(seed: int) -> dict[str, Any]:
    import tempfile

    import torch

    import rlcore
    from rlcore.preferences.sampling import pairs_of

    torch.set_num_threads(1)
    agent = rlcore.PPO(ENV, seed=seed, num_envs=8, compile=False)
    for _ in agent.iterations(1_000_000):
        if LOW <= agent.evaluate(20, seed=SEED + 1).mean <= HIGH and LOW <= evaluated(agent)["mean"] <= HIGH:
            break
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        agent.save(file.name)
        player = rlcore.load(file.name, num_envs=32, num_steps=512)
        player.collect()
        pairs = pairs_of(player.buffer, COMPARISONS, LENGTH, generator=torch.Generator().manual_seed(seed))
        decided = pairs[(pairs.label != 0.5).nonzero().squeeze(1)]
        result = {"start": evaluated(agent), "steps_of_start": agent.global_step, "decided": len(decided)}
        for name, own in METHODS.items():
            begin = time.perf_counter()
            learner = rlcore.DPO(ENV, preferences=decided, init=file.name, seed=seed, **COMMON, **own)
            learner.learn(STEPS)
            result[name] = {**evaluated(learner), "seconds": round(time.perf_counter() - begin, 1)}
    return result


def evaluated(agent: Any) -> dict[str, float]:
    greedy = agent.evaluate(EPISODES, seed=SEED)
    return {"mean": greedy.mean, "std": greedy.std}


if __name__ == "__main__":
    harness.start(main, work)
