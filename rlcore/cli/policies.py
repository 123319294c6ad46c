"""What is done with a trained agent: eval, video, export, compare."""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from rlcore.cli.flags import (
    DEVICE_HELP,
    RUN_HELP,
    Parser,
    add_flag,
    add_flags_for_stored,
    add_switch,
    changes_of_stored,
    normalized,
    number,
    whole_number,
)
from rlcore.errors import UsageError


def evaluate(arguments: list[str]) -> int:
    """rlcore eval RUN --episodes K --json"""
    parser = Parser(prog="rlcore eval", description="Play evaluation episodes with a trained agent.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    add_flag(parser, "--episodes", "K", "number of episodes", default="100")
    add_flag(parser, "--seed", "S", "of the episodes (default: derived from the run's)")
    add_switch(parser, "--stochastic", "draw actions instead of taking the most probable")
    add_flag(parser, "--device", "X", DEVICE_HELP, default="auto")
    add_switch(parser, "--json", "print the result as JSON, every episode included")
    add_flags_for_stored(parser)
    values = parser.parse(arguments)

    from rlcore.runs.train import evaluation_report, evaluation_seed, open_agent

    episodes = whole_number("--episodes", values.episodes)
    seed = whole_number("--seed", values.seed, lowest=0) if "seed" in values else None
    agent, file = open_agent(values.run, **changes_of_stored(vars(values)))
    with contextlib.closing(agent):
        seed = evaluation_seed(agent.config.seed) if seed is None else seed
        report = {"checkpoint": str(file), **evaluation_report(agent, episodes, seed, not values.stochastic)}
    if values.json:
        print(json.dumps(report))
        return 0
    measure, what = agent.scored_by
    kind = ("stochastic " if values.stochastic else "greedy ") if what == "episodes" else ""
    mean, std, least, most = (number(report[name], report["mean"]) for name in ("mean", "std", "min", "max"))
    print(
        f"{measure} {mean} ± {std} (min {least}, max {most}){normalized(report)} over {len(report['returns'])} "
        f"{kind}{what} of {report['env_id']}, seed {seed}; {file}"
    )
    return 0


def video(arguments: list[str]) -> int:
    """rlcore video RUN --out FILE"""
    parser = Parser(prog="rlcore video", description="Film one episode of a trained agent.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    add_flag(parser, "--out", "FILE", "mp4 or gif file (default: RUN/video.mp4)")
    add_flag(parser, "--seed", "S", "of the episode", default="0")
    add_switch(parser, "--stochastic", "draw actions instead of taking the most probable")
    add_flag(parser, "--max-steps", "K", "longest film", default="10000")
    add_flag(parser, "--device", "X", DEVICE_HELP, default="auto")
    add_flags_for_stored(parser)
    values = parser.parse(arguments)

    from rlcore.runs.video import record_video

    seed, max_steps = whole_number("--seed", values.seed, lowest=0), whole_number("--max-steps", values.max_steps)
    agent, _, folder = _opened(values)
    with contextlib.closing(agent):
        film = record_video(agent, getattr(values, "out", folder / "video.mp4"), seed, not values.stochastic, max_steps)
    episode = f"an episode of {film['length']} steps with return {film['return']:.1f}"
    print(f"{film['path']}: {film['frames']} frames, {episode}")
    return 0


def _opened(values: argparse.Namespace) -> tuple[Any, Path, Path]:
    """The agent of RUN, its checkpoint, and the folder where what is made of it goes."""
    from rlcore.runs.train import open_agent

    agent, file = open_agent(values.run, **changes_of_stored(vars(values)))
    return agent, file, Path(values.run) if Path(values.run).is_dir() else file.parent


def export(arguments: list[str]) -> int:
    """rlcore export RUN --out FILE"""
    what = "Write the policy of a trained agent to one file that runs without rlcore."
    parser = Parser(prog="rlcore export", description=what)
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    add_flag(parser, "--out", "FILE", "pt2 file, for torch.export.load, or onnx file (default: RUN/policy.pt2)")
    add_flags_for_stored(parser)
    values = parser.parse(arguments)

    agent, file, folder = _opened(values)
    path = Path(getattr(values, "out", folder / "policy.pt2"))
    with contextlib.closing(agent):
        agent.export(path)
    print(f"{path}: the greedy policy of {file}, which acts as the agent does")
    return 0


def compare(arguments: list[str]) -> int:
    """rlcore compare RUN --pairs K | rlcore compare RUN --label reward"""
    what = "Make pairs of clips of a trained agent, and a page on which a person says which are better."
    parser = Parser(prog="rlcore compare", description=what)
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    add_flag(parser, "--pairs", "K", "number of pairs", default="20")
    usual = "50, or the longest episode where that is shorter; texts are compared whole"
    add_flag(parser, "--length", "L", f"rows of a clip, fewer where its episode ends (default: {usual})")
    files = "the page, RUN/compare.html; with --label the pairs, RUN/preferences.jsonl"
    add_flag(parser, "--out", "FILE", f"what to write (default: {files})")
    add_flag(parser, "--label", "reward", "no page: the environment's own return judges at once")
    add_flag(parser, "--noise", "P", "probability that a label is the opposite of what is right (default: 0)")
    add_flag(parser, "--indifference", "X", "returns that differ by no more are as good as each other (default: 0)")
    add_flag(parser, "--seed", "S", "of the episodes", default="0")
    add_switch(parser, "--greedy", "take the most probable actions instead of drawing them")
    add_flag(parser, "--device", "X", DEVICE_HELP, default="auto")
    add_flags_for_stored(parser)
    values = parser.parse(arguments)
    judge = _judge(vars(values))

    from rlcore.runs.compare import MOST_PAIRS, write_labels, write_page

    count = whole_number("--pairs", values.pairs, highest=MOST_PAIRS)
    length = whole_number("--length", values.length) if "length" in values else None
    seed = whole_number("--seed", values.seed, lowest=0)
    agent, _, folder = _opened(values)
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
