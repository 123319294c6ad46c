"""Learning from a rollout as one program: estimate, the gradient steps, and what an algorithm does around them.

The agent's own `estimate`, `before_steps`, `loss` and `after_steps` are what is recorded; this file only carries their
state from one to the next: parameters, moments of the optimisers, running statistics, coefficients. It does what
`Agent.learn_from_buffer` does, in the same order and with the same random permutations.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rlcore.buffer import Batch, RolloutBuffer
from rlcore.diagnostics import explained_variance
from rlcore.optim import adam_corrections, adam_update, clipped, flat, optimizer_state, rmsprop_update
from rlcore.programs.program import Piece, Program, buffer_slots, held, holding, parameter_slots

FIELDS = (
    "obs", "actions", "dist_params", "logprobs", "values", "rewards", "terminated", "truncated", "next_values", "mask",
)  # fmt: skip
Tree = dict[str, Any]


class LearningProgram(Program):
    """`(state, fixed, rollout, orders, rows) -> (state, metrics)`, see `Learner`; its notes name the metrics."""

    def __init__(self, agent: Any):
        super().__init__()
        self.__dict__["agent"] = agent  # not a submodule: its parameters are inputs here
        config, network = agent.config, agent.network
        self.parameter_slots, self.buffer_slots = parameter_slots(network), buffer_slots(network)
        self.scaler_slots = buffer_slots(agent.reward_scaler) if agent.reward_scaler else []
        reference = agent.reference
        self.reference_slots = parameter_slots(reference) + buffer_slots(reference) if reference else []
        self.coef_slots = [(agent.coefs, name) for name in agent.coefs]
        self.shapes = [p.shape for p in agent.parameters]
        self.sizes = [p.numel() for p in agent.parameters]
        ids = [id(p) for p in agent.parameters]
        self.critic_positions = [ids.index(id(p)) for p in network.critic_parameters()] if agent.fits_critic else []
        self.update = adam_update if config.optimizer == "adam" else self._rmsprop
        self.stops_early = agent.stops_early  # asked here, as torch's exporter misreads a property of a base class
        self.begin, self.step = Piece(self._begin), Piece(self._step)
        self.critic_step, self.finish = Piece(self._critic_step), Piece(self._finish)

    def _rmsprop(self, vector: Tensor, moments: list[Tensor], gradient: Tensor, learning_rate: Tensor, eps: float, _):
        return rmsprop_update(vector, moments, gradient, learning_rate, eps, self.agent.config.rmsprop_alpha)

    def forward(self, state: Tree, fixed: Tree, rollout: Tree, orders: Tensor, rows: Tensor) -> tuple[Tree, Tree]:
        agent = self.agent
        state, batch, returns, before = self.begin(state, fixed, rollout)
        learning_rate, coefs, buffers = fixed["learning_rate"], state["coefs"], state["buffers"]

        def step(carry: Any, x: Any) -> Any:
            return self.step(carry, *x, batch, coefs, buffers, learning_rate)

        carry, xs = (state["vector"], state["moments"]), (orders, adam_corrections(state["steps"], len(orders)))
        if self.stops_early:
            (vector, moments), steps, count = self._steps_until_stopped(step, carry, xs)
        else:
            (vector, moments), steps = self.loop(step, carry, xs)
            steps, count = steps.mean(0), len(orders)
        metrics = {"steps": steps, "before": before}
        if agent.fits_critic:

            def critic_step(carry: Any, corrections: Tensor) -> Any:
                return self.critic_step(carry, corrections, rows, batch, buffers, learning_rate)

            updates, done = agent.config.critic_updates, state["critic_steps"]
            corrections = adam_corrections(done, updates)
            (vector, critic), losses = self.loop(critic_step, (vector, state["critic_moments"]), corrections)
            state = {**state, "critic_moments": critic, "critic_steps": done + updates}
            metrics["critic"] = losses[-1]
        state = {**state, "vector": vector, "moments": moments, "steps": state["steps"] + count}
        state, metrics["after"] = self.finish(state, fixed, rollout, batch, returns)
        return state, metrics

    def _steps_until_stopped(self, step: Any, carry: Any, xs: Any) -> tuple[Any, Tensor, Tensor]:
        """As `Agent.stops_after`, without leaving the loop: steps after the stop are computed and not taken.

        Returns:
            The carry after the last step taken, the means of the metrics over those taken, and how many these are.
        """
        config, (orders, _) = self.agent.config, xs
        ends_epoch = torch.arange(1, len(orders) + 1, device=orders.device) % config.num_minibatches == 0

        def step_if_going(carry: Any, x: Any) -> Any:
            before, going, kl = carry
            *x, ends_epoch = x
            after, metrics = step(before, x)
            kl = kl + metrics[self.notes["steps"].index("approx_kl")]
            stops = ends_epoch & (kl / config.num_minibatches > 1.5 * config.target_kl)
            taken = pytree.tree_map(lambda new, old: torch.where(going, new, old), after, before)
            row = torch.cat([torch.where(going, metrics, 0.0), going.float().unsqueeze(0)])
            return (taken, going & ~stops, torch.where(ends_epoch, 0.0, kl)), row

        going = torch.ones((), dtype=torch.bool, device=orders.device)
        start = carry, going, torch.zeros((), device=orders.device)
        (carry, _, _), rows = self.loop(step_if_going, start, (*xs, ends_epoch))
        totals = rows.sum(0)
        return carry, totals[:-1] / totals[-1], totals[-1]

    def shapes_of(self, inputs: tuple) -> list[Any]:
        if not self.agent.config.whole_episodes:
            return super().shapes_of(inputs)
        return super().shapes_of(inputs[:3])

    def free_dimensions(self, *inputs: Any) -> Any:
        if not self.agent.config.whole_episodes:
            return None
        state, fixed, rollout, _, _ = pytree.tree_map(lambda x: None, inputs)
        return state, fixed, rollout, {1: torch.export.Dim("minibatch")}, {0: torch.export.Dim("rows")}

    def record(self, state: Tree, fixed: Tree, rollout: Tree, orders: Tensor, rows: Tensor) -> None:
        learning_rate = fixed["learning_rate"]
        now, batch, returns, _ = self.begin.record(state, fixed, rollout)
        carry = (now["vector"], now["moments"])
        free = self.agent.config.whole_episodes
        corrections = torch.ones(2, device=learning_rate.device)
        inputs = carry, orders[0], corrections, batch, now["coefs"], now["buffers"], learning_rate
        self.step.record(*inputs, free_shapes=free)
        if self.agent.fits_critic:
            carry = (now["vector"], now["critic_moments"])
            inputs = carry, corrections, rows, batch, now["buffers"], learning_rate
            self.critic_step.record(*inputs, free_shapes=free)
        self.finish.record(now, fixed, rollout, batch, returns)

    # The pieces.

    def _split(self, vector: Tensor) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(vector.split(self.sizes), self.shapes, strict=True)]

    def _buffer(self, rollout: Tree) -> RolloutBuffer:
        buffer = copy.copy(self.agent.buffer)
        buffer.length = buffer.num_steps
        for name in FIELDS:
            setattr(buffer, name, rollout[name])
        return buffer

    def _metrics(self, part: str, metrics: dict[str, Tensor]) -> Tensor:
        self.notes[part] = list(metrics)
        if not metrics:
            return torch.zeros(0, device=self.agent.device)
        return torch.stack([value.detach().float() for value in metrics.values()])

    def _batch(self, fields: Tree) -> Batch:
        return dataclasses.replace(self.template, **fields)

    def _begin(self, state: Tree, fixed: Tree, rollout: Tree) -> Any:
        """All that comes before the gradient steps."""
        agent = self.agent
        leaves = [x.detach().clone().requires_grad_() for x in self._split(state["vector"])]
        scaler = [x.clone() for x in state["scaler"]]
        buffer = self._buffer({**rollout, "rewards": rollout["rewards"].clone()})
        with (
            torch.enable_grad(),  # for algorithms whose step on the whole rollout follows a gradient
            holding(self.parameter_slots, leaves),
            holding(self.buffer_slots, state["buffers"]),
            holding(self.scaler_slots, scaler),
            holding(self.reference_slots, fixed["reference"]),
            holding(self.coef_slots, state["coefs"]),
        ):
            agent.scale_rewards(buffer)
            estimate = agent.estimate(buffer)
            batch, metrics = agent.before_steps(buffer.flatten(*estimate))
            coefs = [x.clone() for x in held(self.coef_slots)]
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch) if f.name != "weighted"}
        if agent.config.whole_episodes:
            fields = _with_padding_row(fields)
        self.template = batch
        state = {**state, "vector": flat(leaves), "scaler": scaler, "coefs": coefs, "rewards": buffer.rewards}
        return state, fields, estimate[1], self._metrics("before", metrics)

    def _step(
        self,
        carry: Any,
        order: Tensor,
        corrections: Tensor,
        fields: Tree,
        coefs: list[Tensor],
        buffers: list[Tensor],
        learning_rate: Tensor,
    ) -> Any:
        """One gradient step on the minibatch that `order` names; as `Agent.step`."""
        agent, config = self.agent, self.agent.config
        vector = carry[0].detach().requires_grad_()
        with (
            torch.enable_grad(),
            holding(self.parameter_slots, self._split(vector)),
            holding(self.buffer_slots, buffers),
            holding(self.coef_slots, coefs),
        ):
            loss, metrics = agent.loss(agent.network, self._batch(fields).take(order))
        (gradient,) = torch.autograd.grad(loss, vector)
        with torch.no_grad():
            gradient, norm = clipped(gradient, config.max_grad_norm)
            carry = self.update(vector.detach(), carry[1], gradient, learning_rate, config.optimizer_eps, corrections)
        return carry, self._metrics("steps", {"loss": loss, **metrics, "grad_norm": norm})

    def _critic_step(
        self, carry: Any, corrections: Tensor, rows: Tensor, fields: Tree, buffers: list[Tensor], learning_rate: Tensor
    ) -> Any:
        """One step of the critic apart on the whole rollout; as `Agent.fit_critic`."""
        agent, config = self.agent, self.agent.config
        parameters = [x.detach() for x in self._split(carry[0])]
        critic = [parameters[i].requires_grad_() for i in self.critic_positions]
        with (
            torch.enable_grad(),
            holding(self.parameter_slots, parameters),
            holding(self.buffer_slots, buffers),
        ):
            loss = agent.critic_loss(agent.network, self._batch(fields).take(rows))
        gradient = flat(torch.autograd.grad(loss, critic))
        with torch.no_grad():
            eps = config.optimizer_eps
            vector, moments = adam_update(flat(critic), carry[1], gradient, learning_rate, eps, corrections)
            pieces = vector.split([x.numel() for x in critic])
            moved = dict(zip(self.critic_positions, pieces, strict=True))
            whole = flat([moved.get(i, x) for i, x in enumerate(parameters)])
        return (whole, moments), self._metrics("critic", {"value_loss": loss})

    @torch.no_grad()
    def _finish(self, state: Tree, fixed: Tree, rollout: Tree, fields: Tree, returns: Tensor) -> Any:
        """All that comes after the gradient steps."""
        agent = self.agent
        buffers = [x.clone() for x in state["buffers"]]
        with (
            holding(self.parameter_slots, self._split(state["vector"])),
            holding(self.buffer_slots, buffers),
            holding(self.reference_slots, fixed["reference"]),
            holding(self.coef_slots, state["coefs"]),
        ):
            metrics = agent.after_steps(self._batch(fields))
            if agent.needs_values:
                metrics["explained_variance"] = explained_variance(rollout["values"], returns, rollout["mask"])
            agent.network.update_normalizer(rollout["obs"], rollout["mask"])
            coefs = [x.clone() for x in held(self.coef_slots)]
        return {**state, "buffers": buffers, "coefs": coefs}, self._metrics("after", metrics)


def _with_padding_row(fields: Tree) -> Tree:
    """One more row that counts for nothing, for minibatches of unequal length; a copy of the first, so finite."""

    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, x[:1]])

    padded = pytree.tree_map(longer, fields)
    nothing = {"mask": fields["mask"].new_zeros(1), "weight": fields["weight"].new_zeros(1)}
    return {**padded, **{name: torch.cat([fields[name], zero]) for name, zero in nothing.items()}}


class Learner:
    """Runs an agent's learning as a program, and keeps the agent's own objects up to date after each iteration.

    Args:
        agent: whose rollouts in `agent.buffer` are learned from.
    """

    def __init__(self, agent: Any):
        self.agent = agent
        self.program = LearningProgram(agent)
        self.run: Any = self.program

    def is_cached(self, key: dict[str, Any]) -> bool:
        """Whether the disk cache has this program."""
        return self.program.is_cached(self._example(), {**key, "part": "learn"})

    def build(self, key: dict[str, Any], compiled: bool) -> None:
        """Learn by a program without the agent's Python from now on, compiled or recorded."""
        self.run = self.program.make_runner(self._example(), {**key, "part": "learn"}, compiled)

    def _example(self) -> tuple:
        """Inputs of the right shapes, for the compiler; draws nothing from the agent's generator."""
        mask = self.agent.buffer.mask
        rows = torch.arange(mask.numel(), device=mask.device)
        if self.agent.config.whole_episodes:
            rows = rows[: max(len(rows) - 3, 2)]
        config = self.agent.config
        count = config.update_epochs * config.num_minibatches
        orders = rows[: -(-len(rows) // config.num_minibatches)].expand(count, -1).contiguous()
        return *self._state(), orders, rows

    def _inputs(self, rows: Tensor) -> tuple:
        """What the program learns from in this iteration, whose real transitions are `rows`."""
        return *self._state(), self.agent.minibatches(rows, padding=self.agent.buffer.mask.numel()), rows

    def _state(self) -> tuple[Tree, Tree, Tree]:
        agent, device = self.agent, self.agent.device
        *moments, steps = [x[0] for x in optimizer_state(agent.optimizer, [agent.parameter_vector])]
        state = {
            "vector": agent.parameter_vector.detach(),
            "moments": moments,
            "steps": steps.to(device),
            "buffers": held(self.program.buffer_slots),
            "scaler": held(self.program.scaler_slots),
            "coefs": [torch.as_tensor(x, dtype=torch.float32, device=device) for x in held(self.program.coef_slots)],
        }
        if agent.fits_critic:
            first, second, steps = optimizer_state(agent.critic_optimizer, agent.network.critic_parameters())
            state["critic_moments"], state["critic_steps"] = [flat(first), flat(second)], steps[0]
        learning_rate = torch.tensor(agent.optimizer.param_groups[0]["lr"], dtype=torch.float32, device=device)
        fixed = {
            "learning_rate": learning_rate,
            "reference": [x.detach() for x in held(self.program.reference_slots)],
        }
        rollout = {name: getattr(agent.buffer, name) for name in FIELDS}
        return state, fixed, rollout

    @torch.no_grad()
    def learn_from_buffer(self) -> dict[str, Tensor]:
        """As `Agent.learn_from_buffer`."""
        rows = self.agent.rows_to_learn_from(self.agent.buffer.mask.flatten())
        if self.agent.config.whole_episodes and len(rows) < 2 * self.agent.config.num_minibatches:
            with torch.enable_grad():  # programs of free shapes are not for minibatches of one transition
                return self.agent.learn_from_buffer()
        state, metrics = self.run(*self._inputs(rows))
        self._write_back(state)
        named: dict[str, Tensor] = {}
        for part in ("steps", "before", "critic", "after"):
            if part in metrics:
                named |= dict(zip(self.program.notes[part], metrics[part].unbind(), strict=True))
        return named

    def _write_back(self, state: Tree) -> None:
        agent = self.agent
        agent.parameter_vector.copy_(state["vector"])
        own = optimizer_state(agent.optimizer, [agent.parameter_vector])
        for (mine,), new in zip(own, [*state["moments"], state["steps"]], strict=True):
            mine.copy_(new)
        for slots, name in ((self.program.buffer_slots, "buffers"), (self.program.scaler_slots, "scaler")):
            for mine, new in zip(held(slots), state[name], strict=True):
                mine.copy_(new)
        for (holder, name), new in zip(self.program.coef_slots, state["coefs"], strict=True):
            holder[name] = new.clone()  # the runner's own may be fit for inference alone
        if agent.fits_critic:
            parameters = agent.network.critic_parameters()
            sizes = [p.numel() for p in parameters]
            *moments, steps = optimizer_state(agent.critic_optimizer, parameters)
            for mine, new in zip(moments, state["critic_moments"], strict=True):
                for part, piece in zip(mine, new.split(sizes), strict=True):
                    part.copy_(piece.view_as(part))
            for mine in steps:
                mine.copy_(state["critic_steps"])
        if agent.reward_scaler is not None:
            agent.buffer.rewards.copy_(state["rewards"])
