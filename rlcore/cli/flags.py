"""What the commands share: flags, and values out of what was typed."""

import argparse
import contextlib
import dataclasses
import os
import re
import sys
import tomllib
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from rlcore.errors import UsageError, did_you_mean
from rlcore.presets import find_preset, load_preset
from rlcore.runs.settings import COUNTS, HIGHEST_COUNT
from rlcore.storage.toml import refuse_odd_value

if TYPE_CHECKING:
    from rlcore.agents import Agent

DEVICE_HELP = "cpu, cuda, cuda:K, or auto: cuda where there is one"
IMPORT_HELP = "module to import first, such as one that has agents or registers environments; may be repeated"
ENV_ARG_HELP = "argument of the environment's constructor, VALUE as in TOML; may be repeated"
PRESET_HELP = (
    "tuned values of that environment id, a .toml file of presets such as rlcore tune writes, or none for the "
    "algorithm's own defaults (default: those of ENV_ID where there are any)"
)
RUN_HELP = "run folder (its newest checkpoint) or checkpoint file"


class Parser(argparse.ArgumentParser):
    """argparse, but what goes wrong is one sentence that also knows the nearest flag, and a flag that is not given
    leaves no value, unless it has a default, so that presets and stored configs can tell."""

    def __init__(self, **options: Any):
        formatter = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, argument_default=argparse.SUPPRESS, **options)

    def error(self, message: str) -> NoReturn:
        if "/--no-" in message and "ignored explicit argument" in message:  # argparse does not say what it may be
            flags, value = re.search(r"argument (\S+): ignored explicit argument (.*)", message).groups()
            raise UsageError(f"{flags.replace('/', ' and ')} take no value, but there is {value}")
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments; an unknown one is refused with the nearest flag."""
        values, unknown = self.parse_known_args(arguments)
        if unknown:
            name = unknown[0].split("=", 1)[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            what, near = ("option", did_you_mean(name, flags)) if name.startswith("-") else ("argument", "")
            raise UsageError(f"{what} '{name}' is not known to {self.prog}{near or f'; see {self.prog} --help'}")
        return values


def add_flag(group: Any, name: str, metavar: str, text: str, **options: Any) -> None:
    group.add_argument(name, metavar=metavar, help=text, **options)


def add_switch(group: Any, name: str, text: str) -> None:
    group.add_argument(name, action="store_true", default=False, help=text)


def add_run_flags(parser: Parser, config: type) -> None:
    group = parser.add_argument_group("run")
    add_flag(
        group, "--total-steps", "K", "environment steps, over all environments (default: the preset's, or 1,000,000)"
    )
    add_flag(group, "--preset", "NAME", PRESET_HELP)
    add_flag(group, "--run-dir", "DIR", "the run folder (default: runs/ENV_ID/ALGO-seedS-DATE-TIME)")
    add_flag(group, "--env-arg", "NAME=VALUE", ENV_ARG_HELP, action="append")
    add_common_flags(group)
    _add_hyperparameters(parser, config)


def add_flags_for_stored(parser: Parser) -> None:
    """What a command needs that opens a stored agent."""
    add_flag(parser, "--import", "MODULE", IMPORT_HELP, action="append")
    add_flag(parser, "--env-arg", "NAME=VALUE", f"{ENV_ARG_HELP} (default: as stored)", action="append")


def add_common_flags(group: Any, before: str | None = None) -> None:
    every = f"environment steps between checkpoints (default: {before or 'a tenth of the run'})"
    add_flag(group, "--checkpoint-every", "STEPS", every)
    episodes = f"greedy episodes of the final evaluation, 0 for none (default: {before or '100'})"
    add_flag(group, "--eval-episodes", "K", episodes)
    add_flag(
        group, "--threads", "K", "torch's CPU threads, or auto: 1 for small networks and minibatches (default: auto)"
    )
    track = "log to wandb, mlflow, or a tracker of your own, module:function, beside TensorBoard; may be repeated"
    add_flag(group, "--track", "NAME", track, action="append")
    group.add_argument("--progress", action=argparse.BooleanOptionalAction, help="show progress (default: yes)")


def _add_hyperparameters(parser: Parser, config: type) -> None:
    from rlcore.agents.config import choice_word, field_help, field_types, inner_type

    helps, kinds = field_help(config), field_types(config)
    group = parser.add_argument_group("hyperparameters")
    for field in dataclasses.fields(config):
        kind = kinds[field.name]
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        one_of = f"one of {', '.join(map(choice_word, choices))}; " if choices else ""
        text = f"{helps.get(field.name, '')} ({one_of}default: {shown(field.default)})".lstrip().replace("%", "%%")
        form = {"action": argparse.BooleanOptionalAction} if inner_type(kind) is bool else {"metavar": "X"}
        group.add_argument("--" + field.name.replace("_", "-"), help=text, **form)


def import_modules(values: dict[str, Any]) -> None:
    """Those of --import, before anything is read. They and that of an id may lie in the current folder."""
    from rlcore.envs.make import import_module

    if "import" in values or any(":" in name for name in (values.get("env_id", ""), *values.get("track", []))):
        look_in_current_folder()
    for name in values.get("import", []):
        import_module(name)


def look_in_current_folder() -> None:
    """For modules, last, so that no file there passes for an installed one; as with `python -m`, which looks first."""
    with contextlib.suppress(FileNotFoundError):  # the folder has been removed
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())


def changes_of_stored(values: dict[str, Any]) -> dict[str, Any]:
    """What the flags change of a stored agent, as `rlcore.load` takes it, after the modules of --import."""
    import_modules(values)
    changes = {"device": values["device"]} if "device" in values else {}
    return {**changes, "env_kwargs": env_kwargs_of(values)} if "env_arg" in values else changes


def agent_class(name: str) -> Any:
    """The agent of that name, or `module:Class` of an installed module or one in the current folder."""
    from rlcore.agents import find_agent

    if ":" in name:
        look_in_current_folder()
    return find_agent(name)


def summary(agent: "type[Agent]") -> str:
    text = agent.__doc__ or sys.modules[agent.__module__].__doc__ or "no description"
    return text.strip().splitlines()[0]


def whole_number(name: str, text: Any, lowest: int = 1, highest: int = HIGHEST_COUNT) -> int:
    """A count from the command line; 1e6 and 1_000_000 are welcome."""
    try:
        number = float(text) if isinstance(text, str) and "e" in text.lower() else int(text)
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError, TypeError):
        raise UsageError(f"{name} is '{text}', but must be a whole number") from None
    if number < lowest:
        raise UsageError(f"{name} is {int(number)}, but must be at least {lowest}")
    if number > highest:
        raise UsageError(f"{name} is {text}, but must be at most {highest:,}")
    return int(number)


def preset_of(agent: "type[Agent]", algo: str, env_id: str, name: str | None) -> dict[str, Any] | None:
    """That of --preset, or of the environment where it is not given; None without any."""
    if name is None:
        return find_preset(algo, env_id)
    names = [field.name for field in dataclasses.fields(agent.Config)]
    return None if name == "none" else load_preset(algo, name, env_id, names)


def counts_of(values: dict[str, Any]) -> dict[str, Any]:
    """The counts of a run among flags and settings."""
    names = [name for name in COUNTS if name in values]
    return {name: whole_number("--" + name.replace("_", "-"), values[name], COUNTS[name]) for name in names}


def hyperparameters_of(config: type, values: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters among parsed flags, as their types."""
    from rlcore.agents.config import field_types, parse_value

    kinds = field_types(config)
    return {n: parse_value(n, v, kinds[n]) if isinstance(v, str) else v for n, v in values.items() if n in kinds}


def env_kwargs_of(values: dict[str, Any]) -> dict[str, Any]:
    """Those of --env-arg."""
    from rlcore.envs.make import check_names

    kwargs = {}
    for pair in values.get("env_arg", []):
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise UsageError(f"--env-arg is '{pair}', but must be NAME=VALUE")
        try:
            kwargs[name] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            kwargs[name] = text
        refuse_odd_value(f"--env-arg {name}", kwargs[name])
    check_names(kwargs)
    return kwargs


def shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def number(x: float) -> str:
    """A return; where it may be a share, such as of exact answers, more of its digits."""
    return f"{x:.1f}" if abs(x) >= 2 else f"{x:.3f}"


def normalized(report: dict[str, Any]) -> str:
    """What an evaluation says of human play, for the games that have such a score."""
    return f", {report['human_normalized']:.0%} of human" if "human_normalized" in report else ""
