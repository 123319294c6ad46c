"""Many seeds in one program: agents of one configuration train side by side, each as it would have alone."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rlcore.agents.config import enters_programs
from rlcore.buffer import RowSampler
from rlcore.collect import Episodes
from rlcore.errors import RlcoreError, UsageError
from rlcore.programs.numbers import NotAlike
from rlcore.programs.stacking import Members, StackedProgram
from rlcore.tracing import share

if TYPE_CHECKING:
    from rlcore.agents.agent import Agent

Ended = tuple[dict[str, float], Episodes]


def learn_together(agents: Sequence[Agent], total_steps: int) -> Sequence[Agent]:
    """Train agents of one configuration until the `global_step` of each reaches `total_steps`, all in one program.

    Each ends as if it had trained alone, up to rounding. They are shared out over as many processes as torch has
    threads, each with a program of its own, where the system can fork and the agents are on the CPU.

    Args:
        agents: of one class, environment and configuration; seeds may differ, hyperparameters that no program knows,
            such as the learning rate, and those that are numbers in it, such as γ or the clip range. The environment
            needs a native implementation.
        total_steps: environment steps of each, over all of its environments.

    Raises:
        UsageError: where they do not go together, or what they do cannot be recorded.
    """
    for _ in iterations_together(agents, total_steps):
        pass
    return agents


def iterations_together(agents: Sequence[Agent], total_steps: int) -> Iterator[list[Ended | None]]:
    """Train as `learn_together` does, and yield after each iteration what `Agent.iterations` yields, of each agent;
    None of one that was done before. What agents hold is theirs again when the iterator has ended or is closed."""
    _check(agents)
    threads = torch.get_num_threads()
    count = min(threads, len(agents)) if _may_fork(agents) else 1
    parts = [agents[len(agents) * k // count : len(agents) * (k + 1) // count] for k in range(count)]
    torch.set_num_threads(1 if count > 1 else threads)
    workers: list[_Here | _Elsewhere] = []
    try:
        stacks = [_Stack(part, total_steps) for part in parts]
        workers += [_Here(stacks[0]), *map(_Elsewhere, stacks[1:])]
        while any(agent.global_step < total_steps for agent in agents):
            for worker in workers:
                worker.begin()
            yield [one for worker in workers for one in worker.ended()]
    finally:
        for worker in workers:
            worker.close()
        torch.set_num_threads(threads)


def _may_fork(agents: Sequence[Agent]) -> bool:
    return hasattr(os, "fork") and agents[0].device.type == "cpu"


class _Here:
    """Agents that are trained in this process."""

    def __init__(self, stack: _Stack):
        self.stack = stack

    def begin(self) -> None:
        """Nothing yet, so that the others can begin."""

    def ended(self) -> list[Ended | None]:
        """What came of an iteration."""
        return self.stack.iterate()

    def close(self) -> None:
        self.stack.release()


class _Elsewhere:
    """Agents that are trained in a process of their own, and whose state comes back at the end. It ends with this one,
    since nobody is at the other end of its pipe then."""

    def __init__(self, stack: _Stack):
        context = multiprocessing.get_context("fork")
        self.stack, (self.pipe, theirs) = stack, context.Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child uses none of them
            self.process = context.Process(target=_serve, args=(stack, theirs, self.pipe), daemon=True)
            self.process.start()
        theirs.close()

    def begin(self) -> None:
        """Let it go on for an iteration."""
        self.pipe.send_bytes(b"go")

    def ended(self) -> list[Ended | None]:
        """What came of the iteration; errors are raised here."""
        ended, steps = self._received()
        for agent, step in zip(self.stack.agents, steps, strict=True):
            agent.collector.global_step = step
        return ended

    def close(self) -> None:
        """Take over the agents' state and end the process."""
        self.stack.release()
        try:
            self.pipe.send_bytes(b"end")
            for agent, state in zip(self.stack.agents, self._received(), strict=True):
                agent.load_state_dict(state)
        except (OSError, EOFError):  # it has failed, which was told
            self.process.kill()
        self.process.join()

    def _received(self) -> Any:
        try:
            kind, value = pickle.loads(self.pipe.recv_bytes())
        except EOFError:
            self.process.join()
            raise RlcoreError(f"a process of learn_together died with code {self.process.exitcode}") from None
        if kind == "error":
            raise value
        return value


def _serve(stack: _Stack, pipe: Any, other_end: Any) -> None:
    """What a process of `_Elsewhere` does: iterations for as long as it is told to go on, then the state."""
    other_end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who forked it tells it to end
    try:
        while pipe.recv_bytes() == b"go":
            ended = stack.iterate()
            pipe.send_bytes(pickle.dumps(("ended", (ended, [agent.global_step for agent in stack.agents]))))
        stack.release()
        pipe.send_bytes(pickle.dumps(("state", [agent.state_dict() for agent in stack.agents])))
    except EOFError:
        pass
    except Exception as error:
        pipe.send_bytes(pickle.dumps(("error", error)))


def _check(agents: Sequence[Agent]) -> None:
    if len({id(agent) for agent in agents}) != len(agents) or not agents:
        raise UsageError("agents must be one or more, each once")
    if share().count > 1:
        raise UsageError("learn_together is for one process, but this is one of several that torchrun began")
    first = agents[0]
    for k, agent in enumerate(agents):
        if type(agent) is not type(first) or agent.env_id != first.env_id or agent.env_kwargs != first.env_kwargs:
            raise UsageError(f"agents[{k}] is of another algorithm or environment than agents[0]")
        for name in enters_programs(type(first.config)):
            mine, other = getattr(agent.config, name), getattr(first.config, name)
            if mine != other and not isinstance(mine, float) | isinstance(other, float):
                raise UsageError(f"agents[{k}] has {name} = {mine}, but agents[0] has {other}; these must be the same")
        if agent.buffer.sequence_length or agent.queries is not None:
            what = "asks for comparisons" if agent.queries is not None else "has a policy that remembers"
            raise UsageError(f"agents[{k}] {what}, which is for agents that train alone")
        if not agent.engine.may_go_native and agent.backend != "native":
            raise UsageError(f"agents[{k}] is on {agent.env_id}, which has no native implementation")


def _differing(agents: Sequence[Agent]) -> list[str]:
    """Hyperparameters that programs know and that are not the same for all."""
    names, first = enters_programs(type(agents[0].config)), agents[0].config
    return [name for name in names if any(getattr(agent.config, name) != getattr(first, name) for agent in agents)]


def _told_apart(agents: Sequence[Agent], kinds: Sequence[tuple], differ: Sequence[str]) -> str:
    k = next(k for k, kind in enumerate(kinds) if kind != kinds[0])
    mine, other = (", ".join(f"{n} = {x}" for n, x in zip(differ, kind, strict=True)) for kind in (kinds[k], kinds[0]))
    return f"{type(agents[0]).__name__} computes other things with {mine} than with {other}; these cannot go together"


class _Stack:
    """The programs of agents that train together."""

    def __init__(self, agents: Sequence[Agent], total_steps: int):
        self.agents, self.total_steps, engine = agents, total_steps, agents[0].engine
        for agent in agents:
            if agent.backend != "native":
                agent.use_backend("native")
            if isinstance(agent.sampler, RowSampler):  # whose minibatches may be smaller than those of another agent
                agent.draws.update(agent.sampler.largest(agent.buffer.mask))
        programs = [(agent.engine.collecting(agent.collector), agent.engine.learning()) for agent in agents]
        places = [[place for program in both for place in program.find_places()] for both in programs]
        self.members = Members(places)
        differ = _differing(agents)
        kinds = [tuple(getattr(agent.config, name) for name in differ) for agent in agents]
        self.collect, self.learn = (StackedProgram(each, self.members, kinds) for each in zip(*programs, strict=True))
        engine.runs *= len(agents)
        engine.choose(total_steps)
        how = "compiled" if engine.how == "compiled" else "recorded"
        for program, part in ((self.collect, "collect"), (self.learn, "learn")):
            key = None if differ else engine.key(part)
            try:
                program.prepare(None if key is None else {**key, "agents": len(agents)}, how == "compiled")
            except NotAlike:
                raise UsageError(_told_apart(agents, kinds, differ)) from None
        for agent in agents:
            agent.engine.how = how

    def iterate(self) -> list[Ended | None]:
        """One iteration of the agents that have steps left."""
        start, total_steps = time.perf_counter(), self.total_steps
        going = [agent.global_step < total_steps for agent in self.agents]
        mine = list(itertools.compress(self.agents, going))
        if not mine:
            return [None] * len(going)
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
        metrics = self._learn(mine, going)
        seconds = [(x - y) / len(mine) for x, y in ((collected, start), (time.perf_counter(), collected))]
        told = [agent.ended(own, first, *seconds) for agent, own, first in zip(mine, metrics, firsts, strict=True)]
        ended = iter(zip(told, episodes, strict=True))
        for k, agent in enumerate(self.agents):
            if going[k] and agent.global_step >= total_steps:
                self.members.release(k)
        return [next(ended) if goes else None for goes in going]

    def _learn(self, mine: Sequence[Agent], going: Sequence[bool]) -> list[dict[str, float]]:
        """Learn from the rollouts of those that are `going`; the metrics of each."""
        if all(agent.sampler.suffices(agent.buffer.mask) for agent in mine):
            which = torch.tensor(going)
            learned = {name: x.float()[which] for name, x in self.learn().items()}
        else:  # all as Python, once
            each = [agent.learn_from_buffer() for agent in mine]
            learned = {name: torch.stack([one[name].float() for one in each]) for name in each[0]}
        vectors = torch.stack([agent.parameters.vector for agent in mine])
        learned["param_norm"] = torch.linalg.vector_norm(vectors, dim=1)
        rows = torch.stack([*learned.values()]).T.tolist()
        return [dict(zip(learned, row, strict=True)) for row in rows]

    def release(self) -> None:
        """Let all agents have tensors of their own again."""
        for k, agent in enumerate(self.agents):
            self.members.release(k)
            agent.engine.forget()
