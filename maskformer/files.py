"""Files that are there completely or not at all, whenever their process is stopped."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".partial"  # of the folders that a killed process leaves
_BEGINNING = 32  # characters of the target's name in theirs, for whoever finds one


def folder_beside(target: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder beside a file, to write it in; used in a ``with`` block, it is removed at the end.

    Only this user may enter it, so nobody can plant a link there; and what is written there has the target's name, so
    any name fits, and two processes that write the same file do not meet.

    Args:
        target: in a folder that exists.

    Raises:
        OSError: the disk refused.
    """
    prefix = f".{target.name[:_BEGINNING]}-"
    return tempfile.TemporaryDirectory(PARTIAL_SUFFIX, prefix, target.parent, ignore_cleanup_errors=True)


@contextmanager
def unfinished(target: Path, *, flush: bool = False) -> Iterator[Path]:
    """Give a temporary name for a file, which becomes the file's own when all went well and is removed if not.

    Args:
        target: in a folder that exists; an earlier file, or a link, is replaced.
        flush: to the disk, before it has its name: against a machine that stops, not only a process.

    Raises:
        OSError: the disk refused; the earlier file is as it was.
    """
    with folder_beside(target) as folder:
        temporary = Path(folder, target.name)
        yield temporary
        if flush:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
