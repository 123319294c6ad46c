"""A film of one episode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlcore.agents import Agent
from rlcore.envs import VectorAdapter, make_vec
from rlcore.errors import UsageError
from rlcore.evaluation import Actor

SUFFIXES = (".mp4", ".gif")


def record_video(
    agent: Agent, path: str | Path, seed: int, deterministic: bool = True, max_steps: int = 10_000
) -> dict[str, Any]:
    """Play one episode and write it to an mp4 or gif file.

    Returns:
        Path, frames, return and length of the episode.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"the video file is {path}, but its name must end in {' or '.join(SUFFIXES)}")
    if path.exists():
        raise UsageError(f"the video file {path} exists already; choose another --out")
    writer = _writer_module(path)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws to memory, whether or not there is a screen
    frames, rewards, fps = _play(agent, seed, deterministic, max_steps)
    try:
        if path.suffix == ".gif":
            writer.mimwrite(path, frames, duration=1000 / fps, loop=0)
        else:
            writer.mimwrite(path, frames, fps=fps, macro_block_size=2)
    except OSError as error:
        raise UsageError(f"the video file {path} cannot be written: {error.strerror or error}") from error
    return {"path": str(path), "frames": len(frames), "return": float(np.sum(rewards)), "length": len(rewards)}


def _writer_module(path: Path) -> Any:
    try:
        import imageio

        if path.suffix == ".mp4":
            import imageio_ffmpeg  # noqa: F401  imageio finds it by itself
    except ImportError as error:
        raise UsageError(f"video needs the package {error.name}: pip install 'rlcore[video]'") from error
    return imageio


def _play(agent: Agent, seed: int, deterministic: bool, max_steps: int) -> tuple[list[np.ndarray], list[float], float]:
    envs = make_vec(agent.env_id, 1, "sync", render_mode="rgb_array", **agent.env_kwargs)
    try:
        adapter = VectorAdapter(envs, agent.config.squash)
        actor = Actor(agent.network, adapter, torch.Generator(agent.device).manual_seed(seed))
        obs, frames, rewards = adapter.reset(seed), [], []
        frames.append(_frame(envs))
        while len(rewards) < max_steps:
            # The frame must be drawn before the finished environment is renewed, so step the inner vector itself.
            actions = adapter.action_spec.to_env(actor(obs, deterministic))
            obs, reward, terminated, truncated, _ = envs.step(actions)
            obs = adapter.split(obs)
            frames.append(_frame(envs))
            rewards.append(float(reward[0]))
            if terminated[0] or truncated[0]:
                break
        return frames, rewards, float(envs.metadata.get("render_fps") or 30)
    finally:
        envs.close()


def _frame(envs: Any) -> np.ndarray:
    try:
        frame = envs.render()[0]
    except Exception as error:  # a missing renderer surfaces as many types
        raise UsageError(f"the environment cannot be drawn: {' '.join(str(error).split())}") from error
    if frame is None:
        raise UsageError("the environment cannot be drawn: it has no render mode 'rgb_array'")
    return np.asarray(frame)
