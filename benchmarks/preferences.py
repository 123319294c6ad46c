"""From preferences alone: DPO and CPL on pairs of CartPole segments that a mediocre policy played.

    python benchmarks/preferences.py                        both, seeds 0 to 4
    python benchmarks/preferences.py --seeds 100-100 --name trial

A seed: PPO learns until its mean return, actions drawn, is from 100 to 250. That policy plays, an oracle compares 1,500
pairs of 128 steps by how long the pole stood (equal ones are left out of what is learned), and DPO or CPL goes on from
the policy, with no environment and no reward. Returns are those of 100 episodes on seeds that nothing was trained on,
with actions drawn and greedy. No seed is left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import harness
import machine

ENV, LENGTH, COMPARISONS, EPISODES, SEED = "CartPole-v1", 128, 1500, 100, 1_000_000
LOW, HIGH = 100, 250
COMMON = dict(num_envs=128, learning_rate=3e-3, compile=False)
METHODS: dict[str, dict[str, Any]] = {
    "dpo": dict(objective="dpo", beta=0.01),
    "cpl": dict(objective="cpl", beta=0.03, bias=1.0, learning_rate=1e-3),
}
KINDS = {"drawn": False, "greedy": True}
STEPS = 2_000_000  # of segments, each gone through some fifty times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-4", help="first-last")
    parser.add_argument("--name", default=f"preferences_{ENV}", help="of the result file")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    rows = []
    for seed in range(first, last + 1):
        rows.append({"seed": seed, **harness.worker(__file__, {"seed": seed}, threads=1)})
        told = [f"{x} {rows[-1][x]['drawn']:.1f} ({rows[-1][x]['greedy']:.1f} greedy)" for x in ("start", *METHODS)]
        print(f"seed {seed}: {', '.join(told)}", flush=True)
    settings = {"length": LENGTH, "comparisons": COMPARISONS, "steps": STEPS, "common": COMMON, "methods": METHODS}
    machine.write(
        options.name, {"env_id": ENV, "episodes": EPISODES, **settings, "summary": summary(rows), "rows": rows}
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and how many times its start each method came to, actions drawn."""
    names = ("start", *METHODS)
    means = {name: {kind: statistics.mean(row[name][kind] for row in rows) for kind in KINDS} for name in names}
    times = {name: [row[name]["drawn"] / row["start"]["drawn"] for row in rows] for name in METHODS}
    return {**means, "times the start": {name: {"smallest": min(x), "all": x} for name, x in times.items()}}


# In a process of its own.


def work(seed: int) -> dict[str, Any]:
    import tempfile

    import torch

    import rlcore
    from rlcore.preferences.sampling import pairs_of

    torch.set_num_threads(1)
    agent = rlcore.PPO(ENV, seed=seed, num_envs=8, compile=False)
    for _ in agent.iterations(1_000_000):
        if LOW <= evaluated(agent)["drawn"] <= HIGH:
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
            learner = rlcore.DPO(ENV, preferences=decided, init=file.name, seed=seed, **{**COMMON, **own})
            learner.learn(STEPS)
            result[name] = {**evaluated(learner), "seconds": round(time.perf_counter() - begin, 1)}
    return result


def evaluated(agent: Any) -> dict[str, float]:
    return {kind: agent.evaluate(EPISODES, seed=SEED, deterministic=greedy).mean for kind, greedy in KINDS.items()}


if __name__ == "__main__":
    harness.start(main, work)
