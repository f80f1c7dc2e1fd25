"""Compares the losses of a training on SDAA with those of the same training on CUDA: ``--sdaa-log A --cuda-log B``.

The first four lines are the vendor's: ``MeanRelativeError: X``, ``MeanAbsoluteError: X``, ``Rule,...`` with the smaller
of the two as signed numbers, ``pass ...`` or ``fail ...``. Numbers are Python's plain representation. Where the
vendor's description is silent, the plainest was chosen: pairs are made by iteration (of one told twice, the last), a
tie names the relative error, and a ``fail`` says the same as a ``pass`` with ``> 0.05 and`` and ``> 0.0002``.

After an empty line comes the strict verdict: ``strict: pass`` or ``strict: fail``, then a line a finding.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.sdaa import verdict
from maskformer.sdaa.curves import LossPairs, align, pair, read_curve
from maskformer.sdaa.verdict import MIN_WINDOW, Thresholds, mean_windows, smooth
from maskformer.structures import InputError

DESCRIPTION = """\
Compare the losses of a training on SDAA with those of the same training on CUDA: same configuration, weights, SEED and
number of devices. A log is a file with TCAPPDLL lines or Detectron2's metrics.json; config.yaml is read beside it."""

EPILOG = """\
defaults of the limits: they lie between two measurements on configs/shapes, batches of 2, 120 iterations, one CPU.
"Same" is the same training with other kernels (without oneDNN) or with weights multiplied by 1.000001: only rounding
differs, and what it does grows with every step. "Order" is the same training with the data in another order. Where
longer runs of one seed drift further apart, widen --mean-tolerance, --p95-tolerance and --window-tolerance.

exit code: 0 if both the vendor's rule and the strict verdict pass, 1 if one of them fails, 2 after a mistake in the
arguments or the files, with one sentence on the standard error."""


SDAA_COLOR, CUDA_COLOR, DIFFERENCE_COLOR, LIMIT_COLOR = "#d9480f", "#2f6fde", "#5f3dc4", "#868e96"
RAW: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.4}
MEAN_WIDTHS = {"CUDA": 4.5, "SDAA": 1.8}  # where both are equal, one is seen beside the other


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m maskformer.tools.compare_loss",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sdaa-log", type=Path, required=True, help="log of the run on SDAA")
    parser.add_argument("--cuda-log", type=Path, required=True, help="log of the run on CUDA, the reference")
    parser.add_argument("--output", type=Path, default=Path("compare_loss.png"), help="picture (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=0, help="whose TCAPPDLL lines count (default: %(default)s)")
    group = parser.add_argument_group("limits of the strict verdict; differences are fractions of CUDA's loss")
    for limit in fields(Thresholds):
        form: dict[str, Any] = {"dest": limit.name, "default": limit.default, "help": limit.metadata["help"]}
        is_count = isinstance(limit.default, int)
        group.add_argument(limit.metadata["option"], type=type(limit.default), metavar="N" if is_count else "X", **form)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prints both verdicts and draws the curves; returns the exit code."""
    try:
        return _compare(build_parser().parse_args(arguments))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def _compare(args: argparse.Namespace) -> int:
    _check_arguments(args)
    limits = Thresholds(**{limit.name: getattr(args, limit.name) for limit in fields(Thresholds)})
    logs = read_curve(args.sdaa_log, args.rank), read_curve(args.cuda_log, args.rank)
    aligned = align(*logs)
    pairs = pair(*aligned)
    vendor = verdict.apply_vendor_rule(pairs)
    strict = verdict.check_settings(args.sdaa_log, args.cuda_log)
    strict.reasons += [*verdict.check_logs(*logs), *verdict.check_presence(*aligned)]
    verdict.check_losses(pairs, aligned[0].span, limits, strict)
    print("\n".join([*vendor.lines(), "", *strict.lines()]))
    words = ["pass" if passed else "fail" for passed in (vendor.passed, strict.passed)]
    title = f"Training loss on SDAA and on CUDA. Vendor's rule: {words[0]}, strict verdict: {words[1]}"
    try:
        draw_comparison(pairs, limits, title).savefig(args.output, format="png")
    except OSError as error:
        raise InputError(f"Picture {args.output} cannot be written: {error.strerror}; change --output.") from error
    print(f"picture: {args.output}")
    return 0 if vendor.passed and strict.passed else 1


def _check_arguments(args: argparse.Namespace) -> None:
    for limit in fields(Thresholds):
        value, least = getattr(args, limit.name), int(limit.name == "window")
        if not value >= least:  # NaN is no limit either
            raise InputError(f"{limit.metadata['option']} is {value}, expected {least} or more.")
    if args.output.suffix.lower() != ".png":
        raise InputError(f"--output {args.output} does not end in .png; expected a PNG file.")
    if args.sdaa_log.resolve() == args.cuda_log.resolve():
        raise InputError(f"--sdaa-log and --cuda-log are both {args.sdaa_log}; expected the logs of two runs.")


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
    above.set(title=title, ylabel="total loss")
    below.set(xlabel="iteration", ylabel="relative difference")
    for axes in (above, below):
        axes.grid(visible=True, color="#e6e8ec")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper right", frameon=False, ncols=3, fontsize="small")
    return figure


def _draw_losses(axes: Axes, pairs: LossPairs, finite: np.ndarray) -> None:
    length = min(MIN_WINDOW, int(finite.sum()))
    for name, losses, color in (("CUDA", pairs.cuda, CUDA_COLOR), ("SDAA", pairs.sdaa, SDAA_COLOR)) if length else ():
        raw, means = np.where(finite, losses, np.nan), np.full(len(losses), np.nan)  # a line has a gap at NaN
        means[finite] = smooth(losses[finite], length)
        axes.plot(pairs.iterations, raw, color=color, label=f"{name}, every loss", **RAW)
        label = f"{name}, mean of {length}"
        axes.plot(pairs.iterations, means, color=color, linewidth=MEAN_WIDTHS[name], label=label)
    if not finite.all():
        bottom = np.full(np.count_nonzero(~finite), 0.03)
        transform = axes.get_xaxis_transform()
        axes.plot(pairs.iterations[~finite], bottom, "x", color="#212529", label="NaN or infinite", transform=transform)


def _draw_difference(axes: Axes, pairs: LossPairs, limits: Thresholds) -> None:
    if not len(pairs):
        return
    raw = (pairs.sdaa - pairs.cuda) / np.abs(pairs.cuda)
    length = min(limits.window, len(pairs))
    sdaa, cuda = (mean_windows(losses, length) for losses in (pairs.sdaa, pairs.cuda))
    middles = pairs.iterations[(length - 1) // 2 :][: len(cuda)]
    marker = "o" if len(cuda) == 1 else None  # a line of one point is not seen
    axes.plot(pairs.iterations, raw, color=DIFFERENCE_COLOR, label="(SDAA - CUDA) / |CUDA|, every loss", **RAW)
    relative, label = (sdaa - cuda) / np.abs(cuda), f"of the means of {length} losses"
    axes.plot(middles, relative, color=DIFFERENCE_COLOR, linewidth=2.2, marker=marker, label=label)
    for height, dashes in ((0.0, "-"), (limits.window_error, "--"), (-limits.window_error, "--")):
        limit = f"limit for means: ±{height:.0%}" if height > 0 else None
        axes.axhline(height, color=LIMIT_COLOR, linestyle=dashes, linewidth=1, label=limit)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    largest = min(np.abs(raw).max(), 3 * np.percentile(np.abs(raw), 95))  # a lone spike may leave the picture
    top = 1.2 * max(limits.window_error, largest)
    axes.set_ylim(-top, 1.4 * top)  # room for the legend


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
