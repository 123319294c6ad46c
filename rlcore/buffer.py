"""The rollout buffer: T steps of N environments, and the batch that a loss sees."""

from __future__ import annotations

import copy
import math
import mmap
import os
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor

from rlcore.envs.frames import FrameStacks
from rlcore.errors import UsageError
from rlcore.spaces import ActionSpec, Field, Obs, Part, Sequences, action_spec, map_parts, observation_parts
from rlcore.state import Place
from rlcore.tracing import Share, is_recording, reduce, reduce_each

LARGE = 2**20  # bytes from which on a field's memory is taken page by page


def core_fields(spec: ActionSpec) -> list[Field]:
    """What every transition holds beside its observation."""
    return [
        Field("dones", (), torch.bool, "environment"),
        Field("actions", spec.shape, spec.dtype, "policy"),
        Field("dist_params", (spec.num_params,), torch.float32, "policy"),
        Field("logprobs"),
        Field("values"),
        Field("rewards", (), torch.float32, "environment"),
        Field("terminated", (), torch.bool, "environment"),
        Field("truncated", (), torch.bool, "environment"),
        Field("next_values"),
        Field("mask", (), torch.bool, "environment"),
    ]


class RolloutBuffer:
    """Fixed-length storage of one rollout, preallocated on one device; T = num_steps, N = num_envs.

    Every field keeps its memory for life: assigning one copies into it. Row t holds all that belongs to the transition
    out of `obs[t]`, the flags of its own end included, so no estimator needs a special case for the last row.

    Attributes:
        obs: `[T, N, ...]` observation the action was chosen from, a dict of such tensors for Tuple and Dict spaces;
            images stay uint8, and stacked frames are stored once (`FrameStacks`).
        dones: `[T, N]` bool, True where `obs[t]` is the first of a new episode (the step before ended one).
        actions: `[T, N, ...]` as the policy drew them, before clipping, squashing or shifting for the environment.
        dist_params: `[T, N, P]` raw parameters of the behaviour policy's distribution, for exact KL divergences.
        logprobs: `[T, N]` log-probability of the action, joint over its dimensions.
        values: `[T, N]` V(obs[t]).
        rewards: `[T, N]` of the transition out of `obs[t]`, scaled where reward normalisation is on.
        terminated, truncated: `[T, N]` bool, whether that transition ended the episode, and how.
        next_values: `[T, N]` V of the true successor: of the final observation where an episode was cut, never of the
            observation after the reset; 0 where it terminated.
        mask: `[T, N]` bool, False for padding: the dead row of a next-step autoreset, or an environment that waits.
        fields: the `Field` of each of these but obs, and of those added.
        length: number of rows filled in this rollout, T unless all episodes of a whole-episode rollout ended before.

    Args:
        num_steps, num_envs: T and N.
        observation_space, action_space: of a single environment; `action_space` may be an ActionSpec.
        device: where all fields live.
        frame_stack: number of frames in an observation `[S, H, W]` that is a stack of the latest, 0 where it is none.
        added: further fields, of the policy, the environments or the agent.
        sequence_length: L, rows of the sequences that a policy with memory learns from; 0 for one without.

    Raises:
        UsageError: where a size is below 1, a name is taken, a space has no tensor form, or memory does not suffice.
    """

    dones: Tensor
    actions: Tensor
    dist_params: Tensor
    logprobs: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    next_values: Tensor
    mask: Tensor

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space | ActionSpec,
        device: torch.device | str = "cpu",
        frame_stack: int = 0,
        added: Sequence[Field] = (),
        sequence_length: int = 0,
    ):
        for name, size in (("num_steps", num_steps), ("num_envs", num_envs)):
            if size < 1:
                raise UsageError(f"{name} is {size}, but a buffer holds at least 1")
        spec = action_space if isinstance(action_space, ActionSpec) else action_spec(action_space)
        self.num_steps, self.num_envs, self.device = num_steps, num_envs, torch.device(device)
        self.length, self.sequence_length = num_steps, sequence_length
        self.fields: dict[str, Field] = {}
        parts, fields = observation_parts(observation_space), [*core_fields(spec), *added]
        self._check_memory(parts, frame_stack, fields)
        self.obs: Obs | FrameStacks = (
            FrameStacks(num_steps, num_envs, parts.shape, self.device) if frame_stack else map_parts(self._zeros, parts)
        )
        for field in fields:
            if hasattr(self, field.name) or hasattr(Batch, field.name) or field.name in RESERVED:
                raise UsageError(f"a field cannot be called '{field.name}', because buffer or batch have it already")
            vars(self)[field.name] = self._zeros(field)
            self.fields[field.name] = field

    def _check_memory(self, parts: Part | dict[str, Part], frame_stack: int, fields: Iterable[Field]) -> None:
        """Refuse a rollout that could never fit, before anything of it is made."""
        obs = sum(_size(part) for part in (parts.values() if isinstance(parts, dict) else [parts]))
        needed = self.num_envs * (
            self.num_steps * (obs // max(frame_stack, 1)) + sum(self._rows(x) * _size(x) for x in fields)
        )
        there = _memory(self.device)
        if there and needed > there:
            size = f"takes {needed / 2**30:,.1f} GiB, but there are {there / 2**30:.1f}; take fewer of either"
            product = f"num_steps × num_envs is {self.num_steps} × {self.num_envs}"
            raise UsageError(f"{product}, and a rollout of so many transitions {size}")

    def _zeros(self, one: Part | Field) -> Tensor:
        """Room for a rollout of it. Large host memory is taken as it is written: an agent that only acts takes none."""
        rows = self._rows(one)
        shape, size = (rows, self.num_envs, *one.shape), rows * self.num_envs * _size(one)
        if size < LARGE or self.device.type != "cpu":
            return torch.zeros(shape, dtype=one.dtype, device=self.device)
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=one.dtype).view(shape)

    def _rows(self, one: Part | Field) -> int:
        return self.num_steps // self.sequence_length if getattr(one, "per_sequence", False) else self.num_steps

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "obs" and isinstance(vars(self).get("obs"), dict):
            self.obs.update({part: value[part].to(x.dtype) for part, x in self.obs.items()})
        elif name not in self.__dict__.get("fields", ()):
            super().__setattr__(name, value)
        elif is_recording():
            vars(self)[name] = value.to(self.fields[name].dtype)
        else:
            vars(self)[name].copy_(value)

    def __repr__(self) -> str:
        return f"RolloutBuffer(num_steps={self.num_steps}, num_envs={self.num_envs}, device='{self.device}')"

    def filled_by(self, source: str) -> list[str]:
        """Names of the fields that this source fills."""
        return [name for name, field in self.fields.items() if field.source == source]

    @property
    def memory(self) -> list[str]:
        """Names of the fields that hold what a policy remembers."""
        return [name for name, field in self.fields.items() if field.per_sequence]

    def remember(self, t: int, carry: dict[str, Tensor]) -> None:
        """Keep the `carry` of a policy with memory before row t, where a sequence begins there."""
        if self.sequence_length and t % self.sequence_length == 0:
            for name in self.memory:
                vars(self)[name][t // self.sequence_length].copy_(carry[name])

    def tensors(self) -> dict[str, Any]:
        """The rollout by field, for a look at it; frames that are stored once are left out."""
        obs = {} if isinstance(self.obs, FrameStacks) else {"obs": self.obs}
        return {**obs, **{name: getattr(self, name) for name in self.fields}}

    def places(self) -> list[Place]:
        """Where its tensors stand, for programs."""
        if isinstance(self.obs, FrameStacks):
            obs = [Place(f"buffer.obs.{name}", vars(self.obs), name) for name in ("frames", "table")]
        elif isinstance(self.obs, dict):
            obs = [Place(f"buffer.obs.{name}", self.obs, name) for name in self.obs]
        else:
            obs = [Place("buffer.obs", vars(self), "obs")]
        return [*obs, *(Place(f"buffer.{name}", vars(self), name) for name in self.fields)]

    def flatten(self, advantages: Tensor, returns: Tensor, weight: Tensor | None = None) -> Batch:
        """The filled rows as one batch of B transitions, whose fields are views, with what the estimator made of them:
        `advantages [T, N]`, `returns [T, N]` and, where the loss is no mean over transitions, the `weight [T, N]` of
        each. A loss should take its samples with `Batch.take`, which keeps padding out."""
        flat = self._flat
        fields = {name: flat(vars(self)[name]) for name, field in self.fields.items() if not field.per_sequence}
        fields |= {"obs": self.observations(), "advantages": flat(advantages), "returns": flat(returns)}
        weight = None if weight is None else torch.where(fields["mask"], flat(weight), 0.0)
        kind = SequenceBatch if self.sequence_length else Batch
        return kind(fields, weight, _readable(fields["mask"]))

    def observations(self) -> Any:
        """Those of the filled rows as a network takes them, `[B, ...]`: `Sequences` where it has memory."""
        length, obs = self._whole_rows(), map_parts(self._flat, self.obs)
        if not self.sequence_length:
            return obs
        carry = {name: vars(self)[name][: -(-length // self.sequence_length)].flatten(0, 1) for name in self.memory}
        steps = min(length, self.sequence_length)
        return Sequences(obs, self._flat(self.dones), carry, steps, self.num_envs)

    def _whole_rows(self) -> int:
        """How many rows are filled, or belong to a sequence of which some are."""
        length = self.num_steps if is_recording() else self.length
        if 0 < self.sequence_length < self.num_steps:
            length = math.ceil(length / self.sequence_length) * self.sequence_length
        return length

    def _flat(self, x: Tensor) -> Tensor:
        length = self._whole_rows()
        return x[:length].flatten(0, 1) if length < self.num_steps else x.flatten(0, 1)


RESERVED = ("advantages", "returns", "weight", "weighted")  # names that a batch has beside the buffer's fields
OF_THE_BATCH = ("mask", "weight", "weighted")


class Batch:
    """B transitions, as a loss sees them: the `[T, N]` of a RolloutBuffer flattened to `[B]`.

    Attributes:
        obs, actions, dones, logprobs, ...: `[B, ...]`, every field of the buffer.
        advantages, returns: `[B]` from the agent's estimator.
        mask: `[B]`, False for padding.
        weight: `[B]` share of each transition in the loss, 0 for padding; 1/(number of real transitions), unless the
            estimator gave other weights.
        weighted: whether it did.

    Args:
        fields, weight: tensors `[B, ...]`, `mask` among them, and `[B]` of the estimator, where it gave weights.
        readable: `[B]`, see `_readable`, for a batch of which many are taken.
        totals: sums over all processes that are known already, see `RowSampler.totals`.
    """

    obs: Any
    mask: Tensor
    advantages: Tensor
    returns: Tensor
    _rows: Tensor

    def __init__(
        self, fields: dict[str, Any], weight: Tensor | None = None, readable: Tensor | None = None,
        totals: dict[str, Tensor] | None = None,
    ):  # fmt: skip
        vars(self).update(fields)
        self._totals = totals or {}
        self.weighted = weight is not None
        self.weight: Tensor = self._mean_weight() if weight is None else weight
        self._whole: Batch | None = None  # that this one is a part of
        self._readable = readable

    def _count(self) -> Tensor:
        """Real transitions, over all processes."""
        return self._totals["count"] if "count" in self._totals else reduce(self.mask.sum())

    def _mean_weight(self) -> Tensor:
        return self.mask / self._count().clamp(min=1)

    def __getattr__(self, name: str) -> Any:
        whole = self.__dict__.get("_whole")
        if whole is None or name.startswith("_"):
            raise AttributeError(
                f"a batch has no '{name}'; it has {', '.join(sorted(x for x in vars(self) if x[0] != '_'))}"
            )
        vars(self)[name] = map_parts(lambda x: x[self._rows], getattr(whole, name))  # read when it is first asked for
        return vars(self)[name]

    def _names(self) -> list[str]:
        """Of its fields, read or not."""
        own = [name for name in vars(self) if name not in OF_THE_BATCH and not name.startswith("_")]
        return own if self._whole is None else list(dict.fromkeys([*own, *self._whole._names()]))

    def __len__(self) -> int:
        return len(self.mask)

    def take(self, indices: Tensor, padded: bool = False, totals: dict[str, Tensor] | None = None) -> Batch:
        """The transitions at `indices [M]`, as a batch of its own; with `padded`, an index of -1 stands for none. Sums
        over all processes may be known, `totals`.

        A masked slot keeps its place, so shapes stay fixed, but with weight 0 and filled from a real transition:
        whatever stood in it (even NaN, which 0 · NaN would pass on) reaches neither network nor gradient.
        """
        mask, weight = self.mask[indices], None
        real = (_readable(self.mask) if self._readable is None else self._readable)[indices]
        if padded:
            mask = mask & (indices >= 0)
        if self.weighted:  # a minibatch stands for the whole: scale up by how many real transitions were left out
            of_part, of_all = (totals["count"], totals["whole"]) if totals else (reduce(mask.sum()), self._count())
            weight = torch.where(mask, self.weight[indices] * (of_all / of_part.clamp(min=1)), 0.0)
        part = type(self)({"mask": mask}, weight, totals=totals)
        part._whole, part._rows = self, real
        if is_recording():  # what is first read inside a loop would belong to that loop
            for name in self._names():
                getattr(part, name)
        return part

    def units(self) -> Tensor:
        """Indices of all that can be taken: of each transition, or of each sequence where the policy has memory."""
        return torch.arange(len(self.mask), device=self.mask.device)

    def mean(self, x: Tensor) -> Tensor:
        """Σ weight · x over `x [B]`: the mean over the real transitions, unless the estimator gave other weights."""
        return torch.dot(x, self.weight.to(x.dtype))

    def step_mean(self, x: Tensor) -> Tensor:
        """Mean of `x [B]` over the real transitions, whatever weights the estimator gave."""
        return torch.dot(x, (self._mean_weight() if self.weighted else self.weight).to(x.dtype))

    def standardize(self, x: Tensor) -> Tensor:
        """`x [B]` with mean 0 and standard deviation 1 over the real transitions (1e-8 keeps constants finite)."""
        if "mean" in self._totals and x is vars(self).get("advantages"):
            return (x - self._totals["mean"]) / (self._totals["deviation"] + 1e-8)
        x = x - reduce(self.step_mean(x))
        return x / (reduce(self.step_mean(x * x)).sqrt() + 1e-8)

    def replace(self, **fields: Any) -> Batch:
        """The same transitions with other values in some fields, or with further ones, `[B, ...]`."""
        new = copy.copy(self)
        vars(new).update(fields)
        new._totals = {name: x for name, x in self._totals.items() if name in ("count", "whole")}
        return new


class SequenceBatch(Batch):
    """One whose `obs` are `Sequences`, which are taken whole."""

    def units(self) -> Tensor:
        return torch.arange(len(self.mask) // self.obs.length, device=self.mask.device)

    def take(self, indices: Tensor, padded: bool = False, totals: dict[str, Tensor] | None = None) -> Batch:
        """The transitions of the sequences `indices [M]`, step by step: `[L · M]`."""
        which = indices.clamp(min=0) if padded else indices  # any sequence may stand for none, since nothing counts it
        rows = self.obs.rows_of(which)
        if padded:
            there = (indices >= 0).repeat(self.obs.length)
            part = super().take(torch.where(there, rows, -1), True, totals)
        else:
            part = super().take(rows)
        part.obs = self.obs.part(which, part._rows, self.obs.first[rows])
        return part

    def _names(self) -> list[str]:
        return [name for name in super()._names() if name != "obs"]


class RowSampler:
    """Minibatches of single transitions, reshuffled each epoch; of sequences where the policy has memory.

    Several processes draw the minibatches that one would have drawn, and each learns from what it has of them.

    Args:
        num_minibatches: into how many a rollout is split.
        epochs: how often.
        ragged: leave padding out, so that their size is another in each rollout: whole episodes may be mostly padding.
        length: rows of each sequence, 1 where transitions are taken one by one.
        share: what this process has of the environments.
    """

    def __init__(self, num_minibatches: int, epochs: int, ragged: bool, length: int = 1, share: Share | None = None):
        self.num_minibatches, self.epochs, self.ragged, self.length = num_minibatches, epochs, ragged, length
        self.share = Share() if share is None else share
        self.padded = ragged or self.share.count > 1

    def draw(self, mask: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What to learn from in an iteration, whose rollout has the `mask [T, N]`: `rows [R]` of the batch, and
        `minibatches [epochs · num_minibatches, M]` of these; one a row shorter than others is filled up with -1."""
        rows = torch.arange(mask.numel() // self.length * self.share.count, device=mask.device)
        rows = rows[self.share.columns(mask).flatten()] if self.ragged else rows
        count = min(self.num_minibatches, len(rows))
        orders = [torch.randperm(len(rows), generator=generator, device=rows.device) for _ in range(self.epochs)]
        orders = [rows[order] for order in orders] if self.ragged else orders
        if len(rows) % count == 0 and self.share.count == 1:
            return {"rows": rows, "minibatches": torch.cat(orders).view(-1, len(rows) // count)}
        parts = [part for order in orders for part in order.tensor_split(count)]
        if self.share.count > 1:
            rows, parts = self._own(rows, mask), [self._own(part, mask) for part in parts]
            parts, rows = [_at_least_two(part) for part in parts], _at_least_two(rows)
        padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-1)
        return {"rows": rows, "minibatches": padded}

    def _own(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Those of `rows [M]` of all processes that are of this one, `[≤ M]`, as it counts them."""
        mine = mask.shape[1]
        t, n = rows // (mine * self.share.count), rows % (mine * self.share.count) - self.share.rank * mine
        is_own = (n >= 0) & (n < mine)
        return (t * mine + n)[is_own]

    def totals(self, batch: Batch, minibatches: Tensor) -> dict[str, Tensor]:
        """What each of the `minibatches [S, M]` comes to over all processes, `[S]`, so that a gradient step has but its
        gradient to add up."""
        taken = minibatches >= 0
        if self.length == 1:
            real, advantages = batch.mask[minibatches] & taken, batch.advantages[minibatches]
        else:
            rows = torch.stack([batch.obs.rows_of(which.clamp(min=0)) for which in minibatches])
            real, advantages = batch.mask[rows] & taken.repeat(1, batch.obs.length), batch.advantages[rows]
        advantages = torch.where(real, advantages, 0.0)
        sums, count, whole = reduce_each([advantages.double().sum(1), real.sum(1), batch.mask.sum().expand(len(real))])
        share = 1 / count.clamp(min=1).float()  # rounded as a batch's weights are
        mean = (sums * share).to(advantages.dtype)
        squares = torch.where(real, advantages - mean.unsqueeze(1), 0.0).double().square().sum(1)
        deviation = (reduce(squares) * share).sqrt().to(advantages.dtype)
        count, whole = (x.to(advantages.dtype) for x in (count, whole))
        return {"count": count, "whole": whole, "mean": mean, "deviation": deviation}

    def take(self, batch: Batch, rows: Tensor, totals: dict[str, Tensor] | None = None) -> Batch:
        """The minibatch of these `rows [M]`, of which `totals []` are known."""
        return batch.take(rows, self.padded, totals)

    def every(self, batch: Batch, step: int, mine: int) -> Tensor:
        """Indices of what can be taken of a batch, every so many of those of all processes together, of whose
        environments this one has `mine`."""
        units = batch.units()
        if step == 1 or self.share.count == 1:
            return units[::step]
        whole = units // mine * (mine * self.share.count) + units % mine + self.share.rank * mine
        return units[whole % step == 0]

    def example(self, mask: Tensor) -> dict[str, Tensor]:
        """What `draw` gives, for a rollout of the form of `mask [T, N]`, without drawing."""
        rows = torch.arange(mask.numel() // self.length, device=mask.device)
        rows = rows[: max(len(rows) - 3, 2)] if self.ragged else rows  # so that no size is one of another kind
        size = -(-len(rows) // self.num_minibatches)
        return {"rows": rows, "minibatches": rows[:size].expand(self.epochs * self.num_minibatches, -1).contiguous()}

    def largest(self, mask: Tensor) -> dict[str, Tensor]:
        """What `draw` gives of a rollout of the form of `mask [T, N]`, but without padding, without drawing."""
        return RowSampler(self.num_minibatches, self.epochs, False, self.length).example(mask)

    def free_sizes(self) -> dict[str, tuple[int, ...]]:
        """Dimensions that are another in each rollout."""
        rows = {"rows": (0,)} if self.ragged else {}
        return {**rows, "minibatches": (1,)} if self.padded else {}

    def suffices(self, mask: Tensor) -> bool:
        """Whether a rollout, `mask [T, N]`, is long enough for programs, which take no minibatch of one transition."""
        return not self.ragged or int(reduce(mask.sum())) >= 2 * self.num_minibatches


def _at_least_two(rows: Tensor) -> Tensor:
    """`rows [M]` filled up with -1 to two, since programs take a size of one for another kind."""
    return torch.cat([rows, rows.new_full((max(2 - len(rows), 0),), -1)])


def _readable(mask: Tensor) -> Tensor:
    """`[B]` the row to read for each: itself, or a real one in place of padding."""
    return torch.where(mask, torch.arange(len(mask), device=mask.device), mask.int().argmax())


def _size(one: Part | Field) -> int:
    return math.prod(one.shape) * one.dtype.itemsize


def _memory(device: torch.device) -> int:
    """Bytes of memory on a device, used or not; 0 where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] if torch.cuda.is_available() else 0
    known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 0
