"""rlcore train, and pretrain."""

import contextlib
import os
import re
import signal
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.cli.flags import (
    DEVICE_HELP,
    IMPORT_HELP,
    Parser,
    add_common_flags,
    add_flag,
    add_flags_for_stored,
    add_run_flags,
    agent_class,
    changes_of_stored,
    counts_of,
    env_kwargs_of,
    hyperparameters_of,
    import_modules,
    normalized,
    number,
    preset_of,
    shown,
    summary,
    whole_number,
)
from rlcore.errors import RlcoreError, UsageError, printable
from rlcore.runs.settings import COUNTS, EVAL_EPISODES, read_settings

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
    agent, prog = agent_class(first), f"rlcore train {first}"
    parser = Parser(prog=prog, usage=f"{prog} ENV_ID [flags]", description=summary(agent))
    env_help = "gymnasium environment, such as CartPole-v1, or module:Name-v0 of a module that registers it"
    parser.add_argument("env_id", metavar="ENV_ID", help=env_help)
    add_flag(parser, "--import", "MODULE", IMPORT_HELP, action="append")
    add_run_flags(parser, agent.Config)
    return _train_new(agent.__name__.lower(), agent, vars(parser.parse(arguments[1:])))


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
        *(f"  {name:<10}{summary(agent)}" for name, agent in AGENTS.items()),
        "  module:Class of your own, installed or in the current folder",
        "",
        "rlcore train ALGO --help explains every flag and hyperparameter,",
        "rlcore train --resume --help what may change in a run that goes on.",
        sep="\n",
    )
    return 0


def _train_new(algo: str, agent: "type[Agent]", values: dict[str, Any]) -> int:
    env_id, name = values["env_id"], values.get("preset")
    import_modules(values)
    preset = preset_of(agent, algo, env_id, name)
    used = "none" if preset is None else name or env_id.rpartition(":")[2]
    # Flags before presets, and what a flag implies (a variant's switches) between them.
    merged = {"total_steps": 1_000_000, **(preset or {}), **agent.Config.implied(values), **values}
    settings = {"algo": algo, "env_id": env_id, "preset": used, "total_steps": merged["total_steps"]}
    settings["env_kwargs"] = env_kwargs_of(values)
    settings["hyperparameters"] = hyperparameters_of(agent.Config, merged)
    overridden = sorted(set(settings["hyperparameters"]) & set(values) & set(preset or {}))
    note = f"preset {used}" if preset else "no preset, the algorithm's defaults"
    note += f" (overridden: {', '.join(overridden)})" if overridden else ""
    return _launch(agent, settings, values, note)


def _train_from_config(arguments: list[str]) -> int:
    parser = Parser(prog="rlcore train", description="Make the run that a config.toml describes, in a new folder.")
    add_flag(parser, "--config", "FILE", "config.toml of a run folder", required=True)
    add_flag(parser, "--import", "MODULE", IMPORT_HELP, action="append")
    known, _ = parser.parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    import_modules(vars(known))
    config = read_settings(Path(known.config))
    agent = agent_class(config["algo"])
    add_run_flags(parser, agent.Config)
    values = vars(parser.parse(arguments))

    from rlcore.agents.config import check_names
    from rlcore.envs.make import check_env_kwargs, check_imported

    check_names(agent.Config, config["hyperparameters"])
    stored = {name: None if value == "none" else value for name, value in config["hyperparameters"].items()}
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
    from rlcore.runs.train import Run, checkpoint_interval, describe_environment, set_threads
    from rlcore.tracing import share

    counts = counts_of({"eval_episodes": EVAL_EPISODES, **settings, **values})
    settings |= {"checkpoint_every": checkpoint_interval(counts["total_steps"]), **counts}
    threads, trackers = _threads(values), _trackers(values)
    if "run_dir" in values and share().rank == 0:
        RunFolder.refuse_existing(values["run_dir"])
    with contextlib.closing(_new_agent(agent_class, settings)) as agent:
        set_threads(agent, threads)
        agent.engine.prepare(settings["total_steps"])
        if agent.share.rank:
            return _follow(Follower.start(agent, settings))
        with contextlib.closing(Run.start(_new_folder(values, settings, agent.config.seed), agent, settings)) as run:
            run.tracked_by = trackers
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
    from rlcore.runs.train import Run, describe_environment, set_threads
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
            agent.engine.prepare(run.total_steps)
        print(f"resuming {run.settings['algo']} on {describe_environment(agent)} at step {agent.global_step:,}")
        print("the final evaluation is missing" if run.is_complete else agent.engine.describe(), flush=True)
        return _finish(run, values.get("progress", True))


def _follow(run: Any) -> int:
    """What ranks other than the first do."""
    run.train()
    return 0


def _finish(run: Any, progress: bool) -> int:
    run.train(progress)
    steps, seconds, episodes = run.agent.global_step, run.seconds, run.eval_episodes
    if episodes:
        report = run.evaluate(episodes)
        measure, what = run.agent.scored_by
        score = f"{measure} {number(report['mean'])} ± {number(report['std'])}{normalized(report)}"
        print(f"evaluation: {score} over {len(report['returns'])} {'greedy ' * (what == 'episodes')}{what}")
    speed = f"{steps / max(seconds, 1e-9):,.0f} steps/s"
    print(f"trained {steps:,} steps in {seconds:.1f} s ({speed}); run folder: {run.folder.path}")
    return 0
