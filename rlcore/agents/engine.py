"""How an agent's iterations run, where each way saves time over the one before:

    python    the agent's methods as they are written
    recorded  the operations these methods came to, run one by one without autograd and modules; no compiler is needed
    compiled  the same operations as compiled programs; on CUDA captured as graphs

The choice never changes what is computed, up to rounding. It is stored with the agent, so that a run that is resumed
goes on the way it began.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlcore.agents.config import Config, enters_programs
from rlcore.agents.setup import make_collector
from rlcore.collect import Collector, NativeCollector
from rlcore.envs.make import find_spec, native_twin
from rlcore.errors import UsageError
from rlcore.networks.torsos import is_image
from rlcore.programs.program import Program
from rlcore.programs.recording import NotRecordable, ParametersPlace
from rlcore.programs.watch import Watch, is_ours
from rlcore.spaces import map_parts
from rlcore.state import Place, module_places
from rlcore.tracing import leaves_of

if TYPE_CHECKING:
    from rlcore.agents.agent import Agent

# What Python costs per row of a rollout and per gradient step of a small network, and what recording and compiling
# cost, in seconds: orders of magnitude on the machines measured, on which nothing but the choice depends.
SECONDS_PER_ROW, SECONDS_PER_STEP = 7e-5, 7e-4
SECONDS_TO_RECORD, SECONDS_TO_COMPILE = 0.5, 25.0
WITH_MEMORY = 2  # a row and a step take four times as long where a policy remembers, and preparation twice
WORTH = 4  # times as long as the preparation is what the rest of a run must take as Python
WAYS = {
    "python": "plain Python",
    "recorded": "torch operations recorded once and run one by one, faster than plain Python",
    "compiled": "compiled programs, the fastest way",
}
FLAGS = {"python": "--compile false", "recorded": "--compile record", "compiled": "--compile true"}
RUNS = "RLCORE_RUNS"  # environment variable: how many runs will use the same programs; a bench sets it for its cells


class Engine:
    """Runs an agent's `learn_from_buffer`, and makes the programs that do it in place of Python.

    Attributes:
        how: python, recorded or compiled; None until `prepare` has chosen.
        reason: why, in words.
        program: what learns from a rollout in place of Python, once it is made.
        runs: that will use the same programs, so that each has but its share of compiling to wait for.
        seconds: what compiling took in this process; 0 from the disk cache.
    """

    def __init__(self, agent: Agent):
        self.agent = agent
        self.how, self.reason = ("python", "asked for") if agent.config.compile is False else (None, "")
        self.seconds = 0.0
        self.runs = _runs()
        self.forget()

    def forget(self) -> None:
        """The programs there are no longer fit the agent: they are made anew before the next iteration."""
        self._ready = False
        self.program: Program | None = None
        self._watch: Any = None
        self._made: dict[Any, Program] = {}
        self.agent.collector.program = None

    def go_on(self, how: str | None) -> None:
        """Run as a stored run did; None chooses anew."""
        self.forget()
        self.how, self.reason = how, "as the run began"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ready": False, "program": None, "_watch": None, "_made": {}}

    def learn(self) -> dict[str, Tensor]:
        """As `Agent.learn_from_buffer`."""
        agent = self.agent
        if self.program is not None:
            self._check_unchanged()
        if self.program is None or not agent.sampler.suffices(agent.buffer.mask):
            return agent.learn_from_buffer()
        return self.program()

    def _check_unchanged(self) -> None:
        """Go on as Python, or refuse to go on, where a program would compute with numbers of before."""
        changed = self._watch.changed()
        if changed is None:
            return
        problem = f"{changed} since the programs were made, which have it from then"
        if self.agent.config.compile not in ("auto", False):
            raise UsageError(
                f"{problem}; declare it with register(...), as a tensor or a dict of numbers, or let compile be false"
            )
        warnings.warn(f"iterations go on as Python: {problem}", stacklevel=5)
        self._take_python(problem)

    def _take_python(self, reason: str) -> None:
        self.how, self.reason, self.program = "python", reason, None
        self.agent.collector.program = None

    def prepare(self, total_steps: int) -> None:
        """Choose once, and compile where that is the choice.

        Raises:
            UsageError: where `compile` is true but this agent cannot be compiled here.
        """
        if self._ready:
            return
        start = time.perf_counter()
        self.choose(total_steps)
        if self.how != "python":
            self._prepare_programs()
        if self.agent.share.any(self.how == "python") and self.how != "python":  # or sums would not match
            self._take_python("another process cannot do otherwise")
        self._ready = True
        self.agent.seconds["prepare"] += time.perf_counter() - start

    def choose(self, total_steps: int) -> None:
        """Choose once how iterations run."""
        if self.how is None:
            self.how, self.reason = self._choose(total_steps)

    def _prepare_programs(self) -> None:
        agent, host = self.agent, self.agent.backend
        goes_native = self.how == "compiled" and self.may_go_native and agent.global_step == 0
        if goes_native:
            agent.use_backend("native")
        try:
            self._build()
        except Exception as error:  # the compiler's errors are of many kinds, and all mean the same
            what = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            problem = f"this agent could not be {self.how} ({what[:300]})"
            if agent.config.compile != "auto":
                raise UsageError(f"{problem}; compile may be false") from error
            self._take_python(problem)
            if goes_native:
                agent.use_backend(host)

    @property
    def may_go_native(self) -> bool:
        """Whether training may leave gymnasium's environments for their native twins: only these can be compiled, but
        run as Python they are slower. `agent.envs` stays what it is."""
        agent = self.agent
        asked = agent.config.backend == "auto" and isinstance(agent.env_id, str)
        asked = asked and agent.config.on_env_error == "stop"  # where a choice was made for what can fail
        return asked and native_twin(find_spec(agent.env_id), agent.env_kwargs) is not None

    def _choose(self, total_steps: int) -> tuple[str, str]:
        config = self.agent.config
        if config.compile == "auto":
            per_iteration = config.num_steps * SECONDS_PER_ROW
            per_iteration += config.update_epochs * config.num_minibatches * SECONDS_PER_STEP
            iterations = (total_steps - self.agent.global_step) / (config.num_steps * config.num_envs)
            per_iteration *= WITH_MEMORY if self.agent.buffer.sequence_length else 1
            return self._choose_fastest(iterations * per_iteration)
        how = {False: "python", "record": "recorded", True: "compiled"}[config.compile]
        obstacle = self._obstacle_to_compiling() if how == "compiled" else self._obstacle_to_recording()
        if obstacle:
            given = str(config.compile).lower()
            raise UsageError(f"compile is {given}, but {obstacle}; it may be auto or false")
        return how, "asked for"

    def _choose_fastest(self, seconds: float) -> tuple[str, str]:
        """The choice for a run that would take so many `seconds` as Python."""
        parts: Any = leaves_of(self.agent.adapter.parts)
        if any(map(is_image, parts)):
            return "python", "convolutions take the time, which gain nothing by compiling"
        if self._obstacle_to_recording():
            return "python", self._obstacle_to_recording()
        obstacle, worth_recording = self._obstacle_to_compiling(), seconds > WORTH * SECONDS_TO_RECORD
        if not obstacle and seconds * self.runs > WORTH * SECONDS_TO_COMPILE:
            long = "the run is long enough to wait for the compiler"
            return "compiled", long if self.runs == 1 else f"{self.runs} runs share them"
        alone = self.agent.share.count == 1  # since not every process may have the same cache
        if alone and not obstacle and (worth_recording or not self._has_own_code()) and self._is_cached():
            return "compiled", "built by a run before this one"
        reason = obstacle or "the run is too short to wait for the compiler"
        if self.agent.device.type == "cpu" and worth_recording:
            return "recorded", reason
        return "python", reason

    def _obstacle_to_recording(self) -> str:
        """Why operations cannot be recorded here, if so."""
        if self.agent.share.count > 1 and self.agent.buffer.sequence_length:
            return "sequences are split over processes into parts of another size each time"
        return ""

    def _obstacle_to_compiling(self) -> str:
        """Why recorded operations cannot be compiled here, if so."""
        if self._obstacle_to_recording():
            return self._obstacle_to_recording()
        if self.agent.device.type == "cuda" and self.agent.config.whole_episodes:
            return "whole episodes have another shape in each iteration, which a CUDA graph cannot follow"
        if self.agent.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            return "there is no C++ compiler (g++)"
        return ""

    # Programs.

    def _has_own_code(self) -> bool:
        """Whether code from outside this package takes part: only what was recorded tells one version of it from the
        next."""
        agent = self.agent
        modules = [m for module in agent.state.modules().values() for m in module.modules()]
        kinds = {type(x) for x in (agent, *modules, getattr(agent.collector, "task", agent))}
        replaced = any(
            callable(getattr(type(agent), name, None)) for name in vars(agent)
        )  # methods, in this agent alone
        return replaced or not all(is_ours(base.__module__) for kind in kinds for base in kind.__mro__)

    def key(self, part: str) -> dict[str, Any] | None:
        """All that a program depends on beside its places; None where only its recording can tell."""
        if self._has_own_code():
            return None
        agent = self.agent
        config = _in_programs(agent.config)
        spaces = str(agent.adapter.observation_space), str(agent.envs.single_action_space)
        algorithm = type(agent).__qualname__
        env = {"env": agent.env_id, "env_kwargs": agent.env_kwargs, "spaces": spaces}
        key = {"part": part, "algo": algorithm, **env, "config": config}
        model = agent.reward_model_config
        return key if model is None else {**key, "reward_model": _in_programs(model)}

    def _is_cached(self) -> bool:
        """Whether the disk cache has every program of this agent."""
        agent = self.agent
        if agent.device.type != "cpu":
            return False
        leaves_host = self.may_go_native and agent.backend != "native"
        try:
            learning = self.learning().is_cached(self.key("learn"))
            collector = make_collector(agent, "native") if leaves_host else agent.collector
            return learning and (not collector.plays or self.collecting(collector).is_cached(self.key("collect")))
        except NotRecordable:
            return False

    def _build(self) -> None:
        agent, compiled = self.agent, self.how == "compiled"
        was_cached, start = compiled and self._is_cached(), time.perf_counter()
        learning = self.learning()
        learning.prepare(self.key("learn"), compiled and agent.share.count == 1)  # compiled code adds up no ranks
        if agent.collector.plays:
            agent.collector.program = self.collecting(agent.collector)
            agent.collector.program.prepare(self.key("collect"), compiled)
        self.program = learning
        self._watch = Watch(agent, learning.reads, agent.state.modules(), {*agent.state.names, "draws"})
        self.seconds = time.perf_counter() - start if compiled and not was_cached else 0.0

    def learning(self) -> Program:
        """What learns from a rollout; recorded at most once."""
        if "learn" in self._made:
            return self._made["learn"]
        agent = self.agent

        def places() -> list[Place]:
            if not agent.draws:
                agent.draws.update(agent.sampler.example(agent.buffer.mask))
            draws = [Place(f"draws.{name}", agent.draws, name) for name in agent.draws]
            return [*self._state(), *agent.buffer.places(), *draws]

        free = {f"draws.{name}": dims for name, dims in agent.sampler.free_sizes().items()}
        self._made["learn"] = Program(agent.learn_from_buffer, places, owner=agent, free=free)
        return self._made["learn"]

    def collecting(self, collector: Collector) -> Program:
        """What collects a rollout: all of it from native environments, one action at a time from others; recorded at
        most once."""
        if collector not in self._made:
            self._made[collector] = self._make_collecting(collector)
        return self._made[collector]

    def _make_collecting(self, collector: Collector) -> Program:
        agent = self.agent
        if isinstance(collector, NativeCollector):
            collector.begin_example(agent.network)

            def places() -> list[Place]:
                return [*self._state(), *agent.buffer.places(), *collector.places()]

            # A row is put together by one kernel, instead of by many that each write their part of it. What loops over
            # sequences give back must not be written over: torch 2.13 then declares its room twice.
            options = {"force_pointwise_cat": True, "inplace_buffers": not agent.buffer.sequence_length}
            return Program(collector.rollout, places, owner=agent, options=options)
        obs, noise = map_parts(lambda x: x[0], agent.buffer.obs), collector.noise[0]
        carry = agent.network.initial_carry(agent.buffer.num_envs)
        memory = [carry, agent.buffer.dones[0]] if carry else []

        @torch.no_grad()
        def act(obs: Any, noise: Tensor, carry: Any = None, first: Any = None) -> Any:
            return agent.network.act(obs, carry or {}, first, noise, collector.with_values)

        return Program(act, lambda: module_places(agent.network, "network"), (obs, noise, *memory), agent)

    def _state(self) -> list[Place]:
        """Places of all that is registered, the parameters as one vector."""
        parameters = self.agent.parameters
        return [ParametersPlace(parameters), *self.agent.state.places(skip=list(parameters))]

    def describe(self) -> str:
        """One line for the run's first lines: the way, the flag that asks for it, and why."""
        count, how = self.agent.share.count, self.how or "compiled"
        way = "a compiled rollout, learning by recorded operations" if how == "compiled" and count > 1 else WAYS[how]
        told = f"iterations: {way} ({FLAGS[how]}); {self.reason}"
        if count > 1:
            told += f"; over {count} processes, {self.agent.buffer.num_envs} environments each"
        is_built = how == "compiled" and self.seconds
        return f"{told}; built in {self.seconds:.0f} s, cached for next time" if is_built else told


def _runs() -> int:
    """Those that the environment variable says, 1 where it says none."""
    text = os.environ.get(RUNS, "")
    return max(int(text), 1) if text.isdecimal() else 1


def _in_programs(config: Config) -> dict[str, Any]:
    """The values for which a program is made."""
    return {name: getattr(config, name) for name in enters_programs(type(config))}
