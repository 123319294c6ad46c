"""Peak memory of 64 Atari environments × 128 steps, with frames stored once and with whole stacks.

    python benchmarks/memory_atari.py

Each is a process of its own that collects one rollout of PPO and learns from its first minibatch of 256; its peak
resident set is what the operating system counted. The environments alone are a third process.
"""

from __future__ import annotations

import argparse
import resource
import sys
from typing import Any

import harness
import machine

NUM_ENVS, NUM_STEPS, MINIBATCH = 64, 128, 256


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()

    def told(row: dict[str, Any]) -> str:
        return f"peak {row['peak_mib']:8,.0f} MiB, observations {row['observations_mib']:6,.0f}"

    names = ("environments", "once", "stacks")
    measured = harness.alternate(names, 1, lambda name, _: harness.worker(__file__, {"what": name}), told)
    rows = {name: row for name, [row] in measured.items()}
    saved = rows["stacks"]["peak_mib"] - rows["once"]["peak_mib"]
    print(f"frames stored once save {saved:,.0f} MiB")
    machine.write(
        "memory_atari",
        {"env_id": "ALE/Pong-v5", "num_envs": NUM_ENVS, "num_steps": NUM_STEPS, "minibatch": MINIBATCH}
        | {"saved_mib": saved, "processes": rows},
    )


def measure(what: str) -> dict[str, Any]:
    import torch

    import rlcore

    envs = rlcore.make_vec("ALE/Pong-v5", NUM_ENVS, seed=1)
    observations = 0.0
    if what == "stacks":
        envs.unwrapped.metadata = {**envs.unwrapped.metadata, "frame_stack": 0}
    if what != "environments":
        agent = rlcore.PPO(envs, num_steps=NUM_STEPS, seed=1, device="cpu")
        agent.collect()
        batch = agent.buffer.flatten(*agent.estimate(agent.buffer))
        agent.step(batch.take(torch.arange(MINIBATCH)))
        observations = agent.buffer.obs.nbytes / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"peak_mib": peak, "observations_mib": observations}


if __name__ == "__main__":
    harness.start(main, measure)
