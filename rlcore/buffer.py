"""The rollout buffer: T steps of N environments, and the batch that a loss sees."""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import torch
from torch import Tensor

from rlcore.errors import UsageError
from rlcore.envs.frames import FrameStacks
from rlcore.spaces import ActionSpec, Obs, Part, action_spec, map_parts, observation_parts

LARGE = 2**20  # bytes from which on a field's memory is taken page by page


class RolloutBuffer:
    """Fixed-length storage of one rollout, preallocated on one device; T = num_steps, N = num_envs.

    Every field keeps its shape for life. Row t holds everything that belongs to the transition out of `obs[t]`, the
    flags of its own end included, so no estimator needs a special case for the last row.

    Attributes:
        obs: `[T, N, ...]` observation the action was chosen from; images stay uint8, and stacked frames are stored
            once (`FrameStacks`). A dict of such tensors for Tuple and Dict observation spaces.
        dones: `[T, N]` bool, True where `obs[t]` is the first of a new episode (the step before ended one).
        actions: `[T, N, ...]` as the policy drew them, before clipping, squashing or shifting for the environment.
        dist_params: `[T, N, P]` raw parameters of the behaviour policy's distribution, for exact KL divergences.
        logprobs: `[T, N]` log-probability of the action, joint over its dimensions.
        values: `[T, N]` V(obs[t]).
        rewards: `[T, N]` of the transition out of `obs[t]`, scaled where reward normalisation is on.
        terminated, truncated: `[T, N]` bool, whether that transition ended the episode, and how.
        next_values: `[T, N]` V of the true successor: of the final observation where an episode ended, never of the
            observation after the reset.
        mask: `[T, N]` bool, False for padding: the dead row of a next-step autoreset, an environment that has
            finished its episode and waits for the others.
        length: number of rows filled in this rollout, T unless all episodes of a whole-episode rollout ended before.

    Args:
        num_steps: T.
        num_envs: N.
        observation_space: of a single environment.
        action_space: of a single environment, or an ActionSpec.
        device: where all fields live.
        frame_stack: number of frames in an observation `[S, H, W]` that is a stack of the latest, 0 where it is none.

    Raises:
        UsageError: where a size is below 1, a space has no tensor form, or the machine has too little memory.
    """

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space | ActionSpec,
        device: torch.device | str = "cpu",
        frame_stack: int = 0,
    ):
        for name, size in (("num_steps", num_steps), ("num_envs", num_envs)):
            if size < 1:
                raise UsageError(f"{name} is {size}, but a buffer holds at least 1")
        spec = action_space if isinstance(action_space, ActionSpec) else action_spec(action_space)
        self.num_steps, self.num_envs, self.device = num_steps, num_envs, torch.device(device)
        self.length = num_steps

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return _zeros((num_steps, num_envs, *shape), dtype, self.device)

        parts = observation_parts(observation_space)
        _check_memory(num_steps, num_envs, _row_size(parts, spec, frame_stack), self.device)
        self.obs: Obs | FrameStacks = (
            FrameStacks(num_steps, num_envs, parts.shape, self.device)
            if frame_stack
            else map_parts(lambda part: zeros(*part.shape, dtype=part.dtype), parts)
        )
        self.dones = zeros(dtype=torch.bool)
        self.actions = zeros(*spec.shape, dtype=spec.dtype)
        self.dist_params = zeros(spec.num_params)
        self.logprobs = zeros()
        self.values = zeros()
        self.rewards = zeros()
        self.terminated = zeros(dtype=torch.bool)
        self.truncated = zeros(dtype=torch.bool)
        self.next_values = zeros()
        self.mask = zeros(dtype=torch.bool)

    def __repr__(self) -> str:
        return f"RolloutBuffer(num_steps={self.num_steps}, num_envs={self.num_envs}, device='{self.device}')"

    def flatten(self, advantages: Tensor, returns: Tensor, weight: Tensor | None = None) -> Batch:
        """The filled rows as one batch of B transitions, with what the estimator made of them.

        The fields are views. A loss should take its samples with `Batch.take`, which keeps padding out.

        Args:
            advantages, returns: `[T, N]`.
            weight: `[T, N]` share of each transition in the loss, where that is not the mean over transitions.
        """

        def flat(x: Tensor) -> Tensor:
            return x[: self.length].flatten(0, 1)

        mask = flat(self.mask)
        return Batch(
            obs=map_parts(flat, self.obs),
            actions=flat(self.actions),
            dist_params=flat(self.dist_params),
            logprobs=flat(self.logprobs),
            values=flat(self.values),
            advantages=flat(advantages),
            returns=flat(returns),
            mask=mask,
            weight=_weight(mask) if weight is None else torch.where(mask, flat(weight), 0.0),
            weighted=weight is not None,
            source=_source(mask),
        )


@dataclass(frozen=True)
class Batch:
    """B transitions, as a loss sees them: the `[T, N]` of a RolloutBuffer flattened to `[B]`.

    Attributes:
        obs, actions, dist_params: `[B, ...]`, as in RolloutBuffer.
        logprobs, values, mask: `[B]`, as there.
        advantages, returns: `[B]` from the agent's estimator.
        weight: `[B]` share of each transition in the loss, 0 for padding. 1/(number of real transitions) for each of
            them, unless the estimator gave other weights; see `mean`.
        weighted: whether it did.
        source: `[B]` the row to read for each row: itself, or a real one in place of padding.
        extras: further `[B]` tensors that an agent wants with each transition.
    """

    obs: Obs
    actions: Tensor
    dist_params: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    mask: Tensor
    weight: Tensor
    weighted: bool = False
    source: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)

    def take(self, indices: Tensor) -> Batch:
        """The transitions at `indices [M]`, as a batch of its own.

        A masked slot keeps its place, so shapes stay fixed, but with weight 0 and filled from a real transition:
        whatever stood in it (even NaN, which 0 · NaN would pass on) reaches neither network nor gradient.
        """
        mask = self.mask[indices]
        weight = _weight(mask)
        if self.weighted:  # a minibatch stands for the whole: scale up by how many real transitions were left out
            weight = self.weight[indices] * (self.mask.sum() / mask.sum().clamp(min=1))
        indices = indices if self.source is None else self.source[indices]
        return Batch(
            obs=map_parts(lambda x: x[indices], self.obs),
            actions=self.actions[indices],
            dist_params=self.dist_params[indices],
            logprobs=self.logprobs[indices],
            values=self.values[indices],
            advantages=self.advantages[indices],
            returns=self.returns[indices],
            mask=mask,
            weight=weight,
            weighted=self.weighted,
            extras={name: x[indices] for name, x in self.extras.items()},
        )

    def mean(self, x: Tensor) -> Tensor:
        """Σ weight · x over `x [B]`: the mean over the real transitions, unless the estimator gave other weights."""
        return torch.dot(x, self.weight.to(x.dtype))

    def step_mean(self, x: Tensor) -> Tensor:
        """Mean of `x [B]` over the real transitions, whatever weights the estimator gave."""
        return torch.dot(x, (_weight(self.mask) if self.weighted else self.weight).to(x.dtype))

    def standardize(self, x: Tensor) -> Tensor:
        """`x [B]` with mean 0 and standard deviation 1 over the real transitions (1e-8 keeps constants finite)."""
        x = x - self.step_mean(x)
        return x / (self.step_mean(x * x).sqrt() + 1e-8)

    def replace(self, **fields: Any) -> Batch:
        """The same transitions with other values in some fields."""
        return dataclasses.replace(self, **fields)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. Large ones in host memory take it as they are written, so that an agent that only acts takes none."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=dtype).view(shape)


def _check_memory(num_steps: int, num_envs: int, row: int, device: torch.device) -> None:
    """Refuse a rollout of so many bytes a `row` that it could never fit, before anything of it is made."""
    needed, there = num_steps * num_envs * row, _memory(device)
    if there and needed > there:
        raise UsageError(
            f"num_steps × num_envs is {num_steps} × {num_envs}, and a rollout of so many transitions takes "
            f"{needed / 2**30:,.1f} GiB, but there are {there / 2**30:.1f}; take fewer of either"
        )


def _row_size(parts: Part | dict[str, Part], spec: ActionSpec, frame_stack: int) -> int:
    """Bytes of a transition in the fields that depend on the environment."""
    parts = parts.values() if isinstance(parts, dict) else [parts]
    obs = sum(math.prod(part.shape) * part.dtype.itemsize for part in parts) // max(frame_stack, 1)
    return obs + math.prod(spec.shape) * spec.dtype.itemsize + spec.num_params * 4


def _memory(device: torch.device) -> int:
    """Bytes of memory on a device, used or not; 0 where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] if torch.cuda.is_available() else 0
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _weight(mask: Tensor) -> Tensor:
    return mask / mask.sum().clamp(min=1)


def _source(mask: Tensor) -> Tensor:
    rows = torch.arange(len(mask), device=mask.device)
    return torch.where(mask, rows, mask.int().argmax())
