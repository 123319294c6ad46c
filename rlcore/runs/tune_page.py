"""The page of a search: history, importances, trials; made as that of a report is."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rlcore.runs.charts import Chart, Series, number, strip
from rlcore.runs.report import Block, Drawn, Heading, Table, Text, page

if TYPE_CHECKING:
    from rlcore.runs.tune import Problem

MOST_ROWS = 200  # of the table, the best first


def search_page(problem: "Problem", trials: list[dict[str, Any]], importances: dict[str, float]) -> str:
    """One file of HTML that loads nothing.

    Args:
        problem: what was searched for.
        trials: as in trials.json, at least one of them complete.
        importances: of hyperparameters, the most important first; none where there are too few trials.
    """
    done = sorted((t for t in trials if t["value"] is not None), key=lambda t: (-t["value"], t["number"]))
    about = (
        f"{len(trials)} trials of {problem.total_steps:,} steps, {len(done)} of them to the end. The score is the "
        f"mean, less the standard deviation, over seeds {problem.seeds[0]} to {problem.seeds[-1]} of the greedy return "
        f"of {problem.eval_episodes} episodes. The best is trial {done[0]['number']} with "
        f"{number(done[0]['value'])}; as it was chosen by these seeds, it is likely less with others."
    )
    blocks = [
        Text(about), Heading(2, "History"), _history(trials), Heading(2, "Importance"), *_importances(importances),
        Heading(2, "Trials"), _table(problem, trials, done),
    ]  # fmt: skip
    return page(f"Search: {problem.algo} on {problem.env_id}", blocks)


def _history(trials: list[dict[str, Any]]) -> Chart:
    """The score of each trial, where it has one, and the best so far."""
    x = np.array([trial["number"] for trial in trials], dtype=float)
    scores = np.array([math.nan if trial["value"] is None else trial["value"] for trial in trials])
    best = np.fmax.accumulate(scores)
    return Chart("Score by trial", "trial", "score", [Series("trial", 0, x, scores), Series("best so far", 1, x, best)])


def _importances(importances: dict[str, float]) -> list[Block]:
    if not importances:
        return [Text("Too few trials went to the end to tell.")]
    span = (0.0, max(importances.values()))
    rows: list[list[str | Drawn]] = [
        [name, f"{share:.0%}", Drawn(strip(span, 0, [], low=0.0, high=share))] for name, share in importances.items()
    ]
    what = "How far what the best quarter has of a hyperparameter is from what all trials have of it (PED-ANOVA)."
    return [Text(what), Table(["hyperparameter", "importance", ""], rows, (1,))]


def _table(problem: "Problem", trials: list[dict[str, Any]], done: list[dict[str, Any]]) -> Table:
    """The trials, the best first, those that were given up behind them, with what any of them changed."""
    names = [name for name in problem.space if any(name in problem.changes(t["values"]) for t in trials)]
    lost = [trial for trial in trials if trial["value"] is None]
    rows: list[list[str | Drawn]] = []
    for trial in [*done, *lost][:MOST_ROWS]:
        given_up = trial.get("error") or trial.get("pruned") or ""
        score = given_up if trial["value"] is None else number(trial["value"])
        returns = ", ".join(map(number, trial.get("returns", [])))
        rows.append([str(trial["number"]), score, returns, *(str(trial["values"][name]) for name in names)])
    return Table(["trial", "score", "returns", *names], rows, (0,))
