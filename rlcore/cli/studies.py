"""Many runs: bench, report, plot, tune."""

import argparse
import contextlib
import math
import time
from pathlib import Path
from typing import Any

from rlcore.cli.flags import (
    ENV_ARG_HELP,
    IMPORT_HELP,
    PRESET_HELP,
    Parser,
    add_flag,
    agent_class,
    env_kwargs_of,
    hyperparameters_of,
    import_modules,
    look_in_current_folder,
    number,
    whole_number,
)
from rlcore.errors import RlcoreError, UsageError
from rlcore.presets import preset_of
from rlcore.runs.machine import cores

MOST_JOBS = 1024
MOST_GPUS = 64
MOST_SECONDS = 86_400


def bench(arguments: list[str]) -> int:
    """rlcore bench SUITE --out DIR | rlcore bench --agents A,B --envs E,F --out DIR | rlcore bench --out DIR"""
    what = (
        "Train agents on environments with several seeds each, into one folder. What was killed goes on where it was, "
        "what has ended is not run again."
    )
    parser = Parser(prog="rlcore bench", description=what)
    suites = "suite that is shipped (see rlcore list), or a TOML file; none: the bench that has begun in --out"
    parser.add_argument("suite", metavar="SUITE", nargs="?", help=suites)
    add_flag(parser, "--out", "DIR", "the folder of the bench", required=True)
    agents = "algorithms, or module:Class of your own, instead of a suite; or those of the suite's agents to run"
    add_flag(parser, "--agents", "A,B", agents)
    add_flag(parser, "--envs", "E,F", "environment ids instead of a suite, or those of the suite to run")
    add_flag(parser, "--seeds", "K", "number of seeds, or first-last (default: the suite's, or 10)")
    add_flag(parser, "--total-steps", "K", "environment steps of every run (default: the suite's, or each preset's)")
    add_flag(parser, "--eval-episodes", "K", "greedy episodes after training (default: the suite's, or 100)")
    add_flag(parser, "--import", "MODULE", IMPORT_HELP, action="append")
    add_flag(parser, "--jobs", "J", "runs at a time (default: one for each core, with --ray of the cluster)")
    ray = "hand the runs to a Ray cluster: HOST:PORT, ray://HOST:PORT, auto, or local; pip install 'rlcore[cluster]'"
    add_flag(parser, "--ray", "ADDRESS", ray)
    add_flag(parser, "--ray-cpus", "C", "cores of the cluster for each run (default: 1)")
    add_flag(parser, "--ray-gpus", "G", "GPUs of the cluster for each run, or a part of one (default: 0)")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help="show progress (default: yes)")
    values = vars(parser.parse(arguments))
    jobs = whole_number("--jobs", values.get("jobs", len(cores())), highest=MOST_JOBS)
    suite = _suite(values)

    from rlcore.runs.bench import Bench

    with _cluster(values) as cluster, contextlib.closing(Bench.open(values["out"], suite)) as study:
        failed = study.run(jobs, values.get("progress", True), cluster)
        done = len(study.cells) - len(failed)
    print(f"{done} of {len(study.cells)} cells are done; next: rlcore report {values['out']}")
    if failed:
        first = failed[0]
        raise RlcoreError(
            f"{len(failed)} of {len(study.cells)} cells failed, such as {first.agent} on {first.env_id} with seed "
            f"{first.seed}: {first.error}; the same command tries them again"
        )
    return 0


def _cluster(values: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """The cluster that is asked for, a context of None without one."""
    of_cells = [name for name in ("ray_cpus", "ray_gpus") if name in values]
    if "ray" not in values:
        if of_cells:
            raise UsageError(f"--{of_cells[0].replace('_', '-')} is given, but not --ray, which it would be for")
        return contextlib.nullcontext()
    cpus = whole_number("--ray-cpus", values.get("ray_cpus", 1), highest=MOST_JOBS)
    gpus = _size("ray_gpus", values.get("ray_gpus", "0"), lowest=0, highest=MOST_GPUS)
    jobs = whole_number("--jobs", values["jobs"], highest=MOST_JOBS) if "jobs" in values else None

    from rlcore.runs.cluster import Cluster

    return Cluster(values["ray"], jobs, cpus, gpus)


def _suite(values: dict[str, Any]) -> dict[str, Any] | None:
    """The suite that is asked for, None for the one that has begun."""
    from rlcore.runs.suite import completed, read_suite, seeds_of

    look_in_current_folder()  # for what the suite imports
    import_modules(values)
    chosen = {name: _names(f"--{name}", values[name]) for name in ("agents", "envs") if name in values}
    if values.get("suite") is None and not chosen:
        changes = [name for name in ("seeds", "total_steps", "eval_episodes", "import") if name in values]
        if changes:
            flag = changes[0].replace("_", "-")
            raise UsageError(f"--{flag} is given, but neither SUITE nor --agents and --envs, which it would be for")
        return None
    suite: dict[str, Any] = read_suite(values["suite"]) if values.get("suite") else {}
    for what, names in chosen.items():
        suite[what] = _subset(what, suite[what], names) if values.get("suite") else names
    if "seeds" in values:
        suite["seeds"] = seeds_of(values["seeds"])
    for name in ("total_steps", "eval_episodes"):
        if name in values:
            suite[name] = whole_number("--" + name.replace("_", "-"), values[name])
    if "import" in values:
        suite["imports"] = [*suite.get("imports", []), *values["import"]]
    return completed(suite)


def _names(flag: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{flag} is '{text}', but must be names with commas between them")
    return names


def _subset(kind: str, of: Any, names: list[str]) -> Any:
    """Those agents or environments of a suite that are named."""
    for name in names:
        if name not in of:
            raise UsageError(f"--{kind} names '{name}', but the suite has {', '.join(map(str, of))}")
    return {name: of[name] for name in names} if isinstance(of, dict) else names


def report(arguments: list[str]) -> int:
    """rlcore report DIR... --out FILE --live SECONDS"""
    what = (
        "Write a page about benches and runs, and the same as Markdown: learning curves, scores with intervals, what "
        "failed. It is one file that loads nothing."
    )
    parser = Parser(prog="rlcore report", description=what)
    parser.add_argument("folders", metavar="DIR", nargs="+", help="folder of a bench or of a run")
    add_flag(parser, "--out", "FILE", "the page, .html; beside it the Markdown, .md (default: report.html in DIR)")
    live = "write it again every so many seconds, and have the browser read it again, until Ctrl-C or all is done"
    add_flag(parser, "--live", "SECONDS", live)
    values = parser.parse(arguments)
    seconds = whole_number("--live", values.live, highest=MOST_SECONDS) if "live" in values else None
    out = Path(getattr(values, "out", Path(values.folders[0]) / "report.html"))

    from rlcore.runs.bench import expected_cells
    from rlcore.runs.report import write_report

    expected = [cell for folder in values.folders for cell in expected_cells(folder)]
    while True:
        made = write_report(values.folders, out, expected, seconds)
        going_on = seconds is not None and _is_going_on(values.folders, made)
        print(_told(made), flush=True)
        if not going_on:
            return 0
        time.sleep(seconds)


def _is_going_on(folders: list[str], made: dict[str, Any]) -> bool:
    """Whether there is more to come: cells that have not run, or a run that has not been evaluated."""
    runs = [Path(folder) for folder in folders if (Path(folder) / "config.toml").is_file()]
    return made["not_run"] > 0 or any(not (run / "evaluation.json").exists() for run in runs)


def _told(made: dict[str, Any]) -> str:
    counts = [f"{made['done']} runs"]
    counts += [f"{made[name]} {words}" for name, words in (("failed", "failed"), ("not_run", "not run")) if made[name]]
    return f"{made['path']}: {', '.join(counts)}; as Markdown: {made['markdown']}"


def plot(arguments: list[str]) -> int:
    """rlcore plot DIR... --x steps|time --out FILE"""
    parser = Parser(prog="rlcore plot", description="Draw learning curves of benches and runs for a paper.")
    parser.add_argument("folders", metavar="DIR", nargs="+", help="folder of a bench or of a run")
    add_flag(parser, "--out", "FILE", "png, svg or pdf (default: curves.png in DIR)")
    add_flag(parser, "--x", "X", "steps of the environments, or time on the wall clock", default="steps")
    add_flag(parser, "--width", "INCHES", "of the whole picture; a column of a paper has 3 to 3.5", default="5.5")
    add_flag(parser, "--height", "INCHES", "of the whole picture (default: as the panels need)")
    add_flag(parser, "--font-size", "POINTS", "of all letters", default="8")
    add_flag(parser, "--font", "FAMILY", "such as serif (default: matplotlib's)")
    values = parser.parse(arguments)
    sizes = {name: _size(name, getattr(values, name)) for name in ("width", "height", "font_size") if name in values}
    out = Path(getattr(values, "out", Path(values.folders[0]) / "curves.png"))

    from rlcore.runs.plot import write_plot

    made = write_plot(values.folders, out, values.x, **sizes, font=getattr(values, "font", None))
    print(f"{made['path']}: {', '.join(made['agents'])} on {', '.join(made['environments'])}")
    return 0


def _size(name: str, text: str, lowest: float = 0.5, highest: float = 100) -> float:
    flag = "--" + name.replace("_", "-")
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{flag} is '{text}', but must be a number") from None
    if not lowest <= value <= highest:
        raise UsageError(f"{flag} is {text}, but must be from {lowest} to {highest}")
    return value


def tune(arguments: list[str]) -> int:
    """rlcore tune ALGO ENV_ID --out DIR"""
    what = (
        "Search for better hyperparameters, from those of the preset on, and write what is best as a preset. The score "
        "of a setting is the mean over seeds of the greedy return less its standard deviation. The same command goes "
        "on with a search, also at the same time as another."
    )
    parser = Parser(prog="rlcore tune", description=what)
    algo_help = "algorithm that learns from rollouts, see rlcore list, or module:Class of your own"
    parser.add_argument("algo", metavar="ALGO", help=algo_help)
    parser.add_argument("env_id", metavar="ENV_ID", help="gymnasium environment, such as CartPole-v1")
    add_flag(parser, "--out", "DIR", "the folder of the search (default: runs/ENV_ID/tune-ALGO)")
    add_flag(parser, "--trials", "K", "trials that the search is to have (default: 50, with --minutes any)")
    add_flag(parser, "--minutes", "M", "begin no trial after so many minutes")
    add_flag(parser, "--total-steps", "K", "environment steps of each training (default: the preset's, or 100,000)")
    seeds = (
        "number of seeds for each trial, from 100 on, or first-last; those below 100 are for results that are "
        "reported, and a setting must not be chosen by them (default: 100-102)"
    )
    add_flag(parser, "--seeds", "K", seeds)
    add_flag(parser, "--eval-episodes", "K", "greedy episodes after each training (default: 50)")
    fixed = "hyperparameter that is not searched; may be repeated"
    add_flag(parser, "--fixed", "NAME=VALUE", fixed, action="append")
    add_flag(parser, "--preset", "NAME", PRESET_HELP)
    add_flag(parser, "--seed", "S", "of what is tried (default: 0)")
    add_flag(parser, "--jobs", "J", "processes that run trials (default: 1)")
    add_flag(parser, "--import", "MODULE", IMPORT_HELP, action="append")
    add_flag(parser, "--env-arg", "NAME=VALUE", ENV_ARG_HELP, action="append")
    values = vars(parser.parse(arguments))
    jobs = whole_number("--jobs", values.get("jobs", 1), highest=MOST_JOBS)
    trials = values.get("trials", None if "minutes" in values else 50)
    trials = None if trials is None else whole_number("--trials", trials)
    minutes, seed = _minutes(values), whole_number("--seed", values.get("seed", 0), lowest=0)
    problem = _problem(values)

    from rlcore.runs.tune import Tuner, work_in_processes

    env_name = values["env_id"].rpartition(":")[2].replace("/", "-")
    out = values.get("out", f"runs/{env_name}/tune-{problem.algo}")
    with contextlib.closing(Tuner.open(out, problem, seed)) as tuner:
        until = time.monotonic() + 60 * minutes
        try:
            if jobs == 1:
                tuner.work(trials, until)
            else:
                work_in_processes(tuner, trials, until, jobs)
        finally:
            tuner.write()
        return _tell_best(tuner, values["algo"])


def _minutes(values: dict[str, Any]) -> float:
    """Those of --minutes, without end where it is not given."""
    text = values.get("minutes", "inf")
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not minutes > 0 or (math.isinf(minutes) and "minutes" in values):
        raise UsageError(f"--minutes is '{text}', but must be a number of more than 0")
    return minutes


def _problem(values: dict[str, Any]) -> Any:
    """What is to be searched for, of the flags of `rlcore tune`."""
    import_modules(values)
    agent, env_id = agent_class(values["algo"]), values["env_id"]
    algo, imports = agent.__name__.lower(), [*values.get("import", []), *values["algo"].split(":")[:-1]]
    _, preset = preset_of(agent, env_id, values.get("preset", "auto"))
    total_steps = whole_number("--total-steps", values.get("total_steps", preset.get("total_steps", 100_000)))
    episodes = whole_number("--eval-episodes", values.get("eval_episodes", 50))

    from rlcore.agents.config import check_names
    from rlcore.runs.suite import seeds_of
    from rlcore.runs.tune import FIRST_SEED, make_problem

    fixed = dict(pair.partition("=")[::2] for pair in values.get("fixed", []))
    for pair in values.get("fixed", []):
        if not all(pair.partition("=")):
            raise UsageError(f"--fixed is '{pair}', but must be NAME=VALUE")
    check_names(agent.Config, fixed)
    asked = str(values.get("seeds", "100-102"))
    seeds = [FIRST_SEED + n for n in seeds_of(asked)] if "-" not in asked else seeds_of(asked)
    return make_problem(
        algo, env_id, preset=preset, fixed=hyperparameters_of(agent.Config, fixed), total_steps=total_steps,
        seeds=seeds, eval_episodes=episodes, env_kwargs=env_kwargs_of(values), imports=imports,
    )  # fmt: skip


def _tell_best(tuner: Any, algo: str) -> int:
    """Say what a search has found and how it is used, by the name that the user has for the algorithm."""
    best, first, problem = tuner.best(), tuner.first(), tuner.problem
    if best is None:
        raise RlcoreError("no trial ended well, so that there is no preset; the lines above say why")
    before = "" if first is None else f" (the preset: {number(first.value)})"
    seeds = f"{problem.seeds[0]}-{problem.seeds[-1]}"
    print(f"best: trial {best.number}, mean less standard deviation {number(best.value)} over seeds {seeds}{before}")
    print(f"rlcore train {algo} {problem.env_id} --preset {tuner.path / 'preset.toml'}")
    print(f"all trials: {tuner.path / 'tune.html'} and trials.json")
    return 0
