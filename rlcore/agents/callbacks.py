"""What `agent.learn(total_steps, callbacks=[...])` calls after each iteration.

A callback is any function `(agent, metrics, episodes) -> bool | None`; True ends the training there. `metrics` are the
iteration's, by name, and may be added to; `episodes` are those that finished in it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.agents.evaluation import Evaluation
from rlcore.collect import Episodes
from rlcore.errors import UsageError, shown
from rlcore.progress import Progress

if TYPE_CHECKING:
    from rlcore.agents.agent import Agent

Callback = Callable[["Agent", dict[str, float], Episodes], bool | None]


class Evaluate:
    """Play evaluation episodes every so many steps; keep the best agent, and stop where it is good enough.

    The episodes are the same each time, so that evaluations can be compared, and training goes on as without them.

    Args:
        every: environment steps from one evaluation to the next; the first is after so many.
        episodes: of each evaluation.
        seed: of the episodes.
        deterministic: whether actions are the most probable ones, or drawn.
        save_best: file to which the agent is saved whenever its mean return is higher than before.
        stop_at: mean return from which on training ends.

    Attributes:
        steps: `global_step` of each evaluation so far.
        results: the evaluations so far.
        best: the highest mean return so far, None before the first.

    Raises:
        UsageError: where `every` or `episodes` is no whole number of at least 1.
    """

    def __init__(
        self,
        every: int,
        episodes: int = 20,
        seed: int = 0,
        deterministic: bool = True,
        save_best: str | Path | None = None,
        stop_at: float | None = None,
    ):
        for name, value in (("every", every), ("episodes", episodes)):
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} is {shown(value)}, but must be a whole number of at least 1")
        self.every, self.episodes, self.seed, self.deterministic = every, episodes, seed, deterministic
        self.save_best, self.stop_at = save_best, stop_at
        self.steps: list[int] = []
        self.results: list[Evaluation] = []
        self.best: float | None = None
        self._last = 0  # evaluations that were due so far

    def __call__(self, agent: Agent, metrics: dict[str, float], episodes: Episodes) -> bool:
        due = agent.global_step // self.every
        if due == self._last:
            return False
        self._last = due
        result = agent.evaluate(self.episodes, self.seed, self.deterministic)
        self.steps.append(agent.global_step)
        self.results.append(result)
        metrics["evaluation"] = result.mean
        if self.best is None or result.mean > self.best:
            self.best = result.mean
            if self.save_best is not None:
                agent.save(self.save_best)
        return self.stop_at is not None and result.mean >= self.stop_at


class StopOnReturn:
    """Stop where the mean return of the latest training episodes has reached `threshold`.

    Args:
        threshold: the mean undiscounted return to reach.
        episodes: how many of the latest are averaged; there must be as many.

    Raises:
        UsageError: where `episodes` is no whole number of at least 1.
    """

    def __init__(self, threshold: float, episodes: int = 100):
        if type(episodes) is not int or episodes < 1:
            raise UsageError(f"episodes is {shown(episodes)}, but must be a whole number of at least 1")
        self.threshold, self.count = threshold, episodes
        self.returns: list[float] = []

    def __call__(self, agent: Agent, metrics: dict[str, float], episodes: Episodes) -> bool:
        self.returns = [*self.returns, *episodes.returns][-self.count :]
        return len(self.returns) == self.count and sum(self.returns) / self.count >= self.threshold


class ShowProgress:
    """Show steps, speed and the mean return of the latest 100 episodes: a bar in a terminal or notebook, else lines.
    `learn(progress=True)` has one.

    Args:
        total_steps: environment steps at which the training ends.
        start: those that the agent has behind it.
    """

    def __init__(self, total_steps: int, start: int = 0):
        self.progress = Progress(total_steps, start)
        self.returns: deque[float] = deque(maxlen=100)

    def __call__(self, agent: Agent, metrics: dict[str, float], episodes: Episodes) -> None:
        self.returns.extend(episodes.returns)
        self.progress.update(
            agent.global_step, lambda: sum(self.returns) / len(self.returns) if self.returns else math.nan
        )

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.progress.close()


def one_stops(callbacks: Sequence[Callback], agent: Agent, metrics: dict[str, float], episodes: Episodes) -> bool:
    """Call all of them; whether one ends the training, in this process or in another that learns together with it."""
    stops = [callback(agent, metrics, episodes) for callback in callbacks]
    return bool(callbacks) and agent.share.any(any(stops))


def checked(callbacks: Callback | Sequence[Callback]) -> list[Callback]:
    """As a list; a UsageError where one cannot be called."""
    if not callable(callbacks) and not isinstance(callbacks, Sequence):
        raise UsageError(f"callbacks is {shown(callbacks)}, but must be a function or a list of them")
    callbacks = [callbacks] if callable(callbacks) else list(callbacks)
    for callback in callbacks:
        if not callable(callback):
            raise UsageError(
                f"callbacks has {shown(callback)}, but may only have functions of agent, metrics and episodes"
            )
    return callbacks
