"""The loop that all on-policy agents share: collect, estimate, update, repeat.

An algorithm is a subclass in a file of its own that provides a `Config`, `estimate(buffer)` and `loss(network, batch)`.
Programs (rlcore/programs) are recorded from `learn_from_buffer` and what it calls, which read and write declared state.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from rlcore.agents import rewards, setup, stored
from rlcore.agents.callbacks import Callback, ShowProgress, checked, one_stops
from rlcore.agents.config import Config
from rlcore.agents.engine import Engine
from rlcore.agents.evaluation import Actor, Evaluation, evaluate
from rlcore.agents.export import export_policy
from rlcore.agents.rewards import Queries
from rlcore.buffer import Batch, RolloutBuffer, RowSampler
from rlcore.collect import Episodes
from rlcore.diagnostics import explained_variance
from rlcore.envs.adapter import VectorAdapter
from rlcore.errors import DivergenceError, UsageError
from rlcore.networks import ActorCritic, Memory, Torso
from rlcore.networks.normalize import RewardScaler
from rlcore.networks.reward import RewardNetwork
from rlcore.optim import Adam, Optimizer, Parameters, clipped, gradient_of, make_optimizer
from rlcore.preferences.data import Preferences, Segments
from rlcore.spaces import Field
from rlcore.state import State
from rlcore.tracing import is_recording, loop, reduce_each, share


class Agent:
    """Base of all agents.

    Args:
        env: an environment id, of which `num_envs` copies are made, or a `gymnasium.vector.VectorEnv`.
        env_kwargs: passed to the environment's constructor; only with an id.
        torso: a name (the hyperparameter), or a torso of your own, see `ActorCritic`.
        memory: a name (the hyperparameter), or a function that makes a `rlcore.networks.Memory` of your own from the
            number of features it gets.
        preferences: of agents that learn from pairs, a file of them (the hyperparameter), or `Preferences`.
        reward_model: a `RewardModel`, or where one is stored (the hyperparameter): its rewards, and not those of the
            environment, are learned from; episodes are reported with the latter.
        preset: "auto", the tuned values for this environment where there are any; those for another id or of a TOML
            file; None or "none", none. Hyperparameters that are given go before, and `learn()` trains for the
            preset's steps.
        hyperparameters: fields of the agent's `Config`.

    Attributes:
        envs: the vector environment.
        network: the ActorCritic.
        buffer: the RolloutBuffer, holding the latest rollout.
        config: the frozen dataclass of hyperparameters, seed included.
        iteration: rollouts learned from so far.
        state: all that is registered, see `register`.
        parameters: all trainable parameters of registered modules, as one vector.
        coefs: numbers in the loss that change over a run (annealed or adapted).
        sampler: draws the minibatches of an iteration.
        seconds: time spent so far, by phase: prepare, collect, learn.
        share: what this process has of the environments, where several learn together: all of them have the same
            network, `config.num_envs` environments together, and `buffer.num_envs` each.

    Raises:
        UsageError: for a hyperparameter, space or device that cannot be used.
    """

    network: ActorCritic
    optimizer: Optimizer
    collector: Any  # a Collector, of which some have more than others
    coefs: dict[str, Any]
    Config: ClassVar[type[Config]] = Config
    learns_from: ClassVar[Literal["rollouts", "expert", "pairs"]] = "rollouts"  # what fills the buffer
    needs_values: ClassVar[bool] = True  # whether anything of this algorithm asks the critic
    critic_apart: ClassVar[bool] = False  # whether the critic is fitted in steps of its own
    group_starts: ClassVar[bool] = False  # whether each `group_size` environments start an episode alike
    scored_by: ClassVar[tuple[str, str]] = ("return", "episodes")  # what an evaluation gives, and of how many what
    reference: ActorCritic | None = None  # a frozen policy that the loss compares with, for agents that have one
    reward_model: RewardNetwork | None = None  # whose rewards are learned from
    reward_model_config: Any = None  # of the agent that it comes from
    queries: Queries | None = None  # what asks about the rollouts, for the reward model to learn from

    def __new__(cls, *arguments: Any, **_: Any) -> Self:
        if len(arguments) > 1:  # such as ("MlpPolicy", "CartPole-v1")
            name = f"{cls.__name__}('CartPole-v1', hidden_sizes=(64, 64))"
            raise UsageError(f"{cls.__name__} takes one argument without a name, the environment, as in {name}")
        return super().__new__(cls)

    def __init__(
        self,
        env: str | VectorEnv,
        *,
        env_kwargs: dict[str, Any] | None = None,
        torso: Torso | str | None = None,
        memory: Callable[[int], Memory] | str | None = None,
        preferences: Preferences | str | None = None,
        reward_model: "Agent | str | None" = None,
        preset: str | None = None,
        **hyperparameters: Any,
    ):
        self.preset, self.preset_steps = "none", None
        if preset is not None:
            self.preset, self.preset_steps, hyperparameters = setup.with_preset(
                type(self), env, preset, hyperparameters
            )
        self.pairs = preferences if isinstance(preferences, Preferences) else None
        self.demonstrations: Segments | None = None
        if preferences is not None and (self.pairs is None or self.learns_from != "pairs"):
            hyperparameters["preferences"] = preferences
        if isinstance(reward_model, str):
            hyperparameters["reward_model"] = reward_model
        self.share = share()
        self.config = setup.configure(type(self), env, torso, memory, hyperparameters)
        setup.check_share(self)
        self.device = setup.resolve_device(self.config.device, self.share)
        self.env_id, self.env_kwargs = env if isinstance(env, str) else None, dict(env_kwargs or {})
        self.envs, self.backend = setup.environments(self, env)
        self.adapter = VectorAdapter(self.envs, self.config.squash, self.config.mask_actions)
        self.config = config = setup.completed(self, torso)
        self.state = State(self)
        # The same weights on every device and with any number of threads, and nobody else's generator moved.
        with setup.one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self._own_memory = memory if callable(memory) else None
            network = self.make_network(None if isinstance(torso, str) else torso).to(self.device)
        if config.init is not None:
            stored.with_weights_of(network, config.init)
        self.state.register("network", network)
        length = setup.sequence_length(self)
        self.buffer = RolloutBuffer(
            config.num_steps, config.num_envs // self.share.count, self.adapter.observation_space,
            self.adapter.action_spec, self.device, self.adapter.frame_stack, setup.added_fields(self), length,
        )  # fmt: skip
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        # A generator of its own, so that acting on the side does not change the course of training.
        self._actor = Actor(network, self.adapter, setup.acting_generator(config.seed, self.device))
        self.use_backend(self.backend)
        if self.group_starts:
            setup.check_group_starts(self.collector.next_obs, config.group_size)
        self.parameters = Parameters(self.state.modules)
        self.state.register("optimizer", make_optimizer(
            self.parameters, config.optimizer, config.learning_rate, config.optimizer_eps, config.rmsprop_alpha
        ))  # fmt: skip
        self.critic_optimizer: Adam | None = None
        if config.critic_updates:  # of its own: momentum of the policy's last step must not go on moving the critic
            optimizer = Adam(self.parameters, config.learning_rate, config.optimizer_eps, network.critic_parameters)
            self.state.register("critic_optimizer", optimizer)
        self.reward_scaler: RewardScaler | None = None
        if config.norm_reward:
            self.state.register("reward_scaler", RewardScaler(self.buffer.num_envs, config.gamma).to(self.device))
        self.state.register("coefs", {"reward_kl_coef": config.reward_kl_coef} if config.reward_kl_coef else {})
        ragged = config.whole_episodes and not length
        self.sampler = RowSampler(config.num_minibatches, config.update_epochs, ragged, length or 1, self.share)
        self.draws: dict[str, Tensor] = {}
        self.iteration = 0
        self.annealed_to: int | None = None  # the end of what was trained so far
        self.seconds = {"prepare": 0.0, "collect": 0.0, "learn": 0.0}
        self.engine = Engine(self)
        if self.needs_reference:
            self.register("reference", self.frozen_copy(config.reference))
        if reward_model is not None or config.reward_model is not None or config.comparisons:
            self._take_reward_model(setup.reward_model_for(self, reward_model))

    def __repr__(self) -> str:
        env, count = self.env_id or type(self.envs).__name__, self.config.num_envs
        how = f"backend {self.backend}, {self.engine.how or 'not prepared'}"
        return f"<{type(self).__name__} on {count} × {env}, {how}, at step {self.global_step:,}>"

    # What an algorithm provides.

    def fields(self) -> list[Field]:
        """What a transition holds because of this agent; filled in the rewards stage, by assigning `buffer.NAME`."""
        return []

    def make_network(self, torso: Torso | None) -> ActorCritic:
        """The network; `torso` is one of the user's own, if there is one. A UsageError where it does not fit."""
        network = setup.make_network(self, torso, self._own_memory)
        if self.critic_apart and network.shared:
            raise UsageError(
                f"actor and critic share a torso (shared is true, or torso is one module), but {type(self).__name__} "
                "fits its critic apart, which would move the policy; torso may be a function that makes one for each"
            )
        return network

    def register(self, name: str, thing: nn.Module | Tensor | dict[str, float]) -> None:
        """Declare state as `self.NAME`, in the constructor: it is moved to the device, saved and restored with the
        agent, and known to programs. Parameters of modules that require gradients learn with those of the network.
        A UsageError where the name is taken or the thing is of another kind."""
        self.state.register(name, thing.to(self.device) if isinstance(thing, nn.Module | Tensor) else thing)
        if isinstance(thing, nn.Module):
            self.refresh()

    def _take_reward_model(self, model: Any) -> None:
        self.register("reward_model", copy.deepcopy(model.network).requires_grad_(False))
        self.reward_model_config = dataclasses.replace(model.config, preferences=None, init=None)
        if self.config.comparisons:
            self.queries = Queries(self, model)
        elif self.config.reward_model is not None:  # made here, for its network alone
            model.close()

    def refresh(self) -> None:
        """Take the trainable parameters as they are now into one vector; moments of those that stay are kept."""
        self.parameters.refresh()
        for optimizer in self.optimizers():
            optimizer.follow()
        self.engine.forget()

    def rewards(self, buffer: RolloutBuffer) -> dict[str, Tensor] | None:
        """The rewards stage: change `buffer.rewards` before `estimate` sees them; puts those of a reward model in their
        place, clips and scales them and takes off the KL to a reference, as configured. A bonus comes in here. May
        return metrics."""
        metrics = {} if self.reward_model is None else rewards.predict(self, buffer)
        if self.config.clip_reward:
            buffer.rewards = buffer.rewards.sign()
        if self.reward_scaler is not None:
            self.reward_scaler.scale_(buffer)
        return metrics | rewards.charge_kl(self, buffer) if self.config.reward_kl_coef else metrics

    def estimate(self, buffer: RolloutBuffer) -> tuple[Tensor, ...]:
        """Advantages and returns (value targets) of a rollout, each [T, N], and, where the loss is no mean over
        transitions, the weight of each transition, [T, N]."""
        raise NotImplementedError

    def loss(self, network: ActorCritic, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a minibatch, and metrics to report, all 0-dim tensors."""
        raise NotImplementedError

    def before_steps(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """What an algorithm does with the whole rollout before the gradient steps; may add to the batch."""
        return batch, {}

    def after_steps(self, batch: Batch) -> dict[str, Tensor]:
        """What an algorithm does with the whole rollout after the gradient steps."""
        return {}

    def anneal(self, remaining: float) -> None:
        """Set what changes over a run; `remaining` goes from 1 at its start to 0 at its end."""
        if self.config.anneal_lr:
            for optimizer in self.optimizers():
                optimizer.learning_rate = self.config.learning_rate * remaining

    def optimizers(self) -> list[Optimizer]:
        """Those of the loss and of a critic that is fitted apart."""
        return [self.optimizer] if self.critic_optimizer is None else [self.optimizer, self.critic_optimizer]

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen policy is compared with, `self.reference`."""
        return bool(self.config.reward_kl_coef)

    @property
    def stops_early(self) -> bool:
        """Whether epochs may stop before `update_epochs`."""
        return self.config.target_kl is not None

    def frozen_copy(self, source: str = "initial") -> ActorCritic:
        """A copy of the network that does not learn: as it is now, or with the weights of a checkpoint or run folder,
        where they fit (else a CheckpointError)."""
        network = copy.deepcopy(self.network).requires_grad_(False)
        return network if source == "initial" else stored.with_weights_of(network, source)

    # The loop.

    @property
    def global_step(self) -> int:
        """Environment steps so far, over all environments, padding not counted."""
        return self.collector.global_step

    def learn(
        self,
        total_steps: int | None = None,
        callbacks: Callback | Sequence[Callback] = (),
        *,
        progress: bool = False,
        run_dir: str | Path | None = None,
    ) -> Self:
        """Train until `global_step` reaches `total_steps`; whole iterations, so it may end a little above.

        Called again, it goes on to a new end: `total_steps` counts from the agent's first step. What is annealed, such
        as the learning rate, goes from its start at step 0 to its end at `total_steps`.

        Args:
            total_steps: environment steps, over all environments; None takes those of the preset.
            callbacks: called after each iteration, see `rlcore.callbacks`; one that returns True ends the training.
            progress: whether to show it: a bar in a terminal or notebook, else plain lines.
            run_dir: a new folder for what `rlcore train` writes, see `rlcore.train`.

        Raises:
            UsageError: where an argument cannot be used.
        """
        total_steps = setup.steps_of(total_steps, self.preset_steps)
        if run_dir is not None:
            import rlcore  # whose runs stand above its agents

            rlcore.train(self, total_steps, run_dir, callbacks, progress)
            return self
        callbacks, shown = checked(callbacks), ShowProgress(total_steps, self.global_step) if progress else None
        callbacks += [shown] if shown else []
        try:
            for metrics, episodes in self.iterations(total_steps):
                if one_stops(callbacks, self, metrics, episodes):
                    break
        finally:
            if shown:
                shown.close()
        return self

    def iterations(self, total_steps: int) -> Iterator[tuple[dict[str, float], Episodes]]:
        """Train as `learn` does, and yield after each iteration its metrics and the episodes that finished in it.

        Raises:
            DivergenceError: when a metric is not finite. The network is then as the bad update left it.
            EnvironmentFault: when an environment fails or returns NaN, and is not to be begun anew.
        """
        total_steps = setup.steps_of(total_steps)
        setup.tell_of_annealing(self, total_steps)
        if self.parameters.are_others():
            self.refresh()
        while self.global_step < total_steps:
            if not self.parameters.is_whole():
                self.refresh()
            if self.config.compile is not False:
                self.engine.prepare(total_steps)
            start, first = time.perf_counter(), self.global_step
            progress = self.global_step / total_steps
            self.anneal(1 - progress)
            episodes = self.collect()
            asked = {} if self.queries is None else self.queries.ask(progress)
            collected = time.perf_counter()
            learned = self.engine.learn() if self.engine.program else self.learn_from_buffer()
            learned["param_norm"] = torch.linalg.vector_norm(self.parameters.vector)
            metrics = dict(zip(learned, torch.stack([x.detach() for x in learned.values()]).tolist(), strict=True))
            metrics = self.ended(metrics, first, collected - start, time.perf_counter() - collected)
            yield metrics | asked, episodes
        self.annealed_to = total_steps

    def ended(self, metrics: dict[str, float], first: int, collecting: float, learning: float) -> dict[str, float]:
        """An iteration has ended that began at step `first` and took so many seconds: its metrics, with those that need
        no rollout; a DivergenceError where it went wrong."""
        self.iteration += 1
        self.seconds["collect"] += collecting
        self.seconds["learn"] += learning
        self._check_finite(metrics)
        metrics = {**metrics, "learning_rate": float(self.optimizer.learning_rate)}
        if self.config.on_env_error == "restart":
            metrics["env_restarts"] = float(self.collector.restarts)
        metrics["steps_per_second"] = (self.global_step - first) / (collecting + learning)
        return metrics

    def collect(self) -> Episodes:
        """Fill the buffer with the next rollout, and draw what learning from it takes in random numbers."""
        self.begin_episodes()
        episodes = self.collector.collect(self.network)
        if self.reward_scaler is not None and self.config.on_env_error == "restart":
            self.reward_scaler.forget(self.collector.faults.cut_before)
        self.draw()
        return episodes

    def begin_episodes(self) -> None:
        """Begin new episodes, where a rollout is one of whole ones."""
        if self.config.whole_episodes and self.collector.rows_collected > 0:
            self.collector.reset(self.reset_seeds(self.iteration))

    def draw(self) -> dict[str, Tensor]:
        """Draw the minibatches of the rollout in the buffer."""
        self.draws.update(self.sampler.draw(self.buffer.mask, self.generator))
        return self.draws

    def learn_from_buffer(self) -> dict[str, Tensor]:
        """Learn from the rollout in the buffer; returns the iteration's mean metrics."""
        buffer = self.buffer
        shaped = self.rewards(buffer) or {}
        estimate = self.estimate(buffer)
        metrics = self.update(buffer.flatten(*estimate)) | shaped
        if self.needs_values:
            metrics["explained_variance"] = explained_variance(buffer.values, estimate[1], buffer.mask)
        self.network.update_normalizer(buffer.obs, buffer.mask)
        return metrics

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from a rollout as a batch; returns the iteration's mean metrics."""
        for optimizer in self.optimizers():
            optimizer.begin()
        batch, before = self.before_steps(batch)
        metrics = {**self.gradient_steps(batch), **before}
        if self.needs_values and self.config.critic_updates:
            metrics["value_loss"] = self.fit_critic(batch)
        metrics |= self.after_steps(batch)
        if not is_recording():
            self.draws.clear()  # they are of this rollout
        return metrics

    def gradient_steps(self, batch: Batch) -> dict[str, Tensor]:
        """Epochs over a rollout in minibatches, reshuffled each epoch; returns the means of the metrics."""
        if self.learns_from == "pairs":  # which are not to be torn apart
            return self.step(batch.take(batch.units()))
        if self.stops_early:
            return self._gradient_steps_until_far(batch)

        minibatches = (self.draws or self.draw())["minibatches"]

        def step(_: Any, x: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
            return None, self.step(self._minibatch(batch, **x))

        _, metrics, count = loop(step, None, {"rows": minibatches, **self._totals(batch, minibatches)})
        return _means(metrics, count)

    def _gradient_steps_until_far(self, batch: Batch) -> dict[str, Tensor]:
        """The same, until an epoch's mean KL between old and new policy is above 1.5 `target_kl`."""
        minibatches, count = (self.draws or self.draw())["minibatches"], self.config.num_minibatches
        ends_epoch = torch.arange(1, len(minibatches) + 1, device=self.device) % count == 0

        def step(carry: dict[str, Tensor], x: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            ends = x.pop("ends")
            metrics = self.step(self._minibatch(batch, **x))
            kl = carry["kl"] + metrics["approx_kl"] / count
            far = ends & (kl > 1.5 * self.config.target_kl)
            return {"kl": torch.where(ends, 0.0, kl), "far": far}, metrics

        start = {"kl": torch.zeros((), device=self.device), "far": torch.zeros_like(ends_epoch[0])}
        turns = {"rows": minibatches, "ends": ends_epoch, **self._totals(batch, minibatches)}
        _, metrics, taken = loop(step, start, turns, until=lambda carry: carry["far"])
        return _means(metrics, taken)

    def _totals(self, batch: Batch, minibatches: Tensor) -> dict[str, Tensor]:
        """What minibatches come to over several processes; nothing where there is one."""
        return self.sampler.totals(batch, minibatches) if self.share.count > 1 else {}

    def _minibatch(self, batch: Batch, rows: Tensor, **totals: Tensor) -> Batch:
        return self.sampler.take(batch, rows, totals) if totals else self.sampler.take(batch, rows)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step on a minibatch. The loss and its metrics are sums over transitions, as the gradient is, of
        which each process has a part."""
        loss, metrics = self.loss(self.network, batch)
        metrics = {"loss": loss, **metrics}
        gradient, *sums = reduce_each([gradient_of(loss, self.parameters), *metrics.values()])
        gradient, norm = clipped(gradient, self.config.max_grad_norm)
        self.optimizer.step(gradient)
        return {name: x.detach() for name, x in zip([*metrics, "grad_norm"], [*sums, norm], strict=True)}

    def critic_loss(self, network: ActorCritic, batch: Batch) -> Tensor:
        """The loss of a critic that is fitted apart: mean of (V − R)²/2 over transitions."""
        return 0.5 * batch.step_mean((network.value(batch.obs) - batch.returns) ** 2)

    def fit_critic(self, batch: Batch) -> Tensor:
        """`critic_updates` steps on (V − R)² alone, each over the whole rollout; returns the last loss."""
        batch = self.sampler.take(batch, (self.draws or self.draw())["rows"])

        def step(*_: Any) -> tuple[Any, Tensor]:
            loss = self.critic_loss(self.network, batch)
            gradient, loss = reduce_each([gradient_of(loss, self.critic_optimizer.moved()), loss])
            self.critic_optimizer.step(gradient)
            return None, loss.detach()

        _, losses, _ = loop(step, None, self.config.critic_updates)
        return losses[-1]

    def _check_finite(self, metrics: dict[str, float]) -> None:
        # The weights too: those of the last step are in no loss yet, and a loss may be finite where they have no sense.
        bad = [name for name in ("loss", "grad_norm", "param_norm") if not math.isfinite(metrics.get(name, 0.0))]
        if bad:
            where = f"in iteration {self.iteration} at step {self.global_step:,}"
            rate = f"(learning_rate {self.config.learning_rate:g})"
            raise DivergenceError(f"{bad[0]} became {metrics[bad[0]]} {where} {rate}")

    # Environments.

    def use_backend(self, backend: str | None) -> None:
        """Collect from environments stepped this way, from new episodes on."""
        self.backend = backend
        self.collector = setup.make_collector(self, backend)
        self.collector.reset(self.reset_seeds(0))

    def reset_seeds(self, iteration: int) -> int | list[int]:
        """Seeds with which the environments begin the rollout of an iteration, where it begins with a reset."""
        if self.group_starts:
            return setup.group_seeds(self.config, iteration)[self.share.slice(self.buffer.num_envs)]
        return setup.restart_seed(self.config.seed, iteration)

    def act(self, obs: Any, deterministic: bool = False, first: Any = None, action_mask: Any = None) -> np.ndarray:
        """Actions `[N, ...]` as the environment takes them, in the action space, drawn or the most probable.

        Args:
            obs: observations `[N, ...]` as a vector environment of this kind returns them.
            deterministic: the most probable action instead of a draw.
            first: `[N]` bool or one for all, whose observation begins an episode: a policy with memory remembers from
                call to call, and forgets there.
            action_mask: which actions are allowed, `[N, P]` or one mask of each environment; where the agent masks
                actions and observations have no such part.

        Raises:
            UsageError: where a mask is missing, not wanted, or does not fit; or `first` does not.
        """
        obs = self.adapter.given(obs, action_mask)
        return self.adapter.action_spec.to_env(self._actor(obs, deterministic, first))

    def evaluate(
        self,
        episodes: int = 100,
        seed: int | None = None,
        deterministic: bool = True,
        env: str | VectorEnv | None = None,
        max_steps: int = 1_000_000,
    ) -> Evaluation:
        """Play whole episodes in fresh environments, for returns and lengths by the environment's own rewards; training
        is not touched, normalisation statistics stay frozen.

        Args:
            episodes: how many.
            seed: of the environments and, where actions are drawn, of these; None draws one.
            deterministic: the most probable action instead of a draw.
            env: an id or a vector environment to play in place of the one trained on.
            max_steps: longest episode; one that is still running is cut there.

        Raises:
            UsageError: where `env` is needed or does not fit, or `episodes` is not a whole number of at least 1.
        """
        return evaluate(self, episodes, seed, deterministic, env, max_steps)

    def close(self) -> None:
        """Close the environments."""
        self.adapter.close()

    # Saving.

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of a run depends on, as tensors and built-in types."""
        how_it_runs = {"how": self.engine.how, "backend": self.backend, "iteration": self.iteration}
        parts = {"generator": self.generator.get_state(), "collector": self.collector.state_dict()}
        if self.reward_model_config is not None:
            parts["reward_model_config"] = dataclasses.asdict(self.reward_model_config)
        if self.queries is not None:
            parts["queries"] = self.queries.state_dict()
        return {**self.state.state_dict(), **parts, **how_it_runs}

    def load_state_dict(self, state: dict[str, Any], restore_envs: bool = True) -> None:
        """Go on where `state_dict` was taken, with an agent of the same configuration; without `restore_envs` new
        episodes begin, in environments that may be others. A ValueError where a part does not fit this agent."""
        stored.restore(self, state, restore_envs)

    def save(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write the agent to one file, from which `rlcore.load` makes it again; `extra` is stored beside it."""
        stored.save(self, path, extra or {})

    def export(self, path: str | Path) -> None:
        """Write the greedy policy to one file that runs without rlcore, .pt2 (torch.export) or .onnx, as told in
        rlcore.agents.export; a UsageError where that cannot be, an RlcoreError where it would act otherwise."""
        export_policy(self, path)


def _means(metrics: dict[str, Tensor], count: int | Tensor) -> dict[str, Tensor]:
    """The mean of each metric `[K]` over the gradient steps that were taken."""
    sums = torch.stack([x.float() for x in metrics.values()]).sum(1) / count
    return dict(zip(metrics, sums.unbind(), strict=True))
