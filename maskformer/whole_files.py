"""Files that are there completely or not at all, whenever their process is stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unfinished(target: Path, *, flush: bool = False) -> Iterator[Path]:
    """Give a temporary name beside a file, which becomes the file's own when all went well and is removed if not.

    Args:
        target: in a folder that exists; an earlier file is replaced.
        flush: to the disk, before it has its name: against a machine that stops, not only a process.

    Raises:
        OSError: the disk refused; the earlier file is as it was.
    """
    temporary = target.with_name(f".{target.name}.partial")  # what a killed process left there is overwritten
    try:
        yield temporary
        if flush:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
