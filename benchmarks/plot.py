"""Pictures of a benchmark: ratios with their targets, and how cost grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.structures import MEMORY, SECONDS, CaseResult, Ratio
from maskformer.structures import InputError

_MET, _MISSED, _WITHOUT_TARGET = "#2b8a3e", "#c92a2a", "#74808f"
_LINES = ("#2f6fde", "#868e96", "#d9480f")
_QUANTITIES = {SECONDS: "time", MEMORY: "memory"}
_BAR_INCHES = 0.3
_CURVES_IN_A_ROW = 3


def draw_ratios(results: Sequence[CaseResult], quantity: str) -> Figure | None:
    """A bar for each ratio of ours to another's, its spread over the rounds, and a mark where the target is.

    Args:
        results: of any cases; those on curves are left out.
        quantity: ``SECONDS`` or ``MEMORY``.

    Returns:
        None where there is no ratio.
    """
    bars = [bar for result in results if result.case.curve is None for bar in _bars(result, quantity)]
    if not bars:
        return None
    figure = Figure(figsize=(11, 1.6 + _BAR_INCHES * len(bars)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for height, (_, ratio, target) in enumerate(bars):
        _draw_bar(axes, height, ratio, target)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize="small")
    axes.invert_yaxis()
    axes.axvline(1, color="#212529", linewidth=1)
    axes.set_xlim(0, 1.15 * max(1.0, *(ratio.high for _, ratio, _ in bars)))
    axes.set(xlabel=f"{_QUANTITIES[quantity]}, ours over theirs (line: smallest and largest round; |: target)")
    _finish(axes)
    return figure


def _bars(result: CaseResult, quantity: str) -> list[tuple[str, Ratio, float | None]]:
    targets = {target.other: target.limit for target in result.case.targets if target.quantity == quantity}
    suffix = "" if result.processor == "native" else f" [{result.processor}]"
    bars = []
    for other in list(result.outcomes)[1:]:
        ratio = result.ratio(other, quantity)
        if ratio is not None:
            bars.append((f"{result.case.name}{suffix}, against {other}", ratio, targets.get(other)))
    return bars


def _draw_bar(axes: Axes, height: int, ratio: Ratio, target: float | None) -> None:
    color = _WITHOUT_TARGET if target is None else _MET if ratio.value <= target else _MISSED
    axes.barh(height, ratio.value, color=color, height=0.62)
    axes.plot([ratio.low, ratio.high], [height, height], color="#212529", linewidth=1.2)
    axes.annotate(
        f"{ratio.value:.2f}", (max(ratio.high, ratio.value), height), (4, 0), textcoords="offset points",
        va="center", fontsize="small",
    )  # fmt: skip
    if target is not None:
        axes.plot([target, target], [height - 0.42, height + 0.42], color="#212529", linewidth=2.4)


def draw_curves(results: Sequence[CaseResult], quantity: str) -> Figure | None:
    """A panel for each curve: the cost of each contender over the size that grows, on logarithmic axes.

    Args:
        results: of any cases; those without a curve are left out.
        quantity: ``SECONDS`` or ``MEMORY``.

    Returns:
        None where there is no curve.
    """
    curves: dict[str, list[CaseResult]] = {}
    for result in results:
        if result.case.curve is not None and result.ours.median(quantity):
            curves.setdefault(f"{result.case.curve} [{result.processor}]", []).append(result)
    if not curves:
        return None
    columns = min(_CURVES_IN_A_ROW, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.3 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, points) in zip(panels, curves.items()):
        _draw_curve(axes, title.removesuffix(" [default]"), points, quantity)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    return figure


def _draw_curve(axes: Axes, title: str, points: Sequence[CaseResult], quantity: str) -> None:
    unit = 1e6 if quantity == MEMORY else 1
    for name, color in zip(points[0].outcomes, _LINES):
        line = [(point.case.position, point.outcomes[name].median(quantity)) for point in points]
        known = [(position, value / unit) for position, value in line if value]
        style: dict[str, Any] = {"color": color, "marker": "o", "markersize": 4, "label": name}
        axes.plot(*zip(*known), **style) if known else None
    positions = [point.case.position for point in points]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(positions, [f"{position:g}" for position in positions])
    axes.minorticks_off()
    axes.set_title(title, fontsize="medium")
    axes.set_ylabel("MB above the start" if quantity == MEMORY else "seconds")
    axes.legend(frameon=False, fontsize="small")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, color="#e6e8ec")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def write_pictures(results: Sequence[CaseResult], folder: Path) -> list[Path]:
    """Draws what there is to draw; returns the PNG files.

    Raises:
        InputError: one cannot be written.
    """
    figures = {
        f"{kind}_{name}.png": draw(results, quantity)
        for kind, draw in (("ratios", draw_ratios), ("growth", draw_curves))
        for quantity, name in _QUANTITIES.items()
    }
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            try:
                figure.savefig(folder / name, format="png")
            except OSError as error:
                message = f"Picture {folder / name} cannot be written: {error.strerror}; change --output-dir."
                raise InputError(message) from error
            paths.append(folder / name)
    return paths
