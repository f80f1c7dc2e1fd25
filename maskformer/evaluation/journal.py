"""What an evaluation has measured so far, on disk, so that another can go on at the next image where it was killed.

Each process appends to a file of its own, and never to one that another left. A line is of one image: its index in the
dataset, a checksum, and what was measured, as JSON. Where a line is cut short or altered, its image is measured again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from detectron2.utils import comm

from maskformer.structures import InputError

logger = logging.getLogger(__name__)

SYNC_INTERVAL = 30.0  # seconds: what a machine that loses power loses at most; a killed process loses no finished image
FORGOTTEN_AFTER = 7 * 24 * 3600.0  # seconds since the last image
_PREFIX = "partial-"
_LINE = re.compile(rb"(\d+) ([0-9a-f]{8}) (.*)\n", re.DOTALL)


class Journal:
    """The measured images of one evaluation, over all its processes and those before them.

    It holds no more than indices in memory. A disk that cannot be written costs a warning, after which what is measured
    is kept in memory instead.

    Args:
        folder: of this dataset's results.
        fingerprint: of what is evaluated; lines that were written under another one are not valid.
        resume: whether to go on from what earlier processes left; else it is removed.

    Attributes:
        done: indices of the images that were measured before.
    """

    def __init__(self, folder: str, fingerprint: str, *, resume: bool):
        self.folder = Path(folder, _PREFIX + fingerprint)
        self._seed = zlib.crc32(fingerprint.encode())
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
            comm.synchronize()  # before another process begins to write there
        self._earlier = {path: self._indices(path) for path in sorted(self.folder.glob("*.lines"))}
        by_rank = comm.all_gather(set().union(*self._earlier.values()))
        self.done = frozenset(set().union(*by_rank))
        brought_in: set[int] = set().union(*by_rank[: comm.get_rank()])  # by the first process that finds them
        for path in self._earlier:
            self._earlier[path] -= brought_in
            brought_in |= self._earlier[path]
        self._unwritten: list[tuple[int, bytes]] = []
        self._last_sync = time.monotonic()
        self._file: IO[bytes] | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.folder / f"process-{comm.get_rank()}-{uuid.uuid4().hex}.lines", "x+b")  # noqa: SIM115
        except OSError as error:
            self._warn(error)

    def _indices(self, path: Path) -> set[int]:
        with open(path, "rb") as file:
            return {index for index, _ in self._read(file)}

    def _warn(self, error: OSError) -> None:
        logger.warning(
            "Partial results cannot be written to %s (%s): the evaluation goes on, but if it is interrupted, images "
            "are measured again.", self.folder, error.strerror or error,
        )  # fmt: skip

    def append(self, index: int, measured: bytes) -> None:
        """Keep what was measured of an image.

        Args:
            index: of the image in the dataset.
            measured: without a line break.
        """
        if self._file is not None:
            try:
                self._file.write(b"%d %08x %s\n" % (index, self._checksum(index, measured), measured))
                self._file.flush()
                if time.monotonic() - self._last_sync > SYNC_INTERVAL:
                    os.fsync(self._file.fileno())
                    self._last_sync = time.monotonic()
                return
            except OSError as error:
                self._warn(error)
                self._unwritten += self._own_lines(self._file)  # in case that the disk loses them too
                self._close()
        self._unwritten.append((index, measured))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Index and content of all images that this process measured or brings in, in no certain order.

        Raises:
            InputError: files of earlier processes have gone since.
        """
        for path, indices in self._earlier.items():
            if not indices:
                continue
            try:
                with open(path, "rb") as file:
                    found = {index: measured for index, measured in self._read(file) if index in indices}
            except OSError as error:
                raise InputError(
                    f"Partial results {path} cannot be read ({error.strerror}); evaluate again."
                ) from error
            if found.keys() != indices:
                raise InputError(f"Partial results {path} changed during the evaluation; evaluate again.")
            yield from found.items()
        yield from self._unwritten
        if self._file is not None:
            yield from self._own_lines(self._file)

    def _own_lines(self, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        with open(os.dup(file.fileno()), "rb") as copy:  # works even where the folder has been removed
            copy.seek(0)
            yield from self._read(copy)

    def _read(self, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        """Valid lines."""
        for line in file:
            match = _LINE.fullmatch(line)
            if match and int(match[2], 16) == self._checksum(int(match[1]), match[3]):
                yield int(match[1]), match[3]

    def _checksum(self, index: int, measured: bytes) -> int:
        return zlib.crc32(measured, zlib.crc32(b"%d" % index, self._seed))

    def _close(self) -> None:
        file, self._file = self._file, None
        with contextlib.suppress(OSError):  # a full disk, which has been told of
            if file is not None:
                file.close()

    def finish(self) -> None:
        """Remove what all processes wrote: there are scores now."""
        comm.synchronize()  # another process may still read
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)


def tidy_partial_results(folder: str) -> int:
    """Remove the partial results of evaluations that nobody has gone on with for a week.

    Args:
        folder: of a dataset's results.

    Returns:
        How many evaluations are left there unfinished.
    """
    left = 0
    for path in Path(folder).glob(f"{_PREFIX}*"):
        changes = [file.stat().st_mtime for file in (path, *path.glob("*"))]
        if time.time() - max(changes) > FORGOTTEN_AFTER:
            shutil.rmtree(path, ignore_errors=True)
        else:
            left += 1
    return left
