"""The picture of a loss comparison: both curves, and how far they are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from maskformer.structures import InputError

from .curves import LossPairs
from .verdict import MIN_WINDOW, Thresholds, mean_windows, smooth

SDAA_COLOR, CUDA_COLOR, DIFFERENCE_COLOR, LIMIT_COLOR = "#d9480f", "#2f6fde", "#5f3dc4", "#868e96"
RAW: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.4}
MEAN_WIDTHS = {"CUDA": 4.5, "SDAA": 1.8}  # where both are equal, one is seen beside the other


def draw_comparison(pairs: LossPairs, limits: Thresholds, title: str) -> Figure:
    """The curves above, their relative difference below; raw losses are thin, means are thick.

    Args:
        pairs: what both logs have; where one is not finite there is a cross instead.
        limits: the window and the difference to mark.
        title: heading of the picture.
    """
    figure = Figure(figsize=(10, 7.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    finite = np.isfinite(pairs.sdaa) & np.isfinite(pairs.cuda)
    _draw_losses(above, pairs, finite)
    _draw_difference(below, pairs.select(finite & (pairs.cuda != 0)), limits)
    if not finite.all():
        bottom = np.full(np.count_nonzero(~finite), 0.03)
        style: dict[str, Any] = {"color": "#212529", "linestyle": "none", "marker": "x", "label": "NaN or infinite"}
        above.plot(pairs.iterations[~finite], bottom, transform=above.get_xaxis_transform(), **style)
    above.set(title=title, ylabel="total loss")
    below.set(xlabel="iteration", ylabel="relative difference")
    for axes in (above, below):
        _finish(axes)
    return figure


def _draw_losses(axes: Axes, pairs: LossPairs, finite: np.ndarray) -> None:
    if not finite.any():
        return
    length = min(MIN_WINDOW, int(finite.sum()))
    for name, losses, color in (("CUDA", pairs.cuda, CUDA_COLOR), ("SDAA", pairs.sdaa, SDAA_COLOR)):
        raw, means = np.where(finite, losses, np.nan), np.full(len(losses), np.nan)  # a line has a gap at NaN
        means[finite] = smooth(losses[finite], length)
        style: dict[str, Any] = {"color": color, "linewidth": MEAN_WIDTHS[name], "label": f"{name}, mean of {length}"}
        axes.plot(pairs.iterations, raw, color=color, label=f"{name}, every loss", **RAW)
        axes.plot(pairs.iterations, means, **style)


def _draw_difference(axes: Axes, pairs: LossPairs, limits: Thresholds) -> None:
    if not len(pairs):
        return
    raw = (pairs.sdaa - pairs.cuda) / np.abs(pairs.cuda)
    length = min(limits.window, len(pairs))
    sdaa, cuda = (mean_windows(losses, length) for losses in (pairs.sdaa, pairs.cuda))
    middles = pairs.iterations[(length - 1) // 2 :][: len(cuda)]
    marker = "o" if len(cuda) == 1 else None  # a line of one point is not seen
    axes.plot(pairs.iterations, raw, color=DIFFERENCE_COLOR, label="(SDAA - CUDA) / |CUDA|, every loss", **RAW)
    style: dict[str, Any] = {
        "color": DIFFERENCE_COLOR,
        "linewidth": 2.2,
        "marker": marker,
        "label": f"of the means of {length} losses",
    }
    axes.plot(middles, (sdaa - cuda) / np.abs(cuda), **style)
    for height, dashes in ((0.0, "-"), (limits.window_error, "--"), (-limits.window_error, "--")):
        label = f"limit for means: ±{height:.0%}" if height > 0 else None
        axes.axhline(height, color=LIMIT_COLOR, linestyle=dashes, linewidth=1, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    largest = min(np.abs(raw).max(), 3 * np.percentile(np.abs(raw), 95))  # a lone spike may leave the picture
    top = 1.2 * max(limits.window_error, largest)
    axes.set_ylim(-top, 1.4 * top)  # room for the legend


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, color="#e6e8ec")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", frameon=False, ncols=3, fontsize="small")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG.

    Raises:
        InputError: it cannot be written.
    """
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InputError(f"Picture {path} cannot be written: {error.strerror}; change --output.") from error
