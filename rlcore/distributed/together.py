"""Many seeds in one program: agents of one configuration train side by side, each as it would have alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rlcore.agents.config import enters_programs
from rlcore.collect import Episodes
from rlcore.errors import UsageError
from rlcore.programs.stacking import Members, StackedProgram

if TYPE_CHECKING:
    from rlcore.agents.agent import Agent

Ended = tuple[dict[str, float], Episodes]


def learn_together(agents: Sequence[Agent], total_steps: int) -> Sequence[Agent]:
    """Train agents of one configuration until the `global_step` of each reaches `total_steps`, all in one program.

    They may differ in seed and in hyperparameters that no program knows, such as the learning rate. Each ends as if it
    had trained alone, up to rounding.

    Raises:
        UsageError: where they do not go together, or an agent's iterations cannot be compiled or recorded.
    """
    for _ in iterations_together(agents, total_steps):
        pass
    return agents


def iterations_together(agents: Sequence[Agent], total_steps: int) -> Iterator[list[Ended | None]]:
    """Train as `learn_together` does, and yield after each iteration what `Agent.iterations` yields, of each agent;
    None for one that was done before."""
    _check(agents)
    stack = _Stack(agents, total_steps)
    try:
        while any(going := [agent.global_step < total_steps for agent in agents]):
            yield stack.iterate(going, total_steps)
    finally:
        stack.release()


def _check(agents: Sequence[Agent]) -> None:
    if len({id(agent) for agent in agents}) != len(agents) or not agents:
        raise UsageError("agents must be one or more, each once")
    first = agents[0]
    for k, agent in enumerate(agents):
        if type(agent) is not type(first) or agent.env_id != first.env_id or agent.env_kwargs != first.env_kwargs:
            raise UsageError(f"agents[{k}] is of another algorithm or environment than agents[0]")
        for name in enters_programs(type(first.config)):
            mine, other = getattr(agent.config, name), getattr(first.config, name)
            if mine != other:
                raise UsageError(f"agents[{k}] has {name} = {mine}, but agents[0] has {other}; they may differ in seed")
        if not agent.engine.may_go_native and agent.backend != "native":
            raise UsageError(f"agents[{k}] is on {agent.env_id}, which has no native implementation")


class _Stack:
    """The programs of agents that train together."""

    def __init__(self, agents: Sequence[Agent], total_steps: int):
        self.agents, engine = agents, agents[0].engine
        for agent in agents:
            if agent.backend != "native":
                agent.use_backend("native")
            agent.draws.update(agent.sampler.largest(agent.buffer.mask))
        programs = [(agent.engine.collecting(agent.collector), agent.engine.learning()) for agent in agents]
        places = [[place for program in both for place in program.find_places()] for both in programs]
        self.members = Members(places)
        self.collect, self.learn = (StackedProgram(column, self.members) for column in zip(*programs, strict=True))
        engine.runs *= len(agents)
        engine.choose(total_steps)
        how = "compiled" if engine.how == "compiled" else "recorded"
        for program, part in ((self.collect, "collect"), (self.learn, "learn")):
            key = engine.key(part)
            program.prepare(None if key is None else {**key, "agents": len(agents)}, how == "compiled")
        for agent in agents:
            agent.engine.how = how

    def iterate(self, going: list[bool], total_steps: int) -> list[Ended | None]:
        """One iteration of the agents that are still `going`."""
        start, mine = time.perf_counter(), [agent for agent, goes in zip(self.agents, going, strict=True) if goes]
        firsts = [agent.global_step for agent in mine]
        for agent in mine:
            agent.anneal(1 - agent.global_step / total_steps)
            agent.begin_episodes()
            agent.collector.begin(agent.network)
        self.collect()
        episodes = [agent.collector.count(*agent.collector.played()) for agent in mine]
        for agent in mine:
            agent.draw()
        collected = time.perf_counter()
        metrics = self._learn(mine)
        seconds = [(x - y) / len(mine) for x, y in ((collected, start), (time.perf_counter(), collected))]
        told = iter(zip(mine, firsts, episodes, strict=True))
        ended: list[Ended | None] = []
        for k, goes in enumerate(going):
            if not goes:
                ended.append(None)
                continue
            agent, first, finished = next(told)
            ended.append((agent.ended(metrics[k], first, *seconds), finished))
            if agent.global_step >= total_steps:
                self.members.release(k)
        return ended

    def _learn(self, mine: Sequence[Agent]) -> list[dict[str, float]]:
        """Learn from the rollouts; the metrics of each agent."""
        if all(agent.sampler.suffices(agent.buffer.mask) for agent in mine):
            learned = self.learn()
        else:  # all as Python, once
            each = [agent.learn_from_buffer() for agent in self.agents]
            learned = {name: torch.stack([one[name] for one in each]) for name in each[0]}
        vectors = torch.stack([agent.parameters.vector for agent in self.agents])
        learned = {**learned, "param_norm": torch.linalg.vector_norm(vectors, dim=1)}
        rows = torch.stack([x.float() for x in learned.values()]).T.tolist()
        return [dict(zip(learned, row, strict=True)) for row in rows]

    def release(self) -> None:
        """Let all agents have tensors of their own again."""
        for k, agent in enumerate(self.agents):
            self.members.release(k)
            agent.engine.forget()
