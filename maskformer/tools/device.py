"""Says which device a run would use and what it offers: ``python -m maskformer.tools.device [--device auto]``."""

from __future__ import annotations

import argparse
import sys

from maskformer.engine.accelerator import Accelerator, resolve_device
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m maskformer.tools.device", description=__doc__.split(":")[0])
    parser.add_argument("--device", default="auto", help="as MODEL.DEVICE (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        accelerator = Accelerator(resolve_device(args.device))
        lines = accelerator.describe()
        lines["mixed precision"] = str(accelerator.half_precision()).removeprefix("torch.")
        lines["process group"] = accelerator.process_group_backend()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in lines.items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
