"""rlcore train, and pretrain."""

import argparse
import contextlib
import os
import re
import shlex
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.cli.flags import (
    DEVICE_HELP,
    HELP,
    IMPORT_HELP,
    Parser,
    RunFlags,
    add_common_flags,
    add_flag,
    add_flags_for_stored,
    agent_class,
    changes_of_stored,
    counts_of,
    default_values,
    env_kwargs_of,
    hyperparameters_of,
    import_modules,
    meanwhile,
    normalized,
    number,
    say,
    shown,
    summaries,
    summary,
    whole_number,
)
from rlcore.errors import RlcoreError, UsageError, printable
from rlcore.presets import preset_of
from rlcore.runs.settings import COUNTS, EVAL_EPISODES, from_toml, read_settings, refuse_unknown

if TYPE_CHECKING:
    from rlcore.agents import Agent

MOST_THREADS = 1024
OUT_OF_MEMORY = re.compile("allocate memory|out of memory|calculation overflowed|array is too big|Unable to allocate")


def train(arguments: list[str]) -> int:
    """rlcore train ALGO ENV_ID ... | rlcore train --resume DIR ... | rlcore train --config FILE ...

    Where torchrun began several processes, they train together.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return _train(arguments)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of lost connections are pages long
    from rlcore.distributed.ranks import ranks

    rank = os.environ.get("RANK", "0")
    if rank != "0":
        warnings.formatwarning = lambda message, *_: f"rlcore: rank {rank}: {printable(str(message))}\n"
    try:
        with ranks():
            return _train(arguments)
    except RlcoreError:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent when one process ends, while another is still to tell why
        raise


def _train(arguments: list[str]) -> int:
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
    agent = agent_class(first)
    if set(HELP) & set(arguments):
        parser = _parser_with_defaults(first, agent, arguments[1:])
    else:
        parser = _new_run_parser(first, agent)
    return _train_new(agent.__name__.lower(), agent, vars(parser.parse(arguments[1:])))


def _new_run_parser(
    algo: str, agent: "type[Agent]", values: dict[str, Any] | None = None, note: str = "", everything: bool = True
) -> Parser:
    """The parser of `rlcore train ALGO`, whose help shows `values` as defaults, and says in a note whose they are."""
    prog = f"rlcore train {algo}"
    more = "" if everything else f"all {len(default_values(agent.Config))} hyperparameters: {prog} --help-all"
    usage, about = f"{prog} ENV_ID [flags]", f"{summary(agent)}\n{note}"
    parser = Parser(prog=prog, usage=usage, description=about, epilog=more, add_help=False)
    of_run = parser.add_argument_group("run")
    env_help = "gymnasium environment, or module:Name-v0 of your own"
    of_run.add_argument("env_id", metavar="ENV_ID", nargs="?" if note else None, help=env_help)
    of_run.add_argument(*HELP, action="help", help=argparse.SUPPRESS)
    add_flag(of_run, "--import", "MODULE", IMPORT_HELP if everything else argparse.SUPPRESS, action="append")
    RunFlags(parser, values or {}, everything).add(agent.Config, of_run)
    return parser


def _parser_with_defaults(algo: str, agent: "type[Agent]", arguments: list[str]) -> Parser:
    """One whose help shows the defaults of the run that is asked about: of its environment's preset, or that of
    --preset, and what a flag such as --variant implies."""
    reader = _new_run_parser(algo, agent, note="read what there is")
    given = vars(reader.parse_known_args([word for word in arguments if word not in HELP])[0])
    env_id, name = given.get("env_id"), given.get("preset", "auto")
    used, preset = preset_of(agent, env_id or name, name)
    why = f": there is no preset for {env_id}." if env_id else "; name an ENV_ID to see those of its preset."
    own = f"Defaults are the algorithm's own{why if name == 'auto' else '.'}"
    note = f"Defaults are those of preset {used}." if used != "none" else own
    steps = {"total_steps": 1_000_000} if env_id else {}
    values = hyperparameters_of(agent.Config, {**preset, **agent.Config.implied(given)})
    steps |= {"total_steps": preset["total_steps"]} if "total_steps" in preset else {}
    return _new_run_parser(algo, agent, {**values, **steps}, note, "--help-all" in arguments)


def pretrain(arguments: list[str]) -> int:
    """rlcore pretrain ENV_ID ...: rlcore train bc ENV_ID ..., from which `train --init` goes on."""
    return train(["bc", *arguments])


def _print_train_overview() -> int:
    for line in (
        "usage: rlcore train ALGO ENV_ID [flags]      train an agent on a gymnasium environment",
        "       rlcore train --resume DIR [flags]     continue a run after a crash, or further with --total-steps",
        "       rlcore train --config FILE [flags]    make the run that a config.toml describes",
        "",
        *(f"  {name:<12}{text}" for name, text in summaries().items()),
        "  module:Class of your own, installed or in the current folder",
        "",
    ):
        say(line, 14)
    say("rlcore train ALGO --help explains the flags that one needs first, --help-all every hyperparameter,", 0)
    say("rlcore train --resume --help what may change in a run that goes on.", 0)
    return 0


def _train_new(algo: str, agent: "type[Agent]", values: dict[str, Any]) -> int:
    env_id = values["env_id"]
    import_modules(values)
    used, preset = preset_of(agent, env_id, values.get("preset", "auto"))
    # Flags before presets, and what a flag implies (a variant's switches) between them.
    merged = {"total_steps": 1_000_000, **preset, **agent.Config.implied(values), **values}
    settings = {"algo": algo, "env_id": env_id, "preset": used, "total_steps": merged["total_steps"]}
    settings["env_kwargs"] = env_kwargs_of(values)
    settings["hyperparameters"] = hyperparameters_of(agent.Config, merged)
    overridden = sorted(set(settings["hyperparameters"]) & set(values) & set(preset))
    note = f"preset {used}" if preset else "no preset, the algorithm's defaults"
    note += f" (overridden: {', '.join(overridden)})" if overridden else ""
    return _launch(agent, settings, values, note)


def _train_from_config(arguments: list[str]) -> int:
    what = "Make the run that a config.toml describes, in a new folder."
    parser = Parser(prog="rlcore train", description=what, add_help=False)
    of_run = parser.add_argument_group("run")
    of_run.add_argument(*HELP, action="help", help="the flags that one needs first, or all of them")
    add_flag(of_run, "--config", "FILE", "config.toml of a run folder", required=True)
    add_flag(of_run, "--import", "MODULE", IMPORT_HELP, action="append")
    if len(arguments) > 1 and arguments[1] in HELP:  # in the place of a file
        parser.print_help()
        return 0
    known, _ = parser.parse_known_args([a for a in arguments if a not in HELP])
    import_modules(vars(known))
    config = read_settings(Path(known.config))
    refuse_unknown(config, known.config)
    agent = agent_class(config["algo"])
    stored = from_toml(config["hyperparameters"])
    defaults = {**stored, "total_steps": config["total_steps"]}
    RunFlags(parser, defaults, "--help-all" in arguments).add(agent.Config, of_run)
    values = vars(parser.parse(arguments))

    from rlcore.agents.config import check_names
    from rlcore.envs.make import check_env_kwargs, check_imported

    check_names(agent.Config, config["hyperparameters"])
    given = env_kwargs_of(values)
    settings = {name: config[name] for name in ("algo", "env_id", "preset", *COUNTS) if name in config}
    settings["env_kwargs"] = {**config["env_kwargs"], **given}
    check_imported(settings["env_id"], known.config)
    check_env_kwargs(settings["env_kwargs"], given, known.config)
    asked = hyperparameters_of(agent.Config, values)
    settings["hyperparameters"] = {**stored, **agent.Config.implied(values), **asked}
    return _launch(agent, settings, values, f"config {known.config}")


def _launch(agent_class: type, settings: dict[str, Any], values: dict[str, Any], note: str) -> int:
    """Make the agent and the run, train, evaluate, and tell the result."""
    from rlcore.runs.folder import RunFolder
    from rlcore.runs.follower import Follower
    from rlcore.runs.train import Run, checkpoint_interval, describe_task, describe_ways, set_threads
    from rlcore.tracing import share

    counts = counts_of({"eval_episodes": EVAL_EPISODES, **settings, **values})
    settings |= {"checkpoint_every": checkpoint_interval(counts["total_steps"]), **counts}
    threads, trackers = _threads(values), _trackers(values)
    if "run_dir" in values and share().rank == 0:
        RunFolder.refuse_existing(values["run_dir"])
    with contextlib.closing(_new_agent(agent_class, settings)) as agent:
        set_threads(agent, threads)
        _prepare(agent, settings["total_steps"])
        if agent.share.rank:
            return _follow(Follower.start(agent, settings))
        with contextlib.closing(Run.start(_new_folder(values, settings, agent.config.seed), agent, settings)) as run:
            run.tracked_by = trackers
            say(f"{settings['algo']} on {describe_task(agent)}, {note}, seed {agent.config.seed}")
            for line in describe_ways(agent):
                say(line)
            return _finish(run, values)


def _prepare(agent: "Agent", total_steps: int) -> None:
    """Choose how iterations run, and make the programs that it takes, which may take most of a minute."""
    agent.engine.choose(total_steps)
    if agent.engine.how == "compiled" and agent.share.rank == 0:
        meanwhile("rlcore: preparing programs, a minute the first time ...")
    agent.engine.prepare(total_steps)


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
        asked = ", ".join(f"{name} = {shown(hyperparameters[name])}" for name in sizes)
        raise UsageError(
            f"there is not enough memory for this agent and its rollouts{f' ({asked})' if asked else ''}; smaller "
            "num_envs, num_steps or hidden_sizes need less"
        ) from error


def _threads(values: dict[str, Any]) -> str:
    asked = values.get("threads", "auto")
    return asked if asked == "auto" else str(whole_number("--threads", asked, highest=MOST_THREADS))


def _trackers(values: dict[str, Any]) -> list[Any]:
    from rlcore.runs.tracking import find_tracker

    import_modules(values)
    return [find_tracker(name) for name in values.get("track", [])]


def _new_folder(values: dict[str, Any], settings: dict[str, Any], seed: int) -> Any:
    """That of --run-dir, or one of its own even where another run of these begins in the same second."""
    from rlcore.runs.folder import RunFolder

    if "run_dir" in values:
        return RunFolder.create(values["run_dir"])
    env_name, now = settings["env_id"].rpartition(":")[2].replace("/", "-"), time.strftime("%Y%m%d-%H%M%S")
    return RunFolder.create_numbered(f"runs/{env_name}/{settings['algo']}-seed{seed}-{now}")


def _resume(arguments: list[str]) -> int:
    from rlcore.runs.follower import Follower
    from rlcore.runs.train import Run, describe_task, describe_ways, set_threads
    from rlcore.tracing import share

    parser = Parser(prog="rlcore train --resume", description="Continue a run from its newest checkpoint.")
    add_flag(parser, "--resume", "DIR", "the run folder", required=True)
    add_flag(parser, "--total-steps", "K", "new end of the run (default: as before)")
    add_flag(parser, "--device", "X", f"{DEVICE_HELP} (default: as before)")
    add_flags_for_stored(parser)
    add_common_flags(parser, "as before")
    values = vars(parser.parse(["--help"] if {"-h", "--help"} & set(arguments) else arguments))
    counts, threads, trackers = counts_of(values), _threads(values), _trackers(values)
    if share().rank:
        follower = Follower.resume(**changes_of_stored(values))
        with contextlib.closing(follower.agent) as agent:
            set_threads(agent, threads)
            if not follower.is_complete:
                agent.engine.prepare(follower.total_steps)
            return _follow(follower)
    run = Run.resume(values["resume"], counts.pop("total_steps", None), **counts, **changes_of_stored(values))
    with contextlib.closing(run), contextlib.closing(run.agent) as agent:
        run.tracked_by = trackers
        set_threads(agent, threads)
        if not run.is_complete:
            _prepare(agent, run.total_steps)
        say(f"resuming {run.settings['algo']} on {describe_task(agent)} at step {agent.global_step:,}")
        for line in ["the final evaluation is missing"] if run.is_complete else describe_ways(agent):
            say(line)
        return _finish(run, values)


def _follow(run: Any) -> int:
    """What ranks other than the first do."""
    run.train()
    return 0


def _finish(run: Any, values: dict[str, Any]) -> int:
    run.train(values.get("progress", True))
    steps, seconds, episodes = run.agent.global_step, run.seconds, run.eval_episodes
    if episodes:
        meanwhile(f"rlcore: evaluating over {episodes:,} episodes ...")
        report = run.evaluate(episodes)
        measure, what = run.agent.scored_by
        score = f"{measure} {number(report['mean'])} ± {number(report['std'], report['mean'])}{normalized(report)}"
        say(f"evaluation: {score} over {len(report['returns'])} {'greedy ' * (what == 'episodes')}{what}")
    speed = f"{steps / max(seconds, 1e-9):,.0f} steps/s"
    say(f"trained {steps:,} steps in {seconds:.1f} s ({speed}); run folder: {run.folder.path}")
    if sys.stdout.isatty():  # a line for each, which no column count breaks, to be pasted
        print(*_next_commands(run, values), sep="\n")
    return 0


def _next_commands(run: Any, values: dict[str, Any]) -> list[str]:
    """What one does with a run, for its folder and the modules that it takes."""
    from rlcore.envs.make import split_id

    agent, folder = run.agent, shlex.quote(str(run.folder.path))
    own = [] if type(agent).__module__.startswith("rlcore.") else [type(agent).__module__]
    modules = dict.fromkeys([*values.get("import", []), *filter(None, [split_id(str(agent.env_id))[0]]), *own])
    with_modules = "".join(f" --import {shlex.quote(module)}" for module in modules)
    modes = agent.envs.metadata.get("render_modes", ["rgb_array"])
    commands = [f"rlcore eval {folder}{with_modules}"]
    commands += [f"rlcore video {folder}{with_modules}"] if "rgb_array" in modes else []
    return ["next:", *commands, f"rlcore report {folder}", f"tensorboard --logdir {folder}"]
