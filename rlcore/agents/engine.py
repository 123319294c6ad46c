"""How an agent's iterations run: as Python, or as compiled programs where that saves time.

The choice never changes what is computed, up to rounding. It is stored with the agent, so that a run that is resumed
goes on the way it began.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import time
import uuid
from collections.abc import Callable
from typing import Any

from torch import Tensor

from rlcore.collect import Collector
from rlcore.envs.native import find_native
from rlcore.errors import UsageError
from rlcore.frames import FrameStacks
from rlcore.learning import Learner
from rlcore.rollout import NativeCollector
from rlcore.spaces import Part
from rlcore.torsos import is_image

# What Python costs per row of a rollout and per gradient step of a small network, and what compiling costs, in seconds:
# orders of magnitude on the machines measured, on which nothing but the choice depends.
SECONDS_PER_ROW, SECONDS_PER_STEP, SECONDS_TO_COMPILE = 7e-5, 7e-4, 25.0
NOT_IN_PROGRAMS = ("seed", "learning_rate", "anneal_lr", "compile", "device", "backend", "reference", "reference_every")


def make_collector(agent: Any) -> Collector | NativeCollector:
    """The collector for the agent's environments."""
    if agent.backend == "native":
        return make_native_collector(agent)
    return Collector(agent.adapter, agent.buffer, agent.generator, *_collector_options(agent))


def make_native_collector(agent: Any) -> NativeCollector:
    """A collector of the environment's native twin."""
    task = find_native(agent.env_id)
    return NativeCollector(task, agent.adapter, agent.buffer, agent.generator, *_collector_options(agent))


def _collector_options(agent: Any) -> tuple[bool, bool, float]:
    return agent.config.whole_episodes, agent.needs_values, agent.config.noise_correlation


class Engine:
    """Runs the two halves of an iteration, `collect` and `learn`.

    Attributes:
        compiled: whether they are compiled programs; None until `prepare` has chosen.
        reason: why, in words.
        seconds: what compiling took in this process; 0 from the disk cache.
    """

    def __init__(self, agent: Any, custom_torso: bool):
        self.agent, self.custom_torso = agent, custom_torso
        self.compiled: bool | None = None
        self.reason = ""
        self.seconds = 0.0
        self.learn: Callable[[], dict[str, Tensor]] = agent.learn_from_buffer
        self._ready = False

    @functools.cached_property
    def _learner(self) -> Learner:
        """Made when first asked for: what an algorithm adds to an agent is then there."""
        return Learner(self.agent)

    def prepare(self, total_steps: int) -> None:
        """Choose once, and compile where that is the choice.

        Raises:
            UsageError: where `compile` is true but this agent cannot be compiled here.
        """
        if self._ready:
            return
        if self.compiled is None:
            self.compiled, self.reason = self._choose(total_steps)
        if self.compiled:
            if self.may_go_native and self.agent.global_step == 0:
                self.agent.use_backend("native")
            self._build()
        self._ready = True

    @property
    def may_go_native(self) -> bool:
        """Whether training may leave gymnasium's environments for their native twins: only these can be compiled, but
        run as Python they are slower. `agent.envs` stays what it is."""
        agent = self.agent
        asked = agent.config.backend == "auto" and isinstance(agent.env_id, str) and not agent.env_kwargs
        return asked and find_native(agent.env_id) is not None

    def _choose(self, total_steps: int) -> tuple[bool, str]:
        asked, obstacle = self.agent.config.compile, self._obstacle()
        if asked is False:
            return False, "not asked for"
        if obstacle:
            if asked is True:
                raise UsageError(f"compile is true, but {obstacle}; it may be auto or false")
            return False, obstacle
        if asked is True:
            return True, "asked for"
        if self._was_cached:
            return True, "built before"
        if self._python_seconds(total_steps - self.agent.global_step) > 4 * SECONDS_TO_COMPILE:
            return True, "the run is long"
        return False, "the run is too short to wait for the compiler"

    def _obstacle(self) -> str:
        """Why this agent cannot be compiled, if so."""
        config = self.agent.config
        if config.target_kl is not None and self.agent.stops_early:
            return "target_kl ends epochs by a look at the data"
        if self.agent.device.type == "cuda" and config.whole_episodes:
            return "whole episodes have another shape in each iteration, which a CUDA graph cannot follow"
        if isinstance(self.agent.buffer.obs, FrameStacks):
            return "frames are stored once, which programs do not know"
        if any(map(is_image, self._parts())) and config.compile is not True:
            return "convolutions take the time, and they gain nothing"
        if self.custom_torso and config.compile is not True:
            return "a torso of one's own would be compiled anew in each process"
        if self.agent.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            return "there is no C++ compiler (g++)"
        return ""

    def _parts(self) -> list[Part]:
        parts = self.agent.adapter.parts
        return list(parts.values()) if isinstance(parts, dict) else [parts]

    def _python_seconds(self, steps: int) -> float:
        """What the rest of the run would take without compiling."""
        config = self.agent.config
        per_iteration = config.num_steps * SECONDS_PER_ROW
        per_iteration += config.update_epochs * config.num_minibatches * SECONDS_PER_STEP
        return steps / (config.num_steps * config.num_envs) * per_iteration

    def _key(self) -> dict[str, Any]:
        config = {k: v for k, v in dataclasses.asdict(self.agent.config).items() if k not in NOT_IN_PROGRAMS}
        agent = self.agent
        spaces = str(agent.envs.single_observation_space), str(agent.envs.single_action_space)
        own = {"torso": uuid.uuid4().hex} if self.custom_torso else {}
        return {"algo": type(agent).__qualname__, "env": agent.env_id, "spaces": spaces, "config": config, **own}

    @functools.cached_property
    def _was_cached(self) -> bool:
        """Whether the disk cache has every program of this agent, as first asked, which is before any is built."""
        if self.custom_torso or self.agent.device.type != "cpu":
            return False
        key, agent = self._key(), self.agent
        if not self._learner.is_cached(key):
            return False
        if agent.backend == "native":
            return agent.collector.is_cached(agent.network, key)
        return not self.may_go_native or make_native_collector(agent).is_cached(agent.network, key)

    def _build(self) -> None:
        was_cached = self._was_cached
        start, key = time.perf_counter(), self._key()
        try:
            self._learner.build(key)
            if self.agent.backend == "native":
                self.agent.collector.build(self.agent.network, key)
        except Exception as error:  # the compiler's errors are of many kinds, and all mean the same
            what = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UsageError(f"this agent could not be compiled ({what[:200]}); compile may be false") from error
        self.learn = self._learner.learn_from_buffer
        self.seconds = 0.0 if was_cached else time.perf_counter() - start

    def describe(self) -> str:
        """One line for the run's first lines."""
        if not self.compiled:
            return f"iterations run as Python: {self.reason}"
        return f"iterations are compiled programs: {self.reason}" + (
            f"; built in {self.seconds:.0f} s, kept for the next run" if self.seconds else ""
        )
