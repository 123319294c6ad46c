"""Charts of a report: lines and bars as inline SVG whose texts are HTML, which stay as large on a narrow screen.

A plot is stretched to the room it has; its coordinates go from 0 to 1000 either way. A style is a number that stands
for an agent all over a page: a colour that is told apart without colour vision too, and a dash.
"""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlcore.errors import printable

COLOURS, DASHES = 8, 7  # of the template; together 56 styles
SIDE = 1000
STRIP_WIDTH, STRIP_HEIGHT, STRIP_MARGIN = 150, 20, 6
Scale = Callable[[Any], list[int]]  # from values to coordinates
TIME_UNITS = ((7200, 3600, "hours"), (300, 60, "minutes"), (0, 1, "seconds"))


@dataclass(frozen=True)
class Series:
    """What one agent has in a chart.

    Attributes:
        name: in the legend.
        style: number of the agent.
        x: [P].
        y: [P], NaN where there is nothing.
        low, high: [P] of a band around y, or None.
        times: [P] in seconds, where the chart can also be drawn against wall time.
        extent: lowest and highest value that must be seen; a band that goes further is cut off.
    """

    name: str
    style: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    times: np.ndarray | None = None
    extent: tuple[float, float] = (math.inf, -math.inf)


@dataclass(frozen=True)
class Chart:
    """Lines, or bars of a single series, against x, and where it has times against them too.

    Attributes:
        title: of the figure.
        x_name, y_name: of the axes.
        series: at least one.
        bars: whether bars are drawn, which stand on 0 and are as wide as x is apart.
        told_at: values of x which a text without charts tells; None: the last.
    """

    title: str
    x_name: str
    y_name: str
    series: list[Series]
    bars: bool = False
    told_at: tuple[float, ...] | None = None


def escape(text: Any) -> str:
    """Text of strangers as it may stand in HTML, in an attribute too."""
    return html.escape(printable(str(text)))


def number(x: float | None) -> str:
    """With about four digits, and a dash for what is missing."""
    if x is None or not math.isfinite(x):
        return "–"
    places = max(0, min(3, 3 - math.floor(math.log10(abs(x))))) if abs(x) >= 1e-3 else 3
    places = 0 if float(x).is_integer() else places
    text = f"{x:,.{places}f}" if abs(x) < 1e9 else f"{x:.3g}"
    return text.replace("-", "−") if float(text.replace(",", "")) else "0"


def compact(x: float) -> str:
    """Without ending zeros, thousands as k from ten thousand on, and M, G."""
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= abs(x) < 1e12:
            return f"{compact(x / unit)}{letter}"
    text = number(x)
    return text.rstrip("0").rstrip(".") if "." in text else text


def chart_html(chart: Chart, identity: str) -> str:
    """The figure, which a script of the page finds by its identity."""
    axes = [_axes(chart, "steps", [s.x for s in chart.series], chart.x_name, hidden=False)]
    switch = ""
    if all(s.times is not None for s in chart.series):
        scale, unit = time_unit(chart)
        columns = [s.times / scale for s in chart.series if s.times is not None]
        axes.append(_axes(chart, "time", columns, f"wall time, {unit}", hidden=True))
        switch = (
            '<div class="switch" role="group" aria-label="Horizontal axis">'
            f'<button type="button" data-axis="steps" aria-pressed="true">{escape(chart.x_name)}</button>'
            '<button type="button" data-axis="time" aria-pressed="false">wall time</button></div>'
        )
    legend = "".join(_legend_button(s) for s in chart.series) if len(chart.series) > 1 else ""
    return (
        f'<figure class="chart" id="{identity}"><figcaption>{escape(chart.title)}</figcaption>'
        f'<div class="controls"><div class="legend" role="group" aria-label="Series">{legend}</div>{switch}</div>'
        f'{"".join(axes)}<p class="reading" role="status"></p></figure>'
    )


def chart_data(chart: Chart) -> dict[str, Any]:
    """What the script of the page reads values from; of few digits, for a small page."""
    scale, _ = time_unit(chart)
    return {
        "axes": {"steps": chart.x_name, "time": "wall time"},
        "unit": time_unit(chart)[1],
        "series": [
            {"style": s.style, "name": printable(s.name), "y": _short(s.y)}
            | {"steps": _short(s.x, 7)}
            | ({} if s.times is None else {"time": _short(s.times / scale)})
            | ({} if s.low is None or s.high is None else {"low": _short(s.low), "high": _short(s.high)})
            for s in chart.series
        ],
        "ranges": {"steps": _span([s.x for s in chart.series], chart.bars)}
        | {"time": _span([s.times / scale for s in chart.series if s.times is not None], False)},
    }


def chart_rows(chart: Chart) -> list[list[str]]:
    """What a text tells of it: name, x, y and band of each series where `told_at` says."""
    rows = []
    for s in chart.series:
        there = np.flatnonzero(~np.isnan(s.y))
        at = there[-1:] if chart.told_at is None else [int(np.abs(s.x - x).argmin()) for x in chart.told_at]
        for i in at:
            rows.append([s.name, number(float(s.x[i])), number(float(s.y[i])), _band_text(s, i)])
    return rows


def strip(
    span: tuple[float, float], style: int, dots: list[float], point: float = math.nan, low: float = math.nan,
    high: float = math.nan, mark: float | None = None,
) -> str:  # fmt: skip
    """A line of a table's column that share a scale: dots, an interval, its point, and a mark to compare them with."""

    def at(x: float) -> float:
        share = (x - span[0]) / ((span[1] - span[0]) or 1)
        return round(STRIP_MARGIN + min(1.0, max(0.0, share)) * (STRIP_WIDTH - 2 * STRIP_MARGIN), 1)

    middle, parts = STRIP_HEIGHT / 2, []
    parts.append(f'<line class="rule" x1="0" x2="{STRIP_WIDTH}" y1="{middle}" y2="{middle}"/>')
    if mark is not None:
        parts.append(f'<line class="mark" x1="{at(mark)}" x2="{at(mark)}" y1="0" y2="{STRIP_HEIGHT}"/>')
    parts += [f'<circle class="dot" cx="{at(x)}" cy="{middle}" r="3"/>' for x in dots]
    if math.isfinite(low):
        parts.append(f'<line class="interval" x1="{at(low)}" x2="{at(high)}" y1="{middle}" y2="{middle}"/>')
    if math.isfinite(point):
        parts.append(f'<line class="point" x1="{at(point)}" x2="{at(point)}" y1="3" y2="{STRIP_HEIGHT - 3}"/>')
    size = f'width="{STRIP_WIDTH}" height="{STRIP_HEIGHT}" viewBox="0 0 {STRIP_WIDTH} {STRIP_HEIGHT}"'
    return f'<svg class="strip c{style % COLOURS}" {size} aria-hidden="true">{"".join(parts)}</svg>'


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high, at most so many."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def time_unit(chart: Chart) -> tuple[float, str]:
    """How many seconds the unit of the chart's wall time has, and its name."""
    longest = max((float(np.nanmax(s.times, initial=0)) for s in chart.series if s.times is not None), default=0)
    return next((scale, unit) for least, scale, unit in TIME_UNITS if longest >= least)


def _axes(chart: Chart, kind: str, columns: list[np.ndarray], x_name: str, hidden: bool) -> str:
    """The plot against one of the horizontal axes, with its ticks."""
    left, right = _span(columns, chart.bars)
    bottom, top = _height(chart)
    across, up = _scaled(left, right), _scaled(top, bottom)
    x_ticks, y_ticks = nice_ticks(left, right, 5), nice_ticks(bottom, top, 5)
    grid = [f'<line x1="0" x2="{SIDE}" y1="{y}" y2="{y}"/>' for y in up(y_ticks)]
    drawn = [_drawn(chart, s, column, across, up) for s, column in zip(chart.series, columns, strict=True)]
    named = f"{chart.title}: {chart.y_name} against {x_name}. Left and right arrow keys read values."
    return (
        f'<div class="axes" data-kind="{kind}"{" hidden" if hidden else ""}>'
        f'<div class="y-name">{escape(chart.y_name)}</div>'
        f'<div class="y-ticks" aria-hidden="true">{_ticks("top", up(y_ticks), y_ticks)}</div>'
        f'<div class="plot" tabindex="0" role="group" aria-label="{escape(named)}">'
        f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" aria-hidden="true">'
        f'<g class="grid">{"".join(grid)}</g>{"".join(drawn)}</svg><div class="cursor" hidden></div></div>'
        f'<div class="x-ticks" aria-hidden="true">{_ticks("left", across(x_ticks), x_ticks)}</div>'
        f'<div class="x-name">{escape(x_name)}</div></div>'
    )


def _drawn(chart: Chart, s: Series, x: np.ndarray, across: Scale, up: Scale) -> str:
    """The shapes of a series."""
    columns, rows = across(x), up(s.y)
    if chart.bars:
        half = (x[1] - x[0]) / 2 if len(x) > 1 else 0.5
        (floor,) = up(0)
        sides = zip(across(x - half), across(x + half), rows, strict=True)
        shapes = f'<path class="bar" d="{"".join(f"M{a} {floor}V{top}H{b}V{floor}z" for a, b, top in sides)}"/>'
    else:
        shapes = _band(s, x, columns, up)
        parts = [("M" + _points(columns, rows, part), len(part)) for part in _stretches(x, s.y)]
        path = "".join(line if length > 1 else f"{line}h0" for line, length in parts)  # a point alone is a dot
        shapes += f'<path class="line" d="{path}"/>'
    return f'<g class="c{s.style % COLOURS} d{s.style % DASHES}" data-series="{s.style}">{shapes}</g>'


def _band(s: Series, x: np.ndarray, columns: list[int], up: Scale) -> str:
    if s.low is None or s.high is None:
        return ""
    low, high = up(s.low), up(s.high)
    parts = [f"M{_points(columns, low, p)} {_points(columns, high, p[::-1])}z" for p in _stretches(x, s.low)]
    return f'<path class="band" d="{"".join(parts)}"/>' if parts else ""


def _points(columns: list[int], rows: list[int], chosen: list[int]) -> str:
    return " ".join([f"{columns[i]} {rows[i]}" for i in chosen])


def _stretches(x: np.ndarray, y: np.ndarray) -> list[list[int]]:
    """Indices of points in a row that are there."""
    there = ~(np.isnan(x) | np.isnan(y))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(int)))
    return [list(range(a, b)) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]


def _span(columns: list[np.ndarray], bars: bool) -> tuple[float, float]:
    """From the least to the greatest x, from 0 where that is near."""
    values = np.concatenate([*columns, np.zeros(0)])
    values = values[~np.isnan(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if bars:
        half = (values[1] - values[0]) / 2 if len(values) > 1 else 0.5
        return low - float(half), high + float(half)
    low = min(low, 0.0) if low < 0.2 * high else low
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _height(chart: Chart) -> tuple[float, float]:
    """Of the vertical axis: what lines and runs reach, and a little more."""
    values = np.concatenate([*(s.y for s in chart.series), np.ravel([s.extent for s in chart.series])])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    low = 0.0 if chart.bars else low
    more = 0.05 * ((high - low) or abs(high) or 1)
    return (low if chart.bars else low - more), high + more


def _scaled(first: float, last: float) -> Scale:
    """From values between first and last to 0 and SIDE, 0 for NaN; far outside is kept near, where it is cut off."""

    def scaled(values: Any) -> list[int]:
        share = (np.atleast_1d(np.asarray(values, dtype=float)) - first) / (last - first)
        return np.nan_to_num(np.clip(share, -1, 2) * SIDE).round().astype(int).tolist()

    return scaled


def _ticks(side: str, places: list[int], values: list[float]) -> str:
    pairs = zip(places, values, strict=True)
    return "".join(f'<span style="{side}:{at / SIDE * 100:.1f}%">{compact(value)}</span>' for at, value in pairs)


def _legend_button(s: Series) -> str:
    key = f'<svg class="key c{s.style % COLOURS} d{s.style % DASHES}" width="32" height="10" aria-hidden="true">'
    key += '<line class="line" x1="1" x2="31" y1="5" y2="5"/></svg>'
    return f'<button type="button" data-toggle="{s.style}" aria-pressed="true">{key}{escape(s.name)}</button>'


def _band_text(s: Series, i: int) -> str:
    there = s.low is not None and s.high is not None and math.isfinite(s.low[i])
    return "" if not there else f"{number(float(s.low[i]))} to {number(float(s.high[i]))}"


def _short(values: np.ndarray, digits: int = 5) -> list[float | None]:
    return [None if math.isnan(x) else float(f"{x:.{digits}g}") for x in values.tolist()]
