"""Pairs of clips of an agent, for a person to judge on a page, or judged by their return.

Episodes are cut into clips from their beginning on, so that short ones stay whole. Behind each clip 0 to L rows, drawn
at random, belong to none; else clips would begin at multiples of their length L alone. Texts are whole episodes, two to
the same prompt.
"""

import base64
import contextlib
import hashlib
import importlib.util
import json
import os
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from rlcore.agents import DPO, Agent
from rlcore.agents.config import NETWORK
from rlcore.agents.evaluation import Actor
from rlcore.agents.setup import acting_generator, text_task, time_limit
from rlcore.envs import VectorAdapter, make_vec
from rlcore.errors import EnvironmentFault, UsageError, one_line
from rlcore.networks import ActorCritic
from rlcore.preferences.data import Preferences, Segments
from rlcore.preferences.sampling import judged
from rlcore.runs.video import _frame, _writer_module
from rlcore.spaces import map_parts
from rlcore.storage.files import atomic_file, move_without_overwriting
from rlcore.tracing import leaves_of

ROWS = 50  # of a clip unless asked otherwise: one or two seconds, as Christiano et al. 2017 showed
MOST_ROWS, MOST_PAIRS = 10_000, 10_000  # the first where there is no time limit
MOST_ENVS, CLIPS_EACH = 32, 20  # fewer clips of each environment would show the beginnings of episodes alone
WIDEST = 400  # pixels of a clip
JUDGE = 0x1ABE1  # keeps the noise of labels apart from what is played
NO_PICTURES = "--label reward needs no pictures"


@dataclass
class Clip:
    """A segment as it was played, row by row.

    Attributes:
        obs: as the adapter gives them and the policy sees them, before normalisation.
        actions: as the buffer stores them.
        rewards: the environment's own.
        frames: `[H, W, 3]` uint8, what is to be seen before each action, until they are made a film.
        film: an mp4 or gif of one frame for each row, as a data URL; "" where nothing is drawn.
    """

    obs: list[Any] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    film: str = ""

    def __len__(self) -> int:
        return len(self.rewards)


Pairs = list[tuple[Clip, Clip]]


def write_page(
    agent: Agent, run: str | Path, path: str | Path, count: int, length: int | None = None, seed: int = 0,
    deterministic: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write a page on which a person compares clips of the agent and saves the answers as `rlcore.preferences.data`
    reads them. It is one file that loads nothing, and appears whole or not at all. Returns its path, pairs, and the
    command to go on with.

    Args:
        agent: who plays.
        run: where it is stored, for the command to go on with.
        path: of the page, which must not exist.
        count: of pairs.
        length: L, rows of a clip, fewer where its episode ends; None: 50, or the time limit where that is less.
        seed: of the episodes and of all that is drawn.
        deterministic: take the most probable actions instead of drawing them, which makes clips much alike.

    Raises:
        UsageError: where the file exists or cannot be written, there are no clips of that length, the environment
            cannot be drawn, observations are stacked frames, or the agent has no policy.
        EnvironmentFault: where the environment fails, or returns a number that is not finite.
    """
    path, length = Path(path), _length(agent, length)
    if path.suffix != ".html":
        raise UsageError(f"--out is {path}, but the name of a page must end in .html")
    with _new_file(path) as file:
        pairs = _pairs(agent, count, length, seed, deterministic, drawn=True)
        file.write(_page(agent, run, pairs, length))
    return {"path": str(path), "pairs": count, "next": _next_command(agent, run, "preferences.jsonl")}


def write_labels(
    agent: Agent, run: str | Path, path: str | Path, count: int, length: int | None = None, seed: int = 0,
    deterministic: bool = False, noise: float = 0.0, indifference: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Write pairs of clips of the agent as lines of JSON, labelled by their undiscounted return as by
    `rlcore.preferences.sampling.pairs_of`; returns path, pairs, how many have each label, and the command to go on
    with.

    Args:
        agent, run, path, count, length, seed, deterministic: as of `write_page`.
        noise: the probability that a label is the opposite of what is right.
        indifference: returns that differ by no more than this are labelled 0.5.

    Raises:
        UsageError, EnvironmentFault: as of `write_page`; but nothing is drawn.
    """
    path, length = Path(path), _length(agent, length)
    with _new_file(path) as file:
        pairs = _pairs(agent, count, length, seed, deterministic)
        returns = torch.tensor([[sum(clip.rewards) for clip in pair] for pair in pairs], dtype=torch.float64)
        a, b = returns.unbind(1)
        label = judged(a, b, noise, indifference, torch.Generator().manual_seed(seed ^ JUDGE))
        lines = _lines(agent, pairs, length, label)
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    counts = {name: int((label == x).sum()) for name, x in (("first", 1), ("second", 0), ("neither", 0.5))}
    return {"path": str(path), "pairs": count, **counts, "next": _next_command(agent, run, path)}


def _length(agent: Agent, asked: int | None) -> int:
    """L, or a UsageError where there are no clips of so many rows, or none of such an agent."""
    if not isinstance(agent.network, ActorCritic):
        raise UsageError(f"RUN is of a {type(agent).__name__}, but must be of an agent with a policy")
    if agent.adapter.frame_stack:
        raise UsageError("observations are stacked frames, of which there are no stored segments here")
    task = text_task(agent)
    if task is not None and asked is not None:
        raise UsageError(f"--length is {asked}, but texts of {task.id} are compared whole; leave it out")
    if task is not None:
        return task.response_length
    most = MOST_ROWS
    with contextlib.suppress(UsageError):  # there is no time limit
        most = time_limit(agent)
    if asked is not None and not 1 <= asked <= most:
        raise UsageError(f"--length is {asked}, but must be from 1 to {most:,} for {agent.env_id}")
    return min(asked or ROWS, most)


def _next_command(agent: Agent, run: str | Path, file: str | Path) -> str:
    """How to go on from the `run` with the pairs in a file, by a network such as it has."""
    given = (f"{name}={x if isinstance(x, str) else json.dumps(x)}" for name, x in agent.env_kwargs.items())
    words = [word for pair in given for word in ("--env-arg", pair)]
    for name in NETWORK:
        value = getattr(agent.config, name)
        flag, text = (
            f"--{name.replace('_', '-')}",
            ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
        )
        if value != getattr(DPO.Config, name) and (name != "shared" or value):
            words += [flag] if value is True else [flag, text]
    return shlex.join(["rlcore", "train", "dpo", agent.env_id, "--init", str(run), "--preferences", str(file), *words])


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all is written, if nothing else has it by then. What cannot be written is told
    before anything is played."""
    unfinished = path.with_name(f".{path.name[:48]}.{os.getpid()}.unfinished")
    exists = f"the file {path} exists already; choose another --out"
    if os.path.lexists(path):
        raise UsageError(exists)
    try:
        with atomic_file(unfinished) as file:
            yield file
        move_without_overwriting(unfinished, path)
    except FileExistsError:
        raise UsageError(exists) from None
    except OSError as error:
        raise UsageError(f"the file {path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


# What is played.


def _pairs(agent: Agent, count: int, length: int, seed: int, deterministic: bool, drawn: bool = False) -> Pairs:
    """So many pairs: of texts to the same prompt, else of clips from anywhere."""
    rng = np.random.default_rng(seed)
    if text_task(agent) is not None:
        starts = rng.integers(2**31, size=count).repeat(2).tolist()  # from the same seed the same prompt
        envs, each = make_vec(agent.env_id, 2 * count, "native", **agent.env_kwargs), 1
        clips = _play(agent, envs, each, length, starts, seed, deterministic, rng)
        return list(zip(clips[::2], clips[1::2], strict=True))
    num_envs = 1 if drawn else min(MOST_ENVS, -(-2 * count // CLIPS_EACH))
    envs = _drawn_envs(agent) if drawn else make_vec(agent.env_id, num_envs, "sync", **agent.env_kwargs)
    clips = _play(agent, envs, -(-2 * count // num_envs), length, seed, seed, deterministic, rng, drawn)
    order = rng.permutation(len(clips))[: 2 * count].tolist()  # neighbours are of one episode
    return [(clips[a], clips[b]) for a, b in zip(order[::2], order[1::2], strict=True)]


@dataclass
class Cutter:
    """Cuts what one environment plays into clips of `length` rows, or fewer where an episode ends."""

    length: int
    rng: np.random.Generator
    fps: float  # of films
    clips: list[Clip] = field(default_factory=list)
    under_way: Clip = field(default_factory=Clip)
    gap: int = 0  # so many rows belong to no clip

    def add(self, obs: Any, action: np.ndarray, reward: float, over: bool, frame: np.ndarray | None) -> None:
        """The next row, and whether its episode is `over` with it."""
        if self.gap:
            self.gap = 0 if over else self.gap - 1
            return
        clip = self.under_way
        clip.obs.append(obs)
        clip.actions.append(action)
        clip.rewards.append(reward)
        clip.frames += [] if frame is None else [frame]
        if over or len(clip) == self.length:
            self._finish(clip)
            self.gap = 0 if over else int(self.rng.integers(self.length + 1))

    def _finish(self, clip: Clip) -> None:
        for what, numbers in (("an observation", leaves_of(clip.obs)), ("its reward", clip.rewards)):
            if not all(np.isfinite(x).all() for x in numbers):
                raise EnvironmentFault(f"the environment returned a number that is not finite in {what}")
        if clip.frames:  # a film of them takes a hundredth of their memory
            clip.film, clip.frames = _film(clip.frames, self.fps), []
        self.clips.append(clip)
        self.under_way = Clip()


def _play(
    agent: Agent, envs: VectorEnv, each: int, length: int, starts: int | list[int], seed: int, deterministic: bool,
    rng: np.random.Generator, drawn: bool = False,
) -> list[Clip]:  # fmt: skip
    """The first `each` clips of each environment: a number fixed in advance, since taking those that are over first
    would favour short ones. The environments begin from the seeds `starts`, and are closed."""
    with contextlib.closing(envs):
        adapter = VectorAdapter(envs, agent.config.squash, agent.adapter.action_spec.masked)
        actor = Actor(agent.network, adapter, acting_generator(seed, agent.device))
        cutters = [Cutter(length, rng, envs.metadata.get("render_fps") or 30) for _ in range(envs.num_envs)]
        obs, first = adapter.reset(starts), np.ones(envs.num_envs, dtype=bool)
        while min(len(cutter.clips) for cutter in cutters) < each:
            actions = actor(obs, deterministic, first)
            frame = _picture(envs) if drawn and cutters[0].gap == 0 else None
            seen = map_parts(np.array, obs)  # a copy: the step writes in this memory
            step = adapter.step(actions)
            over = step.terminated | step.truncated
            for n, cutter in enumerate(cutters):
                row = map_parts(lambda x, n=n: x[n], seen)
                cutter.add(row, actions[n], float(step.rewards[n]), bool(over[n]), frame)
            obs, first = step.obs, step.first
    return [clip for cutter in cutters for clip in cutter.clips[:each]]


# What is seen.


def _drawn_envs(agent: Agent) -> VectorEnv:
    """An environment that draws what `_picture` shows."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws to memory, whether or not there is a screen
    _writer_module(Path(f"clip{_suffix()}"))
    try:
        with warnings.catch_warnings():  # gymnasium's, of a render mode that is not there, which is told below
            warnings.simplefilter("ignore")
            return make_vec(agent.env_id, 1, "sync", **{**agent.env_kwargs, "render_mode": "rgb_array"})
    except UsageError as error:
        raise UsageError(f"the environment cannot be drawn: {error}; {NO_PICTURES}") from error


def _picture(envs: VectorEnv) -> np.ndarray:
    """What is to be seen, `[H, W, 3]` uint8, no wider than a clip may be, and with even sides, which mp4 wants."""
    from PIL import Image

    try:
        image = Image.fromarray(_frame(envs)).convert("RGB")
    except UsageError as error:
        raise UsageError(f"{error}; {NO_PICTURES}") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"the environment draws what is no picture: {one_line(error)}; {NO_PICTURES}") from error
    shrunk = min(1, WIDEST / image.width)
    return np.asarray(image.resize([max(2, round(side * shrunk) // 2 * 2) for side in image.size]))


def _suffix() -> str:
    return ".mp4" if importlib.util.find_spec("imageio_ffmpeg") else ".gif"


def _film(frames: list[np.ndarray], fps: float) -> str:
    """`frames` as a data URL."""
    suffix = _suffix()
    options = {"duration": 1000 / fps, "loop": 0} if suffix == ".gif" else {"fps": fps, "macro_block_size": 2}
    try:
        data = _writer_module(Path(f"clip{suffix}")).mimwrite("<bytes>", frames, format=suffix, **options)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"the clips cannot be written as {suffix[1:]}: {one_line(error)[:200]}") from error
    kind = "image/gif" if suffix == ".gif" else "video/mp4"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _page(agent: Agent, run: str | Path, pairs: Pairs, length: int) -> bytes:
    """The page, with lines of all pairs that lack nothing but a preference."""
    lines = _lines(agent, pairs, length, torch.zeros(len(pairs)))
    for line in lines:
        del line["preference"]
    films = [{"first": first.film, "second": second.film, "rows": [len(first), len(second)]} for first, second in pairs]
    task = text_task(agent)
    about = (type(task).__doc__ or "") if task else ""  # how its texts are meant
    data = {
        "id": hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16],  # under which a browser keeps the answers
        "env_id": agent.env_id,
        "about": " ".join(about.partition("\n\n")[0].split()),
        "next": _next_command(agent, run, "preferences.jsonl"),
        "pairs": [{"line": line, **film} for line, film in zip(lines, films, strict=True)],
    }
    template = (resources.files(__package__) / "compare.html").read_text("utf-8")
    text = json.dumps(data).replace("<", "\\u003c")  # so that nothing ends the script that it stands in
    return template.replace("DATA", text, 1).encode()


# What is written.


def _lines(agent: Agent, pairs: Pairs, length: int, label: Tensor) -> list[dict[str, Any]]:
    """Lines of `rlcore.preferences.data`; `label [P]`."""
    segments = [[_segment(clip, length, agent.adapter) for clip in pair] for pair in pairs]
    first, second = map(Segments.join, zip(*segments, strict=True))
    return Preferences(first, second, label).lines(text_task(agent))


def _segment(clip: Clip, length: int, envs: VectorAdapter) -> Segments:
    """The clip as a segment, padded behind."""

    def padded(like: Any, *rows: np.ndarray) -> Tensor:
        x = torch.zeros(1, length, *like.shape, dtype=like.dtype)
        x[0, : len(rows)] = torch.from_numpy(np.stack(rows))
        return x

    mask = (torch.arange(length) < len(clip)).unsqueeze(0)
    return Segments(map_parts(padded, envs.parts, *clip.obs), padded(envs.action_spec, *clip.actions), mask)
