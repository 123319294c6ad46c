"""How an agent's iterations run, where each way saves time over the one before:

    python    the agent's methods as they are written
    recorded  the operations these methods came to, run one by one without autograd and modules; no compiler is needed
    compiled  the same operations as compiled programs; on CUDA captured as graphs

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

from rlcore.agents.config import choice_word
from rlcore.collect import Collector
from rlcore.envs.make import find_spec, native_twin
from rlcore.envs.native import find_native
from rlcore.errors import UsageError
from rlcore.envs.frames import FrameStacks
from rlcore.programs.learning import Learner
from rlcore.programs.rollout import NativeCollector
from rlcore.spaces import Part
from rlcore.networks.torsos import is_image

WAYS = ("python", "recorded", "compiled")
# What Python costs per row of a rollout and per gradient step of a small network, and what recording and compiling
# cost, in seconds: orders of magnitude on the machines measured, on which nothing but the choice depends.
SECONDS_PER_ROW, SECONDS_PER_STEP = 7e-5, 7e-4
SECONDS_TO_RECORD, SECONDS_TO_COMPILE = 0.5, 25.0
WORTH = 4  # times as long as the preparation is what the rest of a run must take as Python
NOT_IN_PROGRAMS = (
    "seed", "learning_rate", "anneal_lr", "compile", "device", "backend", "reference", "reference_every",
    "env_timeout", "on_env_error",
)  # fmt: skip


def make_collector(agent: Any) -> Collector | NativeCollector:
    """The collector for the agent's environments."""
    if agent.backend == "native":
        return make_native_collector(agent)
    group_size = agent.config.group_size if agent.group_starts else 1
    options = *_collector_options(agent), group_size, agent.config.seed
    return Collector(agent.adapter, agent.buffer, agent.generator, *options)


def make_native_collector(agent: Any) -> NativeCollector:
    """A collector of the environment's native twin."""
    task = find_native(find_spec(agent.env_id).id)
    return NativeCollector(task, agent.adapter, agent.buffer, agent.generator, *_collector_options(agent))


def _collector_options(agent: Any) -> tuple[bool, bool, float]:
    return agent.config.whole_episodes, agent.needs_values, agent.config.noise_correlation


class Engine:
    """Runs the two halves of an iteration, `collect` and `learn`.

    Attributes:
        how: python, recorded or compiled; None until `prepare` has chosen.
        reason: why, in words.
        seconds: what compiling took in this process; 0 from the disk cache.
    """

    def __init__(self, agent: Any, custom_torso: bool):
        self.agent, self.custom_torso = agent, custom_torso
        self.how: str | None = None
        self.reason = ""
        self.seconds = 0.0
        self.learn: Callable[[], dict[str, Tensor]] = agent.learn_from_buffer
        self._ready = False

    @property
    def own_code(self) -> bool:
        """Whether code from outside this package takes part: the names under which programs are kept would not tell
        one version of it from the next."""
        return self.custom_torso or _has_own_code(self.agent)

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
        if self.how is None:
            self.how, self.reason = self._choose(total_steps)
        if self.how != "python":
            self._prepare_programs()
        self._ready = True

    def _prepare_programs(self) -> None:
        agent, host = self.agent, self.agent.backend
        goes_native = self.how == "compiled" and self.may_go_native and agent.global_step == 0
        if goes_native:
            agent.use_backend("native")
        try:
            self._build()
        except Exception as error:  # the compiler's errors are of many kinds, and all mean the same
            what = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            problem = f"this agent could not be {self.how} ({what[:200]})"
            if agent.config.compile != "auto":
                raise UsageError(f"{problem}; compile may be false") from error
            self.how, self.reason = "python", problem
            if goes_native:
                agent.use_backend(host)

    @property
    def may_go_native(self) -> bool:
        """Whether training may leave gymnasium's environments for their native twins: only these can be compiled, but
        run as Python they are slower. `agent.envs` stays what it is."""
        agent = self.agent
        asked = agent.config.backend == "auto" and isinstance(agent.env_id, str) and not agent.env_kwargs
        asked = asked and agent.config.on_env_error == "stop"  # where a choice was made for what can fail
        return asked and native_twin(find_spec(agent.env_id)) is not None

    def _choose(self, total_steps: int) -> tuple[str, str]:
        asked, seconds = self.agent.config.compile, self._python_seconds(total_steps - self.agent.global_step)
        if asked is False:
            return "python", "asked for"
        if asked == "auto":
            return self._choose_fastest(seconds)
        how = "recorded" if asked == "record" else "compiled"
        obstacle = self._obstacle() or (self._obstacle_to_compiling() if how == "compiled" else "")
        if obstacle:
            raise UsageError(f"compile is {choice_word(asked)}, but {obstacle}; it may be auto or false")
        return how, "asked for"

    def _choose_fastest(self, seconds: float) -> tuple[str, str]:
        """The choice for a run that would take so many `seconds` as Python."""
        obstacle = self._obstacle() or self._not_worth_it()
        if obstacle:
            return "python", obstacle
        obstacle = self._obstacle_to_compiling()
        if not obstacle and self._was_cached:
            return "compiled", "built before"
        if not obstacle and seconds > WORTH * SECONDS_TO_COMPILE:
            return "compiled", "the run is long"
        reason = obstacle or "the run is too short to wait for the compiler"
        if self.agent.device.type == "cpu" and seconds > WORTH * SECONDS_TO_RECORD:
            return "recorded", reason
        return "python", reason

    def _obstacle(self) -> str:
        """Why this agent's operations cannot be recorded, if so."""
        if isinstance(self.agent.buffer.obs, FrameStacks):
            return "frames are stored once, which programs do not know"
        return ""

    def _obstacle_to_compiling(self) -> str:
        """Why recorded operations cannot be compiled here, if so."""
        if self.agent.device.type == "cuda" and self.agent.config.whole_episodes:
            return "whole episodes have another shape in each iteration, which a CUDA graph cannot follow"
        if self.agent.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            return "there is no C++ compiler (g++)"
        return ""

    def _not_worth_it(self) -> str:
        """Why this agent is better left as Python unless something else is asked for, if so."""
        if any(map(is_image, self._parts())):
            return "convolutions take the time, and they gain nothing"
        if self.own_code:
            return "an agent or torso of one's own may do what a recording does not see"
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
        own = {"own_code": uuid.uuid4().hex} if self.own_code else {}
        return {"algo": type(agent).__qualname__, "env": agent.env_id, "spaces": spaces, "config": config, **own}

    @functools.cached_property
    def _was_cached(self) -> bool:
        """Whether the disk cache has every program of this agent, as first asked, which is before any is built."""
        if self.own_code or self.agent.device.type != "cpu":
            return False
        key, agent = self._key(), self.agent
        leaves_host = self.may_go_native and agent.backend != "native"
        collector = make_native_collector(agent) if leaves_host else agent.collector
        return self._learner.is_cached(key) and collector.is_cached(agent.network, key)

    def _build(self) -> None:
        compiled = self.how == "compiled"
        was_cached = compiled and self._was_cached
        start, key = time.perf_counter(), self._key()
        self._learner.build(key, compiled)
        self.agent.collector.build(self.agent.network, key, compiled)
        self.learn = self._learner.learn_from_buffer
        self.seconds = time.perf_counter() - start if compiled and not was_cached else 0.0

    def describe(self) -> str:
        """One line for the run's first lines."""
        if self.how == "python":
            return f"iterations run as Python: {self.reason}"
        if self.how == "recorded":
            return f"iterations are recorded operations, run one by one: {self.reason}"
        kept = "" if self.own_code else ", kept for the next run"
        return f"iterations are compiled programs: {self.reason}" + (
            f"; built in {self.seconds:.0f} s{kept}" if self.seconds else ""
        )


def _has_own_code(agent: Any) -> bool:
    """Whether the agent's class, or a method put on it, is from outside this package."""
    foreign = any(base.__module__.partition(".")[0] != "rlcore" for base in type(agent).__mro__[:-1])
    return foreign or any(callable(value) and hasattr(type(agent), name) for name, value in vars(agent).items())
