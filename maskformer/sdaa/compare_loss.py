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

from maskformer.structures import InputError

from .curves import align, pair, read_curve
from .logs import check_logs, check_presence, check_settings
from .plot import draw_comparison, save_figure
from .verdict import Thresholds, apply_vendor_rule, check_losses

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

LIMITS = {
    "first": (
        "--first-tolerance",
        "difference of the first losses; same 0.000001, half precision rounds by 0.0005, order 0.028",
    ),
    "bias": ("--bias-tolerance", "signed mean of the differences, on either side: the vendor's limit; same 0.013"),
    "mean": ("--mean-tolerance", "mean size of the differences; same 0.05, order 0.13"),
    "p95": ("--p95-tolerance", "95th percentile of their sizes; same 0.18, order 0.36"),
    "window": ("--window", "losses in a stretch; in a shorter one noise remains, in a longer one a failure hides"),
    "window_error": ("--window-tolerance", "difference of the mean losses of any stretch; same 0.03, order 0.07"),
    "variation": (
        "--min-variation",
        "ratio of the standard deviations of the steps from loss to loss, the smaller over the larger, in any stretch; "
        "same 0.8, a constant loss 0",
    ),
    "correlation": (
        "--min-correlation",
        "correlation of the steps from loss to loss, which batches of the same order cause; same 0.87, order 0.04; "
        "looked at where the limit is three standard deviations of chance (86 losses for the default); 0 is never",
    ),
}


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
        option, meaning = LIMITS[limit.name]
        kind = int if isinstance(limit.default, int) else float
        metavar = "N" if kind is int else "X"
        text = f"{meaning} (default: %(default)s)"
        group.add_argument(option, dest=limit.name, type=kind, default=limit.default, metavar=metavar, help=text)
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
    vendor = apply_vendor_rule(pairs)
    strict = check_settings(args.sdaa_log, args.cuda_log)
    strict.reasons += [*check_logs(*logs), *check_presence(*aligned)]
    strict.extend(check_losses(pairs, aligned[0].span, limits))
    print("\n".join([*vendor.lines(), "", *strict.lines()]))
    save_figure(draw_comparison(pairs, limits, _make_title(vendor.passed, strict.passed)), args.output)
    print(f"picture: {args.output}")
    return 0 if vendor.passed and strict.passed else 1


def _check_arguments(args: argparse.Namespace) -> None:
    for limit in fields(Thresholds):
        option, value, least = LIMITS[limit.name][0], getattr(args, limit.name), int(limit.name == "window")
        if not value >= least:  # NaN is no limit either
            raise InputError(f"{option} is {value}, expected {least} or more.")
    if args.output.suffix.lower() != ".png":
        raise InputError(f"--output {args.output} does not end in .png; expected a PNG file.")
    if args.sdaa_log.resolve() == args.cuda_log.resolve():
        raise InputError(f"--sdaa-log and --cuda-log are both {args.sdaa_log}; expected the logs of two runs.")


def _make_title(*passed: bool) -> str:
    vendor, strict = ("pass" if each else "fail" for each in passed)
    return f"Training loss on SDAA and on CUDA. Vendor's rule: {vendor}, strict verdict: {strict}"


if __name__ == "__main__":
    sys.exit(main())
