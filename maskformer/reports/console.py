"""What a command shows on the console: how far it is, and nothing that libraries print or warn."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from maskformer.structures import InputError, printable


class ProgressLine(tqdm):
    """tqdm's bar on a terminal; in a log file or a pipe a plain line every ten seconds.

    Args:
        title: what happens now.
        total: how many units there are; None where nobody knows.
        items: to iterate over, each a unit; without them, ``advance`` counts.
        unit: what is counted, in the plural.
        start: units that were done before (a training that resumes).
        quiet: write nothing; for work too short to tell of.
        stream: where to write; standard error by default.
    """

    monitor_interval = 0  # seconds; without tqdm's thread, for what is to be forked

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        items: Iterable[Any] | None = None,
        unit: str = "",
        start: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
    ):
        stream = sys.stderr if stream is None else stream
        plain = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        form: dict[str, Any] = (
            {"dynamic_ncols": True} if stream.isatty() else {"bar_format": plain, "mininterval": 10.0}
        )
        form.update(file=stream, unit=f" {unit}", initial=start, disable=quiet, miniters=1)
        super().__init__(items, printable(title), total, **form)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count units that have just been done, with a word about them, such as the loss."""
        self.set_postfix_str(printable(note), refresh=False)
        self.update(count)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """What writes the line: over itself on a terminal, else under the last one."""
        if file.isatty():
            return tqdm.status_printer(file)
        separators = iter([""])  # tqdm ends the last line

        def write(text: str) -> None:
            file.write(next(separators, "\n") + text)
            file.flush()

        return write


@contextmanager
def console_to_log(log: Path) -> Iterator[TextIO]:
    """Append what is written to standard output and standard error to a file, and give the console to the caller.

    File descriptors are redirected too, so that C++ libraries and worker processes are caught.

    Args:
        log: created with its folder.

    Yields:
        A stream to the console.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise InputError(f"{log} cannot be written ({error.strerror}): choose another output folder.") from error
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        with (
            os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace") as console,
            open(log, "a", buffering=1, encoding="utf-8") as file,
            redirect_stdout(file),
            redirect_stderr(file),
        ):
            for descriptor in saved:
                os.dup2(file.fileno(), descriptor)
            yield console
    finally:
        for descriptor, copy in saved.items():
            os.dup2(copy, descriptor)
            os.close(copy)
