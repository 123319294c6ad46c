"""Learning curves as a picture for a paper: one panel for each environment, agents as lines with 95% bands."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlcore.errors import UsageError
from rlcore.runs.charts import Series
from rlcore.runs.report import labelled, mean_curve, names_of, read_folders
from rlcore.runs.results import Result
from rlcore.storage.files import atomic_file

FORMATS = (".png", ".svg", ".pdf")
MOST_COLUMNS, PANEL_HEIGHT = 3, 0.72  # the latter as a share of a panel's width
LEGEND = 0.3  # inches
DPI = 300  # of png
# Okabe and Ito's colours, which the colour-blind tell apart, and dashes for print without colour.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("solid", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))


def write_plot(
    paths: Iterable[str | Path], out: str | Path, x: str = "steps", width: float = 5.5, height: float | None = None,
    font_size: float = 8.0, font: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Draw the learning curves of benches and runs: the mean over seeds of the return of training episodes, with the
    95% band of Student's t where there are at least two seeds. Returns the path, agents and environments.

    Args:
        paths: folders of benches and of runs.
        out: a png, svg or pdf file; one that is there is replaced.
        x: "steps" of the environments, or "time" on the wall clock.
        width, height: of the whole picture, inches; the height follows from the panels where it is None.
        font_size: points.
        font: family, such as "serif"; None: matplotlib's.

    Raises:
        UsageError: where a folder has no results, no episode has ended, `out` is of another kind or cannot be written,
            or matplotlib is not installed.
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        raise UsageError(f"--out is {out}, but must end in {', '.join(FORMATS)}")
    if x not in ("steps", "time"):
        raise UsageError(f"--x is '{x}', but may be steps or time")
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("plot needs the package matplotlib: pip install 'rlcore[plot]'") from error
    panels = _panels(labelled(read_folders([Path(path) for path in paths])))
    family = {"font.family": font} if font else {}
    with matplotlib.rc_context({"font.size": font_size, "svg.fonttype": "none", "pdf.fonttype": 42, **family}):
        figure = _figure(panels, x, width, height, font_size)
        try:
            with atomic_file(out) as file:
                figure.savefig(file, format=out.suffix[1:], dpi=DPI)
        except OSError as error:
            raise UsageError(f"--out is {out}, which cannot be written: {error.strerror or error}") from error
    agents = list(dict.fromkeys(series.name for panel in panels.values() for series in panel))
    return {"path": str(out), "agents": agents, "environments": list(panels)}


def _panels(results: list[Result]) -> dict[str, list[Series]]:
    """The curves of each environment; an agent has the same style in all."""
    styles = {agent: number for number, agent in enumerate(names_of(results, "agent"))}
    panels: dict[str, list[Series]] = {}
    for env_id in names_of(results, "env_id"):
        groups = {agent: [r for r in results if (r.agent, r.env_id) == (agent, env_id)] for agent in styles}
        curves = [mean_curve(runs, styles[agent]) for agent, runs in groups.items() if runs]
        if found := [curve for curve in curves if curve is not None]:
            panels[env_id] = found
    if not panels:
        raise UsageError("there is nothing to plot: no episode of these runs has ended")
    return panels


def _figure(panels: dict[str, list[Series]], x: str, width: float, height: float | None, font_size: float) -> Any:
    from matplotlib.figure import Figure

    columns = min(len(panels), MOST_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    height = rows * PANEL_HEIGHT * width / max(columns, 1.5) + LEGEND if height is None else height
    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax, (env_id, curves) in zip(axes.flat, panels.items(), strict=False):
        _draw(ax, env_id, curves, x, font_size)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("return")
    lines = {line.get_label(): line for ax in axes.flat for line in ax.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(lines), 5), frameon=False)
    return figure


def _draw(ax: Any, env_id: str, curves: list[Series], x: str, font_size: float) -> None:
    longest = max(float(series.times[-1]) for series in curves)
    unit, name = (3600, "hours") if longest > 7200 else (60, "minutes") if longest > 300 else (1, "seconds")
    for series in curves:
        at = series.x if x == "steps" else series.times / unit
        color, dashes = COLORS[series.style % len(COLORS)], DASHES[series.style % len(DASHES)]
        ax.plot(at, series.y, color=color, linestyle=dashes, linewidth=1.2, label=_plain(series.name))
        if series.low is not None:
            ax.fill_between(at, series.low, series.high, color=color, alpha=0.15, linewidth=0)
    low = min(series.extent[0] for series in curves)
    high = max(series.extent[1] for series in curves)
    margin = 0.05 * max(high - low, 1e-9)
    ax.set_ylim(low - margin, high + margin)  # bands of few seeds go far beyond
    ax.set_title(_plain(env_id), fontsize=font_size)
    ax.set_xlabel("environment steps" if x == "steps" else name)
    if x == "steps":
        from matplotlib.ticker import EngFormatter

        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.5)


def _plain(name: str) -> str:
    """A name as it is: matplotlib takes dollars for mathematics, and leaves out labels that begin with a line."""
    return " " * name.startswith("_") + name.replace("$", r"\$")
