"""The rollout phase: fill the buffer with T steps of N environments.

Only what the next action needs is computed per step: the policy head, and the value where it comes for free from a
shared torso. Log-probabilities, and the values of a separate critic, follow in one batched call. `Collector` has what
is the same whoever steps the environments: `HostCollector` where Gymnasium does, row by row, `NativeCollector` where
they are tensor functions.
"""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from rlcore.buffer import RolloutBuffer
from rlcore.envs.adapter import Step, VectorAdapter
from rlcore.envs.faults import Faults, Seen, refuse_nan, refuse_policy
from rlcore.envs.frames import FrameStacks
from rlcore.envs.native import NativeTask
from rlcore.envs.standing import Standing
from rlcore.errors import EnvironmentFault, UsageError
from rlcore.networks import ActorCritic
from rlcore.networks.distributions import distribution_class, noise_size
from rlcore.spaces import ACTION_MASK, Sequences, map_parts
from rlcore.state import Place
from rlcore.storage.checkpoint import check_like, stored_count
from rlcore.tracing import Share, is_recording, leaves_of, loop, rows_of, share

WRITTEN_OUT = 8  # rows of a compiled rollout written out one after the other: a loop costs microseconds a turn
LARGE_MEMORY = 1024  # numbers that a policy remembers of an environment, from which on they are not kept for each row


@dataclass
class Episodes:
    """Finished episodes, in the order they finished.

    Attributes:
        step: environment steps over all environments by the end of the row in which each ended.
        env: which environment each ran in.
        returns, lengths: undiscounted sum of the environment's own rewards, and number of transitions.
    """

    step: list[int] = field(default_factory=list)
    env: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.returns)


class EpisodeCounter:
    """Returns and lengths of episodes that run across rollouts, from the rows of a rollout all at once.

    Attributes:
        returns, lengths: `[N]` of the episodes under way.
        steps: real transitions in the rollout counted last, over all processes.
        share: what this process has of the environments.
    """

    def __init__(self, num_envs: int, share: Share | None = None):
        self.returns, self.lengths, self.steps = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64), 0
        self.share = Share() if share is None else share

    def forget(self, which: np.ndarray) -> None:
        """The episodes under way in the environments `which [N]` count for nothing."""
        self.returns[which], self.lengths[which] = 0, 0

    def count(
        self, rewards: np.ndarray, ends: np.ndarray, mask: np.ndarray, first_step: int, cuts: np.ndarray | None = None
    ) -> Episodes:
        """The episodes that ended in a rollout, `first_step` environment steps after the beginning, in all processes.

        Args:
            rewards, ends, mask: `[T, N]`; rows where `mask` is False count for nothing.
            cuts: `[T, N]`, rows after which an episode was given up, which is not to be reported.
        """
        steps = mask.sum(1)
        if self.share.count > 1:
            steps = self.share.sum(torch.from_numpy(steps)).numpy()
        self.steps = int(steps.sum())
        # Sums up to each row, of which what belongs to earlier episodes of the same environment is taken away.
        returns = self.returns + np.cumsum(np.where(mask, rewards, 0.0), axis=0)
        lengths = self.lengths + np.cumsum(mask, axis=0)
        earlier_returns, earlier_lengths = np.zeros_like(self.returns), np.zeros_like(self.lengths)
        at, episodes = first_step + np.cumsum(steps), Episodes()
        over = ends if cuts is None else ends | cuts
        for t, n in np.argwhere(over & mask).tolist():
            if cuts is None or not cuts[t, n]:
                episodes.step.append(int(at[t]))
                episodes.env.append(n)
                episodes.returns.append(float(returns[t, n] - earlier_returns[n]))
                episodes.lengths.append(int(lengths[t, n] - earlier_lengths[n]))
            earlier_returns[n], earlier_lengths[n] = returns[t, n], lengths[t, n]
        self.returns, self.lengths = returns[-1] - earlier_returns, lengths[-1] - earlier_lengths
        return episodes if self.share.count == 1 else self._of_all(episodes)

    def _of_all(self, episodes: Episodes) -> Episodes:
        """The `episodes` of this process among those of all, in the order they finished."""
        share = self.share
        counts = torch.zeros(share.count, dtype=torch.int64)
        counts[share.rank] = len(episodes)
        before = (counts := share.sum(counts)).cumsum(0) - counts
        if not counts.any():
            return episodes
        rows = torch.zeros(int(counts.sum()), 4, dtype=torch.float64)  # which holds every step up to 2^53
        envs = [n + share.rank * len(self.returns) for n in episodes.env]
        own = [episodes.step, envs, episodes.returns, episodes.lengths]
        first = int(before[share.rank])
        rows[first : first + len(episodes)] = torch.tensor(own, dtype=torch.float64).T
        step, env, returns, lengths = zip(*sorted(map(tuple, share.sum(rows).tolist())), strict=True)
        return Episodes(list(map(int, step)), list(map(int, env)), list(returns), list(map(int, lengths)))

    def state_dict(self) -> dict[str, Tensor]:
        """The episodes under way, as tensors `[N]`."""
        return {"episode_returns": torch.from_numpy(self.returns.copy()),
                "episode_lengths": torch.from_numpy(self.lengths.copy())}  # fmt: skip

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with the episodes that `state_dict` described."""
        self.returns = state["episode_returns"].numpy().copy()
        self.lengths = state["episode_lengths"].numpy().copy()


class Collector:
    """Plays N environments with a policy and fills a buffer.

    A rollout is a segment, which goes on where the last one stopped and across episode ends, or, with
    `whole_episodes`, one episode of each environment: who finishes waits with mask 0, until all have finished.

    Args:
        envs: the environments behind their adapter.
        buffer: what to fill; its device is where the network lives.
        generator: source of the action noise, on the buffer's device.
        whole_episodes: collect whole episodes instead of segments; `reset` before each rollout.
        with_values: False leaves out the critic, for agents that have no use for it; values then stay 0.
        noise_correlation: ρ of an AR(1) process n_t = ρ n_{t−1} + √(1 − ρ²) ξ_t in each environment, every n_t still
            standard normal, which explores what white noise does not reach (Hollenstein et al. 2024, "Colored noise in
            PPO"). For Gaussian policies.

    Attributes:
        global_step: real transitions so far, over all environments.
        cut_episodes: of whole-episode rollouts, how many were still running after T steps.
        next_obs: `[N, ...]` to act on next.

    Raises:
        UsageError: for correlated noise where actions are not real numbers.
    """

    plays = True  # whether it plays with the policy at all
    next_obs: Any

    def __init__(
        self, envs: VectorAdapter, buffer: RolloutBuffer, generator: torch.Generator, whole_episodes: bool = False,
        with_values: bool = True, noise_correlation: float = 0.0,
    ):  # fmt: skip
        self.envs, self.buffer, self.generator = envs, buffer, generator
        self.whole_episodes, self.with_values, self.noise_correlation = whole_episodes, with_values, noise_correlation
        if noise_correlation and envs.action_spec.dtype != torch.float32:
            raise UsageError(f"noise_correlation is {noise_correlation}, but is for Box actions alone")
        self.share = share()
        self.fill_with_noise = distribution_class(envs.action_spec).noise_
        self.noise = torch.empty(buffer.num_steps, buffer.num_envs, noise_size(envs.action_spec), device=buffer.device)
        self.cut_episodes, self.rows_collected, self.global_step, self._told_cuts = 0, 0, 0, False
        self.counter = EpisodeCounter(buffer.num_envs, self.share)
        self.carry: dict[str, Tensor] = {}  # of the policy
        self.program: Any = None  # acts or plays in place of Python, once there is one

    @torch.inference_mode()
    def collect(self, network: ActorCritic) -> Episodes:
        """Fill the buffer and return the episodes that finished on the way.

        Raises:
            EnvironmentFault: names the environment that failed or gave a number that is not finite, and the step.
            DivergenceError: where that is the fault of an action that is not finite.
        """
        self.begin(network)
        return self.count(*self._play(network))

    def begin(self, network: ActorCritic) -> None:
        """Draw what a rollout takes in random numbers."""
        if self.next_obs is None:
            self.reset()
        self._draw_noise()
        self._begin_carry(network)

    def count(self, rewards: np.ndarray, ends: np.ndarray, cuts: np.ndarray | None = None) -> Episodes:
        """The episodes that finished in the rollout that is in the buffer, with the environments' own `rewards [T, N]`
        and `ends [T, N]`, and the `cuts [T, N]` after which episodes were given up."""
        episodes = self.counter.count(rewards, ends, self.buffer.mask.cpu().numpy(), self.global_step, cuts)
        self.rows_collected += self.buffer.length
        self.global_step += self.counter.steps
        return episodes

    def reset(self, seed: int | list[int] | None = None) -> None:
        """Start all environments afresh, or raise an EnvironmentFault where one fails; episodes under way are dropped.
        Equal seeds in a list give equal starts."""
        self._begin(seed)
        self.carry.clear()
        self.counter = EpisodeCounter(self.buffer.num_envs, self.share)

    def _begin(self, seed: int | list[int] | None) -> None:
        raise NotImplementedError

    def _begin_carry(self, network: ActorCritic) -> None:
        """Let the policy remember nothing, where it has not played yet; in place, where programs find it."""
        if not self.carry:
            self.carry.update(network.initial_carry(self.buffer.num_envs))

    def _play(self, network: ActorCritic) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Fill the buffer; rewards as the environments gave them, ends of their own episodes, and of those given up,
        each `[T, N]`."""
        raise NotImplementedError

    def _fill(self, out: Tensor, fill: Callable[..., Any], dim: int) -> Tensor:
        """Draw random numbers for `out`, whose dimension `dim` are environments: of several processes each draws those
        of all and takes its own, the same that one process would have drawn."""
        if self.share.count == 1:
            fill(out, generator=self.generator)
            return out
        size = out.shape[dim]
        whole = out.new_empty(*out.shape[:dim], size * self.share.count, *out.shape[dim + 1 :])
        fill(whole, generator=self.generator)
        return out.copy_(whole.narrow(dim, self.share.rank * size, size))

    def _draw_noise(self) -> None:
        last = self.noise[-1].clone()
        self._fill(self.noise, self.fill_with_noise, 1)
        if self.noise_correlation:
            self._correlate_noise(last)

    def _correlate_noise(self, last: Tensor) -> None:
        fresh = (1 - self.noise_correlation**2) ** 0.5
        for t, row in enumerate(self.noise.unbind()):
            if t > 0 or self.rows_collected > 0:  # the first row of all is white: the process's stationary state
                row.mul_(fresh).add_(last, alpha=self.noise_correlation)
            last = row

    def _tell_cuts(self, count: int) -> None:
        """So many episodes were still running at the end of a rollout of whole episodes."""
        self.cut_episodes = count
        if count and not self._told_cuts:
            self._told_cuts = True
            running = f"{count} of {self.buffer.num_envs} episodes were still running"
            cut = f"after num_steps = {self.buffer.num_steps} and were cut there; later cuts are not reported"
            warnings.warn(f"{running} {cut}", stacklevel=8)

    def _complete(
        self, network: ActorCritic, last_obs: Any, cut: tuple[Tensor, Tensor, Any, Tensor] | None,
        final_values: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Fill what needs no environment: log-probabilities, values and next values; `last_obs [N, ...]` is after the
        last row, and `cut` where episodes ended out of sight: rows `[K]`, environments `[K]`, their final observations
        `[K, ...]`, and whether each really is one `[K]`. Both as the network takes them, see `_recalled`. Or else
        `final_values [T, N]`, of those that a cut would end with."""
        buffer, obs = self.buffer, self.buffer.obs
        buffer.logprobs = network.distribution(buffer.dist_params).log_prob(buffer.actions)
        if not self.with_values:
            return
        if not network.acts_with_values:
            # Images row by row, whose activations would take too much memory at once.
            images = not isinstance(obs, dict) and obs.ndim >= 5
            buffer.values = loop(lambda _, x: (None, network.value(x)), None, obs)[1] if images else network.value(obs)
        last = buffer.num_steps if is_recording() else buffer.length
        following = torch.cat([buffer.values[1:last], network.value(last_obs).unsqueeze(0), buffer.values[last:]])
        if cut is not None:
            rows, envs, final_obs, really = cut
            final = torch.where(really, network.value(final_obs), following[rows, envs])
            following = following.index_put((rows, envs), final)
        if final_values is not None:
            following = torch.where(buffer.truncated, final_values, following)
        buffer.next_values = torch.where(buffer.terminated, 0.0, following)

    def _recalled(self, obs: Any, carry: dict[str, Tensor], first: Tensor) -> Any:
        """Observations `[N, ...]` with what a policy with memory had remembered before them, else as they are."""
        return Sequences(obs, first, carry, 1, len(first)) if self.buffer.sequence_length else obs

    def is_capturable(self) -> bool:
        """Whether the environments' state can be stored; where not, a resumed run begins new episodes."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """Where collection stands, environments included if their state is plain data."""
        kept = {name: x.clone() for name, x in self.carry.items() if name in self.buffer.memory}
        policy = {"policy": kept} if kept else {}
        return {"rows_collected": self.rows_collected, "global_step": self.global_step, **policy}

    def load_state_dict(self, state: dict[str, Any], seed: int | None = None, restore_envs: bool = True) -> None:
        """Go on where `state_dict` was taken, or from new episodes (`seed`) where it holds no environment, or those of
        another backend, or none is to be restored. A ValueError where the state does not fit."""
        self.reset(seed)
        self.rows_collected = stored_count(state, "rows_collected")
        self.global_step = stored_count(state, "global_step")
        if self._restore(state, restore_envs):
            self.counter.load_state_dict(state)
            if "policy" in state:
                like = {name: getattr(self.buffer, name)[0] for name in self.buffer.memory}
                check_like(state["policy"], like, "collector.policy")
                self.carry.update({name: x.to(self.buffer.device) for name, x in state["policy"].items()})

    def _restore(self, state: dict[str, Any], restore_envs: bool) -> bool:
        """Whether the environments go on where they were."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """Without views of other objects, which would not be views of their copies."""
        views = {name for name, x in vars(type(self)).items() if isinstance(x, functools.cached_property)}
        return {name: x for name, x in vars(self).items() if name not in views} | {"program": None}


class HostRows:
    """The buffer's rows as numpy arrays, for environments in host memory; of a CPU buffer, its own memory.

    Attributes:
        actions, rewards, terminated, ...: `[T, N, ...]`, actions and each field that the environments fill.
        done: `[T, N]` bool, ends of the environments' own episodes.
        raw_rewards: `[T, N]` float64, as the environments gave them.
        noise, policy: rows of the action noise `[T, N, A]`, and of what the policy fills, as tensors.
    """

    dones: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray

    def __init__(self, buffer: RolloutBuffer, noise: Tensor):
        self.buffer = buffer
        names = [*buffer.filled_by("environment"), "actions"]
        self.tensors = {name: self._host(getattr(buffer, name)) for name in names}
        vars(self).update({name: x.numpy() for name, x in self.tensors.items()})
        self.raw_rewards, self.done = np.zeros(self.mask.shape), np.zeros(self.mask.shape, dtype=bool)
        stacked = isinstance(buffer.obs, FrameStacks)
        self.obs = {} if stacked else map_parts(lambda x: self._host(x).numpy(), buffer.obs)
        # Views of every row, made once, since indexing a tensor costs more than a small layer.
        self.obs_rows, self.noise = [] if stacked else list(rows_of(buffer.obs)), noise.unbind()
        self.policy = {name: getattr(buffer, name).unbind() for name in [*buffer.filled_by("policy"), "values"]}

    def _host(self, x: Tensor) -> Tensor:
        return x

    def begin(self, t: int, obs: Any, first: np.ndarray, begun: np.ndarray, extras: dict[str, np.ndarray]) -> Any:
        """Row t begins: `obs`, whether it is the `first [N]` of an episode to learn from or has `begun [N]` one of the
        environment's own. Gives the observation back on the buffer's device."""
        self.dones[t] = first
        for name, x in extras.items():
            getattr(self, name)[t] = x
        if isinstance(self.buffer.obs, FrameStacks):  # which bring their own staging
            return self.buffer.obs.write(t, obs, begun)
        map_parts(lambda rows, part: np.copyto(rows[t], part, casting="unsafe"), self.obs, obs)
        return self.obs_rows[t]

    def read_actions(self, t: int) -> np.ndarray:
        """Actions of row t, `[N, ...]`."""
        return self.actions[t]

    def end(self, t: int, step: Step, playing: np.ndarray) -> None:
        """Row t ends with a `step`, which counts for those who are `playing [N]`."""
        self.raw_rewards[t], self.done[t] = step.rewards, step.done
        self.terminated[t], self.truncated[t] = step.terminated, step.truncated
        self.mask[t] = step.real & playing

    def flush(self) -> None:
        """Hand what is kept here over to the buffer, at the end of a rollout."""
        self.rewards[:] = self.raw_rewards


class StagedRows(HostRows):
    """Rows in host memory for a buffer elsewhere: an observation goes over when it arrives, in one copy, all else in
    one copy at the end."""

    def _host(self, x: Tensor) -> Tensor:
        return torch.empty_like(x, device="cpu", pin_memory=torch.cuda.is_available())

    def begin(self, t: int, obs: Any, first: np.ndarray, begun: np.ndarray, extras: dict[str, np.ndarray]) -> Any:
        row = super().begin(t, obs, first, begun, extras)
        if not isinstance(self.buffer.obs, FrameStacks):
            map_parts(lambda host, x: x.copy_(torch.from_numpy(host[t]), non_blocking=True), self.obs, row)
        return row

    def read_actions(self, t: int) -> np.ndarray:
        self.tensors["actions"][t].copy_(self.buffer.actions[t])
        return self.actions[t]

    def flush(self) -> None:
        super().flush()
        for name in self.buffer.filled_by("environment"):
            setattr(self.buffer, name, self.tensors[name])  # waits: the next rollout writes here


Final = tuple[int, np.ndarray, Any, dict[str, Tensor]]
"""Episodes that ended out of sight: row, environments, their final observations, and what the policy remembered."""


class HostCollector(Collector):
    """Plays environments that are stepped in host memory, row by row.

    Args:
        arguments, options: as in `Collector`.
        group_size: G, where each G environments start alike and are compared with each other; 1 where not.
        seed: of the run, from which environments that failed get theirs.
        again: makes another vector environment like this one, see `Standing`.
    """

    def __init__(
        self, *arguments: Any, group_size: int = 1, seed: int = 0,
        again: Callable[[], VectorEnv] | None = None, **options: Any,
    ):  # fmt: skip
        super().__init__(*arguments, **options)
        self.envs.restarts.seed = seed
        self.faults = Faults(self.envs, self.buffer.num_steps, group_size, self.whole_episodes)
        self.standing = Standing(self.envs.envs, again)
        self.next_obs: Any = None
        self.next_first = np.zeros(self.buffer.num_envs, dtype=bool)  # begins next_obs an episode after another?

    @functools.cached_property
    def rows(self) -> HostRows:
        """The rows of a rollout; made when first played, since there may be millions."""
        return (HostRows if self.buffer.device.type == "cpu" else StagedRows)(self.buffer, self.noise)

    @property
    def restarts(self) -> int:
        """How often an environment that failed was begun anew."""
        return int(self.envs.restarts.counts.sum())

    def begin(self, network: ActorCritic) -> None:
        if self.standing.was_reset:  # by the user, between two rollouts
            self.reset()
        super().begin(network)

    def _begin(self, seed: int | list[int] | None) -> None:
        # One number counts on from environment to environment.
        own = seed + self.share.rank * self.buffer.num_envs if isinstance(seed, int) else seed
        self.next_obs = self.envs.reset(own)
        self.faults.tell()
        self.standing.begun(seed is not None)
        self.next_first = np.full(self.buffer.num_envs, self.whole_episodes and self.rows_collected > 0)

    def _play(self, network: ActorCritic) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        envs, rows = self.envs, self.rows
        finals: list[Final] = []
        envs.steps, obs, first, begun = self.rows_collected, self.next_obs, self.next_first, self.next_first
        act = functools.partial(self._act, network) if self.program is None else self._bound_actor()
        restarted = envs.restarts.latest is not None
        playing = self.faults.begin() if restarted else np.ones(self.buffer.num_envs, dtype=bool)
        for t in range(self.buffer.num_steps):
            act(t, rows.begin(t, obs, first, begun, envs.extras), first)
            try:
                step = envs.step(rows.read_actions(t))
            except Exception:
                self._check_finite(finals, t + 1, failed=True)  # a NaN that came earlier is the better explanation
                raise
            rows.end(t, step, playing)
            obs, first, begun = step.obs, step.first, step.begun
            if step.final_obs is not None:
                memory = {name: x[torch.from_numpy(step.final_envs)].clone() for name, x in self.carry.items()}
                finals.append((t, step.final_envs, step.final_obs, memory))
            if step.failed is not None:
                refuse_policy(*self._policy_rows(), t + 1, self.rows_collected)
                restarted, playing = True, self.faults.give_up(t, step.failed, playing, rows, self.counter)
            if self.whole_episodes:
                playing = playing & ~step.done
                if not playing.any():
                    break
        self.buffer.length, rows.mask[t + 1 :] = t + 1, False
        if self.whole_episodes:  # an episode that is still running is cut here
            rows.truncated[t], rows.done[t] = rows.truncated[t] | playing, rows.done[t] | playing
            self._tell_cuts(int(playing.sum()))
        self.next_obs, self.next_first = obs, first
        self.standing.left()
        if restarted:
            self.faults.end(rows.mask)
        self._check_finite(finals, t + 1)
        rows.flush()
        cut = self._cut(finals) if finals and self.with_values else None
        self._complete(network, self._recalled(self._to_device(obs), self.carry, self._flags(first)), cut)
        return rows.raw_rewards, rows.done, self.faults.gave_up

    def _act(self, network: ActorCritic, t: int, obs: Any, first: np.ndarray) -> None:
        """Choose the actions of row t, whose observations are `obs` and `first [N]` of an episode."""
        began = self._remember(t, first) if self.carry else None
        chosen, self.carry = network.act(obs, self.carry, began, self.rows.noise[t], self.with_values)
        for name, value in chosen.items():
            self.rows.policy[name][t].copy_(value)

    def _remember(self, t: int, first: np.ndarray) -> Tensor:
        """Store what the policy remembers before row t, as far as it is stored; `first [N]` as a tensor."""
        self.buffer.remember(t, self.carry)
        return self._flags(first)

    def _flags(self, first: np.ndarray) -> Tensor:
        """`first [N]` on the buffer's device, in memory of its own."""
        return torch.from_numpy(first.copy()).to(self.buffer.device)

    def _bound_actor(self) -> Callable[[int, Any, np.ndarray], None]:
        """The same by a program. A row takes microseconds, so nested tensors are laid flat here."""
        run, (chosen, after) = self.program.bind(), self.program.result
        noise_rows, targets = self.rows.noise, [self.rows.policy[name] for name in chosen]

        def act(t: int, obs: Any, first: np.ndarray) -> None:
            leaves = [*obs.values(), noise_rows[t]] if isinstance(obs, dict) else [obs, noise_rows[t]]
            if after:
                began = self._remember(t, first)
                leaves += [*self.carry.values(), began]
            outputs = run(leaves)
            for rows, value in zip(targets, outputs, strict=False):
                rows[t].copy_(value)
            if after:
                self.carry = dict(zip(after, outputs[len(targets) :], strict=True))

        return act

    def _cut(self, finals: list[Final]) -> tuple[Tensor, Tensor, Any, Tensor] | None:
        """Where episodes ended out of sight, for `_complete`."""
        times, envs, obs, memories = zip(*finals, strict=True)
        rows = np.concatenate([np.full(len(n), t) for t, n in zip(times, envs, strict=True)])
        who = np.concatenate(envs)
        obs = map_parts(lambda *parts: np.concatenate(parts), *obs)
        memory = map_parts(lambda *parts: torch.cat(parts), *memories)
        cut = ~self.rows.terminated[rows, who]  # what follows a termination is worth nothing
        if not cut.any():
            return None
        device, obs = self.buffer.device, map_parts(lambda x: x[cut], obs)
        t, n, there = (torch.from_numpy(x).to(device) for x in (rows[cut], who[cut], cut))
        memory, really = map_parts(lambda x: x[there], memory), torch.ones_like(t, dtype=torch.bool)
        return t, n, self._recalled(self._to_device(obs), memory, ~really), really

    def _to_device(self, obs: Any) -> Any:
        return map_parts(
            lambda x, like: torch.from_numpy(np.asarray(x)).to(like.device, like.dtype), obs, self.buffer.obs
        )

    def _check_finite(self, finals: list[Final], length: int, failed: bool = False) -> None:
        """Refuse a rollout of `length` rows with a number that is not finite; the last of them `failed` in its step."""
        seen = [Seen(f"its {_named(name)}", x[:length], 0) for name, x in _parts(self.rows.obs)]
        seen.append(Seen("its reward", self.rows.raw_rewards[: length - failed], 1))
        if not failed:
            ends: list[tuple[int, Any, str, Any]] = [(length - 1, None, "observation", self.next_obs)]
            ends += [(t, envs, "final observation", obs) for t, envs, obs, _ in finals]
            seen += [Seen(f"its {what}", x[None], t + 1, n) for t, n, what, obs in ends for _, x in _parts(obs)]
        if failed or not all(x.is_finite() for x in seen):
            refuse_nan(seen, *self._policy_rows(), self.rows_collected)
            refuse_policy(*self._policy_rows(), length, self.rows_collected)

    def _policy_rows(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """What the policy put out, `[T, N, P + A]` (a choice is finite in any case, whatever it was drawn from), and
        what it saw."""
        parts = [x.flatten(2).float() for x in (self.buffer.dist_params, self.buffer.actions.unsqueeze(-1))]
        return torch.cat(parts, -1).cpu().numpy(), [x for _, x in _parts(self.rows.obs)]

    def is_capturable(self) -> bool:
        return self.standing.capture() is not None

    def state_dict(self) -> dict[str, Any]:
        state = {"env": self.standing.capture(), **self._under_way(), "noise": self.noise[-1].clone()}
        state["next_obs"] = None if state["env"] is None else state["next_obs"]
        return {**state, "restarts": torch.from_numpy(self.envs.restarts.counts.copy()), **super().state_dict()}

    def _restore(self, state: dict[str, Any], restore_envs: bool) -> bool:
        if len(state["noise"]) == self.buffer.num_envs:
            self.noise[-1].copy_(state["noise"])
        if not restore_envs:
            return False
        self.envs.restarts.load(state.get("restarts", np.zeros(self.buffer.num_envs, np.int64)))
        if state["env"] is None:
            return False
        own = self._under_way()
        check_like({name: state.get(name) for name in own}, own, "collector")
        if not self.standing.restore(state["env"]):
            return False
        stored = [state.get(name, {}) for name in ("pending", "extras", "next_obs", "next_first")]
        arrays = [map_parts(lambda x: x.numpy().copy(), part) for part in stored]
        self.envs.pending, self.envs.extras, self.next_obs, self.next_first = arrays
        return True

    def _under_way(self) -> dict[str, Any]:
        """What belongs to the episodes under way, beside the environments' own state."""
        arrays = {"pending": self.envs.pending, "next_obs": self.next_obs, "next_first": self.next_first}
        arrays |= {"extras": self.envs.extras} if self.envs.extras else {}
        tensors = {name: map_parts(lambda x: torch.from_numpy(np.copy(x)), x) for name, x in arrays.items()}
        return {**tensors, **self.counter.state_dict()}


def _parts(obs: Any) -> list[tuple[str, np.ndarray]]:
    """Names and arrays of an observation's parts."""
    return [*obs.items()] if isinstance(obs, dict) else [("", np.asarray(obs))]


def _named(part: str) -> str:
    return f"observation part {part!r}" if part else "observation"


class NativeCollector(Collector):
    """Plays environments that are functions of tensors, all rows in one loop: a `task`, beside the arguments of
    `Collector`.

    Attributes:
        standing: the environments, a dict of

            state    [N, S]
            elapsed  [N] steps of their episodes so far
            first    [N] whether the next observation is the first of an episode after another
            playing  [N] whether the episode counts (whole episodes: those who have finished wait)
            noise    [N, A] action noise of the step before, where it is correlated

        draws: noise of actions `[T, N, A]` and of starts `[T, N, D]` for the next rollout.

    Raises:
        UsageError: where actions are masked and the task's observation has no part `action_mask`.
    """

    def __init__(self, task: NativeTask, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.task, self.max_episode_steps = task, task.max_episode_steps
        spec, space = self.envs.action_spec, task.observation_space
        if spec.masked and not (isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces):
            raise UsageError(f"actions are masked, but {task} has no part '{ACTION_MASK}' in its observation")
        self.standing: dict[str, Tensor] = {}
        self.draws: dict[str, Tensor] = {}
        self.network: ActorCritic | None = None

    @property
    def next_obs(self) -> Tensor | dict[str, Tensor] | None:
        """Observations to act on next, [N, ...]."""
        return self.task.observe(self.standing["state"]) if self.standing else None

    def _begin(self, seed: int | list[int] | None) -> None:
        N, device = self.buffer.num_envs, self.buffer.device
        seeds = seed if isinstance(seed, list) else [seed or 0]
        if isinstance(seed, list):
            starts = {seed: self._uniform(1, seed) for seed in {*seeds}}
            uniform = torch.cat([starts[seed] for seed in seeds])
        else:
            uniform = self._uniform(N * self.share.count, seeds[0])[self.share.slice(N)]
        # Correlated noise begins in its stationary state.
        white = None if self.standing else self._fill(torch.empty_like(self.noise[0]), self.fill_with_noise, 0)
        self.standing.update(
            state=self.task.initial(uniform.to(device)),
            elapsed=torch.zeros(N, dtype=torch.int64, device=device),
            first=torch.full((N,), self.whole_episodes and self.rows_collected > 0, device=device),
            playing=torch.ones(N, dtype=torch.bool, device=device),
            noise=self.standing.get("noise", white),
        )

    def _uniform(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(count, self.task.draws, dtype=torch.float64, generator=generator)

    def _draw_noise(self) -> None:
        self._fill(self.noise, self.fill_with_noise, 1)
        T, N = self.noise.shape[:2]
        if self.whole_episodes:  # which begin by reset alone
            starts = torch.rand((T, 1, 1), dtype=torch.float32, device=self.noise.device, generator=self.generator)
        else:
            starts = self._fill(self.noise.new_empty(T, N, self.task.draws), Tensor.uniform_, 1)
        self.draws.update(noise=self.noise, start=starts)

    def begin_example(self, network: ActorCritic) -> None:
        """Be ready for `places` and `rollout` without drawing from the agent's generator."""
        own, self.generator, self.network = self.generator, torch.Generator(self.buffer.device), network
        if not self.standing:
            self.reset(0)
        if not self.draws:
            self._draw_noise()
        self._begin_carry(network)
        self.generator = own

    def places(self) -> list[Place]:
        """What a program that plays reads and writes beside the network and the buffer."""
        holders = {"envs": self.standing, "policy": self.carry, "draws": self.draws}
        return [Place(f"{kind}.{name}", holder, name) for kind, holder in holders.items() for name in holder]

    def begin(self, network: ActorCritic) -> None:
        super().begin(network)
        self.network = network
        if self.whole_episodes:
            self.standing["playing"].fill_(True)

    def _play(self, network: ActorCritic) -> tuple[np.ndarray, np.ndarray, None]:
        self.rollout() if self.program is None else self.program()
        return self.played()

    def played(self) -> tuple[np.ndarray, np.ndarray, None]:
        """What `_play` tells of a rollout, once it is in the buffer."""
        if self.whole_episodes:
            self._tell_cuts(int(self.standing["playing"].sum()))
        read = self.buffer.rewards, self.buffer.terminated, self.buffer.truncated
        rewards, terminated, truncated = (x.cpu().numpy() for x in read)
        if self.envs.action_spec.masked:
            self._check_masks()
        self._check_finite(rewards)
        return rewards, terminated | truncated, None

    @torch.no_grad()
    def rollout(self) -> None:
        """T rows of policy and environment; what programs are recorded from."""
        buffer, network = self.buffer, self.network
        start = {**self.standing, **{f"policy.{name}": x for name, x in self.carry.items()}}
        length = buffer.sequence_length or buffer.num_steps
        if length < buffer.num_steps:  # so that what is remembered is kept where sequences begin alone
            draws = {name: x.unflatten(0, (-1, length)) for name, x in self.draws.items()}
            end, kept, _ = loop(self._sequence, start, draws, apart=("rows", "before"))
            rows = {name: map_parts(lambda x: x.flatten(0, 1), x) for name, x in kept["rows"].items()}
        else:
            end, kept = self._sequence(start, self.draws)
            rows = dict(kept["rows"])
        self.standing.update({name: end[name] for name in self.standing})
        self.carry.update({name: end[f"policy.{name}"] for name in self.carry})
        for name, x in kept["before"].items():
            setattr(buffer, name, x if length < buffer.num_steps else x.unsqueeze(0))
        finals, memory, worth = (rows.pop(name, None) for name in ("final_obs", "memory", "final_values"))
        if self.whole_episodes:  # an episode that is still running is cut here
            cut = rows["truncated"][-1] | end["playing"]
            rows["truncated"] = torch.cat([rows["truncated"][:-1], cut.unsqueeze(0)])
        for name, x in rows.items():
            setattr(buffer, name, x)
        last = self._recalled(self.task.observe(end["state"]), self.carry, end["first"])
        self._complete(network, last, None if finals is None else self._cut(finals, memory or {}), worth)

    def _sequence(self, carry: dict[str, Tensor], draws: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The rows of a sequence, and what the policy remembers before them, as far as it is stored."""
        before = {name: carry[f"policy.{name}"] for name in self.buffer.memory}
        # A row of few environments without memory costs no more than the turn of a loop.
        turns = WRITTEN_OUT if self.buffer.num_envs <= 64 and not self.buffer.sequence_length else 1
        row = self._row
        if self.whole_episodes and self.carry and self.network.reads_first:  # once, instead of in each row
            memory = {name: carry[f"policy.{name}"] for name in self.carry}
            memory = self.network.read_first(self.task.observe(carry["state"]), memory)
            carry = {**carry, **{f"policy.{name}": x for name, x in memory.items()}}
            row = functools.partial(row, begins=False)
        end, rows, _ = loop(row, carry, draws, unroll=turns, apart=("obs", "final_obs", "memory"))
        return end, {"rows": rows, "before": before}

    def _row(
        self, carry: dict[str, Tensor], draws: dict[str, Tensor], begins: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """One row: observe, act, step, and begin anew where an episode ended; whether any `begins` here."""
        task, rho, limit = self.task, self.noise_correlation, self.max_episode_steps
        noise = rho * carry["noise"] + (1 - rho**2) ** 0.5 * draws["noise"] if rho else draws["noise"]
        policy = {name.removeprefix("policy."): x for name, x in carry.items() if name.startswith("policy.")}
        obs = task.observe(carry["state"])
        chosen, policy = self._choose(carry["state"], obs, policy, carry["first"] if begins else None, noise)
        actions = self.envs.action_spec.to_env_tensor(chosen["actions"])
        following, rewards, terminated = task.step(carry["state"], actions)
        elapsed = carry["elapsed"] + 1
        truncated = (elapsed >= limit) if limit else torch.zeros_like(terminated)
        done, playing = terminated | truncated, carry["playing"]
        row = {"obs": obs, "rewards": rewards, "terminated": terminated, "truncated": truncated, "mask": playing}
        row |= {"dones": carry["first"], **chosen, **task.extras(carry["state"])}
        if self.with_values and limit:
            row |= self._final(task.observe(following), policy)
        if self.whole_episodes:
            playing = playing & ~done
            following = torch.where(playing.unsqueeze(-1), following, carry["state"])  # who waits stands still
        else:
            following = torch.where(done.unsqueeze(-1), task.initial(draws["start"]).to(following.dtype), following)
            elapsed = torch.where(done, 0, elapsed)
        after = {"state": following, "elapsed": elapsed, "first": done, "playing": playing, "noise": noise}
        return {**after, **{f"policy.{name}": x for name, x in policy.items()}}, row

    def _choose(
        self, state: Tensor, obs: Any, memory: dict[str, Tensor], first: Tensor | None, noise: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What fills a row beside what the environments do, `actions [N, ...]` among it, and what the policy remembers
        after it."""
        return self.network.act(obs, memory, first, noise, self.with_values)

    def _final(self, obs: Any, memory: dict[str, Tensor]) -> dict[str, Any]:
        """What a row keeps for its value if an episode is cut after it, with a last look at `obs [N, ...]`: the latter
        and what the policy remembers; where that is much, the value at once."""
        if not self.buffer.sequence_length:
            return {"final_obs": obs}
        if sum(x[0].numel() for x in memory.values()) <= LARGE_MEMORY:
            return {"final_obs": obs, "memory": memory}
        goes_on = torch.zeros(self.buffer.num_envs, dtype=torch.bool, device=self.buffer.device)
        return {"final_values": self.network.value(self._recalled(obs, memory, goes_on))}

    def _cut(self, finals: Any, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor, Any, Tensor]:
        """Where episodes were cut, for `_complete`, with final observations and what the policy remembered after each
        row, `[T, N, ...]`; a time limit cuts an environment at most so `often` in T rows."""
        truncated = self.buffer.truncated
        T, N = truncated.shape
        often = min(T, (T - 1) // self.max_episode_steps + 1)
        rows = truncated.float().topk(often, dim=0)[1].flatten()  # [often · N]
        envs = torch.arange(N, device=rows.device).repeat(often)
        really = truncated[rows, envs]
        obs, memory = (map_parts(lambda x: x[rows, envs], y) for y in (finals, memory))
        return rows, envs, self._recalled(obs, memory, torch.zeros_like(really)), really

    def _check_finite(self, rewards: np.ndarray) -> None:
        # Looked at where they lie: only what is to be explained is worth a copy from the device. A sum tells in one
        # pass that all is well; one that overflows is looked at closely.
        numbers = [x for x in leaves_of([self.buffer.obs, self.buffer.dist_params]) if x.is_floating_point()]
        if math.isfinite(rewards.sum()) and all(math.isfinite(x.sum()) for x in numbers):
            return
        if np.isfinite(rewards).all() and all(x.isfinite().all() for x in numbers):
            return
        parts = _parts(map_parts(lambda x: x.cpu().numpy(), self.buffer.obs))
        obs, output = [x for _, x in parts], self.buffer.dist_params.cpu().numpy()
        refuse_policy(output, obs, len(output), self.rows_collected)
        seen = [*(Seen(f"its {_named(name)}", x, 0) for name, x in parts), Seen("its reward", rewards, 1)]
        refuse_nan(seen, output, obs, self.rows_collected)

    def _check_masks(self) -> None:
        """Refuse a rollout with a row in which nothing was allowed."""
        obs: Any = self.buffer.obs
        dimensions = obs[ACTION_MASK].bool().split(self.envs.action_spec.nvec, -1)
        stuck = ~torch.stack([x.any(-1) for x in dimensions]).all(0)
        if stuck.any():
            t, n = stuck.nonzero()[0].tolist()
            raise EnvironmentFault(f"environment {n} allows no action at vector step {self.rows_collected + t:,}")

    def state_dict(self) -> dict[str, Any]:
        standing = {name: x.clone() for name, x in self.standing.items()}
        return {"carry": standing, **self.counter.state_dict(), **super().state_dict()}

    def _restore(self, state: dict[str, Any], restore_envs: bool) -> bool:
        if "carry" not in state or not restore_envs:
            return False
        check_like(state["carry"], self.standing, "collector.carry")
        self.standing.update({name: x.to(self.buffer.device) for name, x in state["carry"].items()})
        return True


__all__ = ["Collector", "EpisodeCounter", "Episodes", "HostCollector", "HostRows", "NativeCollector"]
