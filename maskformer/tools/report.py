"""Writes a page about a run, ``report.html``: ``python -m maskformer.tools.report OUTPUT_DIR [--against OTHER_DIR]``.

Exit codes: 0 it is written, 2 a folder is not that of a run or the command is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from maskformer.reports.report import write_report
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError, printable


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m maskformer.tools.report", description=__doc__.split(":")[0])
    parser.add_argument(
        "folder", type=Path, metavar="OUTPUT_DIR", help="of a training or evaluation; the page goes there"
    )
    parser.add_argument("--against", type=Path, metavar="OTHER_DIR", help="another run: what differs comes first")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Writes the page; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        page = write_report(args.folder, args.against)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {printable(str(page))}")
    return 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
