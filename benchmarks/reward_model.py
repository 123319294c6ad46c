"""CartPole from comparisons alone: agents that learn from a reward model, which learns from which segment was better.

    python benchmarks/reward_model.py                        every method, seeds 0 to 4
    python benchmarks/reward_model.py --methods "ppo before" --seeds 100-100 --name trial

An oracle judges 1,400 pairs of 50 steps by how long the pole stood; nothing else is seen of the environment's rewards.
`on the way`: the agent asks about its own rollouts, and the model learns with it. `before`: an untrained policy is
asked about, the model learns from that, and an agent learns from it that asks no more. The reward model has rlcore's
defaults. Returns are the environment's own, those of 100 episodes on seeds that nothing was trained on, greedy and
drawn. Rows that the result file has with the same settings are left out. A process has one thread. No seed is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from typing import Any

import harness
import machine

ENV, COMPARISONS, LENGTH, EPISODES, SEED, SOLVED = "CartPole-v1", 1400, 50, 100, 1_000_000, 475
COMMON = dict(norm_reward=True, compile=False)
MODEL_STEPS = 300_000  # rows, where it learns before
METHODS: dict[str, dict[str, Any]] = {
    "ppo on the way": dict(algo="ppo", asks=True, steps=200_000, num_envs=8),
    "ppo before": dict(algo="ppo", asks=False, steps=200_000, num_envs=8),
    "a2c on the way": dict(algo="a2c", asks=True, steps=300_000, num_envs=8, num_steps=64, learning_rate=3e-3),
    "grpo on the way": dict(algo="grpo", asks=True, steps=600_000, norm_reward=False, learning_rate=1e-3),
}
KINDS = {"greedy": True, "drawn": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", default="0-4", help="first-last")
    parser.add_argument("--name", default=f"reward_model_{ENV}", help="of the result file")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    path = machine.RESULTS / f"{options.name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    common = {"comparisons": COMPARISONS, "length": LENGTH, "model_steps": MODEL_STEPS, **COMMON}
    for method, seed in itertools.product(options.methods, range(first, last + 1)):
        settings = {**common, **METHODS[method]}
        if rows.get(f"{method} {seed}", {}).get("settings") == settings:
            continue
        row = harness.worker(__file__, {"method": method, "seed": seed}, threads=1)
        rows[f"{method} {seed}"] = {"method": method, "seed": seed, "settings": settings, **row}
        score = f"{row['greedy']:.1f} greedy, {row['drawn']:.1f} drawn"
        print(f"{method} seed {seed}: {score}, {row['comparisons']} comparisons, {row['seconds']:.0f} s", flush=True)
        told = {"env_id": ENV, "episodes": EPISODES, "solved": SOLVED, "summary": summary(rows)}
        machine.write(options.name, {**told, "rows": dict(sorted(rows.items()))})


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """Of each method, the returns of its seeds, and how many are solved."""
    found: dict[str, Any] = {}
    for method in METHODS:
        own = [row for row in rows.values() if row["method"] == method]
        for kind in KINDS if own else ():
            returns = [row[kind] for row in own]
            told = {"mean": statistics.mean(returns), "all": returns, "solved": sum(x >= SOLVED for x in returns)}
            found.setdefault(method, {})[kind] = told
    return found


# In a process of its own.


def work(method: str, seed: int) -> dict[str, Any]:
    import torch

    from rlcore.agents import AGENTS

    torch.set_num_threads(1)
    own = {**COMMON, **METHODS[method]}
    algo, asks, steps = own.pop("algo"), own.pop("asks"), own.pop("steps")
    begin = time.perf_counter()
    teacher = {"comparisons": COMPARISONS} if asks else {"reward_model": taught(seed)}
    agent = AGENTS[algo](ENV, seed=seed, **teacher, **own)
    agent.learn(steps)
    seconds = time.perf_counter() - begin
    model = agent.queries.model if asks else teacher["reward_model"]
    returns = {kind: agent.evaluate(EPISODES, seed=SEED, deterministic=greedy).mean for kind, greedy in KINDS.items()}
    told = {"comparisons": len(model.pairs), "undecided": int((model.pairs.label == 0.5).sum())}
    return {**returns, **told, "held out": dataclasses.asdict(model.reliability()), "seconds": round(seconds, 1)}


def taught(seed: int) -> Any:
    """A model that has learned from comparisons of what an untrained policy does."""
    import torch

    import rlcore
    from rlcore.preferences.sampling import pairs_of

    player = rlcore.PPO(ENV, seed=seed, num_envs=64, num_steps=512, compile=False)
    player.collect()
    pairs = pairs_of(player.buffer, COMPARISONS, LENGTH, generator=torch.Generator().manual_seed(seed))
    return rlcore.RewardModel(ENV, preferences=pairs, seed=seed, compile=False).learn(MODEL_STEPS)


if __name__ == "__main__":
    harness.start(main, work)
