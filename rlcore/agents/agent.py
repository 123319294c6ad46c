"""The loop that all on-policy agents share: collect, estimate, update, repeat.

An algorithm is a subclass in a file of its own that provides a `Config`, `estimate(buffer)` and `loss(network, batch)`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import secrets
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from rlcore.agents.config import Config, make_config
from rlcore.agents.engine import Engine, make_collector
from rlcore.agents.setup import (
    check_group_starts,
    one_thread,
    resolve_device,
    shares_torso,
    time_limit,
    with_num_envs_of,
)
from rlcore.agents.stored import check_kinds, restore_network
from rlcore.buffer import Batch, RolloutBuffer
from rlcore.storage.checkpoint import check_like, read_agent, write_checkpoint
from rlcore.collect import Episodes
from rlcore.diagnostics import explained_variance
from rlcore.envs import VectorAdapter, make_vec
from rlcore.envs.make import find_spec, resolve_backend
from rlcore.errors import CheckpointError, DivergenceError, UsageError
from rlcore.agents.evaluation import MAX_ENVS, Actor, Evaluation, check_episodes, play_episodes
from rlcore.networks import ActorCritic, Torso
from rlcore.networks.normalize import RewardScaler
from rlcore.optim import clipped, flat, flatten_parameters, make_optimizer, restore_optimizer

ACTING_STREAM = 0x5EED  # keeps the noise of acting and evaluating apart from that of training


class Agent:
    """Base of all agents.

    Args:
        env: an environment id, of which `num_envs` copies are made, or a `gymnasium.vector.VectorEnv`.
        env_kwargs: passed to the environment's constructor; only with an id.
        torso: a name (the hyperparameter), or a torso of your own, see `ActorCritic`.
        hyperparameters: fields of the agent's `Config`.

    Attributes:
        envs: the vector environment.
        network: the ActorCritic.
        buffer: the RolloutBuffer, holding the latest rollout.
        config: the frozen dataclass of hyperparameters, seed included.
        global_step: environment steps so far, over all environments, padding not counted.
        iteration: rollouts learned from so far.
        reference: a frozen policy that the loss compares with, for agents that have one; saved with the agent.
        coefs: numbers in the loss that change over a run (annealed or adapted); saved with the agent.

    Raises:
        UsageError: for a hyperparameter, space or device that cannot be used.
    """

    Config: ClassVar[type[Config]] = Config
    critic_apart: ClassVar[bool] = False  # whether the critic is fitted in steps of its own
    group_starts: ClassVar[bool] = False  # whether each `group_size` environments start an episode alike

    def __init__(
        self,
        env: str | VectorEnv,
        *,
        env_kwargs: dict[str, Any] | None = None,
        torso: Torso | str | None = None,
        **hyperparameters: Any,
    ):
        if isinstance(torso, str):  # the hyperparameter of that name
            torso, hyperparameters = None, {**hyperparameters, "torso": torso}
        if isinstance(env, VectorEnv):
            hyperparameters = with_num_envs_of(env, hyperparameters)
        config = make_config(self.Config, hyperparameters)
        if config.seed is None:
            config = dataclasses.replace(config, seed=secrets.randbelow(2**31))
        self.device = resolve_device(config.device)
        if not isinstance(env, str | VectorEnv):
            raise UsageError(f"env is a {type(env).__name__}, but must be an environment id or a gymnasium VectorEnv")
        self.env_id = env if isinstance(env, str) else None
        self.env_kwargs = dict(env_kwargs or {})
        self.backend: str | None = None  # how environments made from an id are stepped
        if isinstance(env, str):
            restarts = config.on_env_error == "restart"
            self.backend = resolve_backend(find_spec(env), config.backend, self.group_starts, restarts)
            faults = dict(env_timeout=config.env_timeout, on_env_error=config.on_env_error)
            env = make_vec(env, config.num_envs, self.backend, **faults, **self.env_kwargs)
        elif config.on_env_error == "restart":
            raise UsageError(
                "on_env_error is 'restart', which is for an environment id; this agent was given a VectorEnv, whose "
                "environments it cannot make anew"
            )
        elif self.env_kwargs:
            raise UsageError(
                "env_kwargs are for an environment id; this agent was given a VectorEnv, which is made already"
            )
        if config.num_steps is None:
            config = dataclasses.replace(config, num_steps=time_limit(env))
        self.envs = env
        self.adapter = VectorAdapter(env, config.squash)
        self.config = config
        if config.shared is None:
            shared = shares_torso(self.adapter.parts, torso or config.torso) and not self.critic_apart
            self.config = config = dataclasses.replace(config, shared=shared)

        # The same weights on every device and with any number of threads, and nobody else's generator moved.
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = self._build_network(torso).to(self.device)
        self.buffer = RolloutBuffer(
            config.num_steps, config.num_envs, env.single_observation_space, self.adapter.action_spec, self.device,
            self.adapter.frame_stack,
        )  # fmt: skip
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        # A generator of its own, so that acting on the side does not change the course of training.
        self._actor = Actor(self.network, self.adapter, self._acting_generator(config.seed))
        self.use_backend(self.backend)
        if self.group_starts:
            check_group_starts(self.collector.next_obs, config.group_size)
        self.reward_scaler = RewardScaler(config.num_envs, config.gamma).to(self.device) if config.norm_reward else None
        self.parameters, self.parameter_vector = flatten_parameters(self.network)
        self.optimizer = make_optimizer(
            config.optimizer,
            self.parameter_vector,
            config.learning_rate,
            config.optimizer_eps,
            config.rmsprop_alpha,
        )
        self.critic_optimizer = None
        if config.critic_updates:
            parameters = self.network.critic_parameters()
            self.critic_optimizer = torch.optim.Adam(
                parameters, config.learning_rate, eps=config.optimizer_eps, fused=True
            )
        self.coefs: dict[str, float] = {}
        self.reference: ActorCritic | None = None
        self.iteration = 0
        self.engine = Engine(self, custom_torso=torso is not None)
        self._told_cut_episodes = False

    def use_backend(self, backend: str | None) -> None:
        """Collect from environments stepped this way, from new episodes on."""
        self.backend = backend
        self.collector = make_collector(self)
        self.collector.reset(self.reset_seeds(0))

    def _build_network(self, torso: Torso | None) -> ActorCritic:
        config = self.config
        network = ActorCritic(
            self.envs.single_observation_space,
            self.adapter.action_spec,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            shared=config.shared,
            torso=config.torso if torso is None else torso,
            log_std_init=config.log_std_init,
            state_dependent_std=config.state_dependent_std,
            norm_obs=config.norm_obs,
            precision=config.precision,
        )
        if network.shared and self.critic_apart:
            raise UsageError(
                f"actor and critic share a torso (shared is true, or torso is one module), but {type(self).__name__} "
                "fits its critic apart, which would move the policy; torso may be a function that makes one for each"
            )
        return network

    # What an algorithm provides.

    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, ...]:
        """Advantages and returns (value targets) of a rollout, each [T, N], and, where the loss is no mean over
        transitions, the weight of each transition, [T, N]."""
        raise NotImplementedError

    def loss(self, network: ActorCritic, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a minibatch, and metrics to report, all 0-dim tensors."""
        raise NotImplementedError

    def frozen_copy(self, source: str = "initial") -> ActorCritic:
        """A copy of the network that does not learn: as it is now, or with the weights of a checkpoint file.

        Raises:
            CheckpointError: where the file's weights do not fit.
        """
        network = copy.deepcopy(self.network).requires_grad_(False)
        if source != "initial":
            try:
                restore_network(network, read_agent(source)["agent"].get("network"), "network")
            except ValueError as error:
                raise CheckpointError(
                    f"the policy in {source} does not fit this environment or network: {error}"
                ) from error
        return network

    # The loop.

    @property
    def needs_values(self) -> bool:
        """Whether anything of this algorithm asks the critic."""
        return True

    @property
    def global_step(self) -> int:
        return self.collector.global_step

    def learn(self, total_steps: int) -> Agent:
        """Train until `global_step` reaches `total_steps`; whole iterations, so it may end a little above."""
        for _ in self.iterations(total_steps):
            pass
        return self

    def iterations(self, total_steps: int) -> Iterator[tuple[dict[str, float], Episodes]]:
        """Train as `learn` does, and yield after each iteration its metrics and the episodes that finished in it.

        Raises:
            DivergenceError: when a metric is not finite. The network is then as the bad update left it.
            EnvironmentFault: when an environment fails or returns NaN, and is not to be begun anew.
        """
        if not isinstance(total_steps, int) or total_steps < 1:
            raise UsageError(f"total_steps is {total_steps!r}, but must be a whole number of at least 1")
        if self.global_step < total_steps:
            self.engine.prepare(total_steps)
        while self.global_step < total_steps:
            start, first = time.perf_counter(), self.global_step
            self.anneal(1 - self.global_step / total_steps)
            if self.config.whole_episodes and self.iteration > 0:
                self.collector.reset(self.reset_seeds(self.iteration))
            episodes = self.collector.collect(self.network)
            self._tell_cut_episodes()
            self._forget_cut_returns()
            tensors = self.engine.learn()
            tensors["param_norm"] = torch.linalg.vector_norm(self.parameter_vector.detach())
            self.iteration += 1
            metrics = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
            self._check_finite(metrics)
            metrics["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
            if self.config.on_env_error == "restart":
                metrics["env_restarts"] = float(self.collector.restarts)
            metrics["steps_per_second"] = (self.global_step - first) / (time.perf_counter() - start)
            yield metrics, episodes

    def _tell_cut_episodes(self) -> None:
        cut = self.collector.cut_episodes
        if cut and not self._told_cut_episodes:
            self._told_cut_episodes = True
            warnings.warn(
                f"{cut} of {self.config.num_envs} episodes were still running after num_steps = "
                f"{self.config.num_steps} and were cut there; later cuts are not reported",
                stacklevel=3,
            )

    def _forget_cut_returns(self) -> None:
        """The discounted return of an episode that an environment's fault cut before this rollout ends there."""
        if self.reward_scaler is not None and self.config.on_env_error == "restart":
            self.reward_scaler.carry[torch.from_numpy(self.collector.cut_before).to(self.device)] = 0

    def anneal(self, remaining: float) -> None:
        """Set what changes over a run; `remaining` goes from 1 at its start to 0 at its end."""
        if self.config.anneal_lr:
            for optimizer in filter(None, (self.optimizer, self.critic_optimizer)):
                for group in optimizer.param_groups:
                    group["lr"] = self.config.learning_rate * remaining

    def learn_from_buffer(self) -> dict[str, Tensor]:
        """Estimate and update on the rollout in the buffer; returns the iteration's mean metrics."""
        buffer = self.buffer
        self.scale_rewards(buffer)
        estimate = self.estimate(buffer)
        metrics = self.update(buffer.flatten(*estimate))
        if self.needs_values:
            metrics["explained_variance"] = explained_variance(buffer.values, estimate[1], buffer.mask)
        self.network.update_normalizer(buffer.obs, buffer.mask)
        return metrics

    def scale_rewards(self, buffer: RolloutBuffer) -> None:
        """Clip and scale the rewards of a rollout in place, as configured."""
        if self.config.clip_reward:
            buffer.rewards.sign_()
        if self.reward_scaler is not None:
            self.reward_scaler.scale_(buffer)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from a rollout; returns the iteration's mean metrics."""
        batch, before = self.before_steps(batch)
        metrics = {**self.gradient_steps(batch), **before}
        if self.fits_critic:
            metrics["value_loss"] = self.fit_critic(batch)
        return {**metrics, **self.after_steps(batch)}

    @property
    def fits_critic(self) -> bool:
        """Whether the critic takes `critic_updates` steps of its own after those of the loss."""
        return self.config.critic_updates > 0 and self.needs_values

    def before_steps(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """What an algorithm does with the whole rollout before the gradient steps; may add to the batch."""
        return batch, {}

    def after_steps(self, batch: Batch) -> dict[str, Tensor]:
        """What an algorithm does with the whole rollout after the gradient steps."""
        return {}

    def gradient_steps(self, batch: Batch) -> dict[str, Tensor]:
        """Epochs over a rollout in minibatches, reshuffled each epoch; returns the means of the metrics."""
        config = self.config
        rows = self.rows_to_learn_from(batch.mask)
        steps: list[dict[str, Tensor]] = []
        # All orders first, so that the generator ends up where that of a program does, which draws before it knows how
        # far it will come.
        for order in [self.shuffled(rows) for _ in range(config.update_epochs)]:
            for indices in order.tensor_split(min(config.num_minibatches, len(rows))):
                steps.append(self.step(batch.take(indices)))
            if self.stops_after(steps[-config.num_minibatches :]):
                break
        return mean_metrics(steps)

    def rows_to_learn_from(self, mask: Tensor) -> Tensor:
        """Indices into a rollout's batch, whose `mask [B]` this is. Segments are all but full; whole episodes may be
        mostly padding, which is left out."""
        if self.config.whole_episodes:
            return torch.nonzero(mask).squeeze(-1)
        return torch.arange(len(mask), device=self.device)

    def shuffled(self, rows: Tensor) -> Tensor:
        """Indices `rows [R]` in a random order."""
        return rows[torch.randperm(len(rows), generator=self.generator, device=self.device)]

    def minibatches(self, rows: Tensor, padding: int) -> Tensor:
        """All epochs' minibatches of `rows [R]` at once, `[epochs · num_minibatches, M]`, as `gradient_steps` draws
        them; those that are a row shorter are filled up with the index `padding`."""
        count = min(self.config.num_minibatches, len(rows))
        if len(rows) % count == 0:
            return torch.cat([self.shuffled(rows) for _ in range(self.config.update_epochs)]).view(
                -1, len(rows) // count
            )
        parts = [part for _ in range(self.config.update_epochs) for part in self.shuffled(rows).tensor_split(count)]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=padding)

    @property
    def stops_early(self) -> bool:
        """Whether epochs may stop before `update_epochs`."""
        return self.config.target_kl is not None

    def stops_after(self, epoch: list[dict[str, Tensor]]) -> bool:
        """Whether an epoch with these metrics is an iteration's last, because the policy has moved far enough."""
        # Reading the KL waits for the device; only those who set a target pay for it.
        return self.stops_early and bool(mean_metrics(epoch)["approx_kl"] > 1.5 * self.config.target_kl)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step on a minibatch."""
        loss, metrics = self.loss(self.network, batch)
        grads = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        self.parameter_vector.grad, norm = clipped(flat(grads), self.config.max_grad_norm)
        self.optimizer.step()
        return {"loss": loss, **metrics, "grad_norm": norm}

    def critic_loss(self, network: ActorCritic, batch: Batch) -> Tensor:
        """The loss of a critic that is fitted apart: mean of (V − R)²/2 over transitions."""
        return 0.5 * batch.step_mean((network.value(batch.obs) - batch.returns) ** 2)

    def fit_critic(self, batch: Batch) -> Tensor:
        """`critic_updates` steps on (V − R)² alone, each over the whole rollout; returns the last loss.

        The critic has an optimiser of its own here: momentum of the policy's last step must not go on moving it.
        """
        parameters = self.network.critic_parameters()
        batch = batch.take(self.rows_to_learn_from(batch.mask))
        for _ in range(self.config.critic_updates):
            loss = self.critic_loss(self.network, batch)
            self.critic_optimizer.zero_grad()
            loss.backward(inputs=parameters)
            self.critic_optimizer.step()
        return loss.detach()

    def _check_finite(self, metrics: dict[str, float]) -> None:
        # The weights too: those of the last step are in no loss yet, and a loss may be finite where they have no sense.
        bad = [name for name in ("loss", "grad_norm", "param_norm") if not math.isfinite(metrics.get(name, 0.0))]
        if bad:
            raise DivergenceError(
                f"{bad[0]} became {metrics[bad[0]]} in iteration {self.iteration} at step {self.global_step:,} "
                f"(learning_rate {self.config.learning_rate:g})"
            )

    # Acting.

    def act(self, obs: Any, deterministic: bool = False) -> np.ndarray:
        """Actions for a batch of observations, as the environment takes them.

        Args:
            obs: observations `[N, ...]` as a vector environment of this kind returns them.
            deterministic: the most probable action instead of a draw.

        Returns:
            Actions `[N, ...]`: shifted, squashed or clipped into the action space.
        """
        return self.adapter.action_spec.to_env(self._actor(self.adapter.split(obs), deterministic))

    def evaluate(
        self,
        episodes: int = 100,
        seed: int | None = None,
        deterministic: bool = True,
        env: str | VectorEnv | None = None,
        max_steps: int = 1_000_000,
    ) -> Evaluation:
        """Play whole episodes in fresh environments; training is not touched, normalisation statistics stay frozen.

        Args:
            episodes: how many.
            seed: of the environments and, where actions are drawn, of these; None draws one.
            deterministic: the most probable action instead of a draw.
            env: an id or a vector environment to play in place of the one trained on.
            max_steps: longest episode; one that is still running is cut there.

        Returns:
            Evaluation: returns and lengths, the environment's own rewards without scaling.

        Raises:
            UsageError: where `env` is needed or does not fit, or `episodes` is not a whole number of at least 1.
        """
        check_episodes(episodes)
        if env is None and self.env_id is None:
            raise UsageError("this agent was given a VectorEnv and cannot make another: pass evaluate(env=...)")
        if isinstance(env, VectorEnv):
            return self._play(env, episodes, seed, deterministic, max_steps)
        kwargs = self.env_kwargs if env in (None, self.env_id) else {}
        # A process each, or much memory each: no more than in training.
        heavy = self.config.backend == "async" or (self.envs.metadata or {}).get("heavy", False)
        most = self.config.num_envs if heavy else MAX_ENVS
        timeout = self.config.env_timeout  # a fault ends an evaluation in any case: a score with one in it is none
        envs = make_vec(env or self.env_id, min(episodes, most), self.config.backend, env_timeout=timeout, **kwargs)
        try:
            return self._play(envs, episodes, seed, deterministic, max_steps)
        finally:
            envs.close()

    def _play(
        self, envs: VectorEnv, episodes: int, seed: int | None, deterministic: bool, max_steps: int
    ) -> Evaluation:
        adapter = VectorAdapter(envs, self.config.squash)
        if (adapter.parts, adapter.action_spec.kind) != (self.adapter.parts, self.adapter.action_spec.kind):
            raise UsageError("the environment to evaluate in has other observations or actions than the one trained on")
        seed = secrets.randbelow(2**31) if seed is None else seed
        actor = Actor(self.network, adapter, self._acting_generator(seed))
        return play_episodes(actor, adapter, episodes, seed, deterministic, max_steps)

    def _acting_generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed ^ ACTING_STREAM)

    # Saving.

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of a run depends on, as tensors and built-in types."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict() if self.critic_optimizer else None,
            "generator": self.generator.get_state(),
            "collector": self.collector.state_dict(),
            "reward_scaler": self.reward_scaler.state_dict() if self.reward_scaler else None,
            "coefs": {name: float(value) for name, value in self.coefs.items()},
            "how": self.engine.how,
            "backend": self.backend,
            "reference": self.reference.state_dict() if self.reference else None,
            "iteration": self.iteration,
        }

    def load_state_dict(self, state: dict[str, Any], restore_envs: bool = True) -> None:
        """Go on where `state_dict` was taken, with an agent of the same configuration.

        Args:
            state: what `state_dict` gave.
            restore_envs: False begins new episodes, in environments that may differ from those of the state.

        Raises:
            ValueError: where a part of the state is not of the kind and size that this agent has.
        """
        check_kinds(state)
        restore_network(self.network, state["network"], "network")
        restore_optimizer(self.optimizer, [self.parameter_vector], state["optimizer"], "optimizer")
        if self.critic_optimizer:
            parameters = self.network.critic_parameters()
            restore_optimizer(self.critic_optimizer, parameters, state["critic_optimizer"] or {}, "critic_optimizer")
        check_like(state["coefs"], {name: float(value) for name, value in self.coefs.items()}, "coefs")
        if state["backend"] == "native" and self.backend != "native" and self.engine.may_go_native:
            self.use_backend("native")
        # Environments whose state is not plain data start afresh, with seeds that no earlier part of the run used.
        self.collector.load_state_dict(state["collector"], self.restart_seed(state["iteration"]), restore_envs)
        # After the collector, which draws its first noise from it.
        if len(state["generator"]) == len(self.generator.get_state()):
            self.generator.set_state(state["generator"])
        else:  # saved on another kind of device, whose generator has a state of another form
            self.generator.manual_seed(self.restart_seed(state["iteration"]))
        if self.reward_scaler:
            fresh = {} if restore_envs else {"carry": self.reward_scaler.carry}
            restore_network(self.reward_scaler, {**(state["reward_scaler"] or {}), **fresh}, "reward_scaler")
        self.coefs.update(state["coefs"])
        if self.reference:
            restore_network(self.reference, state["reference"], "reference")
        self.iteration = state["iteration"]
        self.engine.how, self.engine.reason = state["how"], "as the run began"

    def reset_seeds(self, iteration: int) -> int | list[int]:
        """Seeds with which the environments begin the rollout of an iteration, where it begins with a reset.

        One for all, or one each where groups share a start: members of a group have the same, and each iteration and
        group another.
        """
        if not self.group_starts:
            return self.restart_seed(iteration)
        size = self.config.group_size
        seeds = np.random.SeedSequence([self.config.seed, iteration]).generate_state(self.config.num_envs // size)
        return [int(seed % 2**31) for seed in seeds.repeat(size)]

    def restart_seed(self, iteration: int) -> int:
        """The seed of environments that begin anew after `iteration` rollouts.

        Gymnasium gives environment n seed + n, so seeds 0 and 1 as they stand would share all starts but one.
        """
        return int(np.random.SeedSequence([self.config.seed, iteration]).generate_state(1)[0] % 2**31)

    def save(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write the agent to one file, from which `rlcore.load` makes it again; `extra` is stored beside it."""
        write_checkpoint(
            path,
            {
                "algo": type(self).__name__.lower(),
                "env_id": self.env_id,
                "env_kwargs": self.env_kwargs,
                "config": dataclasses.asdict(self.config),
                "agent": self.state_dict(),
                "extra": extra or {},
            },
        )

    def close(self) -> None:
        """Close the environments."""
        self.adapter.close()


def mean_metrics(steps: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each metric over gradient steps."""
    flat = torch.stack([value.detach() for step in steps for value in step.values()])
    return dict(zip(steps[0], flat.view(len(steps), -1).mean(0).unbind(), strict=True))
