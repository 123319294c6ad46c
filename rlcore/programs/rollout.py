"""The rollout phase on native environments: T steps of policy and environment as one program.

What the collector does row by row for environments in host memory happens here inside one function of tensors, on the
agent's device, with the noise of the actions and of the environments' starts drawn beforehand.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rlcore.buffer import RolloutBuffer
from rlcore.storage.checkpoint import check_like, stored_count
from rlcore.collect import EpisodeCounter, Episodes
from rlcore.networks.distributions import distribution_class, noise_size
from rlcore.envs.adapter import VectorAdapter
from rlcore.envs.native import NativeTask
from rlcore.networks import ActorCritic
from rlcore.programs.program import Piece, Program, buffer_slots, held, holding, parameter_slots

Tree = dict[str, Any]


class RolloutProgram(Program):
    """`(weights, buffers, carry, noise) -> (carry, rollout)`, see `NativeCollector`.

    The carry of the loop over rows:

        state    [N, S] of the environments
        elapsed  [N] steps of their episodes so far
        first    [N] whether the next observation is the first of an episode after another
        playing  [N] whether the episode counts (whole episodes: those who have finished wait)
        noise    [N, A] action noise of the step before, where it is correlated
    """

    # A row is put together by one kernel, instead of by many that each write their part of it.
    inductor_options: ClassVar[dict[str, Any]] = {"force_pointwise_cat": True}

    def __init__(self, collector: NativeCollector, network: ActorCritic):
        super().__init__()
        self.__dict__["collector"], self.__dict__["network"] = collector, network
        self.parameter_slots, self.buffer_slots = parameter_slots(network), buffer_slots(network)
        self.step, self.complete = Piece(self._step), Piece(self._complete)
        self.with_values = collector.with_values
        self.values_on_the_way = network.shared and collector.with_values
        steps = max(n for n in (8, 4, 2, 1) if collector.buffer.num_steps % n == 0)
        self.unrolled = steps if collector.buffer.num_envs <= 64 else 1  # a loop costs microseconds a turn

    def forward(self, weights: list[Tensor], buffers: list[Tensor], carry: Tree, draws: Tree) -> tuple[Tree, Tree]:
        weights = [_transposed(x) for x in weights]

        def rows(carry: Tree, draws: Tree) -> tuple[Tree, Any]:
            out = []
            for k in range(self.unrolled):
                carry, row = self.step(weights, buffers, carry, {name: x[k] for name, x in draws.items()})
                out.append(row)
            return carry, {name: torch.stack([row[name] for row in out]) for name in out[0]}

        grouped = {name: x.unflatten(0, (-1, self.unrolled)) for name, x in draws.items()}
        carry, rollout = self.loop(rows, carry, grouped)
        rollout = {name: x.flatten(0, 1) for name, x in rollout.items()}
        return carry, self.complete(weights, buffers, carry, rollout)

    def record(self, weights: list[Tensor], buffers: list[Tensor], carry: Tree, draws: Tree) -> None:
        weights = [_transposed(x) for x in weights]
        carry, row = self.step.record(weights, buffers, carry, {name: x[0] for name, x in draws.items()})
        rollout = {name: torch.stack([x] * self.collector.buffer.num_steps) for name, x in row.items()}
        self.complete.record(weights, buffers, carry, rollout)

    def _holding(self, weights: list[Tensor], buffers: list[Tensor]):
        return holding(
            [*self.parameter_slots, *self.buffer_slots],
            [*(x.t() if x.ndim == 2 else x for x in weights), *buffers],
        )

    def _step(self, weights: list[Tensor], buffers: list[Tensor], carry: Tree, draws: Tree) -> tuple[Tree, Tree]:
        """One row: observe, act, step, and begin anew where an episode ended."""
        c, network = self.collector, self.network
        task, spec, rho = c.task, c.envs.action_spec, c.noise_correlation
        state, playing = carry["state"], carry["playing"]
        noise = rho * carry["noise"] + (1 - rho**2) ** 0.5 * draws["noise"] if rho else draws["noise"]
        obs = task.observe(state)
        with self._holding(weights, buffers):
            if self.values_on_the_way:
                policy, values = network(obs)
            else:
                policy = network.policy(obs)
            actions = policy.sample(noise)
        following, rewards, terminated = task.step(state, spec.to_env_tensor(actions))
        elapsed = carry["elapsed"] + 1
        limit = c.max_episode_steps
        truncated = (elapsed >= limit) if limit else torch.zeros_like(terminated)
        done = terminated | truncated
        row = {
            "obs": obs,
            "numbers": _packed(policy.params, actions, rewards, terminated, truncated, playing, carry["first"]),
        }
        if self.with_values and limit:
            row["final_obs"] = task.observe(following)
        if self.values_on_the_way:
            row["values"] = values
        if c.whole_episodes:
            playing = playing & ~done
            following = torch.where(playing.unsqueeze(-1), following, state)  # who waits stands still
            first = done
        else:
            following = torch.where(done.unsqueeze(-1), task.initial(draws["start"]).to(following.dtype), following)
            elapsed = torch.where(done, 0, elapsed)
            first = done
        return {"state": following, "elapsed": elapsed, "first": first, "playing": playing, "noise": noise}, row

    def _complete(self, weights: list[Tensor], buffers: list[Tensor], carry: Tree, rollout: Tree) -> Tree:
        """What needs no environment, for all rows at once."""
        c, network, numbers = self.collector, self.network, rollout["numbers"]
        spec, P = c.envs.action_spec, c.envs.action_spec.num_params
        A = numbers.shape[-1] - P - 5
        rewards, terminated, truncated, mask, dones = numbers[..., P + A :].unbind(-1)
        actions = numbers[..., P : P + A]
        actions = (actions if spec.shape else actions.squeeze(-1)).to(spec.dtype)
        fields = {
            "obs": rollout["obs"],
            "actions": actions,
            "dist_params": numbers[..., :P].clone(),
            "rewards": rewards.clone(),
            "terminated": terminated > 0,
            "truncated": truncated > 0,
            "mask": mask > 0,
            "dones": dones > 0,
        }
        with self._holding(weights, buffers):
            fields["logprobs"] = network.distribution(fields["dist_params"]).log_prob(actions)
            if self.with_values:
                values = rollout["values"] if self.values_on_the_way else network.value(fields["obs"])
                fields["values"] = values
                fields["next_values"] = self._next_values(fields, rollout, carry)
        return fields

    def _next_values(self, fields: Tree, rollout: Tree, carry: Tree) -> Tensor:
        """V of the true successors: of the next row; of the final observation where an episode was cut; 0 where it
        ended for good."""
        network, values, truncated = self.network, fields["values"], fields["truncated"]
        last = network.value(self.collector.task.observe(carry["state"]))
        following = torch.cat([values[1:], last.unsqueeze(0)])
        if "final_obs" in rollout:
            # A time limit cuts an environment at most so often in T rows; only these rows ask the network again.
            T, limit = len(values), self.collector.max_episode_steps
            often = min(T, (T - 1) // limit + 1)
            _, rows = truncated.float().topk(often, dim=0)  # [often, N]
            index = rows.reshape(often, -1, *(1 for _ in rollout["final_obs"].shape[2:]))
            finals = rollout["final_obs"].gather(0, index.expand(-1, -1, *rollout["final_obs"].shape[2:]))
            cut = truncated.gather(0, rows)
            final_values = torch.where(cut, network.value(finals), following.gather(0, rows))
            following = following.scatter(0, rows, final_values)
        return torch.where(fields["terminated"], 0.0, following)


def _transposed(weight: Tensor) -> Tensor:
    """Layers of a handful of rows read their weights column by column; laid out so once per rollout. A copy in any
    case, since a loop may not close over several views of one tensor."""
    return weight.t().contiguous() if weight.ndim == 2 else weight.clone()


def _packed(*parts: Tensor) -> Tensor:
    """Side by side as one float row [N, ...]: each thing that a loop hands on costs microseconds a turn."""
    return torch.cat([x.float().reshape(len(x), -1) for x in parts], -1)


class NativeCollector:
    """Plays native environments and fills a buffer; a `Collector` for environments that are tensor functions.

    Args:
        task: the environment.
        envs: adapter that knows its spaces.
        buffer, generator, whole_episodes, with_values, noise_correlation: as in `Collector`.
    """

    def __init__(
        self,
        task: NativeTask,
        envs: VectorAdapter,
        buffer: RolloutBuffer,
        generator: torch.Generator,
        whole_episodes: bool = False,
        with_values: bool = True,
        noise_correlation: float = 0.0,
    ):
        self.task, self.envs, self.buffer, self.generator = task, envs, buffer, generator
        self.whole_episodes, self.with_values = whole_episodes, with_values
        self.noise_correlation = noise_correlation
        self.max_episode_steps = task.max_episode_steps
        self.dtype = torch.float64
        spec = envs.action_spec
        self.fill_with_noise = distribution_class(spec).noise_
        self.noise = torch.empty(buffer.num_steps, buffer.num_envs, noise_size(spec), device=buffer.device)
        self.counter = EpisodeCounter(buffer.num_envs)
        self.cut_episodes, self.rows_collected, self.global_step = 0, 0, 0
        self.carry: Tree = {}
        self.program: RolloutProgram | None = None
        self.run: Any = None

    @property
    def next_obs(self) -> Tensor:
        """Observations to act on next, [N, ...]."""
        return self.task.observe(self.carry["state"])

    def reset(self, seed: int | list[int]) -> None:
        """Start all environments afresh; equal seeds in a list give equal starts."""
        N, device = self.buffer.num_envs, self.buffer.device
        seeds = seed if isinstance(seed, list) else [seed]
        starts = {s: self._uniform(N if len(seeds) == 1 else 1, s) for s in dict.fromkeys(seeds)}
        uniform = starts[seeds[0]] if len(seeds) == 1 else torch.cat([starts[s] for s in seeds])
        self.carry = {
            "state": self.task.initial(uniform.to(device)),
            "elapsed": torch.zeros(N, dtype=torch.int64, device=device),
            "first": torch.full((N,), self.whole_episodes and self.rows_collected > 0, device=device),
            "playing": torch.ones(N, dtype=torch.bool, device=device),
            "noise": self.carry["noise"] if self.carry else self._noise_before(),
        }
        self.counter.reset()

    def _uniform(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(count, self.task.draws, dtype=self.dtype, generator=generator)

    def _noise_before(self) -> Tensor:
        """The correlated noise begins in its stationary state."""
        return self.fill_with_noise(torch.empty_like(self.noise[0]), self.generator)

    def is_cached(self, network: ActorCritic, key: dict[str, Any]) -> bool:
        """Whether the disk cache has this program."""
        program = self._program(network)
        return program.is_cached(self._example(program), {**key, "part": "rollout"})

    def build(self, network: ActorCritic, key: dict[str, Any], compiled: bool) -> None:
        """Play by a program without Python from now on, compiled or recorded."""
        program = self._program(network)
        self.run = program.make_runner(self._example(program), {**key, "part": "rollout"}, compiled)

    def _example(self, program: RolloutProgram) -> tuple:
        """Inputs of the right shapes, for the compiler; draws nothing from the agent's generator."""
        own = NativeCollector.__new__(NativeCollector)
        own.__dict__.update(self.__dict__, generator=torch.Generator(self.buffer.device), carry={})
        own.counter = EpisodeCounter(self.buffer.num_envs)
        own.reset(0)
        return own._inputs(program, *own._draw(own.generator))

    def _program(self, network: ActorCritic) -> RolloutProgram:
        if self.program is None or self.program.network is not network:
            self.program = RolloutProgram(self, network)
            self.run = self.program
        return self.program

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.fill_with_noise(self.noise, generator)
        T, N = self.noise.shape[:2]
        shape = (T, 1, 1) if self.whole_episodes else (T, N, self.task.draws)  # whole episodes begin by reset alone
        starts = torch.rand(shape, dtype=torch.float32, device=self.noise.device, generator=generator)
        return self.noise, starts

    def _inputs(self, program: RolloutProgram, noise: Tensor, starts: Tensor) -> tuple:
        weights = [x.detach() for x in held(program.parameter_slots)]
        return weights, held(program.buffer_slots), self.carry, {"noise": noise, "start": starts}

    def is_capturable(self) -> bool:
        """Native environments are tensors, so their state can always be stored."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """Where collection stands, environments included."""
        return {
            "carry": {name: x.clone() for name, x in self.carry.items()},
            **self.counter.state_dict(),
            "rows_collected": self.rows_collected,
            "global_step": self.global_step,
        }

    def load_state_dict(self, state: dict[str, Any], seed: int | None = None, restore_envs: bool = True) -> None:
        """Go on where `state_dict` was taken, or from new episodes (`seed`) where it is of another kind of environment
        or none is to be restored."""
        self.rows_collected = stored_count(state, "rows_collected")
        self.global_step = stored_count(state, "global_step")
        self.reset(seed or 0)
        if "carry" in state and restore_envs:
            check_like(state["carry"], self.carry, "collector.carry")
            self.carry = {name: x.to(self.buffer.device) for name, x in state["carry"].items()}
            self.counter.load_state_dict(state)

    @torch.inference_mode()
    def collect(self, network: ActorCritic) -> Episodes:
        """Fill the buffer and return the episodes that finished on the way."""
        program = self._program(network)
        if self.whole_episodes:
            self.carry["playing"].fill_(True)
        self.carry, rollout = self.run(*self._inputs(program, *self._draw(self.generator)))
        buffer = self.buffer
        for name, rows in rollout.items():
            getattr(buffer, name).copy_(rows)
        if self.whole_episodes:
            playing = self.carry["playing"]
            buffer.truncated[-1] |= playing
            self.cut_episodes = int(playing.sum())
        ends = buffer.terminated | buffer.truncated
        rows = (x.cpu().numpy() for x in (buffer.rewards, ends, buffer.mask))
        episodes = self.counter.count(*rows, self.global_step)
        self.rows_collected += buffer.num_steps
        self.global_step += self.counter.steps
        return episodes
