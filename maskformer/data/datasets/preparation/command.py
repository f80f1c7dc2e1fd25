"""The command line that all ``datasets/prepare_*.py`` have."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from maskformer.structures import InputError


def run_command(description: str, prepare: Callable[[argparse.Namespace], None]) -> None:
    """Read the arguments and prepare; a mistake of the user's ends in one sentence and exit code 1.

    Args:
        description: of the script.
        prepare: takes ``root``, ``workers`` and ``redo``.
    """
    parser = argparse.ArgumentParser(description=description)
    default_root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", default=default_root, help="folder of all datasets (default: %(default)s)")
    workers = min(os.cpu_count() or 1, 8)
    parser.add_argument("--workers", type=int, default=workers, help="processes (default: %(default)s)")
    parser.add_argument("--redo", action="store_true", help="do again what an earlier run has finished")
    try:
        prepare(parser.parse_args())
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from here.")
