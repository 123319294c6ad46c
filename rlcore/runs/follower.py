"""A training run as ranks other than the first take part in it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Self

from rlcore.agents import Agent, load
from rlcore.runs.train import TERMINATED, Course, Interrupted, StopSignals
from rlcore.tracing import share


class Follower(Course):
    """Has the face of `Run`, learns along, and writes nothing: rank 0 does."""

    def __init__(self, agent: Agent, settings: dict[str, Any], resumed: bool):
        self.agent, self.settings = agent, settings
        self.total_steps, self.checkpoint_every = settings["total_steps"], settings["checkpoint_every"]
        self.last_checkpoint = agent.global_step if resumed else -1

    @classmethod
    def start(cls, agent: Agent, settings: dict[str, Any]) -> Self:
        """As `Run.start`, without a folder."""
        run = cls(agent, settings, resumed=False)
        run.checkpoint()
        return run

    @classmethod
    def resume(cls, env_kwargs: dict[str, Any] | None = None, **overrides: Any) -> Self:
        """As `Run.resume`, from what rank 0 found in its folder, which need not be there on this machine."""
        settings, edited, checkpoint = share().broadcast(None)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "checkpoint.pt")
            file.write_bytes(checkpoint)
            overrides |= {"env_kwargs": env_kwargs} if env_kwargs else {}
            return cls(load(file, **{**edited, **overrides}), settings, resumed=True)

    def checkpoint(self) -> None:
        """Hand over what this rank has of the state."""
        self.agent.save("", {})
        self.last_checkpoint = self.agent.global_step
        self.begin_anew_where_not_stored()

    def train(self) -> None:
        """Train to the end, as `Run.train`."""
        if self.is_complete:
            return
        step = self.agent.global_step
        with StopSignals() as stop:
            for _ in self.agent.iterations(self.total_steps):
                before, step = step, self.agent.global_step
                if self.is_due(before, step):
                    self.checkpoint()
                if self.must_stop(stop):
                    self.checkpoint()
                    raise Interrupted(f"stopped at step {step:,}", stop.code or TERMINATED)
        if self.last_checkpoint != step:
            self.checkpoint()

    def close(self) -> None:
        """As `Run.close`: there is no folder to give up."""
