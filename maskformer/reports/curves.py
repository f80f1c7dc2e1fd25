"""Learning curves as what an SVG picture needs: thinned, scaled to its view, with round numbers at its axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from .run_folder import Points

WIDTH, HEIGHT = 560, 260  # of the view, in its own units
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 30  # around the curves
BUCKETS = 200  # of iterations, of each of which the extremes are drawn
DOTS_UP_TO = 30  # points that are drawn as dots too: single evaluations
LOG_FROM = 20  # times the smallest value
MANY_DECADES = 1000  # between the ends of a logarithmic axis, which then has a number at each power of ten alone


@dataclass(frozen=True)
class Curve:
    """One curve of a chart.

    Attributes:
        name: in the legend.
        color: an index.
        is_other: of the run that is compared.
        points: "x,y x,y ..." in the view.
        dots: (x, y) of single points.
        last: value.
        best: (largest value, its iteration).
    """

    name: str
    color: int
    is_other: bool
    points: str
    dots: list[tuple[float, float]]
    last: float
    best: tuple[float, int]


@dataclass(frozen=True)
class Chart:
    """Curves with their axes.

    Attributes:
        title: what is drawn.
        curves: at least one.
        x_ticks: (position in the view, text).
        y_ticks: likewise.
        is_score: whether the largest value is the best.
        is_log: whether the vertical axis is logarithmic.
    """

    title: str
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    is_score: bool
    is_log: bool


@dataclass(frozen=True)
class _Axis:
    """From values to positions between two ends of the view."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high, value = np.log10([self.low, self.high, value]) if self.is_log else (self.low, self.high, value)
        return round(float(self.start + (value - low) / (high - low) * (self.end - self.start)), 1)

    def ticks(self) -> list[tuple[float, str]]:
        subs = (1.0, 2.0, 5.0) if self.high < MANY_DECADES * self.low else (1.0,)
        locator = LogLocator(subs=subs) if self.is_log else MaxNLocator(5)
        inside = [tick for tick in locator.tick_values(self.low, self.high) if self.low <= tick <= self.high]
        return [(self.place(tick), f"{tick:,.10g}" if 1e-3 <= tick < 1e7 else f"{tick:.3g}") for tick in inside]


def make_chart(
    title: str,
    ours: Mapping[str, Points],
    others: Mapping[str, Points],
    *,
    is_score: bool = False,
    is_loss: bool = False,
) -> Chart | None:
    """Lay out the curves of one run, or of two over each other, which share a colour where they share a name.

    Args:
        title: what is drawn.
        ours: points by name; those without a point are left out.
        others: of the run that is compared.
        is_score: tell the best too.
        is_loss: take a logarithmic axis where it shows more.

    Returns:
        None where there is no point.
    """
    names = list(dict.fromkeys([*ours, *others]))
    lines = [
        (name, is_other, run[name]) for is_other, run in enumerate((ours, others)) for name in names if run.get(name)
    ]
    if not lines:
        return None
    x, y = _fit_axes([points for *_, points in lines], is_loss)
    curves = [_make_curve(name, names.index(name), bool(is_other), points, x, y) for name, is_other, points in lines]
    return Chart(title, curves, x.ticks(), y.ticks(), is_score, y.is_log)


def _fit_axes(lines: Sequence[Points], is_loss: bool) -> tuple[_Axis, _Axis]:
    iterations, values = np.array([point for points in lines for point in points], dtype=float).T
    low, high = float(values.min()), float(values.max())
    is_log = is_loss and low > 0 and high > LOG_FROM * low
    if not is_log:
        low, high = min(0.0, low), max(0.0, high)
    if low == high:
        high = low + 1
    last = max(float(iterations.max()), float(iterations.min()) + 1)
    return (
        _Axis(min(0.0, float(iterations.min())), last, LEFT, WIDTH - RIGHT),
        _Axis(low, high, HEIGHT - BOTTOM, TOP, is_log),
    )


def _make_curve(name: str, color: int, is_other: bool, points: Points, x: _Axis, y: _Axis) -> Curve:
    places = [(x.place(iteration), y.place(value)) for iteration, value in thin(points)]
    best_iteration, best = max(points, key=lambda point: point[1])
    return Curve(
        name=name,
        color=color,
        is_other=is_other,
        points=" ".join(f"{left:g},{down:g}" for left, down in places),
        dots=places if len(places) <= DOTS_UP_TO else [],
        last=points[-1][1],
        best=(best, best_iteration),
    )


def thin(points: Points, buckets: int = BUCKETS) -> Points:
    """Of many points, the smallest and the largest value of each of so many spans of iterations, so that peaks stay."""
    if len(points) <= 2 * buckets:
        return points
    first, span = points[0][0], (points[-1][0] - points[0][0] + 1) / buckets
    kept = []
    for _, group in groupby(points, key=lambda point: int((point[0] - first) / span)):
        bucket = list(group)
        kept += sorted({min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])})
    return kept
