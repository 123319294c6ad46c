"""The page of a search: history, importances, trials. One file that loads nothing; charts are inline SVG."""

import html
from importlib import resources
from typing import TYPE_CHECKING, Any

from rlcore.errors import printable

if TYPE_CHECKING:
    from rlcore.runs.tune import Problem

WIDTH, HEIGHT, MARGIN = 720, 260, 56  # of the chart, in its own units
BAR = 22  # height of a line of importances
MOST_ROWS = 200  # of the table, the best first
TICKS = 4


def page(problem: "Problem", trials: list[dict[str, Any]], importances: dict[str, float]) -> str:
    """The page as HTML.

    Args:
        problem: what was searched for.
        trials: as in trials.json, at least one of them complete.
        importances: of hyperparameters, the most important first; none where there are too few trials.
    """
    done = sorted((t for t in trials if t["value"] is not None), key=lambda t: (-t["value"], t["number"]))
    seeds = f"{problem.seeds[0]} to {problem.seeds[-1]}"
    about = (
        f"{len(trials)} trials of {problem.total_steps:,} steps; the score is the mean less the standard deviation, "
        f"over seeds {seeds}, of the greedy return of {problem.eval_episodes} episodes. The best is trial "
        f"{done[0]['number']} with {done[0]['value']:.1f}: chosen by these seeds, it is likely less with others."
    )
    parts = {
        "title": f"{problem.algo} on {problem.env_id}", "about": about, "history": _history(trials),
        "importances": _importances(importances), "table": _table(problem, trials, done),
    }  # fmt: skip
    text = resources.files("rlcore.runs").joinpath("tune.html").read_text(encoding="utf-8")
    for name in ("title", "about"):
        text = text.replace(f"{{{{{name}}}}}", _escaped(parts[name]))
    for name in ("history", "importances", "table"):
        text = text.replace(f"{{{{{name}}}}}", parts[name])
    return text


def _escaped(text: Any) -> str:
    return html.escape(printable(str(text)))


def _history(trials: list[dict[str, Any]]) -> str:
    """A dot for each trial that ended well, a tick below for each that was given up, and the best so far as a line."""
    scores = [trial["value"] for trial in trials if trial["value"] is not None]
    low, high, last = min(scores), max(scores), max(max(trial["number"] for trial in trials), 1)
    span = (high - low) or 1.0

    def at(number: int, value: float) -> tuple[float, float]:
        x = MARGIN + number / last * (WIDTH - MARGIN - 12)
        return round(x, 1), round(12 + (high - value) / span * (HEIGHT - 60), 1)

    shapes, steps, best = [], [], None
    for value in [low + n / TICKS * span for n in range(TICKS + 1)]:
        _, y = at(0, value)
        shapes.append(f'<line class="grid" x1="{MARGIN}" x2="{WIDTH}" y1="{y}" y2="{y}"/>')
        shapes.append(f'<text x="{MARGIN - 6}" y="{y + 4}" text-anchor="end">{value:.1f}</text>')
    for trial in trials:
        number, value = trial["number"], trial["value"]
        x, y = at(number, low if value is None else value)
        if value is None:
            words = _escaped(f"trial {number}: {trial.get('error') or trial.get('pruned')}")
            shapes.append(f'<path class="lost" d="M{x} {HEIGHT - 38}v8"><title>{words}</title></path>')
            continue
        shapes.append(f'<circle cx="{x}" cy="{y}" r="4"><title>trial {number}: {value:.1f}</title></circle>')
        if best is None or value > best:
            best = value
            steps.append(f"{'M' if not steps else 'H'}{x} {'' if not steps else 'V'}{y}")
    end, _ = at(last, low)
    shapes.append(f'<path class="best" d="{"".join(steps)}H{end}"/>')
    shapes.append(f'<text x="{MARGIN}" y="{HEIGHT - 8}">trial 0</text>')
    shapes.append(f'<text x="{end}" y="{HEIGHT - 8}" text-anchor="end">trial {last}</text>')
    label = f"Score of each trial; the best has {high:.1f}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(shapes)}</svg>'


def _importances(importances: dict[str, float]) -> str:
    if not importances:
        return "<p>Too few trials have ended well to tell.</p>"
    top, shapes = max(importances.values()) or 1.0, []
    for n, (name, share) in enumerate(importances.items()):
        y, width = n * BAR, share / top * (WIDTH - 260)
        shapes.append(f'<text x="170" y="{y + 15}" text-anchor="end">{_escaped(name)}</text>')
        shapes.append(f'<rect x="180" y="{y + 4}" width="{width:.1f}" height="{BAR - 8}" rx="2"/>')
        shapes.append(f'<text x="{188 + width:.1f}" y="{y + 15}">{share:.0%}</text>')
    size = f"0 0 {WIDTH} {len(importances) * BAR}"
    return f'<svg viewBox="{size}" role="img" aria-label="Importance of each hyperparameter">{"".join(shapes)}</svg>'


def _table(problem: "Problem", trials: list[dict[str, Any]], done: list[dict[str, Any]]) -> str:
    """The trials, the best first, those that were given up behind them."""
    lost = [trial for trial in trials if trial["value"] is None]
    names = [name for name in problem.space if any(name in problem.changes(t["values"]) for t in trials)]
    heads = "".join(f"<th>{_escaped(head)}</th>" for head in ["trial", "score", "returns", *names])
    rows = []
    for trial in [*done, *lost][:MOST_ROWS]:
        why = trial.get("error") or trial.get("pruned") or ""
        score = why if trial["value"] is None else f"{trial['value']:.1f}"
        returns = ", ".join(f"{x:.1f}" for x in trial.get("returns", []))
        changed = problem.changes(trial["values"])
        cells = "".join(
            f"<td{' class=changed' if name in changed else ''}>{_escaped(trial['values'][name])}</td>" for name in names
        )
        rows.append(f"<tr><td>{trial['number']}</td><td>{_escaped(score)}</td><td>{returns}</td>{cells}</tr>")
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
