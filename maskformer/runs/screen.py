"""What a run shows on the terminal: its own few lines and warnings. All else goes to the log file alone."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable

from maskformer.structures import SCREEN


class _ScreenHandler(logging.Handler):
    """Writes what ``SCREEN`` says, and warnings of this package, as plain lines on the standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if it is for the screen; a closed pipe or a full disk stops nothing."""
        if record.name != SCREEN.name and not (
            record.levelno >= logging.WARNING and record.name.partition(".")[0] == "maskformer"
        ):
            return
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        text = f"{prefix}{record.getMessage()}\n".encode(encoding, "backslashreplace").decode(encoding)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(text)
            sys.stdout.flush()


_HANDLER = _ScreenHandler()  # one, which a logger takes once, however often it is added


def keep_warnings_off_screen() -> None:
    """Have what libraries warn of, by Python's ``warnings``, go to the logger ``py.warnings``, and its log file if any.

    To be called by what runs as a command: from then on it holds for the whole process.
    """
    logging.captureWarnings(True)


def show_on_screen(names: Iterable[str]) -> None:
    """Show records of loggers on this process's screen, as far as they are for it."""
    for name in names:
        logging.getLogger(name).addHandler(_HANDLER)
