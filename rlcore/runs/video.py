"""A film of one episode."""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlcore.agents import Agent
from rlcore.agents.evaluation import Actor
from rlcore.envs import VectorAdapter, make_vec
from rlcore.errors import UsageError, one_line
from rlcore.storage.files import FolderLock, InUse, move_without_overwriting

SUFFIXES = (".mp4", ".gif")


def record_video(
    agent: Agent, path: str | Path, seed: int, deterministic: bool = True, max_steps: int = 10_000
) -> dict[str, Any]:
    """Play one episode and write it to an mp4 or gif file, which appears whole or not at all; returns its path, frames,
    return and length. A UsageError tells that something has that name already, another process is writing it, it cannot
    be written, or the environment cannot be drawn."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"the video file is {path}, but its name must end in {' or '.join(SUFFIXES)}")
    _refuse_existing(path)
    writer = _writer_module(path)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws to memory, whether or not there is a screen
    with _locked(path):
        _refuse_existing(path)  # again, now that nobody else makes it
        frames, rewards, fps = _play(agent, seed, deterministic, max_steps)
        _write(writer, path, frames, fps)
    return {"path": str(path), "frames": len(frames), "return": float(np.sum(rewards)), "length": len(rewards)}


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise UsageError(f"the video file {path} exists already; choose another --out")


def _locked(path: Path) -> FolderLock:
    try:
        return FolderLock(path.with_name(f".{path.name}.lock")).acquire()
    except InUse as error:
        raise UsageError(f"the video file {path} {error}; choose another --out") from None
    except OSError as error:
        raise UsageError(f"the video file {path} cannot be written: {error.strerror or error}") from error


def _write(writer: Any, path: Path, frames: list[np.ndarray], fps: float) -> None:
    """Under a name of its own, which a dead process may have left, and from there to where nothing must be."""
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    try:
        film = _encoded(writer, path.suffix, frames, fps)
        if not film:
            raise ValueError("the encoder made nothing of the frames")
        unfinished.unlink(missing_ok=True)
        unfinished.write_bytes(film)
        move_without_overwriting(unfinished, path)
    except FileExistsError:
        raise UsageError(f"the video file {path} exists already; choose another --out") from None
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # the last three of frames that are no pictures
        why = getattr(error, "strerror", None) or one_line(error).partition(" FFMPEG COMMAND")[0][:200]
        raise UsageError(f"the video file {path} cannot be written: {why}") from error
    finally:
        with contextlib.suppress(OSError):  # of a folder that has become read-only, of which is told already
            unfinished.unlink(missing_ok=True)


def _encoded(writer: Any, suffix: str, frames: list[np.ndarray], fps: float) -> bytes:
    """The film as it stands in a file: what encoders do where a disk is full is print, and leave half a file behind."""
    if suffix == ".gif":
        return writer.mimwrite(writer.RETURN_BYTES, frames, format=suffix, duration=1000 / fps, loop=0)
    options = {"fps": fps, "macro_block_size": 2, "ffmpeg_log_level": "quiet"}
    return writer.mimwrite(writer.RETURN_BYTES, frames, format=suffix, **options)


def _writer_module(path: Path) -> Any:
    try:
        import imageio

        if path.suffix == ".mp4":
            import imageio_ffmpeg  # noqa: F401  imageio finds it by itself
    except ImportError as error:
        raise UsageError(f"video needs the package {error.name}: pip install 'rlcore[video]'") from error
    return imageio


def _play(agent: Agent, seed: int, deterministic: bool, max_steps: int) -> tuple[list[np.ndarray], list[float], float]:
    envs = make_vec(agent.env_id, 1, "sync", **{**agent.env_kwargs, "render_mode": "rgb_array"})
    with contextlib.closing(envs):
        adapter = VectorAdapter(envs, agent.config.squash, agent.adapter.action_spec.masked)
        actor = Actor(agent.network, adapter, torch.Generator(agent.device).manual_seed(seed))
        obs = adapter.reset(seed)
        frames, ended = [_frame(envs)], False
        rewards: list[float] = []
        while len(rewards) < max_steps and not ended:
            # The frame must be drawn before the finished environment is renewed, so step the inner vector itself.
            actions = adapter.action_spec.to_env(actor(obs, deterministic))
            obs, reward, terminated, truncated, _ = adapter.stepped.step(actions)
            obs = adapter.split(obs)
            frames.append(_frame(envs))
            rewards.append(float(reward[0]))
            ended = terminated[0] or truncated[0]
        return frames, rewards, float(envs.metadata.get("render_fps") or 30)


def _frame(envs: Any) -> np.ndarray:
    try:
        frame = envs.render()[0]
    except Exception as error:  # a missing renderer surfaces as many types
        raise UsageError(f"the environment cannot be drawn: {one_line(error)}") from error
    if frame is None:
        raise UsageError("the environment cannot be drawn: it has no render mode 'rgb_array'")
    return np.asarray(frame)
