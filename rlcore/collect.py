"""The rollout phase: fill the buffer with T steps of N environments.

Only what the next action needs is computed per step: the policy head, and the value too where it comes for free from a
shared torso. Log-probabilities, and the values of a separate critic, follow in one batched call when the rollout is
complete; that is the same arithmetic in 1/T of the calls.
"""

from __future__ import annotations

import functools
import pickle
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from rlcore.programs.acting import ActProgram, ActUnit, act
from rlcore.buffer import RolloutBuffer
from rlcore.storage.checkpoint import check_like, stored_count
from rlcore.networks.distributions import distribution_class, noise_size
from rlcore.envs.adapter import VectorAdapter
from rlcore.envs.async_vector import GuardedAsyncVectorEnv
from rlcore.envs.state import MOST_VALUES, Misfit, NotCapturable, capture_state, check_fits, restore_state
from rlcore.errors import DivergenceError, EnvironmentFault, UsageError
from rlcore.envs.frames import FrameStacks
from rlcore.networks import ActorCritic
from rlcore.spaces import map_parts


@dataclass
class Episodes:
    """Finished episodes, in the order they finished.

    Attributes:
        step: environment steps over all environments by the end of the row in which each ended.
        env: which environment each ran in.
        returns: undiscounted sum of the environment's own rewards.
        lengths: number of transitions.
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
        steps: real transitions in the rollout counted last.
    """

    def __init__(self, num_envs: int):
        self.returns, self.lengths, self.steps = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64), 0

    def reset(self) -> None:
        """All environments begin new episodes."""
        self.returns[:], self.lengths[:] = 0, 0

    def forget(self, which: np.ndarray) -> None:
        """The episodes under way in the environments `which [N]` count for nothing."""
        self.returns[which], self.lengths[which] = 0, 0

    def count(
        self, rewards: np.ndarray, ends: np.ndarray, mask: np.ndarray, first_step: int, cuts: np.ndarray | None = None
    ) -> Episodes:
        """The episodes that ended in a rollout.

        Args:
            rewards, ends, mask: `[T, N]`; rows where `mask` is False count for nothing.
            first_step: environment steps before this rollout.
            cuts: `[T, N]`, rows after which an episode was given up, which is no episode to report.
        """
        ends = (ends if cuts is None else ends | cuts) & mask
        # One row in front, so that the sum over an episode is a difference of two rows.
        returns = np.zeros((len(ends) + 1, ends.shape[1]))
        lengths = np.zeros((len(ends) + 1, ends.shape[1]), dtype=np.int64)
        np.cumsum(np.where(mask, rewards, 0.0), axis=0, dtype=np.float64, out=returns[1:])
        np.cumsum(mask, axis=0, out=lengths[1:])
        steps = mask.sum(1)
        self.steps = int(steps.sum())
        if not ends.any():
            self.returns += returns[-1]
            self.lengths += lengths[-1]
            return Episodes()
        returns += self.returns
        lengths += self.lengths
        n, t = np.nonzero(ends.T)  # environment by environment, each in the order of time
        totals, sizes = returns[t + 1, n], lengths[t + 1, n]
        last = np.append(n[1:] != n[:-1], True)  # of its environment
        begin = np.append(True, last[:-1])
        own_returns = totals - np.where(begin, 0.0, np.append(0.0, totals[:-1]))
        own_lengths = sizes - np.where(begin, 0, np.append(0, sizes[:-1]))
        self.returns, self.lengths = returns[-1], lengths[-1]
        self.returns[n[last]] -= totals[last]
        self.lengths[n[last]] -= sizes[last]
        order = np.lexsort((n, t))
        if cuts is not None:
            order = order[~cuts[t, n][order]]
        at = (first_step + np.cumsum(steps))[t]
        return Episodes(*(x[order].tolist() for x in (at, n, own_returns, own_lengths)))

    def state_dict(self) -> dict[str, Tensor]:
        """The episodes under way, as tensors `[N]`."""
        return {"episode_returns": torch.from_numpy(self.returns.copy()),
                "episode_lengths": torch.from_numpy(self.lengths.copy())}  # fmt: skip

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with the episodes that `state_dict` described."""
        self.returns = state["episode_returns"].numpy().copy()
        self.lengths = state["episode_lengths"].numpy().copy()


class HostRows:
    """The buffer's rows as numpy arrays, for environments that live in host memory.

    On a CPU buffer they are the buffer's own memory and nothing is copied. On CUDA they are staged in pinned memory:
    an observation goes over when it arrives, in one copy, all else in one copy at the end.

    Args:
        buffer: where the rows go.
        staged: whether to keep rows of their own; by default, where the buffer is not in host memory.
    """

    FIELDS = ("rewards", "terminated", "truncated", "mask", "dones")

    def __init__(self, buffer: RolloutBuffer, staged: bool | None = None):
        self.buffer = buffer
        self.staged = buffer.device.type != "cpu" if staged is None else staged
        self.tensors = {name: self._host(getattr(buffer, name)) for name in self.FIELDS}
        # Frames stored once bring their own staging.
        self.stacks = buffer.obs if isinstance(buffer.obs, FrameStacks) else None
        self.obs_tensor = {} if self.stacks is not None else map_parts(self._host, buffer.obs)
        self.obs_rows = [] if self.stacks is not None else _rows(buffer.obs)
        self.actions_tensor = self._host(buffer.actions)
        for name, tensor in self.tensors.items():
            setattr(self, name, tensor.numpy())
        self.rewards: np.ndarray
        self.terminated: np.ndarray
        self.truncated: np.ndarray
        self.mask: np.ndarray
        self.dones: np.ndarray
        self.actions = self.actions_tensor.numpy()
        self.obs = map_parts(lambda x: x.numpy(), self.obs_tensor)

    def _host(self, tensor: Tensor) -> Tensor:
        if not self.staged:
            return tensor
        return torch.empty_like(tensor, device="cpu", pin_memory=torch.cuda.is_available())

    def write_obs(self, t: int, obs: Any, begun: np.ndarray) -> Any:
        """Store row t, in which episodes have `begun [N]`; gives it back on the buffer's device."""
        if self.stacks is not None:
            return self.stacks.write(t, obs, begun)
        map_parts(lambda rows, part: np.copyto(rows[t], part, casting="unsafe"), self.obs, obs)
        if self.staged:
            map_parts(lambda x, host: x[t].copy_(host[t], non_blocking=True), self.buffer.obs, self.obs_tensor)
        return self.obs_rows[t]

    def read_actions(self, t: int) -> np.ndarray:
        if self.staged:
            self.actions_tensor[t].copy_(self.buffer.actions[t])
        return self.actions[t]

    def flush(self) -> None:
        if self.staged:
            for name, tensor in self.tensors.items():
                getattr(self.buffer, name).copy_(tensor)  # waits: the next rollout writes here


def _rows(obs: Any) -> list[Any]:
    if not isinstance(obs, dict):
        return list(obs.unbind())
    rows = zip(*(part.unbind() for part in obs.values()), strict=True)
    return [dict(zip(obs, row, strict=True)) for row in rows]


class Collector:
    """Plays N environments with a policy and fills a buffer.

    A rollout is either a segment, which goes on where the last one stopped and across episode ends, or, with
    `whole_episodes`, one episode of each environment from its beginning: who finishes waits with mask 0, and the
    rollout ends early when all have finished.

    Args:
        envs: the environments behind their adapter.
        buffer: what to fill; its device is where the network lives.
        generator: source of the action noise, on the buffer's device.
        whole_episodes: collect whole episodes instead of segments; `reset` before each rollout.
        noise_correlation: ρ of an AR(1) process n_t = ρ n_{t−1} + √(1 − ρ²) ξ_t in each environment, whose every n_t
            is still standard normal; actions that push one way for a while explore what white noise does not reach
            (Hollenstein et al. 2024, "Colored noise in PPO"). For Gaussian policies.
        with_values: False leaves out the critic, for agents that have no use for it; values then stay 0.
        group_size: G, where each G environments start alike and are compared with each other; 1 where not.
        seed: of the run, from which environments that failed get theirs.

    Of an environment that fails and is begun anew nothing is learned but what came before: the row of the fault is
    masked, and the row before it is cut (truncated), so that its successor, which the faulty row shows, is valued. Of a
    rollout of whole episodes the episode is left out, and with it those that it would be compared with.

    Raises:
        UsageError: for correlated noise where actions are not real numbers.
    """

    def __init__(
        self,
        envs: VectorAdapter,
        buffer: RolloutBuffer,
        generator: torch.Generator,
        whole_episodes: bool = False,
        with_values: bool = True,
        noise_correlation: float = 0.0,
        group_size: int = 1,
        seed: int = 0,
    ):
        self.envs, self.buffer, self.generator = envs, buffer, generator
        self.group_size, envs.restarts.seed = group_size, seed
        self.whole_episodes, self.with_values = whole_episodes, with_values
        self.noise_correlation = noise_correlation
        if noise_correlation and envs.action_spec.dtype != torch.float32:
            raise UsageError(f"noise_correlation is {noise_correlation}, but is for Box actions alone")
        self.cut_episodes = 0  # whole-episode rollouts: how many were still running after T steps
        self.fill_with_noise = distribution_class(envs.action_spec).noise_
        self.noise = torch.empty(buffer.num_steps, buffer.num_envs, noise_size(envs.action_spec), device=buffer.device)
        self.next_obs: Any = None  # [N, ...] to act on next, as the environment gave it
        self.life_lost = np.zeros((buffer.num_steps, buffer.num_envs), dtype=bool)  # ends for learning alone
        self.gave_up = np.zeros_like(self.life_lost)  # [T, N] rows after which a fault cut the episode
        self.cut_before = np.zeros(buffer.num_envs, dtype=bool)  # whose episode a fault in row 0 cut before the rollout
        self._failed, self._told_restart = False, False  # in this rollout; ever in this process
        self.next_first = np.zeros(buffer.num_envs, dtype=bool)  # whether it is the first of an episode after another
        self.counter = EpisodeCounter(buffer.num_envs)
        self._seeded = False  # whether the environments began with a seed
        self._fresh: bytes | None = None  # packed state of environments that have just begun; b"" where it is no data
        self.rows_collected = 0
        self.global_step = 0  # real transitions so far, over all environments
        self.act_unit: ActUnit | None = None  # acts in place of Python, once built

    def is_cached(self, network: ActorCritic, key: dict[str, Any]) -> bool:
        """Whether the disk cache has the program that acts."""
        program = ActProgram(network, self.with_values)
        return program.is_cached((program.tensors(), *self._example_row()), {**key, "part": "act"})

    def build(self, network: ActorCritic, key: dict[str, Any], compiled: bool) -> None:
        """Act by a program from now on, compiled or recorded; `collect` is then for this network alone."""
        program = ActProgram(network, self.with_values)
        self.act_unit = ActUnit(program, *self._example_row(), {**key, "part": "act"}, compiled)

    # Views of every row, made once, since indexing a tensor costs more than a small layer; and made when first played,
    # since there may be millions.

    @functools.cached_property
    def rows(self) -> HostRows:
        """The rows that the environments fill."""
        return HostRows(self.buffer)

    @functools.cached_property
    def noise_rows(self) -> tuple[Tensor, ...]:
        """Action noise, `[N, A]` each."""
        return self.noise.unbind()

    @functools.cached_property
    def policy_rows(self) -> tuple[tuple[Tensor, ...], ...]:
        """What the network fills: actions, parameters of their distribution, values."""
        return self.buffer.actions.unbind(), self.buffer.dist_params.unbind(), self.buffer.values.unbind()

    def _example_row(self) -> tuple[Any, Tensor]:
        return map_parts(lambda x: x[0], self.buffer.obs), self.noise[0]

    @property
    def restarts(self) -> int:
        """How often an environment that failed was begun anew."""
        return int(self.envs.restarts.counts.sum())

    def reset(self, seed: int | list[int] | None = None) -> None:
        """Start all environments afresh; episodes under way are dropped.

        Raises:
            EnvironmentFault: where an environment fails.
        """
        self.next_obs, self._seeded = self.envs.reset(seed), seed is not None
        self._tell_restart()
        if not isinstance(self.envs.envs, SyncVectorEnv):
            self._look_at_fresh()
        self.next_first = np.full(self.buffer.num_envs, self.whole_episodes and self.rows_collected > 0)
        self.counter.reset()

    @torch.inference_mode()
    def collect(self, network: ActorCritic) -> Episodes:
        """Fill the buffer and return the episodes that finished on the way.

        Raises:
            EnvironmentFault: where an environment fails, or an observation or a reward is not finite; names the
                environment and the step.
            DivergenceError: where that is the fault of an action that is not finite.
        """
        if self.next_obs is None:
            self.reset()
        self.envs.steps = self.rows_collected
        self._draw_noise()
        finals = self._play(network)
        self._tell_restart()
        self._check_finite(finals)
        self.rows.flush()
        self._complete(network, finals)
        rows = self.rows
        ends = (rows.terminated | rows.truncated) & ~self.life_lost
        cuts = self.gave_up if self._failed else None
        episodes = self.counter.count(rows.rewards, ends, rows.mask, self.global_step, cuts)
        self.rows_collected += self.buffer.length
        self.global_step += self.counter.steps
        return episodes

    def _draw_noise(self) -> None:
        last = self.noise[-1].clone()
        self.fill_with_noise(self.noise, self.generator)
        if self.noise_correlation:
            # The process begins in its stationary state: the first row of all is white.
            first, fresh = self.rows_collected == 0, (1 - self.noise_correlation**2) ** 0.5
            for t, row in enumerate(self.noise_rows):
                if t > 0 or not first:
                    row.mul_(fresh).add_(last, alpha=self.noise_correlation)
                last = row

    def _play(self, network: ActorCritic) -> list[tuple[int, np.ndarray, Any]]:
        """The loop over T; returns (step, environments, observations) where episodes ended out of sight."""
        envs, rows, finals = self.envs, self.rows, []
        obs, first = self.next_obs, self.next_first
        begun = first  # of the environment's own episodes: a lost life ends one for learning alone
        playing = np.ones(self.buffer.num_envs, dtype=bool)
        if self.group_size > 1:
            playing &= ~self._with_group(envs.astray)
        self.life_lost[:] = False
        self._failed, self.cut_before[:], self.gave_up[:] = False, False, False
        for t in range(self.buffer.num_steps):
            row = rows.write_obs(t, obs, begun)
            rows.dones[t] = first
            self._act(network, t, row)
            try:
                step = envs.step(rows.read_actions(t))
            except Exception:
                self._check_finite(finals, t + 1)  # a NaN that came earlier is the better explanation
                self._check_policy(t + 1)
                raise
            rows.rewards[t] = step.rewards
            rows.terminated[t] = step.terminated
            rows.truncated[t] = step.truncated
            rows.mask[t] = step.real & playing
            if step.life_lost is not None:
                self.life_lost[t] = step.life_lost
                rows.terminated[t] |= step.life_lost
            if step.final_obs is not None:
                finals.append((t, step.final_envs, step.final_obs))
            obs = step.obs
            if step.failed is not None:
                playing = self._give_up(t, step.failed, playing)
            if self.whole_episodes:
                playing &= ~step.done
                if not playing.any():
                    break
            # The observation after a dead row starts an episode; without dead rows, the one after the end does.
            begun = ~step.real if envs.has_dead_rows else step.done
            begun = begun if step.failed is None else begun | step.failed
            first = begun if step.life_lost is None else begun | step.life_lost
        self.buffer.length = t + 1
        rows.mask[t + 1 :] = False
        if self.whole_episodes:
            rows.truncated[t] |= playing  # an episode that is still running is cut here
            self.cut_episodes = int(playing.sum())
        self.next_obs, self.next_first = obs, first
        if (self._failed or envs.astray.any()) and not rows.mask[: t + 1].any():
            raise EnvironmentFault(
                "nothing of a rollout is left to learn from, since each environment, or one of its group, failed in "
                f"it: {envs.restarts.latest}"
            )
        return finals

    def _give_up(self, t: int, failed: np.ndarray, playing: np.ndarray) -> np.ndarray:
        """Let nothing depend on row t of the environments `failed [N]`; returns who is still playing."""
        self._failed = True
        self._check_policy(t + 1)
        rows = self.rows
        if self.whole_episodes:
            left_out = self._with_group(failed & playing)
            rows.mask[: t + 1, left_out] = False
            return playing & ~left_out
        if t == 0:
            self.counter.forget(failed)
            self.cut_before |= failed
            return playing
        before = failed & rows.mask[t - 1]
        ended = rows.terminated[t - 1] | rows.truncated[t - 1]
        self.gave_up[t - 1] = before & ~(ended & ~self.life_lost[t - 1])
        rows.truncated[t - 1] |= before & ~ended
        return playing

    def _with_group(self, which: np.ndarray) -> np.ndarray:
        """`which [N]` and all others of their groups."""
        return which.reshape(-1, self.group_size).any(1).repeat(self.group_size)

    def _tell_restart(self) -> None:
        if self.envs.restarts.first is not None and not self._told_restart:
            self._told_restart = True
            warnings.warn(
                f"{self.envs.restarts.first}; it was begun anew (on_env_error is restart), and so will others be "
                "without a word",
                stacklevel=2,
            )

    def _act(self, network: ActorCritic, t: int, obs: Any) -> None:
        """Choose the actions of row t, whose observations are `obs`."""
        noise = self.noise_rows[t]
        row = self.act_unit(obs, noise) if self.act_unit else act(network, obs, noise, self.with_values)
        actions, params, *values = row
        action_rows, param_rows, value_rows = self.policy_rows
        action_rows[t].copy_(actions)
        param_rows[t].copy_(params)
        if values:
            value_rows[t].copy_(values[0])

    def _complete(self, network: ActorCritic, finals: list[tuple[int, np.ndarray, Any]]) -> None:
        """Fill what needs no environment: log-probabilities, values and next values."""
        buffer = self.buffer
        buffer.logprobs.copy_(network.distribution(buffer.dist_params).log_prob(buffer.actions))
        if not self.with_values:
            return
        if not network.shared:
            buffer.values.copy_(self._values(network))
        buffer.next_values[:-1] = buffer.values[1:]
        buffer.next_values[buffer.length - 1] = network.value(self._to_device(self.next_obs))
        if finals:
            steps = np.concatenate([np.full(len(envs), t) for t, envs, _ in finals])
            envs = np.concatenate([envs for _, envs, _ in finals])
            obs = map_parts(lambda *parts: np.concatenate(parts), *(obs for _, _, obs in finals))
            where = torch.from_numpy(steps).to(buffer.device), torch.from_numpy(envs).to(buffer.device)
            buffer.next_values[where] = network.value(self._to_device(obs))

    def _values(self, network: ActorCritic) -> Tensor:
        """V of all rows; of images row by row, whose activations would take too much memory at once."""
        obs = self.buffer.obs
        if isinstance(obs, dict) or obs.ndim < 5:
            return network.value(obs)
        return torch.stack([network.value(obs[t]) for t in range(len(obs))])

    def _to_device(self, obs: Any) -> Any:
        return map_parts(
            lambda x, like: torch.from_numpy(np.asarray(x)).to(like.device, like.dtype), obs, self.buffer.obs
        )

    def _check_finite(self, finals: list[tuple[int, np.ndarray, Any]], steps: int | None = None) -> None:
        rows = self.rows
        named = dict(rows.obs) if isinstance(rows.obs, dict) else {"": rows.obs}
        for part, values in named.items():
            filled = values[: self.buffer.length if steps is None else steps]
            self._refuse_nan(f"its observation{f' part {part!r}' if part else ''}", filled, offset=0)
        self._refuse_nan("its reward", rows.rewards[: self.buffer.length if steps is None else steps - 1], offset=1)
        if steps is None:
            last = self.next_obs if isinstance(self.next_obs, dict) else {"": self.next_obs}
            for values in last.values():
                self._refuse_nan("its observation", np.asarray(values)[None], offset=self.buffer.length)
            for t, envs, obs in finals:
                for values in obs.values() if isinstance(obs, dict) else [obs]:
                    self._refuse_nan("its final observation", np.asarray(values)[None], offset=t + 1, envs=envs)

    def _refuse_nan(self, what: str, values: np.ndarray, offset: int, envs: np.ndarray | None = None) -> None:
        """`values [steps, N, ...]`; row t belongs to step t + offset of this rollout, counted from 1."""
        if values.dtype.kind != "f" or np.isfinite(values).all():
            return
        bad = np.argwhere(~np.isfinite(values.reshape(*values.shape[:2], -1)).all(-1))
        t, n = bad[0]
        env = n if envs is None else envs[n]
        self._check_policy(t + offset)
        value = values[t, n].ravel()
        raise EnvironmentFault(
            f"environment {env} returned {value[~np.isfinite(value)][0]} in {what} "
            f"at vector step {self.rows_collected + t + offset:,}"
        )

    def _check_policy(self, steps: int) -> None:
        """Refuse actions that are not finite although what the policy saw was, in the first `steps` rows: what comes of
        them in an environment is not the environment's fault."""
        rows = self.rows
        # [steps, N, P + A]; a choice is finite in any case, whatever it was drawn from
        parts = [x[:steps].flatten(2).float() for x in (self.buffer.dist_params, self.buffer.actions.unsqueeze(-1))]
        output = torch.cat(parts, -1).cpu().numpy()
        bad = ~np.isfinite(output).all(-1)
        for values in rows.obs.values() if isinstance(rows.obs, dict) else [rows.obs]:
            if values.dtype.kind == "f":
                bad &= np.isfinite(values[:steps].reshape(*bad.shape, -1)).all(-1)
        if not bad.any():
            return
        t, n = np.argwhere(bad)[0]
        value = output[t, n][~np.isfinite(output[t, n])][0]
        raise DivergenceError(
            f"the policy's action for environment {n} is {value} at vector step {self.rows_collected + t + 1:,}: "
            "the weights are no longer finite"
        )

    def is_capturable(self) -> bool:
        """Whether the environments' state can be stored; where not, a resumed run begins new episodes."""
        return self._captured() is not None

    def _captured(self) -> dict[str, Any] | None:
        """The environments' state, if it is one that fresh environments would take back."""
        self._look_at_fresh()
        state = self._capture() if self._fresh else None
        if state is None:
            return None
        in_processes = isinstance(self.envs.envs, GuardedAsyncVectorEnv)
        fresh = pickle.loads(self._fresh)
        pairs = zip(state["workers"], fresh["workers"], strict=True) if in_processes else [(state, fresh)]
        try:
            for one, before in pairs:
                check_fits(one, before)
        except Misfit:
            return None
        return state

    def _look_at_fresh(self) -> None:
        """Remember the state of environments that have just begun.

        Single environments in this process are looked at when that is first asked for, since Python is slower to reach
        the attributes of an object once all of them have been listed; if they have moved by then, others are made.
        """
        if self._fresh is not None:
            return
        envs = self.envs.envs
        moved = isinstance(envs, SyncVectorEnv) and self.rows_collected > 0
        state = _state_of_others(envs, self._seeded) if moved else self._capture()
        self._fresh = b"" if state is None else pickle.dumps(state)

    def _capture(self) -> dict[str, Any] | None:
        envs = self.envs.envs
        try:
            if isinstance(envs, GuardedAsyncVectorEnv):
                states = envs.get_states(MOST_VALUES // envs.num_envs)
                return None if states is None else {"workers": states}
            return capture_state(envs)
        except (NotCapturable, EnvironmentFault):  # a fault is found again, and told, by the next step
            return None

    def state_dict(self) -> dict[str, Any]:
        """Where collection stands, environments included if their state is plain data (`env` is None if not)."""
        env, standing = self._captured(), self._standing()
        return {
            "env": env,
            **standing,
            "next_obs": standing["next_obs"] if env is not None else None,
            "noise": self.noise[-1].clone(),
            "rows_collected": self.rows_collected,
            "global_step": self.global_step,
            "restarts": torch.from_numpy(self.envs.restarts.counts.copy()),
        }

    def load_state_dict(self, state: dict[str, Any], seed: int | None = None, restore_envs: bool = True) -> None:
        """Go on where `state_dict` was taken, or from new episodes (`seed`) where it holds no environment, or those of
        another backend, or none is to be restored.

        Raises:
            ValueError: where the state does not fit.
        """
        self.reset(seed)
        self.rows_collected = stored_count(state, "rows_collected")
        self.global_step = stored_count(state, "global_step")
        if len(state["noise"]) == self.buffer.num_envs:
            self.noise[-1].copy_(state["noise"])
        if not restore_envs:
            return
        self.envs.restarts.load(state.get("restarts", np.zeros(self.buffer.num_envs, np.int64)))
        envs, stored = self.envs.envs, state["env"]
        in_processes = isinstance(stored, dict) and stored.keys() == {"workers"}
        if stored is None or in_processes != isinstance(envs, GuardedAsyncVectorEnv):
            return
        own = self._standing()
        check_like({name: state.get(name) for name in own}, own, "collector")
        envs.set_states(stored["workers"]) if in_processes else restore_state(envs, stored)
        self.envs.pending = state["pending"].numpy().copy()
        self.next_obs = map_parts(lambda x: x.numpy().copy(), state["next_obs"])
        self.next_first = state["next_first"].numpy().copy()
        self.counter.load_state_dict(state)

    def _standing(self) -> dict[str, Any]:
        """What belongs to the episodes under way, beside the environments' own state."""
        return {
            "pending": torch.from_numpy(self.envs.pending.copy()),
            "next_obs": map_parts(lambda x: torch.from_numpy(np.copy(x)), self.next_obs),
            "next_first": torch.from_numpy(self.next_first.copy()),
            **self.counter.state_dict(),
        }


def _state_of_others(envs: SyncVectorEnv, seeded: bool) -> dict[str, Any] | None:
    """The state of environments made like these, after their first reset; None where that is not possible."""
    try:
        others = type(envs)(envs.env_fns, autoreset_mode=envs.autoreset_mode)
        if envs.spec is not None:  # given to them afterwards
            others.spec = envs.spec
        try:
            others.reset(seed=0 if seeded else None)
            return capture_state(others)
        finally:
            others.close()
    except Exception:  # whatever a maker of one's own does when it is called once more
        return None


__all__ = ["Collector", "EpisodeCounter", "Episodes"]
