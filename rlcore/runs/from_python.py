"""Runs for those who train from Python."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rlcore.agents import Agent
from rlcore.agents.callbacks import Callback, checked
from rlcore.errors import UsageError
from rlcore.runs.settings import EVAL_EPISODES
from rlcore.runs.train import Run, checkpoint_interval


def train(
    agent: Agent,
    total_steps: int,
    run_dir: str | Path,
    callbacks: Callback | Sequence[Callback] = (),
    progress: bool = True,
    eval_episodes: int = EVAL_EPISODES,
) -> Agent:
    """Train an agent into a run folder, as `rlcore train` does: config, checkpoints, curves, episodes, evaluation.

    Args:
        agent: made from an environment's id.
        total_steps: environment steps, over all environments, at which the run ends.
        run_dir: a folder that does not exist yet, or is empty.
        callbacks: as `Agent.learn` takes them.
        progress: whether to show it: a bar in a terminal or notebook, else plain lines.
        eval_episodes: greedy episodes of the final evaluation, 0 for none.

    Raises:
        UsageError: where the folder is taken, or the agent was given a VectorEnv, which no run can make again.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved, and `rlcore train --resume` goes on.
    """
    if agent.env_id is None:
        raise UsageError("run_dir is for an agent that was given an environment id; this one was given a VectorEnv")
    settings = {
        "algo": type(agent).__name__.lower(), "env_id": agent.env_id, "env_kwargs": agent.env_kwargs,
        "preset": agent.preset, "total_steps": total_steps, "checkpoint_every": checkpoint_interval(total_steps),
        "eval_episodes": eval_episodes,
    }  # fmt: skip
    with contextlib.closing(Run.start(run_dir, agent, settings)) as run:
        run.callbacks = checked(callbacks)
        run.train(progress)
        if eval_episodes:
            run.evaluate(eval_episodes)
    return agent
