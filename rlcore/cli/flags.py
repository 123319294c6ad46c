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
from importlib import resources
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NoReturn

from rlcore.errors import UsageError, did_you_mean, fitted
from rlcore.runs.settings import COUNTS, HIGHEST_COUNT
from rlcore.storage.toml import refuse_odd_value

if TYPE_CHECKING:
    from rlcore.agents import Agent

DEVICE_HELP = "cpu, cuda, cuda:K, or auto: cuda where there is one"
IMPORT_HELP = "module to import first, such as one that has agents or registers environments; may be repeated"
ENV_ARG_HELP = "argument of the environment's constructor, VALUE as in TOML; may be repeated"
PRESET_HELP = "whose tuned values to take: an environment id's, a .toml file's, auto or none (default: auto, ENV_ID's)"
RUN_HELP = "run folder (its newest checkpoint) or checkpoint file"


ALGORITHMS = ("reinforce", "a2c", "ppo", "trpo", "grpo", "bc", "dpo", "rewardmodel")  # files of rlcore/agents
HELP = ("-h", "--help", "--help-all")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """As argparse's, but `--norm-obs, --no-norm-obs` is one word, and a description keeps its lines."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return "--[no-]" + action.option_strings[0].removeprefix("--")
        return super()._format_action_invocation(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(super(Formatter, self)._fill_text(line, width, indent) for line in text.splitlines())


class Parser(argparse.ArgumentParser):
    """argparse, but what goes wrong is one sentence that also knows the nearest flag, and a flag that is not given
    leaves no value, unless it has a default, so that presets and stored configs can tell."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=Formatter, argument_default=argparse.SUPPRESS, **options)

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


class RunFlags:
    """Adds the flags of a new run to a parser, in the groups in which help tells of them.

    Attributes:
        values: hyperparameters and total_steps that the run has where no flag says otherwise, such as a preset's; help
            shows them in the place of the algorithm's defaults.
        everything: whether help tells of all flags, or of those alone that one needs first.
    """

    def __init__(self, parser: Parser, values: dict[str, Any], everything: bool):
        self.parser, self.values, self.everything = parser, values, everything

    def add(self, config: type, of_run: Any) -> None:
        """To groups of their own, and to that `of_run`."""
        from rlcore.agents.config import grouped, told_first

        first = told_first(config)
        self._add_of_run(of_run)
        for name, names in grouped(config).items():
            group = of_run if name == "run" else self.parser.add_argument_group(name)
            if name == "environment":
                self._add(group, "--env-arg", "NAME=VALUE", ENV_ARG_HELP, rarely=True, action="append")
            self._add_hyperparameters(group, config, names, first)
            if name == "speed":
                threads = "torch's CPU threads, or auto: 1 for small networks and minibatches (default: auto)"
                self._add(group, "--threads", "K", threads, rarely=True)

    def _add(self, group: Any, name: str, metavar: str, text: str, rarely: bool = False, **options: Any) -> None:
        add_flag(group, name, metavar, argparse.SUPPRESS if rarely and not self.everything else text, **options)

    def _add_of_run(self, group: Any) -> None:
        steps = f"{self.values['total_steps']:,}" if "total_steps" in self.values else "the preset's, or 1,000,000"
        self._add(group, "--total-steps", "K", f"steps of all environments together (default: {steps})")
        self._add(group, "--preset", "NAME", PRESET_HELP)
        self._add(group, "--run-dir", "DIR", "the run folder (default: a new one in runs/ENV_ID)")
        add_common_flags(group, everything=self.everything)

    def _add_hyperparameters(self, group: Any, config: type, names: list[str], first: set[str]) -> None:
        from rlcore.agents.config import field_help, field_types, inner_type

        helps, kinds, defaults = field_help(config), field_types(config), default_values(config)
        for name in names:
            about = helps.get(name, "") if self.everything else helps.get(name, "").partition(";")[0]
            choices = _choices(kinds[name], about)
            default = f"({choices}default: {shown(self.values.get(name, defaults[name]))})"
            text = f"{about} {default}".lstrip().replace("%", "%%")
            form = {"action": argparse.BooleanOptionalAction} if inner_type(kinds[name]) is bool else {"metavar": "X"}
            is_told = self.everything or name in first
            group.add_argument("--" + name.replace("_", "-"), help=text if is_told else argparse.SUPPRESS, **form)


def _choices(kind: Any, about: str) -> str:
    """What a field may be one of, unless the sentence about it names each."""
    from rlcore.agents.config import choice_word, inner_type, is_optional

    base = inner_type(kind)
    words = [choice_word(x) for x in typing.get_args(base)] if typing.get_origin(base) is typing.Literal else []
    if set(words) <= set(re.findall(r"\w+", about)):
        return ""
    return f"one of {', '.join([*words, 'none'] if is_optional(kind) else words)}; "


def say(line: str, indent: int = 2) -> None:
    """Print a line; where a terminal breaks it, what follows is indented."""
    print(fitted(line, sys.stdout, indent), flush=True)


def meanwhile(text: str) -> None:
    """Say on a terminal what one waits for, until anything else is printed."""
    if hasattr(sys.stdout, "meanwhile"):  # which an environment's code may have replaced
        sys.stdout.meanwhile.tell(text)


def default_values(config: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(config)}


def add_flags_for_stored(parser: Parser) -> None:
    """What a command needs that opens a stored agent."""
    add_flag(parser, "--import", "MODULE", IMPORT_HELP, action="append")
    add_flag(parser, "--env-arg", "NAME=VALUE", f"{ENV_ARG_HELP} (default: as stored)", action="append")


def add_common_flags(group: Any, before: str | None = None, everything: bool = True) -> None:
    def told(text: str) -> str:
        return text if everything else argparse.SUPPRESS

    every = f"environment steps between checkpoints (default: {before or 'a tenth of the run'})"
    add_flag(group, "--checkpoint-every", "STEPS", told(every))
    episodes = f"greedy episodes of the final evaluation, 0 for none (default: {before or '100'})"
    add_flag(group, "--eval-episodes", "K", told(episodes))
    track = "log to wandb, mlflow, or a tracker of your own, module:function, beside TensorBoard; may be repeated"
    add_flag(group, "--track", "NAME", told(track), action="append")
    progress = "show progress (default: yes)"
    group.add_argument("--progress", action=argparse.BooleanOptionalAction, help=told(progress))


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


def summaries() -> dict[str, str]:
    """What each algorithm is, in a line; those of rlcore are read from their files, which is quicker than importing
    them, and with them torch."""
    if entry_points(group="rlcore.agents"):  # of other packages
        from rlcore.agents import AGENTS

        return {name: _without_numbers(summary(agent)) for name, agent in AGENTS.items()}
    files = {name: resources.files("rlcore") / "agents" / f"{name}.py" for name in ALGORITHMS}
    return {name: _without_numbers(_first_line(file.read_text("utf-8").strip('"'))) for name, file in files.items()}


def _without_numbers(text: str) -> str:
    return re.sub(r",? arXiv:[\d.]+\d", "", text)


def _first_line(text: str) -> str:
    """As far as its first sentence goes, where another begins in it."""
    return re.split(r"(?<=\.) (?=[A-Z])", text.strip().partition("\n")[0])[0]


def summary(agent: "type[Agent]") -> str:
    text = agent.__doc__ or sys.modules[agent.__module__].__doc__ or "no description"
    return _first_line(text)


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


def number(x: float, beside: float | None = None) -> str:
    """A return; where it, or the one that it stands beside, may be a share, such as of exact answers, more digits."""
    return f"{x:.1f}" if abs(x if beside is None else beside) >= 2 else f"{x:.3f}"


def normalized(report: dict[str, Any]) -> str:
    """What an evaluation says of human play, for the games that have such a score."""
    return f", {report['human_normalized']:.0%} of human" if "human_normalized" in report else ""
