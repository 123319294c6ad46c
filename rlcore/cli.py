"""The command line: train, eval, video, list."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import tomllib
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rlcore.errors import RlcoreError, UsageError, did_you_mean

COMMANDS = {
    "train": "train an agent into a run folder, or continue one",
    "eval": "play evaluation episodes with a trained agent",
    "video": "film an episode of a trained agent",
    "list": "list agents, presets and default hyperparameters",
}
DEVICE_HELP = "cpu, cuda, cuda:K, or auto: cuda where there is one"


class Parser(argparse.ArgumentParser):
    """argparse, but what goes wrong is one sentence that also knows the nearest flag."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.formatwarning = lambda message, *_: f"rlcore: {message}\n"
    try:
        return _dispatch(arguments)
    except RlcoreError as error:
        print(f"rlcore: {error}", file=sys.stderr)
        return getattr(error, "code", 2)
    except KeyboardInterrupt:
        print("rlcore: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `rlcore list | head`
        sys.stderr.close()
        return 0


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        import rlcore

        print(rlcore.__version__)
        return 0
    if command not in COMMANDS:
        raise UsageError(
            f"'{command}' is not a command of rlcore{did_you_mean(command, COMMANDS)}; there are {', '.join(COMMANDS)}"
        )
    return {"train": train, "eval": evaluate, "video": video, "list": list_all}[command](rest)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        ["usage: rlcore COMMAND ...", "", "On-policy reinforcement learning on one rollout buffer.", "", *lines, ""]
        + ["rlcore COMMAND --help explains a command, rlcore train ALGO --help its hyperparameters."]
    )


# train


def train(arguments: list[str]) -> int:
    """rlcore train ALGO ENV_ID ... | rlcore train --resume DIR ... | rlcore train --config FILE ..."""
    first = arguments[0] if arguments else "--help"
    if first == "--resume" or first.startswith("--resume="):
        return _resume(arguments)
    if first == "--config" or first.startswith("--config="):
        return _train_from_config(arguments)
    if first in ("-h", "--help"):
        print(_train_overview())
        return 0
    if first.startswith("-"):
        raise UsageError(f"the algorithm comes first: rlcore train ALGO ENV_ID {first} ...; see rlcore train --help")
    algo = _algorithm(first)
    values = _train_parser(algo).parse(arguments[1:])
    return _train_new(algo, values.env_id, vars(values))


def _train_overview() -> str:
    from rlcore.agents import AGENTS

    return "\n".join(
        [
            "usage: rlcore train ALGO ENV_ID [flags]      train an agent on a gymnasium environment",
            "       rlcore train --resume DIR [flags]     continue a run after a crash, or further with --total-steps",
            "       rlcore train --config FILE [flags]    make the run that a config.toml describes",
            "",
            *(f"  {name:<10}{_summary(agent)}" for name, agent in AGENTS.items()),
            "",
            "rlcore train ALGO --help explains every flag and hyperparameter,",
            "rlcore train --resume --help what may change in a run that goes on.",
        ]
    )


def _summary(agent: type) -> str:
    text = agent.__doc__ or sys.modules[agent.__module__].__doc__ or "no description"
    return text.strip().splitlines()[0]


def _algorithm(name: str) -> str:
    from rlcore.agents import AGENTS

    if name not in AGENTS:
        known = ", ".join(AGENTS)
        raise UsageError(f"'{name}' is not an algorithm of rlcore{did_you_mean(name, AGENTS)}; there are {known}")
    return name


def _train_parser(algo: str) -> Parser:
    from rlcore.agents import AGENTS

    prog = f"rlcore train {algo}"
    parser = Parser(prog=prog, usage=f"{prog} ENV_ID [flags]", description=_summary(AGENTS[algo]))
    parser.add_argument("env_id", metavar="ENV_ID", help="gymnasium environment, such as CartPole-v1 or module:Name-v0")
    _add_run_flags(parser)
    _add_hyperparameters(parser, algo)
    return parser


def _flag(group: Any, name: str, metavar: str, text: str, **options: Any) -> None:
    """A flag that leaves no value where it is not given, so that presets and stored configs can tell."""
    group.add_argument(name, metavar=metavar, default=argparse.SUPPRESS, help=text, **options)


def _add_run_flags(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    _flag(group, "--total-steps", "K", "environment steps, over all environments (default: the preset's, or 1,000,000)")
    preset = "tuned values of that environment id, or none for the algorithm's own defaults"
    _flag(group, "--preset", "NAME", f"{preset} (default: those of ENV_ID where there are any)")
    _flag(group, "--run-dir", "DIR", "the run folder (default: runs/ENV_ID/ALGO-seedS-DATE-TIME)")
    env_arg = "argument of the environment's constructor, VALUE as in TOML; may be repeated"
    _flag(group, "--env-arg", "NAME=VALUE", env_arg, action="append")
    _add_common_flags(group)


def _add_common_flags(group: Any) -> None:
    _flag(group, "--checkpoint-every", "STEPS", "environment steps between checkpoints (default: a tenth of the run)")
    _flag(group, "--eval-episodes", "K", "greedy episodes of the final evaluation, 0 for none (default: 100)")
    _flag(group, "--threads", "K", "torch's CPU threads, or auto: 1 for small networks and minibatches (default: auto)")
    text = "show progress (default: yes)"
    group.add_argument("--progress", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)


def _add_hyperparameters(parser: Parser, algo: str) -> None:
    from rlcore.agents import AGENTS
    from rlcore.agents.config import choice_word, field_help, field_types, inner_type

    config = AGENTS[algo].Config
    helps, kinds = field_help(config), field_types(config)
    group = parser.add_argument_group("hyperparameters")
    for field in dataclasses.fields(config):
        flag, default = "--" + field.name.replace("_", "-"), _shown(field.default)
        choices = typing.get_args(kinds[field.name]) if typing.get_origin(kinds[field.name]) is typing.Literal else ()
        one_of = f"one of {', '.join(map(choice_word, choices))}; " if choices else ""
        text = f"{helps.get(field.name, '')} ({one_of}default: {default})".lstrip().replace("%", "%%")
        if inner_type(kinds[field.name]) is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            _flag(group, flag, "X", text)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _whole_number(name: str, text: Any, lowest: int = 1) -> int:
    """A count from the command line; 1e6 and 1_000_000 are welcome."""
    try:
        number = float(text) if isinstance(text, str) and "e" in text.lower() else int(text)
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError, TypeError):
        raise UsageError(f"{name} is '{text}', but must be a whole number") from None
    if number < lowest:
        raise UsageError(f"{name} is {int(number)}, but must be at least {lowest}")
    return int(number)


def _hyperparameters(algo: str, values: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters among parsed flags, as their types."""
    from rlcore.agents import AGENTS
    from rlcore.agents.config import field_types, parse_value

    kinds = field_types(AGENTS[algo].Config)
    return {n: parse_value(n, v, kinds[n]) if isinstance(v, str) else v for n, v in values.items() if n in kinds}


def _env_kwargs(pairs: list[str]) -> dict[str, Any]:
    kwargs = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise UsageError(f"--env-arg is '{pair}', but must be NAME=VALUE")
        try:
            kwargs[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            kwargs[name] = text
    return kwargs


def _train_new(algo: str, env_id: str, values: dict[str, Any]) -> int:
    from rlcore.agents import AGENTS
    from rlcore.presets import find_preset, load_preset

    name = values.get("preset")
    preset = find_preset(algo, env_id) if name is None else None if name == "none" else load_preset(algo, name)
    used = "none" if preset is None else name or env_id
    # Flags before presets, and what a flag implies (a variant's switches) between them.
    merged = {**(preset or {}), **AGENTS[algo].Config.implied(values), **values}
    settings = {
        "algo": algo,
        "env_id": env_id,
        "preset": used,
        "total_steps": _whole_number("--total-steps", merged.pop("total_steps", 1_000_000)),
        "env_kwargs": _env_kwargs(values.get("env_arg", [])),
    }
    overridden = sorted(set(_hyperparameters(algo, values)) & set(preset or {}))
    note = f"preset {used}" if preset else "no preset, the algorithm's defaults"
    note += f" (overridden: {', '.join(overridden)})" if overridden else ""
    return _launch(settings, _hyperparameters(algo, merged), values, note)


def _train_from_config(arguments: list[str]) -> int:
    from rlcore.agents.config import field_types
    from rlcore.runs.folder import read_toml

    parser = Parser(prog="rlcore train", description="Make the run that a config.toml describes, in a new folder.")
    _flag(parser, "--config", "FILE", "config.toml of a run folder", required=True)
    known, _ = parser.parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    config = read_toml(Path(known.config))
    for key in ("algo", "env_id", "total_steps", "hyperparameters"):
        if key not in config:
            raise UsageError(f"{known.config} is not the config of a run: it has no '{key}'")
    algo = _algorithm(config["algo"])
    _add_run_flags(parser)
    _add_hyperparameters(parser, algo)
    values = vars(parser.parse(arguments))

    from rlcore.agents import AGENTS
    from rlcore.agents.config import check_names

    check_names(AGENTS[algo].Config, config["hyperparameters"])
    kinds = field_types(AGENTS[algo].Config)
    stored = {n: None if v == "none" and n in kinds else v for n, v in config["hyperparameters"].items()}
    settings = {
        "algo": algo,
        "env_id": config["env_id"],
        "preset": config.get("preset", "none"),
        "total_steps": _whole_number("--total-steps", values.get("total_steps", config["total_steps"])),
        "env_kwargs": {**config.get("env_kwargs", {}), **_env_kwargs(values.get("env_arg", []))},
    }
    values.setdefault("checkpoint_every", config.get("checkpoint_every"))
    merged = {**stored, **AGENTS[algo].Config.implied(values), **_hyperparameters(algo, values)}
    return _launch(settings, merged, values, f"config {known.config}")


def _launch(settings: dict[str, Any], hyperparameters: dict[str, Any], values: dict[str, Any], note: str) -> int:
    """Make the agent and the run, train, evaluate, and tell the result."""
    from rlcore.agents import AGENTS
    from rlcore.runs.folder import RunFolder
    from rlcore.runs.train import CHECKPOINTS_PER_RUN, Run, describe_environment, set_threads

    total = settings["total_steps"]
    every = values.get("checkpoint_every") or -(-total // CHECKPOINTS_PER_RUN)
    settings["checkpoint_every"] = _whole_number("--checkpoint-every", every)
    episodes = _whole_number("--eval-episodes", values.get("eval_episodes", 100), lowest=0)
    threads = _threads(values)
    if "run_dir" in values:
        RunFolder.refuse_existing(values["run_dir"])
    agent = AGENTS[settings["algo"]](settings["env_id"], env_kwargs=settings["env_kwargs"], **hyperparameters)
    try:
        run_dir = values.get("run_dir") or _default_run_dir(settings, agent.config.seed)
        set_threads(agent, threads)
        agent.engine.prepare(total)
        run = Run.start(run_dir, agent, settings)
        print(f"{settings['algo']} on {describe_environment(agent)}, {note}, seed {agent.config.seed}", flush=True)
        print(agent.engine.describe(), flush=True)
        return _finish(run, episodes, values.get("progress", True))
    finally:
        agent.close()


def _threads(values: dict[str, Any]) -> str:
    asked = values.get("threads", "auto")
    return asked if asked == "auto" else str(_whole_number("--threads", asked))


def _default_run_dir(settings: dict[str, Any], seed: int) -> str:
    env = settings["env_id"].replace("/", "-").replace(":", "-")
    return f"runs/{env}/{settings['algo']}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _resume(arguments: list[str]) -> int:
    from rlcore.runs.train import Run, describe_environment, set_threads

    parser = Parser(prog="rlcore train --resume", description="Continue a run from its newest checkpoint.")
    _flag(parser, "--resume", "DIR", "the run folder", required=True)
    _flag(parser, "--total-steps", "K", "new end of the run (default: as before)")
    _flag(parser, "--device", "X", f"{DEVICE_HELP} (default: as before)")
    _add_common_flags(parser)
    values = vars(parser.parse(["--help"] if {"-h", "--help"} & set(arguments) else arguments))
    total = _whole_number("--total-steps", values["total_steps"]) if "total_steps" in values else None
    overrides = {"device": values["device"]} if "device" in values else {}
    threads = _threads(values)
    run = Run.resume(values["resume"], total, **overrides)
    try:
        if "checkpoint_every" in values:
            run.checkpoint_every = _whole_number("--checkpoint-every", values["checkpoint_every"])
        episodes = _whole_number("--eval-episodes", values.get("eval_episodes", 100), lowest=0)
        step = run.agent.global_step
        set_threads(run.agent, threads)
        run.agent.engine.prepare(run.total_steps)
        print(f"resuming {run.settings['algo']} on {describe_environment(run.agent)} at step {step:,}", flush=True)
        print(run.agent.engine.describe(), flush=True)
        return _finish(run, episodes, values.get("progress", True))
    finally:
        run.agent.close()


def _finish(run: Any, episodes: int, progress: bool) -> int:
    run.train(progress)
    steps, seconds = run.agent.global_step, run.seconds
    if episodes:
        report = run.evaluate(episodes)
        score = f"return {report['mean']:.1f} ± {report['std']:.1f}{_normalized(report)}"
        print(f"evaluation: {score} over {episodes} greedy episodes")
    print(f"trained {steps:,} steps in {seconds:.1f} s ({steps / seconds:,.0f} steps/s); run folder: {run.folder.path}")
    return 0


def _normalized(report: dict[str, Any]) -> str:
    """What an evaluation says of human play, for the games that have such a score."""
    return f", {report['human_normalized']:.0%} of human" if "human_normalized" in report else ""


# eval, video, list


def evaluate(arguments: list[str]) -> int:
    """rlcore eval RUN --episodes K --json"""
    parser = Parser(prog="rlcore eval", description="Play evaluation episodes with a trained agent.")
    parser.add_argument("run", metavar="RUN", help="run folder (its newest checkpoint) or checkpoint file")
    parser.add_argument("--episodes", metavar="K", default="100", help="number of episodes")
    _flag(parser, "--seed", "S", "of the episodes (default: derived from the run's)")
    parser.add_argument("--stochastic", action="store_true", help="draw actions instead of taking the most probable")
    parser.add_argument("--device", metavar="X", default="auto", help=DEVICE_HELP)
    parser.add_argument("--json", action="store_true", help="print the result as JSON, every episode included")
    values = parser.parse(arguments)

    from rlcore.runs.train import evaluation_report, evaluation_seed, open_agent

    episodes = _whole_number("--episodes", values.episodes)
    seed = _whole_number("--seed", values.seed, lowest=0) if "seed" in values else None
    agent, file = open_agent(values.run, device=values.device)
    try:
        seed = evaluation_seed(agent.config.seed) if seed is None else seed
        report = {"checkpoint": str(file), **evaluation_report(agent, episodes, seed, not values.stochastic)}
    finally:
        agent.close()
    if values.json:
        print(json.dumps(report))
        return 0
    kind = "stochastic" if values.stochastic else "greedy"
    print(
        f"return {report['mean']:.1f} ± {report['std']:.1f} (min {report['min']:.1f}, max {report['max']:.1f})"
        f"{_normalized(report)} over {episodes} {kind} episodes of {report['env_id']}, seed {seed}; {file}"
    )
    return 0


def video(arguments: list[str]) -> int:
    """rlcore video RUN --out FILE"""
    parser = Parser(prog="rlcore video", description="Film one episode of a trained agent.")
    parser.add_argument("run", metavar="RUN", help="run folder (its newest checkpoint) or checkpoint file")
    _flag(parser, "--out", "FILE", "mp4 or gif file (default: RUN/video.mp4)")
    parser.add_argument("--seed", metavar="S", default="0", help="of the episode")
    parser.add_argument("--stochastic", action="store_true", help="draw actions instead of taking the most probable")
    parser.add_argument("--max-steps", metavar="K", default="10000", help="longest film")
    parser.add_argument("--device", metavar="X", default="auto", help=DEVICE_HELP)
    values = parser.parse(arguments)

    from rlcore.runs.train import open_agent
    from rlcore.runs.video import record_video

    seed, max_steps = _whole_number("--seed", values.seed, lowest=0), _whole_number("--max-steps", values.max_steps)
    agent, file = open_agent(values.run, device=values.device)
    try:
        folder = Path(values.run) if Path(values.run).is_dir() else file.parent
        film = record_video(agent, getattr(values, "out", folder / "video.mp4"), seed, not values.stochastic, max_steps)
    finally:
        agent.close()
    episode = f"an episode of {film['length']} steps with return {film['return']:.1f}"
    print(f"{film['path']}: {film['frames']} frames, {episode}")
    return 0


def list_all(arguments: list[str]) -> int:
    """rlcore list"""
    parser = Parser(prog="rlcore list", description="List agents, presets and default hyperparameters.")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    values = parser.parse(arguments)

    from rlcore.agents import AGENTS
    from rlcore.agents.config import field_help
    from rlcore.presets import all_presets

    presets = all_presets()
    if values.json:
        agents = {
            name: {
                "summary": _summary(agent),
                "presets": presets.get(name, {}),
                "defaults": {f.name: f.default for f in dataclasses.fields(agent.Config)},
            }
            for name, agent in AGENTS.items()
        }
        print(json.dumps(agents))
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
