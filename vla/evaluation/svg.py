"""A few charts as inline SVG text: no dependency, no network, and they follow the page's theme.

Colours come from the page as CSS variables (`--series-1` …, `--ink`, `--muted`, `--grid`), so one
drawing serves the light and the dark theme. Coordinates inside a drawing are in its own pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10

import numpy as np

MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 44, 14, 28, 24
X_LABEL_HEIGHT = 18


@dataclass(frozen=True)
class Series:
    """One line of a chart: `x` and `y` of equal length; values of `y` that aren't finite are left
    out. `faint` draws it thin and pale and keeps it out of the legend; `dashed` tells two lines
    apart without colour; `colour` counts from 1 and is the same number for the same thing
    throughout a page; `points` marks each value with a dot.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int = 1
    faint: bool = False
    dashed: bool = False
    points: bool = False


@dataclass(frozen=True)
class Axes:
    """Maps data to pixels: (x0, x1) and (y0, y1) in data units onto a frame in pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    frame: tuple[float, float, float, float]  # left, top, right, bottom

    def px(self, value: float) -> float:
        left, _, right, _ = self.frame
        return left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (right - left)

    def py(self, value: float) -> float:
        _, top, _, bottom = self.frame
        return bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (bottom - top)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most about `count` round numbers (1, 2 or 5 times a power of ten apart) in [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [i * step for i in range(first, last + 1)]


def smooth(y: Sequence[float], window: int) -> np.ndarray:
    """Centred running mean of `window` values (fewer at the ends); same length as `y`."""
    values = np.asarray(y, dtype=float)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    low = np.maximum(i - window // 2, 0)
    high = np.minimum(i + (window + 1) // 2, len(values))
    return (sums[high] - sums[low]) / np.maximum(high - low, 1)


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
    size: tuple[int, int] = (520, 280),
) -> str:
    """An SVG element with `series` over common axes; see `legend` for their names.

    `label` is read aloud by screen readers; an empty `x_label` leaves that line out. `y_range`
    fixes the vertical axis, which otherwise covers the values and a little more; `percent` prints
    its ticks as percentages. Raises ValueError where no series has a finite value.
    """
    width, height = size
    bottom = height - MARGIN_BOTTOM - X_LABEL_HEIGHT * bool(x_label)
    axes = Axes(*_ranges(series, y_range), (MARGIN_LEFT, MARGIN_TOP, width - MARGIN_RIGHT, bottom))
    body = [_grid(axes, percent), *(_line(axes, s) for s in series)]
    body.append(_axis_titles(axes, x_label, y_label))
    return _svg(width, height, label, "".join(body))


def legend(series: Sequence[Series]) -> str:
    """The names of `series` with a sample of each line, as an HTML list; empty for fewer than 2."""
    named = [s for s in series if not s.faint]
    if len(named) < 2:
        return ""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line class="line '
        f's{s.colour}{" dashed" * s.dashed}" x1="1" x2="23" y1="4" y2="4"/></svg>'
        f"{escape(s.name)}</li>"
        for s in named
    )
    return f'<ul class="legend">{items}</ul>'


def interval_bar(rate: float, low: float, high: float, target: float | None = None) -> str:
    """An SVG strip from 0 to 100 %: the interval [low, high] as a bar, `rate` as a dot on it, and
    `target`, where given, as a tick. All in [0, 1].
    """
    width, height, pad = 220, 22, 8
    x = lambda v: pad + v * (width - 2 * pad)  # noqa: E731
    mark = ""
    if target is not None:
        mark = f'<line class="target" x1="{x(target):.1f}" x2="{x(target):.1f}" y1="2" y2="20"/>'
    body = (
        f'<line class="rail" x1="{x(0)}" x2="{x(1)}" y1="11" y2="11"/>{mark}'
        f'<line class="interval" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="11" y2="11"/>'
        f'<circle class="rate" cx="{x(rate):.1f}" cy="11" r="5"/>'
    )
    label = f"{rate:.0%}, 95 % interval {low:.0%} to {high:.0%}"
    return _svg(width, height, label, body, css="strip")


def _svg(width: int, height: int, label: str, body: str, css: str = "plot") -> str:
    return (
        f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{body}</svg>'
    )


def _ranges(
    series: Sequence[Series], y_range: tuple[float, float] | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    points = [(x, y) for s in series for x, y in zip(s.x, s.y, strict=True) if isfinite(y)]
    if not points:
        raise ValueError("expected a series with at least one finite value, got none to draw")
    xs, ys = zip(*points, strict=True)
    if y_range is None:
        pad = 0.06 * (max(ys) - min(ys)) or 0.5
        low = min(ys) - pad
        y_range = (max(low, 0.0) if min(ys) >= 0 else low, max(ys) + pad)
    x_low, x_high = min(xs), max(xs)
    return (x_low, x_high if x_high > x_low else x_low + 1), y_range


def _grid(axes: Axes, percent: bool) -> str:
    left, _, right, bottom = axes.frame
    parts = []
    y_ticks = ticks(*axes.y)
    for value in y_ticks:
        y, text = axes.py(value), f"{value:.0%}" if percent else _number(value, y_ticks)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">')
        parts.append(f"{text}</text>")
    x_ticks = ticks(*axes.x)
    for value in x_ticks:
        x = axes.px(value)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">')
        parts.append(f"{_number(value, x_ticks)}</text>")
    return "".join(parts)


def _axis_titles(axes: Axes, x_label: str, y_label: str) -> str:
    left, _, right, bottom = axes.frame
    titles = f'<text class="axis" x="0" y="12">{escape(y_label)}</text>'
    if x_label:
        place = f'x="{(left + right) / 2:.0f}" y="{bottom + 35}" text-anchor="middle"'
        titles += f'<text class="axis" {place}>{escape(x_label)}</text>'
    return titles


def _line(axes: Axes, series: Series) -> str:
    points = [
        (axes.px(x), axes.py(min(max(y, axes.y[0]), axes.y[1])))
        for x, y in zip(series.x, series.y, strict=True)
        if isfinite(y)
    ]
    css = f"line s{series.colour}" + " faint" * series.faint + " dashed" * series.dashed
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [f'<circle class="dot s{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
            for x, y in points if series.points]  # fmt: skip
    return f'<polyline class="{css}" points="{path}"/>' + "".join(dots)


def _number(value: float, among: Sequence[float]) -> str:
    """`value` with as many digits as tell `among` apart; thousands as 10k."""
    step = abs(among[1] - among[0]) if len(among) > 1 else abs(value) or 1
    if step >= 1000:
        return f"{value / 1000:g}k" if value else "0"
    digits = max(0, -floor(log10(step) + 1e-9))
    return f"{value + 0.0:.{digits}f}"
