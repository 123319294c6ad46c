"""Too much of a flawed reward model: what it says goes up, what it stands for goes down, and a KL penalty holds both.

    python benchmarks/overoptimization.py               the model, then GRPO for every β × seeds 0 and 1, and the plot
    python benchmarks/overoptimization.py --betas 0 0.3 --seeds 0-0 --jobs 2

The small picture of Gao et al. 2023 (arXiv:2210.10760), on sums of two-digit numbers. A supervised start answers
prompts with tokens drawn; of 2,000 pairs of answers to the same prompt, one right and one wrong, a reward model that
begins with the start's torso learns which is which. It has never seen how answers look that were written to please it.
GRPO goes on from the start by its rewards alone, with β times the KL to the start in its loss, and else with the
hyperparameters of rlcore/presets/text.toml; the verifier only looks on: held-out prompts, answered greedily. Rows that
the result file has with the same settings are left out: what was interrupted goes on. A process has one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import machine
import text

NAME, PAIRS, ROUND, SEED = "overoptimization_Addition-v0", 2000, 1024, 1_000_000
STEPS, BETAS = 400_000, (0.0, 0.03, 0.1, 0.3, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", nargs="+", type=float, default=list(BETAS))
    parser.add_argument("--seeds", default="0-1", help="first-last")
    parser.add_argument("--total-steps", type=int, default=STEPS, help="of GRPO, in tokens")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--name", default=NAME, help="of the result file")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    path = machine.RESULTS / f"{options.name}.json"
    result = json.loads(path.read_text()) if path.exists() else {"model": {}, "rows": {}}
    model, rows = result["model"], result["rows"]
    files = {"start": str(machine.RESULTS / ".start.pt"), "model": str(machine.RESULTS / ".model.pt")}
    own = text.settings("rewardmodel")
    made_from = {"pairs": PAIRS, "steps": own["total_steps"], **own["hyperparameters"], "start": text.settings("bc")}
    if model.get("settings") != made_from or not all(Path(file).exists() for file in files.values()):
        model = {"settings": made_from, **harness.worker(__file__, {"files": files}, threads=1)}
        fresh = model["fresh pairs"]
        print(f"the model tells {fresh['accuracy']:.3f} of fresh pairs apart, loss {fresh['loss']:.3f}", flush=True)
    one_at_a_time = threading.Lock()

    def measure(beta: float, seed: int) -> None:
        own = settings(beta, options.total_steps)
        if rows.get(f"{beta:g} {seed}", {}).get("settings") == own:
            return
        row = harness.worker(__file__, {"files": files, "seed": seed, "settings": own}, threads=1)
        with one_at_a_time:
            rows[f"{beta:g} {seed}"] = {"beta": beta, "seed": seed, "settings": own, **row}
            print(f"β {beta:g} seed {seed}: {told(row)} after {row['seconds']:.0f} s", flush=True)
            machine.write(options.name, {"model": model, "rows": dict(sorted(rows.items()))})

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda task: measure(*task), itertools.product(options.betas, range(first, last + 1))))
    plot(rows, path.with_suffix(".png"))


def settings(beta: float, total_steps: int) -> dict[str, Any]:
    """All that a run depends on beside its seed and the model."""
    own = text.settings("grpo", total_steps)
    return {**own, "hyperparameters": {**own["hyperparameters"], "kl_coef": beta}}


def told(row: dict[str, Any]) -> str:
    predicted = row["curve"]["predicted_return"]
    return (
        f"predicted {predicted[0]:.2f} to {predicted[-1]:.2f}, accuracy {row['curve']['accuracy'][0]:.3f} to "
        f"{row['accuracy']:.3f}, KL {row['reference_kl']:.2f}"
    )


def plot(rows: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = sorted(rows.values(), key=lambda row: (row["beta"], row["seed"]))
    betas = sorted({row["beta"] for row in runs})
    colours = {beta: plt.cm.viridis(n / max(len(betas) - 1, 1) * 0.85) for n, beta in enumerate(betas)}
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6))
    over_steps = {"predicted_return": "what the model says of a response", "accuracy": "exact answers, held out"}
    for axis, (name, title) in zip(axes, over_steps.items(), strict=False):
        for row in runs:
            own = f"β = {row['beta']:g}" if row["seed"] == 0 else None
            thousands = [step / 1000 for step in row["curve"]["step"]]
            axis.plot(thousands, row["curve"][name], color=colours[row["beta"]], label=own, linewidth=1.2)
        axis.set(xlabel="thousand tokens", title=title)
    for axis, (name, title) in zip(axes[2:], over_steps.items(), strict=True):
        for row in runs:
            kl = [max(x, 0.0) ** 0.5 for x in row["curve"]["reference_kl"]]
            axis.plot(kl, row["curve"][name], color=colours[row["beta"]], linewidth=0.6, alpha=0.35)
            axis.plot(kl[-1], row["curve"][name][-1], "o", color=colours[row["beta"]], markersize=5)
        axis.set(xlabel="√KL to the start, nats a response", title=title)
    axes[0].legend(fontsize=8, ncols=2, loc="lower right")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


# In a process of its own.


def work(files: dict[str, str], seed: int = 0, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    if settings is None:
        return make_model(**files)
    own = {**settings["hyperparameters"], "reward_model": files["model"]}
    return text.train(files["start"], seed, settings["algo"], settings["total_steps"], own)


def make_model(start: str, model: str) -> dict[str, Any]:
    import rlcore

    supervised = text.make_start(start)
    begin, own = time.perf_counter(), text.settings("rewardmodel")
    pairs = decided_pairs(start, PAIRS, 1)
    agent = rlcore.RewardModel(text.ENV, preferences=pairs, init=start, seed=0, **own["hyperparameters"])
    agent.learn(own["total_steps"])
    agent.save(model)
    seconds, fresh = time.perf_counter() - begin, agent.reliability(decided_pairs(start, 1000, 2))
    return {"supervised start": supervised, "fresh pairs": dataclasses.asdict(fresh), "seconds": round(seconds, 1)}


def decided_pairs(start: str, count: int, seed: int) -> Any:
    """Pairs of answers of the start to one prompt each, of which one is right."""
    import torch

    import rlcore
    from rlcore.preferences.data import Preferences
    from rlcore.preferences.sampling import pairs_of

    own = {**text.settings("grpo")["hyperparameters"], "num_envs": 2 * ROUND, "group_size": 2, "kl_coef": 0.0}
    player = rlcore.GRPO(text.ENV, seed=seed, init=start, **own)
    generator, found = torch.Generator().manual_seed(seed), []
    while sum(map(len, found)) < count:
        player.collect()
        player.iteration += 1  # so that the next rollout has other prompts
        pairs = pairs_of(player.buffer, ROUND, group_size=2, generator=generator)
        found.append(pairs[(pairs.label != 0.5).nonzero().squeeze(1)])
    return Preferences.join(found)[:count]


if __name__ == "__main__":
    harness.start(main, work)
