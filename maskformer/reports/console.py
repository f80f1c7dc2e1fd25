"""Keeping the console clear: everything that libraries print or warn goes to a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from maskformer.structures import InputError


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
