"""PPO on Atari from pixels on a CUDA card: learning to a score within minutes, and steps per second.

    python benchmarks/atari_gpu.py                            Pong and Breakout, ten minutes each
    python benchmarks/atari_gpu.py --games Pong --minutes 5

Writes results/atari_gpu_GAME.json per game: the card, steps per second, the learning curve over seconds and steps, the
time at which the mean of the latest 100 training games first reached --solved, and 100 evaluation games with actions
drawn. Training is stopped at the time limit, evaluation not counted. A run that is cut off goes on from its latest
checkpoint (--folder) when the command is given again; games that have a checkpoint marked as finished are skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import deque
from pathlib import Path
from typing import Any

import harness
import machine
import numpy as np
import torch

import rlcore
from rlcore.storage.checkpoint import read_checkpoint

# Many environments keep the card busy; the rate is higher than for 8 environments because the batch is.
LEARNING = dict(
    num_envs=64, num_steps=64, num_minibatches=8, update_epochs=3, learning_rate=6e-4, clip_coef=0.1, ent_coef=0.01,
    clip_reward=True,
)  # fmt: skip
# The work of the published comparisons.
STANDARD = dict(
    num_envs=8, num_steps=128, num_minibatches=4, update_epochs=4, learning_rate=2.5e-4, clip_coef=0.1, ent_coef=0.01,
    clip_reward=True,
)  # fmt: skip
OPTIONS = {"Breakout": {"episodic_life": True}}
SOLVED = {"Pong": 20.0}
SAVE_EVERY, POINT_EVERY = 60.0, 10.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=["Pong", "Breakout"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--total-steps", type=int, default=10_000_000, help="where the learning rate reaches 0")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other hyperparameters")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("runs/atari_gpu"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    for game in options.games:
        if (options.folder / f"{game}.done").exists():
            print(f"{game}: finished already ({options.folder}/{game}.done)")
            continue
        result = {"speed_of_standard_work": standard_speed(game, options), **learn(game, options)}
        machine.write(f"atari_gpu_{game}", result)
        (options.folder / f"{game}.done").touch()


def settings(options: argparse.Namespace, base: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters with those of the command line, as their types."""
    from rlcore.agents.config import field_types, parse_value

    kinds = field_types(rlcore.PPO.Config)
    given = dict(pair.split("=", 1) for pair in options.set)
    parsed = {name: parse_value(name, text, kinds[name]) for name, text in given.items()}
    return {**base, "seed": 1, "device": options.device, "precision": options.precision, **parsed}


def standard_speed(game: str, options: argparse.Namespace, iterations: int = 10) -> dict[str, Any]:
    """Steps per second of 8 environments × 128 steps, 4 epochs × 4 minibatches, after two iterations unmeasured."""
    agent = rlcore.PPO(f"ALE/{game}-v5", **STANDARD, seed=1, device=options.device, precision=options.precision)
    size = agent.config.num_envs * agent.config.num_steps
    agent.learn(2 * size)
    speed = harness.stretch(agent, lambda: agent.learn(agent.global_step + iterations * size)).steps_per_second
    agent.close()
    print(f"{game}: {speed:,.0f} steps/s of {STANDARD}")
    return {"work": STANDARD, "steps_per_second": speed}


def learn(game: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train to the time limit, from a checkpoint where there is one, and evaluate."""
    file, env_kwargs = options.folder / f"{game}.pt", OPTIONS.get(game, {})
    state: dict[str, Any] = {"seconds": 0.0, "recent": [], "curve": [], "solved_after_seconds": None}
    if file.exists():
        agent, state = rlcore.load(file, device=options.device), read_checkpoint(file)["extra"]
        print(f"{game}: goes on at step {agent.global_step:,}, second {state['seconds']:.0f}")
    else:
        agent = rlcore.PPO(f"ALE/{game}-v5", env_kwargs=env_kwargs, **settings(options, LEARNING))
    recent, before, start = deque(state["recent"], maxlen=100), state["seconds"], time.perf_counter()
    saved = point = before
    for _, episodes in agent.iterations(options.total_steps):
        state["seconds"] = before + time.perf_counter() - start
        recent.extend(episodes.returns)
        mean = float(np.mean(recent)) if recent else None
        if len(recent) == 100 and state["solved_after_seconds"] is None and mean >= SOLVED.get(game, np.inf):
            state["solved_after_seconds"] = state["seconds"]
        if state["seconds"] - point >= POINT_EVERY:
            point = state["seconds"]
            state["curve"].append([round(point, 1), agent.global_step, mean])
            print(f"{game}: {point:5.0f} s, step {agent.global_step:10,}, return {mean}", flush=True)
        if state["seconds"] >= 60 * options.minutes:
            break
        if state["seconds"] - saved >= SAVE_EVERY:
            saved = state["seconds"]
            agent.save(file, {**state, "recent": list(recent)})
    agent.save(file, {**state, "recent": list(recent)})
    evaluation = agent.evaluate(options.episodes, seed=1000, deterministic=False, max_steps=27_000)
    steps, config = agent.global_step, dataclasses.asdict(agent.config)
    agent.close()
    print(f"{game}: {evaluation} after {steps:,} steps in {state['seconds']:.0f} s")
    return {
        "env_id": f"ALE/{game}-v5",
        "env_kwargs": env_kwargs,
        "config": config,
        "steps": steps,
        "seconds": state["seconds"],
        "steps_per_second": steps / state["seconds"],
        "solved": SOLVED.get(game),
        "solved_after_seconds": state["solved_after_seconds"],
        "curve_seconds_step_return": state["curve"],
        "evaluation": {"episodes": options.episodes, "actions": "drawn", "mean": evaluation.mean}
        | {"std": evaluation.std, "returns": evaluation.returns.tolist()},
    }


if __name__ == "__main__":
    main()
