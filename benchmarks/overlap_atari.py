"""Does it pay to let half of the environments step while the network acts for the other half?

    python benchmarks/overlap_atari.py

Plays Pong with 8 environments and the Nature CNN, all at once or as two halves that alternate (double buffering: the
actions of one half are sent, then the other half's results are received and acted on), and times rows of 8 steps. The
gain in a rollout is weighed with the share that rollouts have in training (speed_atari.py).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import harness
import machine
import numpy as np
import torch

import rlcore

NUM_ENVS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    envs = rlcore.make_vec("ALE/Pong-v5", NUM_ENVS)
    network = rlcore.ActorCritic(envs.single_observation_space, envs.single_action_space, shared=True)
    network.to(options.device)
    halves = [rlcore.make_vec("ALE/Pong-v5", NUM_ENVS // 2, seed=10 + k) for k in range(2)]
    envs.reset(seed=1)

    @torch.inference_mode()
    def act(obs: np.ndarray) -> np.ndarray:
        return network.policy(torch.from_numpy(obs).to(options.device)).mode().cpu().numpy()

    techniques: dict[str, Callable[[int], None]] = {
        "at once": lambda rows: at_once(envs, act, rows),
        "two halves": lambda rows: alternating(halves, act, rows),
    }

    def measure(name: str, _: int) -> float:
        start = time.perf_counter()
        techniques[name](options.rows)
        return options.rows * NUM_ENVS / (time.perf_counter() - start)

    speeds = harness.alternate(techniques, options.repetitions, measure, lambda speed: f"{speed:8,.0f} steps/s")
    gains = harness.ratios(speeds["two halves"], speeds["at once"])
    gain, rollout = statistics.median(gains), share_of_rollouts()
    result: dict[str, Any] = {"num_envs": NUM_ENVS, "threads": options.threads, "device": options.device}
    result |= {"steps_per_second": speeds, "gain_of_rollout_median": gain, "gains": gains}
    print(f"two halves / at once: {harness.spread(gains)}")
    if rollout:
        whole = 1 / (1 - rollout + rollout / gain)
        result |= {"rollout_share_of_training": rollout, "gain_of_training": whole}
        print(f"rollouts are {rollout:.0%} of training, so training would gain a factor {whole:.3f}")
    machine.write("overlap_atari", {**result, "load_average_at_end": os.getloadavg()})


def at_once(envs: Any, act: Callable[[np.ndarray], np.ndarray], rows: int) -> None:
    obs = envs.step(np.zeros(NUM_ENVS, np.int64))[0]
    for _ in range(rows):
        obs = envs.step(act(obs))[0]


def alternating(halves: list[Any], act: Callable[[np.ndarray], np.ndarray], rows: int) -> None:
    for half in halves:
        half.send(np.zeros(NUM_ENVS // 2, np.int64))
    for _ in range(rows):
        for half in halves:
            half.send(act(half.recv()[0]))
    for half in halves:
        half.recv()


def share_of_rollouts() -> float | None:
    """Of training's time, from speed_atari.py with one thread, where that was run."""
    file = machine.RESULTS / "speed_atari_1thread.json"
    return json.loads(file.read_text())["shares"].get("collect") if file.exists() else None


if __name__ == "__main__":
    main()
