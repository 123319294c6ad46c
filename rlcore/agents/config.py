"""Hyperparameters: frozen dataclasses, checked by name, type and range, documented by the comment beside each field."""

import dataclasses
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from rlcore.errors import UsageError, did_you_mean, shown
from rlcore.networks.torsos import TorsoName

BackendName = Literal["auto", "native", "sync", "async", "vector", "envpool"]
WAYS = ("python", "recorded", "compiled")  # to run iterations, see rlcore/agents/engine.py
CompileChoice = Literal["auto", True, "record", False]
OnEnvError = Literal["stop", "restart"]


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, inclusive; with `closed=False`, `low` itself is not allowed. Written beside the type:
    `Annotated[float, Range(0, 1)]`. Of a tuple, it is that of each number."""

    low: float
    high: float = math.inf
    closed: bool = True


@dataclass(frozen=True)
class Search:
    """What `rlcore tune` tries of a field: one of `choices`, or a number from `low` to `high`, evenly over its
    logarithm with `log`; nothing of either: the field is not searched. Written beside the type, as `Range` is. With
    `box_only`, only where the action space is a Box."""

    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    box_only: bool = False


T = TypeVar("T")
_cached: Callable[[T], T] = functools.cache  # type: ignore[assignment]  # a class is no Hashable to mypy

MOST = 2**31 - 1  # of what is counted; sizes made from two such counts are still whole numbers to torch
Count = Annotated[int, Range(1, MOST)]  # 1, 2, 3, ...
Count0 = Annotated[int, Range(0, MOST)]  # 0, 1, 2, ...
From0 = Annotated[float, Range(0)]  # a finite number of at least 0
Above0 = Annotated[float, Range(0, closed=False)]  # a finite number of more than 0
Unit = Annotated[float, Range(0, 1)]  # a number from 0 to 1
Below1 = Annotated[float, Range(0, 0.9999)]  # a number from 0 to less than 1

NETWORK = (
    "hidden_sizes", "activation", "torso", "shared", "memory", "memory_size", "memory_context", "log_std_init",
    "state_dependent_std", "squash", "mask_actions", "norm_obs", "precision",
)  # fmt: skip  # hyperparameters that say what network is made
# In which group `rlcore train ALGO --help` tells of them; what no group names, such as what an agent adds, is of the
# algorithm.
GROUPS = {
    "run": ("seed", "init"),
    "environment": (
        "num_envs", "num_steps", "whole_episodes", "mask_actions", "norm_obs", "norm_reward", "clip_reward",
        "env_timeout", "on_env_error",
    ),
    "algorithm": (),
    "network": (
        "hidden_sizes", "activation", "torso", "shared", "memory", "memory_size", "memory_context", "sequence_length",
        "log_std_init", "state_dependent_std", "squash", "noise_correlation",
    ),
    "learned rewards": (
        "reward_model", "reward_std_coef", "comparisons", "reward_kl_coef", "reward_kl_target", "reward_kl_estimator",
        "reference",
    ),
    "speed": ("backend", "compile", "device", "precision"),
}  # fmt: skip
# What --help tells of, while --help-all tells of all: as many as fit a screen, of which these come first; of an agent
# that is not of rlcore, what it declares itself before them.
FIRST = (
    "seed", "num_envs", "num_steps", "learning_rate", "gamma", "device", "compile", "hidden_sizes", "variant",
    "group_size", "max_kl", "psi", "demonstrations", "preferences", "beta", "ensemble", "gae_lambda", "clip_coef",
    "ent_coef", "update_epochs", "num_minibatches", "norm_obs", "norm_reward", "memory", "backend",
)  # fmt: skip
MOST_FIRST = 17
APART = "apart from programs"  # the mark of a field that does not enter them: a program is the same for all its values
Apart = Annotated[T, APART]  # a T that does not enter programs: Apart[bool] is a bool so marked
Seed = Annotated[int, Range(0, 2**63 - 1), APART]  # what generators can be seeded with
Timeout = Annotated[float, Range(0, closed=False), APART]  # seconds
Lambda = Annotated[Unit, Search((0.8, 0.9, 0.95, 0.98, 1.0))]  # λ of GAE
Switch = Annotated[bool, Search((False, True))]  # a bool of which a search tries both
BoxSwitch = Annotated[bool, Search((False, True), box_only=True)]


@dataclass(frozen=True)
class Config:
    """What every agent has; each algorithm adds its own and sets other defaults."""

    critic_updates: ClassVar[int] = 0  # steps of the critic apart from the policy's
    target_kl: ClassVar[float | None] = None  # for agents whose epochs can stop early
    group_size: ClassVar[int]  # of agents whose environments start alike
    demonstrations: ClassVar[str | None]  # of agents that imitate
    preferences: ClassVar[str | None]  # of agents that learn from pairs
    held_out: ClassVar[float]  # of these too

    num_envs: Count = 4  # N, environments stepped in parallel
    num_steps: Count | None = 128  # T, steps of each environment per rollout; none: the environment's time limit
    whole_episodes: bool = False  # rollouts of one whole episode of each environment instead of segments
    optimizer: Literal["adam", "rmsprop"] = "adam"  # what turns gradients into steps
    learning_rate: Apart[Annotated[From0, Search(low=1e-4, high=2e-2, log=True)]] = 2.5e-4  # step size of the optimiser
    anneal_lr: Apart[bool] = True  # lower the learning rate linearly to 0 over the run
    optimizer_eps: Above0 = 1e-5  # ε in the denominator of the optimiser's step
    rmsprop_alpha: Unit = 0.99  # decay of RMSprop's mean square
    gamma: Annotated[Unit, Search((0.9, 0.95, 0.98, 0.99, 0.999))] = 0.99  # γ, discount
    num_minibatches: Count = 1  # parts into which a rollout is split for the updates
    update_epochs: Count = 1  # times each rollout is gone through
    max_grad_norm: Above0 | None = 0.5  # longest gradient (Euclidean norm); longer ones are scaled down; none: no limit
    hidden_sizes: tuple[Annotated[int, Range(1, 2**20)], ...] = (64, 64)  # widths of the MLP torso
    activation: Annotated[Literal["tanh", "relu", "elu", "gelu", "silu"], Search(("tanh", "relu"))] = (
        "tanh"  # of the MLP torso
    )
    torso: TorsoName = "auto"  # mlp, nature or impala (convolutions); auto: nature for images, mlp for all else
    shared: bool | None = None  # one torso for actor and critic instead of one each; none: for images where possible
    memory: Literal["gru", "lstm", "transformer"] | None = None  # a memory: gru, lstm, transformer; none: no memory
    memory_size: Count = 64  # units of the memory, the transformer's width
    memory_context: Count = 64  # observations that a transformer looks back upon
    sequence_length: Count | None = None  # L, steps through which a memory's gradients go; must divide T; none: T
    log_std_init: Annotated[float, Range(-20, 2), Search((-1.0, 0.0, 0.7), box_only=True)] = (
        0.0  # initial log standard deviation of Gaussian policies
    )
    noise_correlation: Annotated[Below1, Search((0.0, 0.6, 0.9, 0.98), box_only=True)] = (
        0.0  # ρ, correlation of Gaussian action noise with that of the step before; 0 is white
    )
    state_dependent_std: bool = False  # log standard deviation from the network instead of free parameters
    squash: BoxSwitch = False  # map Box actions into their bounds by tanh instead of clipping them
    mask_actions: bool | None = None  # keep to actions that masks allow; none: where observation or method gives masks
    norm_obs: Switch = False  # normalise observations; by running mean and variance
    clip_reward: bool = False  # learn from the sign of rewards; reported returns are of the rewards as they are
    norm_reward: Switch = False  # divide rewards by a running deviation; that of the discounted return
    reward_model: Apart[str | None] = None  # run folder or checkpoint of a reward model, whose rewards are learned from
    reward_std_coef: From0 = 0.0  # its rewards less so many standard deviations of what the members of its ensemble say
    comparisons: Apart[Count0] = 0  # pairs of segments that an oracle judges on the way, for the reward model to learn
    reward_kl_coef: From0 = 0.0  # β: each reward less β times the KL to the reference policy at that step
    reward_kl_target: Above0 | None = None  # KL per episode, in nats, that β is adapted to; none: β stays
    reward_kl_estimator: Literal["k1", "k2", "k3"] = "k1"  # of that KL at the actions taken
    reference: Apart[str] = "initial"  # the policy at the start of the run, or a run folder or checkpoint
    backend: Apart[BackendName] = "auto"  # how the environments are stepped; see make_vec
    env_timeout: Timeout | None = 300.0  # seconds that a step or reset of async environments may take; none: no limit
    on_env_error: Apart[OnEnvError] = "stop"  # an environment raises, dies, hangs or gives NaN: begin it anew?
    compile: Apart[CompileChoice] = "auto"  # how iterations run: true (compiled), record, false (Python), auto
    precision: Literal["float32", "bfloat16"] = "float32"  # of the torsos' arithmetic; bfloat16 is for CUDA
    device: Apart[str] = "auto"  # cpu, cuda, cuda:K or auto; auto: cuda where there is one
    init: Apart[str | None] = None  # run folder or checkpoint whose network training begins with; none: a new one
    seed: Seed | None = None  # of weights, actions and all else drawn; none: a new one, stored with the run

    def __post_init__(self) -> None:
        kinds, marks = field_types(type(self)), field_metadata(type(self))
        for field in dataclasses.fields(self):
            value = check_type(field.name, getattr(self, field.name), kinds[field.name])
            object.__setattr__(self, field.name, value)
            for mark in marks[field.name]:
                if isinstance(mark, Range):
                    check_range(field.name, value, mark)
        self.check()

    @classmethod
    def implied(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values that others imply where they are not given themselves; a named variant is such a bundle."""
        return {}

    def check(self) -> None:
        """Refuse combinations of values; an algorithm adds its own."""
        if self.num_steps is None or self.whole_episodes:
            return
        batch = self.num_envs * self.num_steps
        if batch % self.num_minibatches:
            product = f"num_envs × num_steps = {self.num_envs} × {self.num_steps} = {batch}"
            raise UsageError(f"num_minibatches is {self.num_minibatches}, but must divide {product}")


def make_config(config_class: type[Config], values: dict[str, Any]) -> Config:
    """A config from keyword arguments; an unknown name is refused with the nearest one."""
    check_names(config_class, values)
    return config_class(**{**config_class.implied(values), **values})


def check_names(config_class: type[Config], names: typing.Iterable[str]) -> None:
    """Refuse a name that is no hyperparameter of this agent, with the nearest one that is."""
    known = [field.name for field in dataclasses.fields(config_class)]
    for name in names:
        if name not in known:
            algorithm = config_class.__name__.removesuffix("Config")
            raise UsageError(f"'{name}' is not a hyperparameter of {algorithm}{did_you_mean(name, known)}")


@_cached
def field_types(config_class: type[Config]) -> dict[str, Any]:
    """The resolved type of each field, without its range and marks."""
    kinds = typing.get_type_hints(config_class)
    return {field.name: kinds[field.name] for field in dataclasses.fields(config_class)}


@_cached
def field_metadata(config_class: type[Config]) -> dict[str, tuple[Any, ...]]:
    """What is declared of each field beside its type: its range, that it stands apart from programs, and what a search
    tries of it. Where a class declares a field anew, its `Search` takes the place of the one before, and its other
    marks that of the others; without either, those before stay."""
    declared: dict[str, tuple[Any, ...]] = {}
    searched: dict[str, tuple[Any, ...]] = {}
    for cls in reversed(config_class.__mro__):
        kinds = typing.get_type_hints(cls, include_extras=True)
        for name in inspect.get_annotations(cls):
            marks = _metadata(kinds[name])
            searches = tuple(mark for mark in marks if isinstance(mark, Search))
            others = tuple(mark for mark in marks if not isinstance(mark, Search))
            searched |= {name: searches} if searches else {}
            declared |= {name: others} if others else {}
    return {name: declared.get(name, ()) + searched.get(name, ()) for name in field_types(config_class)}


def grouped(config_class: type[Config]) -> dict[str, list[str]]:
    """The fields by the groups that help has, each in the order in which they are declared."""
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for field in dataclasses.fields(config_class):
        groups[group_of.get(field.name, "algorithm")].append(field.name)
    return {group: names for group, names in groups.items() if names}


def told_first(config_class: type[Config]) -> set[str]:
    """The fields that help tells of where not all is asked for."""
    names = [field.name for field in dataclasses.fields(config_class)]
    foreign = [cls for cls in config_class.__mro__ if cls.__module__.partition(".")[0] not in ("rlcore", "builtins")]
    own = [name for name in names if any(name in inspect.get_annotations(cls) for cls in foreign)]
    by_rank = dict.fromkeys([*own, *(name for name in FIRST if name in names)])
    return set(list(by_rank)[:MOST_FIRST])


def search_space(config_class: type[Config]) -> dict[str, Search]:
    """The fields that a search tries, and what of them."""
    marks = field_metadata(config_class).items()
    found = {name: mark for name, of_field in marks for mark in of_field if isinstance(mark, Search)}
    return {name: mark for name, mark in found.items() if mark.choices or mark.low is not None}


def _metadata(kind: Any) -> tuple[Any, ...]:
    """What `Annotated` adds to a type or to parts of it, as in `Count | None`."""
    inner = (mark for part in typing.get_args(kind) for mark in _metadata(part))
    return (*getattr(kind, "__metadata__", ()), *inner)


def enters_programs(config_class: type[Config]) -> list[str]:
    """The fields for whose values a program is made; it is another one for other values."""
    marks = field_metadata(config_class)
    return [field.name for field in dataclasses.fields(config_class) if APART not in marks[field.name]]


def is_optional(kind: Any) -> bool:
    """Whether None is allowed."""
    return types.NoneType in typing.get_args(kind)


def inner_type(kind: Any) -> Any:
    """The type without its None."""
    return next(a for a in typing.get_args(kind) if a is not types.NoneType) if is_optional(kind) else kind


def check_type(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type (a list as tuple, a whole number as float), or a UsageError."""
    if value is None and is_optional(kind):
        return None
    base = inner_type(kind)
    if typing.get_origin(base) is Literal:
        choices = typing.get_args(base)
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        words = [choice_word(choice) for choice in choices]
        hint = did_you_mean(shown(value).strip("'"), words)
        raise UsageError(f"{name} is {shown(value)}, but may be one of {', '.join(words)}{hint}")
    is_list = typing.get_origin(base) is tuple and isinstance(value, list | tuple)
    if is_list and all(_is_number(v, int) for v in value):
        return tuple(value)
    if base is float and _is_number(value, int | float):
        try:
            return float(value)
        except OverflowError:
            raise UsageError(f"{name} is {shown(value)}, but must be a number of at most 1e308") from None
    if (base is int and _is_number(value, int)) or (base in (bool, str) and isinstance(value, base)):
        return value
    raise UsageError(f"{name} is {shown(value)}, but must be {describe_type(kind)}")


def choice_word(choice: Any) -> str:
    """A choice as it is written on the command line."""
    return str(choice).lower() if isinstance(choice, bool) else choice


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def describe_type(kind: Any) -> str:
    """A type in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    words[tuple] = "a list of whole numbers such as 64,64"
    base = inner_type(kind)
    return words[typing.get_origin(base) or base] + (" or none" if is_optional(kind) else "")


def check_range(name: str, value: Any, allowed: Range) -> None:
    """Refuse a value outside the range that is declared for it."""
    if value is None:
        return
    low, high, closed = allowed.low, allowed.high, allowed.closed
    for number in value if isinstance(value, tuple) else (value,):
        inside = (low <= number if closed else low < number) and number <= high
        if not inside or (isinstance(number, float) and not math.isfinite(number)):
            bound = f"{'at least' if closed else 'more than'} {low:g}"
            if math.isfinite(high):
                bound += f" and at most {high:{',' if isinstance(high, int) else 'g'}}"
            elif isinstance(number, float):
                bound += " and finite"
            raise UsageError(f"{name} is {shown(value)}, but must be {bound}")


def parse_value(name: str, text: str, kind: Any) -> Any:
    """A command-line or TOML text as the field's type."""
    if is_optional(kind) and text.lower() == "none":
        return None
    base = inner_type(kind)
    if typing.get_origin(base) is Literal:
        return {choice_word(choice): choice for choice in typing.get_args(base)}.get(text, text)
    try:
        if typing.get_origin(base) is tuple:
            parts = re.split(r"\s*,\s*|\s+", text.strip("()[] ").removesuffix(","))
            return tuple(map(int, parts)) if parts != [""] else ()
        if base is bool:
            return {"true": True, "false": False}[text.lower()]
        return base(text) if base in (int, float) else text
    except (ValueError, KeyError):
        raise UsageError(f"{name} is '{text}', but must be {describe_type(kind)}") from None


# A field and its first comment; lines that go on with it are indented further or close its brackets.
FIELD = re.compile(r"^    (\w+):(?:.|\n {8}|\n {4}[\])])*?\s# (.+)$", re.MULTILINE)


def field_help(config_class: type[Config]) -> dict[str, str]:
    """What each field means: the comment beside it in the source of the class or of one it inherits from."""
    helps: dict[str, str] = {}
    for cls in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(cls):
            helps |= dict(FIELD.findall(inspect.getsource(cls)))
    return helps
