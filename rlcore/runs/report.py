"""A page about runs that have been made, and the same as Markdown: scores with intervals, learning curves, failures.

What is told is a list of blocks (headings, texts, tables, charts) that both are written from. All that comes out of
files, such as names of environments, errors and hyperparameters, may be written by strangers and is escaped in either.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rlcore.envs.atari import PREFIX
from rlcore.errors import UsageError, printable, shown
from rlcore.runs import atari_scores, statistics
from rlcore.runs.charts import Chart, Series, chart_data, chart_html, chart_rows, compact, escape, number, strip
from rlcore.runs.results import Result, read_results
from rlcore.storage.files import atomic_file

Cell = tuple[str, str, int]
Group = tuple[str, str]  # an agent's label and an environment
HTML_MARK, MARKDOWN_MARK = '<meta name="generator" content="rlcore report">', "<!-- generator: rlcore report -->"
THRESHOLDS = 101  # of a performance profile
TOLD_THRESHOLDS = (0.25, 0.5, 0.75, 1.0)
MOST_PAIRS_OF = 8  # agents, each of which is compared with each other; of more, each with the best
LONGEST_VALUE = 300  # letters of a hyperparameter or of what a machine says
DEEPEST = 4  # of tables in a machine's or an environment's settings
FEW_RUNS = 5
LONG_TABLE = 30  # rows, beyond which it scrolls by itself
AGGREGATES = {
    "IQM": statistics.interquartile_mean, "median": statistics.median, "mean": statistics.mean,
    "optimality gap": statistics.optimality_gap,
}  # fmt: skip


@dataclass(frozen=True)
class Heading:
    """Of a section (level 2) or of a part of it (3)."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Drawn:
    """A cell of a table that only the page has."""

    svg: str


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header; columns whose cells are numbers are named in `numbers`."""

    header: list[str]
    rows: Sequence[Sequence[str | Drawn]]
    numbers: tuple[int, ...] = ()


Block = Heading | Text | Table | Chart


def write_report(
    paths: Iterable[str | Path], out: str | Path, expected: Iterable[Cell] = (), refresh_seconds: int | None = None,
    references: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a page about the runs in these folders, one file that loads nothing, and the same as Markdown beside it.

    Each appears whole or not at all, and takes the place of an earlier report alone. Returns both paths, the agents and
    environments, and how many runs are done, failed and not run.

    Args:
        paths: run folders, and folders of benches; where several hold the same agent, environment and seed, agents are
            told apart by their folders.
        out: the page; its name ends in .html.
        expected: agent, environment and seed of runs that were to be made; which of them are missing is told.
        refresh_seconds: after which the page loads itself again, for runs that are under way; None: never.
        references: of an environment the scores that count as 0 and 1, added to those of `normalization`.

    Raises:
        UsageError: where there is no path or it holds no runs, or `out` cannot be written or is no earlier report.
    """
    out, folders = Path(out), [Path(path) for path in paths]
    if not folders:
        raise UsageError("the folders to report on are none, but must be at least one run folder or bench folder")
    if out.suffix != ".html":
        raise UsageError(f"--out is {out}, but the name of a page must end in .html")
    if refresh_seconds is not None and refresh_seconds < 1:
        raise UsageError(f"refresh_seconds is {refresh_seconds}, but must be at least 1")
    markdown = out.with_suffix(".md")
    _refuse_foreign(out, HTML_MARK)
    _refuse_foreign(markdown, MARKDOWN_MARK)
    found = read_folders(folders)
    results = labelled(found)
    missing = sorted(set(expected) - {result.cell for _, result in found})
    title, blocks = contents(results, missing, references or {})
    _write(out, page(title, blocks, refresh_seconds))
    _write(markdown, as_markdown(title, blocks))
    states = [result.state for result in results]
    return {
        "path": str(out), "markdown": str(markdown), "agents": names_of(results, "agent"),
        "environments": names_of(results, "env_id"), "done": states.count("done"), "failed": states.count("failed"),
        "not_run": len(missing),
    }  # fmt: skip


def _refuse_foreign(path: Path, mark: str) -> None:
    """A file that no report has written is not overwritten."""
    try:
        with open(path, "rb") as file:
            ours = mark.encode() in file.read(1000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"the file {path} cannot be written: {error.strerror or error}") from error
    if not ours:
        raise UsageError(f"the file {path} exists already and is no report; choose another --out")


def _write(path: Path, text: str) -> None:
    try:
        with atomic_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UsageError(f"the file {path} cannot be written: {error.strerror or error}") from error


# What was run.


def read_folders(folders: list[Path]) -> list[tuple[Path, Result]]:
    """The results of each folder, of one that is named twice only once."""
    once = {folder.resolve(): folder for folder in reversed(folders)}
    return [(real, result) for real, folder in reversed(once.items()) for result in read_results(folder)]


def labelled(found: list[tuple[Path, Result]]) -> list[Result]:
    """The results, with agents named "ppo (folder)" where several folders hold the same of their cells.

    The folder is the one around run folders where that tells them apart, so that ten seeds of either are two agents.
    """
    places: dict[Cell, set[Path]] = defaultdict(set)
    for folder, result in found:
        places[result.cell].add(folder)
    twice = {cell[0] for cell, folders in places.items() if len(folders) > 1}
    around = {
        agent: all(
            len({folder.parent for folder in folders}) == len(folders)
            for cell, folders in places.items()
            if cell[0] == agent
        )
        for agent in twice
    }
    origin = {(agent, folder): folder.parent if around[agent] else folder for folder, agent in
              {(folder, result.agent) for folder, result in found if result.agent in twice}}  # fmt: skip
    names = {agent: _short_names({path for (a, _), path in origin.items() if a == agent}) for agent in twice}
    return [
        replace(result, agent=f"{result.agent} ({names[result.agent][origin[result.agent, folder]]})")
        if result.agent in twice
        else result
        for folder, result in found
    ]


def _short_names(paths: set[Path]) -> dict[Path, str]:
    """The last parts of paths, as many as tell them apart."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = {path: "/".join(path.parts[-count:]) for path in paths}
        if len(set(names.values())) == len(paths):
            break
    return names


def names_of(results: list[Result], attribute: str) -> list[str]:
    return sorted({getattr(result, attribute) for result in results}, key=_natural)


@lru_cache(maxsize=10_000)
def _natural(name: str) -> list[Any]:
    """To sort by, with numbers in names in the order of their size."""
    return [(int(part), "") if part.isdecimal() and part.isascii() and len(part) < 20 else (math.inf, part)
            for part in re.split(r"(\d+)", name)]  # fmt: skip


def _by_cell(result: Result) -> list[Any]:
    return [_natural(result.agent), _natural(result.env_id), result.seed]


# Published scores.


@cache
def published() -> dict[str, Any]:
    """Scores that others report, and scores that count as 0 and 1; the file names its sources."""
    return json.loads((resources.files(__package__) / "published.json").read_text(encoding="utf-8"))


def normalization(env_id: str) -> tuple[float, float, str] | None:
    """The scores of an environment that count as 0 and as 1, and what they are; None where none are known."""
    entry = published()["normalization"].get(env_id)
    if entry is not None:
        return entry["random"], entry["reference"], entry["reference_source"]
    name = env_id.rpartition(":")[2]
    for game, row in atari_scores.table().items():
        if name == f"{PREFIX}{game}-v5":
            return row["random"], row["human"], "professional tester, Wang et al. 2016"
    return None


# What is told.


def contents(
    results: list[Result], missing: list[Cell], references: Mapping[str, tuple[float, float]]
) -> tuple[str, list[Block]]:
    """The title and all blocks, in the order in which they are read."""
    agents, envs = names_of(results, "agent"), names_of(results, "env_id")
    styles = {agent: n for n, agent in enumerate(agents)}
    groups: dict[Group, list[Result]] = defaultdict(list)
    for result in sorted(results, key=_by_cell):
        if result.state == "done":
            groups[result.agent, result.env_id].append(result)
    scores = {group: _scores(runs) for group, runs in groups.items()}
    scores = {group: values for group, values in scores.items() if len(values)}
    known = {env_id: (*pair, "given with the report") for env_id, pair in references.items()}
    known |= {e: found for e in envs if e not in known and (found := normalization(e)) is not None}
    title = f"{_listed(agents, 'agents')} on {_listed(envs, 'environments')}" if results else "No runs yet"
    blocks: list[Block] = [*summary(results, missing)]
    blocks += aggregates(agents, envs, scores, known, styles)
    blocks += improvements(agents, envs, scores, styles)
    for env_id in envs:
        blocks += environment(env_id, {a: groups[a, env_id] for a in agents if (a, env_id) in groups}, styles)
    blocks += hyperparameters(results, agents)
    blocks += failures(results)
    blocks += not_run(missing)
    blocks += every_run(results)
    return title, blocks


def _listed(names: list[str], noun: str, most: int = 4) -> str:
    return ", ".join(names) if len(names) <= most else f"{len(names)} {noun}"


def _scores(runs: list[Result]) -> np.ndarray:
    """[n] of those runs that were evaluated."""
    values = np.array([run.score for run in runs], dtype=float)
    return values[np.isfinite(values)]


def summary(results: list[Result], missing: list[Cell]) -> list[Block]:
    """What was compared, and what it was made on."""
    failed = sum(result.state == "failed" for result in results)
    unevaluated = sum(result.state == "done" and not math.isfinite(result.score) for result in results)
    agents, envs, seeds = (len({getattr(r, name) for r in results}) for name in ("agent", "env_id", "seed"))
    text = f"{_count(agents, 'agent')} × {_count(envs, 'environment')} × {_count(seeds, 'seed')}: "
    text += f"{_count(len(results) - failed, 'run')} done, {failed} failed, {len(missing)} not run."
    if unevaluated:
        text += f" {_count(unevaluated, 'run')} without an evaluation (yet): of these there are curves but no scores."
    if failed:
        text += " Failed runs are in no score and no curve."
    return [Text(text), *_made_on(results)]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _made_on(results: list[Result]) -> list[Block]:
    """Hardware, versions and commit, where the runs say."""
    said: dict[str, dict[str, None]] = defaultdict(dict)  # in the order in which they are said
    for result in results:
        for name, value in result.machine.items():
            if value not in (None, "", {}, []):
                said[str(name)][_value(value)] = None
    rows = [[name, _listed_values(list(values))] for name, values in said.items()]
    return [Table(["made on", ""], rows)] if rows else []


def _listed_values(values: list[str], most: int = 3) -> str:
    more = f"; and {len(values) - most} more" if len(values) > most else ""
    return "; ".join(values[:most]) + more


def _value(value: Any, depth: int = 0) -> str:
    """A value of a config or machine, short."""
    if isinstance(value, dict) and depth < DEEPEST:
        text = ", ".join(f"{name} {_value(part, depth + 1)}" for name, part in list(value.items())[:20])
    elif isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = value if isinstance(value, str) else shown(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def aggregates(
    agents: list[str], envs: list[str], scores: dict[Group, np.ndarray], known: Mapping[str, tuple[float, float, str]],
    styles: dict[str, int],
) -> list[Block]:  # fmt: skip
    """Scores over environments and performance profiles, where there are two environments with references at least."""
    usable = [env_id for env_id in envs if env_id in known]
    chosen, shared = _sharing(agents, usable, scores)
    if len(shared) < 2:
        return []
    scaled = {
        agent: [(scores[agent, e] - known[e][0]) / ((known[e][1] - known[e][0]) or 1) for e in shared]
        for agent in chosen
    }
    told = (
        f"Normalised scores over {_count(len(shared), 'environment')}: 0 is random play, 1 the reference. In brackets "
    )
    told += (
        "95% intervals by the stratified bootstrap over runs, widened for few runs (Agarwal et al. 2021; Hesterberg "
    )
    told += "2015). IQM is the mean of the middle half of all runs; the optimality gap, how far runs stay below 1, is "
    told += "better where it is smaller."
    left_out = [a for a in agents if a not in chosen], [e for e in envs if e not in shared]
    for names, what in zip(left_out, ("agents", "environments"), strict=True):
        told += f" Left out, for want of references or of scores of all: the {what} {_few(names)}." if names else ""
    rows_of_reference = [[e, number(known[e][0]), number(known[e][1]), known[e][2]] for e in shared]
    return [
        Heading(2, "Scores over environments"),
        Text(told),
        _aggregate_table(scaled, styles),
        Table(["environment", "random", "reference", "reference is"], rows_of_reference, (1, 2)),
        Heading(2, "Performance profiles"),
        Text("The share of runs with a normalised score above τ, with 95% bands; higher is better."),
        _profiles(scaled, styles),
    ]


def _few(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _sharing(agents: list[str], envs: list[str], scores: dict[Group, np.ndarray]) -> tuple[list[str], list[str]]:
    """Agents and the environments that all of these have scores on; who has fewest is left out until there are two."""
    on = {agent: {e for e in envs if (agent, e) in scores} for agent in agents}
    chosen = sorted((a for a in agents if on[a]), key=lambda agent: -len(on[agent]))
    while chosen:
        shared = set.intersection(*(on[agent] for agent in chosen))
        if len(shared) >= 2:
            return [a for a in agents if a in chosen], [e for e in envs if e in shared]
        chosen.pop()
    return [], []


def _aggregate_table(scaled: dict[str, list[np.ndarray]], styles: dict[str, int]) -> Table:
    intervals = {
        agent: dict(zip(AGGREGATES, statistics.intervals(list(AGGREGATES.values()), x), strict=True))
        for agent, x in scaled.items()
    }
    points = {agent: {name: float(f(x)) for name, f in AGGREGATES.items()} for agent, x in scaled.items()}
    span = _scale([x for agent in scaled for x in (*intervals[agent]["IQM"], points[agent]["IQM"], 0.0, 1.0)])
    rows: list[list[str | Drawn]] = []
    for agent in scaled:
        cells = [f"{number(points[agent][name])} {_interval(*intervals[agent][name])}" for name in AGGREGATES]
        low, high = intervals[agent]["IQM"]
        drawn = Drawn(strip(span, styles[agent], [], points[agent]["IQM"], low, high, mark=1.0))
        runs = str(sum(map(len, scaled[agent])))
        rows.append([agent, runs, cells[0], drawn, *cells[1:]])
    return Table(["agent", "runs", "IQM", _scale_name("IQM", span), *list(AGGREGATES)[1:]], rows, (1, 2, 4, 5, 6))


def _interval(low: float, high: float) -> str:
    return f"[{number(low)}, {number(high)}]" if math.isfinite(low) else ""


def _scale(values: list[float]) -> tuple[float, float]:
    finite = [x for x in values if math.isfinite(x)]
    return (min(finite), max(finite)) if finite else (0.0, 1.0)


def _scale_name(what: str, span: tuple[float, float]) -> str:
    return f"{what}, {number(span[0])} to {number(span[1])}"


def _profiles(scaled: dict[str, list[np.ndarray]], styles: dict[str, int]) -> Chart:
    every = np.concatenate([x for per_task in scaled.values() for x in per_task])
    low, high = np.quantile(every, [0.01, 0.99])
    thresholds = np.linspace(min(0.0, float(low)), max(1.0, float(high)), THRESHOLDS)
    series = []
    for agent, per_task in scaled.items():
        share = statistics.performance_profile(per_task, thresholds)
        below, above = statistics.profile_interval(per_task, thresholds)
        series.append(Series(agent, styles[agent], thresholds, share, below, above, extent=(0.0, 1.0)))
    told = TOLD_THRESHOLDS
    return Chart("Performance profiles", "normalised score τ", "share of runs above τ", series, told_at=told)


def improvements(
    agents: list[str], envs: list[str], scores: dict[Group, np.ndarray], styles: dict[str, int]
) -> list[Block]:
    """How probably an agent is better than another on the environments that both have scores on."""
    rows: list[list[str | Drawn]] = []
    for first, second in _pairs(agents, envs, scores):
        shared = [e for e in envs if (first, e) in scores and (second, e) in scores]
        if not shared:
            continue
        x, y = ([scores[agent, e] for e in shared] for agent in (first, second))
        point = statistics.probability_of_improvement(x, y)
        low, high = statistics.improvement_interval(x, y)
        drawn = Drawn(strip((0.0, 1.0), styles[first], [], point, low, high, mark=0.5))
        rows.append([first, second, f"{number(point)} {_interval(low, high)}", drawn, str(len(shared))])
    if not rows:
        return []
    told = "How probably a run of the first agent has a higher score than a run of the second on the same environment, "
    told += "the mean over environments, with 95% intervals; ½ is no difference (Agarwal et al. 2021, after Mann and "
    told += "Whitney 1947). An interval without width says that all pairs of runs agree, and not that it is certain."
    header = ["first", "second", "P(first better)", "0 to 1, ½ marked", "environments"]
    return [Heading(2, "Probability of improvement"), Text(told), Table(header, rows, (2, 4))]


def _pairs(agents: list[str], envs: list[str], scores: dict[Group, np.ndarray]) -> list[tuple[str, str]]:
    """All, or where there are many agents the one that wins most often with each other."""
    if len(agents) <= MOST_PAIRS_OF:
        return [(a, b) for n, a in enumerate(agents) for b in agents[n + 1 :]]
    wins = dict.fromkeys(agents, 0)
    for env_id in envs:
        means = {a: float(scores[a, env_id].mean()) for a in agents if (a, env_id) in scores}
        if means:
            wins[max(means, key=lambda a: means[a])] += 1
    best = max(agents, key=lambda a: wins[a])
    return [(best, agent) for agent in agents if agent != best]


# One environment.


def environment(env_id: str, groups: dict[str, list[Result]], styles: dict[str, int]) -> list[Block]:
    """Learning curves and final scores; of a single run also what its evaluation was like."""
    blocks: list[Block] = [Heading(2, env_id)]
    series = [curve for agent, runs in groups.items() if (curve := mean_curve(runs, styles[agent])) is not None]
    if series:
        several = max(map(len, groups.values())) > 1
        about = "mean over seeds, 95% band of Student's t" if several else "of the episodes that ended on the way"
        blocks.append(Chart(f"Learning curves, {about}", "steps", "return", series))
    if groups:
        blocks.append(_score_table(env_id, groups, styles))
        blocks += _notes(env_id, groups)
    else:
        blocks.append(Text("No run was done."))
    if len(groups) == 1 and len(runs := next(iter(groups.values()))) == 1 and runs[0].returns:
        blocks += _evaluation(runs[0], styles[runs[0].agent])
    return blocks


def mean_curve(runs: list[Result], style: int) -> Series | None:
    """The mean of the runs' curves at the steps of the longest, with its band; None where no episode has ended.

    A run counts between its first and its last episode. Wall time is the mean over runs until as many steps.
    """
    curves = [run.curve for run in runs if any(y is not None for y in run.curve.get("returns", []))]
    if not curves:
        return None
    grid = np.array(max(curves, key=lambda curve: curve["steps"][-1])["steps"], dtype=float)
    values, times = np.full((2, len(curves), len(grid)), math.nan)
    for n, curve in enumerate(curves):
        x, y, clock = (np.array(curve[name], dtype=float) for name in ("steps", "returns", "seconds"))
        ended = ~np.isnan(y)  # None has become NaN
        values[n] = np.interp(grid, x[ended], y[ended], left=math.nan, right=math.nan)
        times[n] = np.interp(grid, x, clock)
    center, low, high = statistics.student_band(values)
    extent = (float(np.nanmin(values)), float(np.nanmax(values)))
    clock = np.maximum.accumulate(times.mean(0))
    return Series(runs[0].agent, style, grid, center, low, high, clock, extent)


def _score_table(env_id: str, groups: dict[str, list[Result]], styles: dict[str, int]) -> Table:
    scores = {agent: _scores(runs) for agent, runs in groups.items()}
    span = _scale([float(x) for values in scores.values() for x in values])
    rows = [_score_row(env_id, agent, groups[agent], scores[agent], span, styles[agent]) for agent in groups]
    header = ["agent", "runs", "IQM", "95% interval", "mean", "median", "worst", _scale_name("each run", span), "steps"]
    header += ["seconds", "steps/s", "published, at steps"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Table(header, rows, (1, 2, 3, 4, 5, 6, 8, 9, 10))


def _score_row(
    env_id: str, agent: str, runs: list[Result], scores: np.ndarray, span: tuple[float, float], style: int
) -> list[str | Drawn]:
    low = high = iqm = math.nan
    if len(scores):
        iqm = float(statistics.interquartile_mean([scores]))
        low, high = statistics.interval(statistics.interquartile_mean, [scores])
    told = [number(float(f(scores))) if len(scores) else number(None) for f in (np.mean, np.median, np.min)]
    speeds = [run.steps_per_second for run in runs if math.isfinite(run.steps_per_second)]
    means = [float(np.mean([run.steps for run in runs])), float(np.mean([run.seconds for run in runs]))]
    drawn = Drawn(strip(span, style, scores.tolist(), iqm, low, high))
    speed = f"{np.mean(speeds):,.0f}" if speeds else number(None)
    return [
        agent, str(len(scores)), number(iqm), _interval(low, high) or number(None), *told, drawn, f"{means[0]:,.0f}",
        number(means[1]), speed, _published(env_id, runs[0]),
    ]  # fmt: skip


def _published(env_id: str, run: Result) -> str:
    entries = published()["scores"].get(env_id, {}).get(run.algo or run.agent, [])
    return "; ".join(
        f"{number(entry['score'])} ± {number(entry['std'])} at {compact(entry['steps'])} ({_source(entry, env_id)})"
        for entry in entries
    )


def _source(entry: dict[str, Any], env_id: str) -> str:
    """Whose a published score is, and of which environment where it is that of an older version."""
    older = "" if entry["env_id"] == env_id else f", {entry['env_id']}"
    return f"{entry['source']}{older}"


def _notes(env_id: str, groups: dict[str, list[Result]]) -> list[Block]:
    """What a reader of the table of scores has to know."""
    notes = []
    told = " ".join(_published(env_id, runs[0]) for runs in groups.values())
    notes += [f"{name}: {source}." for name, source in published()["sources"].items() if name in told]
    measures = {run.measure for runs in groups.values() for run in runs if run.returns}
    if measures - {"return"}:
        notes.append(f"The score is the mean {_listed(sorted(measures), 'measure')} of the evaluation.")
    few = [agent for agent, runs in groups.items() if 1 < len(_scores(runs)) < FEW_RUNS]
    if few:
        notes.append(f"Intervals of fewer than {FEW_RUNS} runs are narrower than they should be: {_few(few)}.")
    return [Text(" ".join(notes))] if notes else []


def _evaluation(run: Result, style: int) -> list[Block]:
    """How the returns of a single run's evaluation are distributed."""
    returns = np.array(run.returns, dtype=float)
    counts, edges = np.histogram(returns, bins=min(20, max(1, len(set(run.returns)))))
    middles = (edges[1:] + edges[:-1]) / 2
    told = [len(returns), returns.mean(), returns.std(), *np.quantile(returns, [0, 0.25, 0.5, 0.75, 1])]
    header = ["episodes", "mean", "standard deviation", "least", "lower quartile", "median", "upper quartile", "most"]
    bars = Series(run.agent, style, middles, counts.astype(float))
    return [
        Heading(3, "Evaluation"),
        Chart(f"Episodes by {run.measure}", run.measure, "episodes", [bars], bars=True, told_at=()),
        Table(header, [[number(float(x)) for x in told]], tuple(range(len(header)))),
    ]


# Settings, failures and the list of runs.


def hyperparameters(results: list[Result], agents: list[str]) -> list[Block]:
    """Those in which agents differ on an environment that they share; of a single agent all."""
    settings: dict[str, dict[Group, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        for name, value in _settings(result).items():
            settings[name][result.agent, result.env_id][_value(value)] = None
    names = [name for name in settings if len(agents) == 1 or _differ(settings[name], results)]
    if not names:
        return []
    title = "Hyperparameters" if len(agents) == 1 else "Hyperparameters that differ"
    rows = [[name, *(_values_of(settings[name], agent) for agent in agents)] for name in names]
    return [Heading(2, title), Table(["hyperparameter", *agents], rows)]


def _settings(result: Result) -> dict[str, Any]:
    known = {} if not result.total_steps else {"total_steps": result.total_steps}
    known |= {name: value for name, value in result.hyperparameters.items() if name != "seed"}
    for name, value in result.settings.items():
        known |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return known


def _differ(values: dict[Group, dict[str, None]], results: list[Result]) -> bool:
    """Whether two agents have not the same values on an environment, where both have settings at all."""
    by_env: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for agent, env_id in {(r.agent, r.env_id) for r in results if r.hyperparameters}:
        by_env[env_id].add(tuple(sorted(values.get((agent, env_id), {}))))
    return any(len(kinds) > 1 for kinds in by_env.values())


def _values_of(values: dict[Group, dict[str, None]], agent: str) -> str:
    """The value of an agent, or each with its environments where they differ."""
    by_value: dict[str, list[str]] = defaultdict(list)
    for (name, env_id), given in values.items():
        if name == agent:
            by_value[", ".join(given)].append(env_id)
    if len(by_value) <= 1:
        return next(iter(by_value), number(None))
    return "; ".join(f"{value} ({_few(sorted(envs))})" for value, envs in by_value.items())


def failures(results: list[Result]) -> list[Block]:
    failed = sorted((r for r in results if r.state == "failed"), key=_by_cell)
    if not failed:
        return []
    rows: list[list[str | Drawn]] = [[r.agent, r.env_id, str(r.seed), r.error or "", r.folder] for r in failed]
    return [Heading(2, "Failed runs"), Table(["agent", "environment", "seed", "what it said", "folder"], rows, (2,))]


def not_run(missing: list[Cell]) -> list[Block]:
    """What was to be run, the seeds of an agent and environment in one row."""
    seeds: dict[Group, list[int]] = defaultdict(list)
    for agent, env_id, seed in missing:
        seeds[agent, env_id].append(seed)
    rows: list[list[str | Drawn]] = [
        [*group, _ranges(sorted(of))]
        for group, of in sorted(seeds.items(), key=lambda item: [_natural(name) for name in item[0]])
    ]
    return [Heading(2, "Not run"), Table(["agent", "environment", "seeds"], rows)] if rows else []


def _ranges(numbers: list[int]) -> str:
    """Such as "0–9, 12" for whole numbers in order."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], n]
        else:
            parts.append([n])
    return ", ".join("–".join(map(str, part)) for part in parts)


def every_run(results: list[Result]) -> list[Block]:
    rows: list[list[str | Drawn]] = [
        [r.agent, r.env_id, str(r.seed), r.state, number(r.score), f"{r.steps:,}", number(float(r.seconds)), r.folder]
        for r in sorted(results, key=_by_cell)
    ]
    header = ["agent", "environment", "seed", "state", "score", "steps", "seconds", "folder"]
    return [Heading(2, "Every run"), Table(header, rows, (2, 4, 5, 6))] if rows else []


# As a page and as Markdown.


def page(title: str, blocks: list[Block], refresh_seconds: int | None = None) -> str:
    """The page; what stands in the template's braces is filled in at one go, since texts may have braces too."""
    charts = {f"chart-{n}": block for n, block in enumerate(blocks) if isinstance(block, Chart)}
    data = {identity: chart_data(chart) for identity, chart in charts.items()}
    body = [_block_html(block, f"chart-{n}" if isinstance(block, Chart) else f"part-{n}")
            for n, block in enumerate(blocks)]  # fmt: skip
    filled = {
        "refresh": f'<meta http-equiv="refresh" content="{refresh_seconds}">' if refresh_seconds else "",
        "title": escape(title),
        "contents": _menu(blocks),
        "body": "\n".join(body),
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = (resources.files(__package__) / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template)


def _menu(blocks: list[Block]) -> str:
    links = [f'<a href="#part-{n}">{escape(b.text)}</a>'
             for n, b in enumerate(blocks) if isinstance(b, Heading) and b.level == 2]  # fmt: skip
    return f'<nav aria-label="Contents">{"".join(links)}</nav>' if len(links) > 1 else ""


def _block_html(block: Block, identity: str) -> str:
    if isinstance(block, Heading):
        return f'<h{block.level} id="{identity}">{escape(block.text)}</h{block.level}>'
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    return chart_html(block, identity) if isinstance(block, Chart) else _table_html(block)


def _table_html(table: Table) -> str:
    kinds = [' class="n"' if n in table.numbers else "" for n in range(len(table.header))]
    head = "".join(f'<th scope="col"{k}>{escape(name)}</th>' for name, k in zip(table.header, kinds, strict=True))
    body = "\n".join(f"<tr>{''.join(map(_cell_html, row, kinds))}</tr>" for row in table.rows)
    what = escape(f"Table: {', '.join(name for name in table.header if name)}")
    kind = "table long" if len(table.rows) > LONG_TABLE else "table"
    return (
        f'<div class="{kind}" tabindex="0" role="group" aria-label="{what}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell_html(cell: str | Drawn, kind: str) -> str:
    return f"<td{kind}>{cell.svg if isinstance(cell, Drawn) else escape(cell)}</td>"


def as_markdown(title: str, blocks: list[Block]) -> str:
    """The same texts and tables; of charts the last values."""
    parts = [MARKDOWN_MARK, f"# {in_markdown(title)}", *map(_block_markdown, blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block_markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {in_markdown(block.text)}"
    if isinstance(block, Text):
        return in_markdown(block.text)
    if isinstance(block, Table):
        return _table_markdown(block)
    rows = chart_rows(block)
    header = ["agent", block.x_name, block.y_name, "95% interval"]
    return f"{in_markdown(block.title)}:\n\n{_table_markdown(Table(header, rows, (1, 2, 3)))}" if rows else ""


def _table_markdown(table: Table) -> str:
    shown = [n for n in range(len(table.header)) if not any(isinstance(row[n], Drawn) for row in table.rows)]
    line = partial(_line, shown=shown)
    rule = "|" + "|".join(" ---: " if n in table.numbers else " --- " for n in shown) + "|"
    return "\n".join([line(table.header), rule, *map(line, table.rows)])


def _line(cells: Sequence[str | Drawn], shown: list[int]) -> str:
    return f"| {' | '.join(in_markdown(cells[n]) for n in shown)} |"


def in_markdown(text: Any) -> str:
    """Text of strangers as one line that stands for itself, in a table too."""
    line = printable(" ".join(str(text).split()))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", line)
