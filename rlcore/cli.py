"""The command line: train, pretrain, eval, video, compare, list."""

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import re
import sys
import time
import tomllib
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rlcore.errors import RlcoreError, UsageError, did_you_mean, printable
from rlcore.presets import all_presets, find_preset, load_preset
from rlcore.runs.settings import COUNTS, EVAL_EPISODES, HIGHEST_COUNT, read_settings, refuse_odd_value
from rlcore.version import __version__

OVERVIEW = """usage: rlcore COMMAND ...

On-policy reinforcement learning on one rollout buffer.

  train     train an agent into a run folder, or continue one
  pretrain  copy an expert first: train bc
  eval      play evaluation episodes with a trained agent
  video     film an episode of a trained agent
  compare   have a person compare clips of a trained agent, for dpo and rewardmodel
  list      list agents, presets and default hyperparameters

rlcore COMMAND --help explains a command, rlcore train ALGO --help its hyperparameters."""
DEVICE_HELP = "cpu, cuda, cuda:K, or auto: cuda where there is one"
IMPORT_HELP = "module to import first, such as one that registers environments; may be repeated"
ENV_ARG_HELP = "argument of the environment's constructor, VALUE as in TOML; may be repeated"
RUN_HELP = "run folder (its newest checkpoint) or checkpoint file"
LONGEST_MESSAGE = 2000
MOST_THREADS = 1024
OUT_OF_MEMORY = re.compile("allocate memory|out of memory|calculation overflowed|array is too big|Unable to allocate")


class Parser(argparse.ArgumentParser):
    """argparse, but what goes wrong is one sentence that also knows the nearest flag, and a flag that is not given
    leaves no value, unless it has a default, so that presets and stored configs can tell."""

    def __init__(self, **options: Any):
        formatter = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, argument_default=argparse.SUPPRESS, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments; an unknown one is refused with the nearest flag."""
        values, unknown = self.parse_known_args(arguments)
        if unknown:
            name = unknown[0].split("=", 1)[0]
            near = did_you_mean(name, [flag for action in self._actions for flag in action.option_strings])
            what = "option" if name.startswith("-") else "argument"
            raise UsageError(f"{what} '{name}' is not known to {self.prog}{near or f'; see {self.prog} --help'}")
        return values


class Output:
    """A stream to print to. Where that fails, `problem` says why, the rest is printed to nowhere, and the work goes on:
    a reader that has seen enough (`| head`) or a terminal that was closed must not end a training run."""

    def __init__(self, stream: Any):
        self.stream, self.problem = stream, None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # not every terminal has every letter

    def write(self, text: str) -> int:
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            self.problem = self.problem or error
            # A stream need not be a file.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.formatwarning = lambda message, *_: f"rlcore: {_printable(message)}\n"
    # There are no streams where they were closed before we began.
    out, err = (Output(stream or open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = _run(arguments)
        finally:
            out.flush()
            err.flush()
        if out.problem is None or out.problem.errno == errno.EPIPE:  # `rlcore list | head`
            return code
        failed = _fail(f"standard output could not be written: {out.problem.strerror or out.problem}", 2)
        return code if code or arguments[0] == "train" else failed


def _run(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except RlcoreError as error:
        return _fail(error, getattr(error, "code", 2))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ConnectionError, EOFError) as error:
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        return _fail(f"the connection to another process, such as one that steps environments, broke ({what})", 2)
    except MemoryError as error:
        return _fail(f"there is not enough memory{f': {error}' if str(error) else ''}", 2)


def _fail(message: Any, code: int) -> int:
    print(f"rlcore: {_printable(message)}", file=sys.stderr)
    return code


def _printable(message: Any) -> str:
    """One line without what would move a terminal's cursor; names out of files come into messages."""
    text = str(message)
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE // 2]}...{text[-LONGEST_MESSAGE // 2 :]}"
    return printable(text)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        print(__version__)
        return 0
    commands = {"train": train, "pretrain": pretrain, "eval": evaluate, "video": video, "compare": compare}
    commands |= {"list": list_all}
    if command not in commands:
        near = did_you_mean(command, commands)
        raise UsageError(f"'{command}' is not a command of rlcore{near}; there are {', '.join(commands)}")
    return commands[command](rest)


def train(arguments: list[str]) -> int:
    """rlcore train ALGO ENV_ID ... | rlcore train --resume DIR ... | rlcore train --config FILE ..."""
    first = arguments[0] if arguments else "--help"
    flag = first.partition("=")[0]
    if flag == "--resume":
        return _resume(arguments)
    if flag == "--config":
        return _train_from_config(arguments)
    if first in ("-h", "--help"):
        return _print_train_overview()
    if first.startswith("-"):
        raise UsageError(f"the algorithm comes first: rlcore train ALGO ENV_ID {first} ...; see rlcore train --help")
    agent, prog = _agent_class(first), f"rlcore train {first}"
    parser = Parser(prog=prog, usage=f"{prog} ENV_ID [flags]", description=_summary(agent))
    env_help = "gymnasium environment, such as CartPole-v1, or module:Name-v0 of a module that registers it"
    parser.add_argument("env_id", metavar="ENV_ID", help=env_help)
    _flag(parser, "--import", "MODULE", IMPORT_HELP, action="append")
    _add_run_flags(parser, agent.Config)
    return _train_new(first, agent, vars(parser.parse(arguments[1:])))


def pretrain(arguments: list[str]) -> int:
    """rlcore pretrain ENV_ID ...: rlcore train bc ENV_ID ..., from which `train --init` goes on."""
    return train(["bc", *arguments])


def _print_train_overview() -> int:
    from rlcore.agents import AGENTS

    print(
        "usage: rlcore train ALGO ENV_ID [flags]      train an agent on a gymnasium environment",
        "       rlcore train --resume DIR [flags]     continue a run after a crash, or further with --total-steps",
        "       rlcore train --config FILE [flags]    make the run that a config.toml describes",
        "",
        *(f"  {name:<10}{_summary(agent)}" for name, agent in AGENTS.items()),
        "",
        "rlcore train ALGO --help explains every flag and hyperparameter,",
        "rlcore train --resume --help what may change in a run that goes on.",
        sep="\n",
    )
    return 0


def _summary(agent: type) -> str:
    text = agent.__doc__ or sys.modules[agent.__module__].__doc__ or "no description"
    return text.strip().splitlines()[0]


def _agent_class(name: str) -> type:
    from rlcore.agents import AGENTS

    if name not in AGENTS:
        near, known = did_you_mean(name, AGENTS), ", ".join(AGENTS)
        raise UsageError(f"'{name}' is not an algorithm of rlcore{near}; there are {known}")
    return AGENTS[name]


def _flag(group: Any, name: str, metavar: str, text: str, **options: Any) -> None:
    group.add_argument(name, metavar=metavar, help=text, **options)


def _switch(group: Any, name: str, text: str) -> None:
    group.add_argument(name, action="store_true", default=False, help=text)


def _add_run_flags(parser: Parser, config: type) -> None:
    group = parser.add_argument_group("run")
    _flag(group, "--total-steps", "K", "environment steps, over all environments (default: the preset's, or 1,000,000)")
    preset = "tuned values of that environment id, or none for the algorithm's own defaults"
    _flag(group, "--preset", "NAME", f"{preset} (default: those of ENV_ID where there are any)")
    _flag(group, "--run-dir", "DIR", "the run folder (default: runs/ENV_ID/ALGO-seedS-DATE-TIME)")
    _flag(group, "--env-arg", "NAME=VALUE", ENV_ARG_HELP, action="append")
    _add_common_flags(group)
    _add_hyperparameters(parser, config)


def _add_flags_for_stored(parser: Parser) -> None:
    """What a command needs that opens a stored agent."""
    _flag(parser, "--import", "MODULE", IMPORT_HELP, action="append")
    _flag(parser, "--env-arg", "NAME=VALUE", f"{ENV_ARG_HELP} (default: as stored)", action="append")


def _import_modules(values: dict[str, Any]) -> None:
    """Those of --import, before anything is read. They and that of an id may lie in the current folder, as with
    `python -m`, which is looked in last, so that no file there passes for an installed module."""
    from rlcore.envs.make import import_module

    if "import" in values or ":" in values.get("env_id", ""):
        with contextlib.suppress(FileNotFoundError):  # the folder has been removed
            if not {"", os.getcwd()} & set(sys.path):
                sys.path.append(os.getcwd())
    for name in values.get("import", []):
        import_module(name)


def _changes(values: dict[str, Any]) -> dict[str, Any]:
    """What the flags change of a stored agent, as `rlcore.load` takes it, after the modules of --import."""
    _import_modules(values)
    changes = {"device": values["device"]} if "device" in values else {}
    return {**changes, "env_kwargs": _env_kwargs(values)} if "env_arg" in values else changes


def _add_common_flags(group: Any, before: str | None = None) -> None:
    every = f"environment steps between checkpoints (default: {before or 'a tenth of the run'})"
    _flag(group, "--checkpoint-every", "STEPS", every)
    episodes = f"greedy episodes of the final evaluation, 0 for none (default: {before or '100'})"
    _flag(group, "--eval-episodes", "K", episodes)
    _flag(group, "--threads", "K", "torch's CPU threads, or auto: 1 for small networks and minibatches (default: auto)")
    group.add_argument("--progress", action=argparse.BooleanOptionalAction, help="show progress (default: yes)")


def _add_hyperparameters(parser: Parser, config: type) -> None:
    from rlcore.agents.config import choice_word, field_help, field_types, inner_type

    helps, kinds = field_help(config), field_types(config)
    group = parser.add_argument_group("hyperparameters")
    for field in dataclasses.fields(config):
        kind = kinds[field.name]
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        one_of = f"one of {', '.join(map(choice_word, choices))}; " if choices else ""
        text = f"{helps.get(field.name, '')} ({one_of}default: {_shown(field.default)})".lstrip().replace("%", "%%")
        form = {"action": argparse.BooleanOptionalAction} if inner_type(kind) is bool else {"metavar": "X"}
        group.add_argument("--" + field.name.replace("_", "-"), help=text, **form)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _whole_number(name: str, text: Any, lowest: int = 1, highest: int = HIGHEST_COUNT) -> int:
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


def _counts(values: dict[str, Any]) -> dict[str, int]:
    """The counts of a run among flags and settings."""
    names = [name for name in COUNTS if name in values]
    return {name: _whole_number("--" + name.replace("_", "-"), values[name], COUNTS[name]) for name in names}


def _hyperparameters(config: type, values: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters among parsed flags, as their types."""
    from rlcore.agents.config import field_types, parse_value

    kinds = field_types(config)
    return {n: parse_value(n, v, kinds[n]) if isinstance(v, str) else v for n, v in values.items() if n in kinds}


def _env_kwargs(values: dict[str, Any]) -> dict[str, Any]:
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


def _train_new(algo: str, agent: type, values: dict[str, Any]) -> int:
    env_id, name = values["env_id"], values.get("preset")
    _import_modules(values)
    preset = find_preset(algo, env_id) if name is None else None if name == "none" else load_preset(algo, name)
    used = "none" if preset is None else name or env_id.rpartition(":")[2]
    # Flags before presets, and what a flag implies (a variant's switches) between them.
    merged = {"total_steps": 1_000_000, **(preset or {}), **agent.Config.implied(values), **values}
    settings = {"algo": algo, "env_id": env_id, "preset": used, "total_steps": merged["total_steps"]}
    settings["env_kwargs"] = _env_kwargs(values)
    settings["hyperparameters"] = _hyperparameters(agent.Config, merged)
    overridden = sorted(set(settings["hyperparameters"]) & set(values) & set(preset or {}))
    note = f"preset {used}" if preset else "no preset, the algorithm's defaults"
    note += f" (overridden: {', '.join(overridden)})" if overridden else ""
    return _launch(agent, settings, values, note)


def _train_from_config(arguments: list[str]) -> int:
    parser = Parser(prog="rlcore train", description="Make the run that a config.toml describes, in a new folder.")
    _flag(parser, "--config", "FILE", "config.toml of a run folder", required=True)
    _flag(parser, "--import", "MODULE", IMPORT_HELP, action="append")
    known, _ = parser.parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    _import_modules(vars(known))
    config = read_settings(Path(known.config))
    agent = _agent_class(config["algo"])
    _add_run_flags(parser, agent.Config)
    values = vars(parser.parse(arguments))

    from rlcore.agents.config import check_names
    from rlcore.envs.make import check_env_kwargs, check_imported

    check_names(agent.Config, config["hyperparameters"])
    stored = {name: None if value == "none" else value for name, value in config["hyperparameters"].items()}
    given = _env_kwargs(values)
    settings = {name: config[name] for name in ("algo", "env_id", "preset", *COUNTS) if name in config}
    settings["env_kwargs"] = {**config["env_kwargs"], **given}
    check_imported(settings["env_id"], known.config)
    check_env_kwargs(settings["env_kwargs"], given, known.config)
    asked = _hyperparameters(agent.Config, values)
    settings["hyperparameters"] = {**stored, **agent.Config.implied(values), **asked}
    return _launch(agent, settings, values, f"config {known.config}")


def _launch(agent_class: type, settings: dict[str, Any], values: dict[str, Any], note: str) -> int:
    """Make the agent and the run, train, evaluate, and tell the result."""
    from rlcore.runs.folder import RunFolder
    from rlcore.runs.train import CHECKPOINTS_PER_RUN, Run, describe_environment, set_threads

    counts = _counts({"eval_episodes": EVAL_EPISODES, **settings, **values})
    settings |= {"checkpoint_every": -(-counts["total_steps"] // CHECKPOINTS_PER_RUN), **counts}
    threads = _threads(values)
    if "run_dir" in values:
        RunFolder.refuse_existing(values["run_dir"])
    with contextlib.closing(_new_agent(agent_class, settings)) as agent:
        set_threads(agent, threads)
        agent.engine.prepare(settings["total_steps"])
        with contextlib.closing(Run.start(_new_folder(values, settings, agent.config.seed), agent, settings)) as run:
            print(f"{settings['algo']} on {describe_environment(agent)}, {note}, seed {agent.config.seed}", flush=True)
            print(agent.engine.describe(), flush=True)
            return _finish(run, values.get("progress", True))


def _new_agent(agent_class: type, settings: dict[str, Any]) -> Any:
    """The agent of a run; torch, numpy and the system each tell in words of their own that memory does not suffice."""
    hyperparameters = settings["hyperparameters"]
    try:
        return agent_class(settings["env_id"], env_kwargs=settings["env_kwargs"], **hyperparameters)
    except (MemoryError, RuntimeError, ValueError, OSError) as error:
        is_memory = isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))
        if isinstance(error, RlcoreError) or not is_memory:
            raise
        sizes = [name for name in ("num_envs", "num_steps", "hidden_sizes") if name in hyperparameters]
        asked = ", ".join(f"{name} = {_shown(hyperparameters[name])}" for name in sizes)
        raise UsageError(
            f"there is not enough memory for this agent and its rollouts{f' ({asked})' if asked else ''}; smaller "
            "num_envs, num_steps or hidden_sizes need less"
        ) from error


def _threads(values: dict[str, Any]) -> str:
    asked = values.get("threads", "auto")
    return asked if asked == "auto" else str(_whole_number("--threads", asked, highest=MOST_THREADS))


def _new_folder(values: dict[str, Any], settings: dict[str, Any], seed: int) -> Any:
    """That of --run-dir, or one of its own even where another run of these begins in the same second."""
    from rlcore.runs.folder import RunFolder

    if "run_dir" in values:
        return RunFolder.create(values["run_dir"])
    env_name, now = settings["env_id"].rpartition(":")[2].replace("/", "-"), time.strftime("%Y%m%d-%H%M%S")
    return RunFolder.create_numbered(f"runs/{env_name}/{settings['algo']}-seed{seed}-{now}")


def _resume(arguments: list[str]) -> int:
    from rlcore.runs.train import Run, describe_environment, set_threads

    parser = Parser(prog="rlcore train --resume", description="Continue a run from its newest checkpoint.")
    _flag(parser, "--resume", "DIR", "the run folder", required=True)
    _flag(parser, "--total-steps", "K", "new end of the run (default: as before)")
    _flag(parser, "--device", "X", f"{DEVICE_HELP} (default: as before)")
    _add_flags_for_stored(parser)
    _add_common_flags(parser, "as before")
    values = vars(parser.parse(["--help"] if {"-h", "--help"} & set(arguments) else arguments))
    counts, threads = _counts(values), _threads(values)
    run = Run.resume(values["resume"], counts.pop("total_steps", None), **counts, **_changes(values))
    with contextlib.closing(run), contextlib.closing(run.agent) as agent:
        set_threads(agent, threads)
        if not run.is_complete:
            agent.engine.prepare(run.total_steps)
        print(f"resuming {run.settings['algo']} on {describe_environment(agent)} at step {agent.global_step:,}")
        print("the final evaluation is missing" if run.is_complete else agent.engine.describe(), flush=True)
        return _finish(run, values.get("progress", True))


def _finish(run: Any, progress: bool) -> int:
    run.train(progress)
    steps, seconds, episodes = run.agent.global_step, run.seconds, run.eval_episodes
    if episodes:
        report = run.evaluate(episodes)
        measure, what = run.agent.scored_by
        score = f"{measure} {_number(report['mean'])} ± {_number(report['std'])}{_normalized(report)}"
        print(f"evaluation: {score} over {len(report['returns'])} {'greedy ' * (what == 'episodes')}{what}")
    speed = f"{steps / max(seconds, 1e-9):,.0f} steps/s"
    print(f"trained {steps:,} steps in {seconds:.1f} s ({speed}); run folder: {run.folder.path}")
    return 0


def _number(x: float) -> str:
    """A return; where it may be a share, such as of exact answers, more of its digits."""
    return f"{x:.1f}" if abs(x) >= 2 else f"{x:.3f}"


def _normalized(report: dict[str, Any]) -> str:
    """What an evaluation says of human play, for the games that have such a score."""
    return f", {report['human_normalized']:.0%} of human" if "human_normalized" in report else ""


def evaluate(arguments: list[str]) -> int:
    """rlcore eval RUN --episodes K --json"""
    parser = Parser(prog="rlcore eval", description="Play evaluation episodes with a trained agent.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    _flag(parser, "--episodes", "K", "number of episodes", default="100")
    _flag(parser, "--seed", "S", "of the episodes (default: derived from the run's)")
    _switch(parser, "--stochastic", "draw actions instead of taking the most probable")
    _flag(parser, "--device", "X", DEVICE_HELP, default="auto")
    _switch(parser, "--json", "print the result as JSON, every episode included")
    _add_flags_for_stored(parser)
    values = parser.parse(arguments)

    from rlcore.runs.train import evaluation_report, evaluation_seed, open_agent

    episodes = _whole_number("--episodes", values.episodes)
    seed = _whole_number("--seed", values.seed, lowest=0) if "seed" in values else None
    agent, file = open_agent(values.run, **_changes(vars(values)))
    with contextlib.closing(agent):
        seed = evaluation_seed(agent.config.seed) if seed is None else seed
        report = {"checkpoint": str(file), **evaluation_report(agent, episodes, seed, not values.stochastic)}
    if values.json:
        print(json.dumps(report))
        return 0
    measure, what = agent.scored_by
    kind = ("stochastic " if values.stochastic else "greedy ") if what == "episodes" else ""
    mean, std, least, most = (_number(report[name]) for name in ("mean", "std", "min", "max"))
    print(
        f"{measure} {mean} ± {std} (min {least}, max {most}){_normalized(report)} over {len(report['returns'])} "
        f"{kind}{what} of {report['env_id']}, seed {seed}; {file}"
    )
    return 0


def video(arguments: list[str]) -> int:
    """rlcore video RUN --out FILE"""
    parser = Parser(prog="rlcore video", description="Film one episode of a trained agent.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    _flag(parser, "--out", "FILE", "mp4 or gif file (default: RUN/video.mp4)")
    _flag(parser, "--seed", "S", "of the episode", default="0")
    _switch(parser, "--stochastic", "draw actions instead of taking the most probable")
    _flag(parser, "--max-steps", "K", "longest film", default="10000")
    _flag(parser, "--device", "X", DEVICE_HELP, default="auto")
    _add_flags_for_stored(parser)
    values = parser.parse(arguments)

    from rlcore.runs.train import open_agent
    from rlcore.runs.video import record_video

    seed, max_steps = _whole_number("--seed", values.seed, lowest=0), _whole_number("--max-steps", values.max_steps)
    agent, file = open_agent(values.run, **_changes(vars(values)))
    folder = Path(values.run) if Path(values.run).is_dir() else file.parent
    with contextlib.closing(agent):
        film = record_video(agent, getattr(values, "out", folder / "video.mp4"), seed, not values.stochastic, max_steps)
    episode = f"an episode of {film['length']} steps with return {film['return']:.1f}"
    print(f"{film['path']}: {film['frames']} frames, {episode}")
    return 0


def compare(arguments: list[str]) -> int:
    """rlcore compare RUN --pairs K | rlcore compare RUN --label reward"""
    what = "Make pairs of clips of a trained agent, and a page on which a person says which are better."
    parser = Parser(prog="rlcore compare", description=what)
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    _flag(parser, "--pairs", "K", "number of pairs", default="20")
    length = "50, or the longest episode where that is shorter; texts are compared whole"
    _flag(parser, "--length", "L", f"rows of a clip, fewer where its episode ends (default: {length})")
    files = "the page, RUN/compare.html; with --label the pairs, RUN/preferences.jsonl"
    _flag(parser, "--out", "FILE", f"what to write (default: {files})")
    _flag(parser, "--label", "reward", "no page: the environment's own return judges at once")
    _flag(parser, "--noise", "P", "probability that a label is the opposite of what is right (default: 0)")
    _flag(parser, "--indifference", "X", "returns that differ by no more are as good as each other (default: 0)")
    _flag(parser, "--seed", "S", "of the episodes", default="0")
    _switch(parser, "--greedy", "take the most probable actions instead of drawing them")
    _flag(parser, "--device", "X", DEVICE_HELP, default="auto")
    _add_flags_for_stored(parser)
    values = parser.parse(arguments)
    judge = _judge(vars(values))

    from rlcore.runs.compare import MOST_PAIRS, write_labels, write_page
    from rlcore.runs.train import open_agent

    count = _whole_number("--pairs", values.pairs, highest=MOST_PAIRS)
    length = _whole_number("--length", values.length) if "length" in values else None
    seed = _whole_number("--seed", values.seed, lowest=0)
    agent, file = open_agent(values.run, **_changes(vars(values)))
    folder = Path(values.run) if Path(values.run).is_dir() else file.parent
    with contextlib.closing(agent):
        if judge is None:
            out = getattr(values, "out", folder / "compare.html")
            made = write_page(agent, values.run, out, count, length, seed, values.greedy)
            print(f"{made['path']}: {count} pairs; open it in a browser and save the answers, then: {made['next']}")
            return 0
        out = getattr(values, "out", folder / "preferences.jsonl")
        made = write_labels(agent, values.run, out, count, length, seed, values.greedy, **judge)
    judged = f"{made['first']} with the first preferred, {made['second']} the second, {made['neither']} neither"
    print(f"{made['path']}: {count} pairs, {judged}; next: {made['next']}")
    return 0


def _judge(values: dict[str, Any]) -> dict[str, float] | None:
    """How --label reward labels, or None where a person does."""
    from rlcore.agents.config import Range, check_range, parse_value

    ranges = {"noise": Range(0, 1), "indifference": Range(0)}
    given = {name: parse_value(f"--{name}", values[name], float) for name in ranges if name in values}
    for name, value in given.items():
        check_range(f"--{name}", value, ranges[name])
        if "label" not in values:
            raise UsageError(f"--{name} is {value:g}, but a person judges; it is for --label reward")
    if values.get("label", "reward") != "reward":
        raise UsageError(f"--label is '{values['label']}', but may be reward, or left out for a page")
    return given if "label" in values else None


def list_all(arguments: list[str]) -> int:
    """rlcore list"""
    parser = Parser(prog="rlcore list", description="List agents, presets and default hyperparameters.")
    _switch(parser, "--json", "print it as JSON")
    as_json, presets = parser.parse(arguments).json, all_presets()

    from rlcore.agents import AGENTS
    from rlcore.agents.config import field_help

    if as_json:
        listed = {}
        for name, agent in AGENTS.items():
            defaults = {field.name: field.default for field in dataclasses.fields(agent.Config)}
            listed[name] = {"summary": _summary(agent), "presets": presets.get(name, {}), "defaults": defaults}
        print(json.dumps(listed))
        return 0
    for name, agent in AGENTS.items():
        helps = field_help(agent.Config)
        print(f"{name}: {_summary(agent)}\n")
        print("  environments with presets (any other gymnasium id trains with the defaults):")
        for env_id, preset in presets.get(name, {}).items():
            rest = ", ".join(f"{k} {_shown(v)}" for k, v in preset.items() if k != "total_steps")
            print(f"    {env_id}: {preset['total_steps']:,} steps; {rest}")
        print("\n  defaults:")
        for field in dataclasses.fields(agent.Config):
            print(f"    {field.name:<20} {_shown(field.default):<10} {helps.get(field.name, '')}")
    return 0
