"""The folder of a run: one training at a time in it, and files that a full disk or a lost folder cannot end it by."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import socket
import sys
import threading
from collections import deque
from datetime import datetime

from detectron2.utils.events import TensorboardXWriter

from maskformer.structures import InputError, printable

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
KEPT_LINES = 10_000  # of a file that cannot be written; older ones are given up
# A file system that knows no locks says one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD: dict[str, int] = {}  # folder -> descriptor of the lock file: a lock lasts as long as the process


def lock_output_folder(folder: str) -> None:
    """Make the folder this process's own, until the process ends in whatever way.

    It is a POSIX record lock on ``.lock`` in the folder: the kernel takes it back when the process ends (SIGKILL too),
    data workers do not inherit it, and it holds between machines on network file systems that pass locks on (NFS
    with its lock service, Lustre with ``flock``, GPFS, CephFS). Where a file system has no locks, one warning says so.
    The file stays; what it says is who had the lock last.

    Args:
        folder: OUTPUT_DIR; made if it does not exist.

    Raises:
        InputError: another process has it, or the folder cannot be written to.
    """
    key = os.path.realpath(folder)
    if key in _HELD:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(os.path.join(folder, LOCK_NAME), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {folder} cannot be written to ({error.strerror}): set another.") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "which has not said its name"
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            logger.warning("The file system of %s has no locks: take care that no other run uses it.", folder)
            return
        raise InputError(
            f"OUTPUT_DIR is {folder}, where another training runs: {holder}. Wait for its end, end it, or set "
            "OUTPUT_DIR to another folder."
        ) from error
    _HELD[key] = descriptor
    name = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
    with contextlib.suppress(OSError):  # a full disk: the lock holds without the name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, name.encode(), 0)


def restore_output_folder(folder: str) -> None:
    """Make the folder again if it has vanished, and this process's own again if it was.

    Raises:
        OSError: it cannot be made, or another run has taken its place.
    """
    os.makedirs(folder, exist_ok=True)
    key = os.path.realpath(folder)
    if key not in _HELD or os.path.exists(os.path.join(folder, LOCK_NAME)):
        return
    logger.warning("OUTPUT_DIR %s had vanished and was made again.", folder)
    os.close(_HELD.pop(key))
    try:
        lock_output_folder(folder)
    except InputError as error:
        raise OSError(errno.EBUSY, str(error)) from error


class Backoff:
    """When to try again what failed: after 1, 2, 4, ... opportunities.

    Args:
        largest: the most opportunities that are let pass.
    """

    def __init__(self, largest: int):
        self._largest = largest
        self._wait = 0
        self._left = 0

    @property
    def is_failing(self) -> bool:
        """Whether the last try failed."""
        return self._wait > 0

    def is_due(self) -> bool:
        """Whether to try at this opportunity; to be asked once at each."""
        self._left = max(self._left - 1, 0)
        return self._left == 0

    def fail(self) -> bool:
        """Note a failure; whether it is the first after a success."""
        is_first = not self.is_failing
        self._wait = self._left = min(max(1, 2 * self._wait), self._largest)
        return is_first

    def succeed(self) -> None:
        """Note a success."""
        self._wait = self._left = 0


class KeptFile:
    """A text file to append to, that never fails: what cannot be written is kept, and written when it can be.

    A file that has vanished is made again, with its folder. When writing fails, one line goes to the standard error,
    and half-written text is taken back; the next ``flush`` tries again. At most ``KEPT_LINES`` writes are kept.

    Args:
        path: of the file.
        durable: flush to the disk each time, not only to the system.
    """

    def __init__(self, path: str, *, durable: bool = False):
        self.name = path
        self._durable = durable
        self._kept: deque[str] = deque(maxlen=KEPT_LINES)
        self._lock = threading.RLock()
        self._descriptor = -1
        self._is_failing = False

    def write(self, text: str) -> int:
        """Keep a text for the next ``flush``."""
        with self._lock:
            self._kept.append(text)
        return len(text)

    def flush(self) -> None:
        """Write what is kept, if the file system lets it."""
        with self._lock:
            try:
                self._append("".join(self._kept).encode())
            except OSError as error:
                self._close()
                self._warn(error)
            else:
                self._kept.clear()
                self._is_failing = False

    def close(self) -> None:
        """Write what is kept, and close; a later ``flush`` opens the file again."""
        with self._lock:
            self.flush()
            self._close()

    def _append(self, content: bytes) -> None:
        if not content:
            return
        self._open()
        start = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(content):
                written += os.write(self._descriptor, content[written:])
            if self._durable:
                os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, start)
            raise

    def _open(self) -> None:
        """Open the file, unless what stands under its name is open."""
        with contextlib.suppress(OSError):
            if self._descriptor >= 0 and os.path.samestat(os.fstat(self._descriptor), os.stat(self.name)):
                return
        self._close()
        os.makedirs(os.path.dirname(self.name) or ".", exist_ok=True)
        self._descriptor = os.open(self.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _warn(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            tell(f"{self.name} cannot be written ({error.strerror}); going on, and trying again.")


def tell(sentence: str) -> None:
    """A warning on the standard error itself, for the log may be what cannot be written."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"warning: {printable(sentence)}\n")
        sys.stderr.flush()


@functools.cache
def _log_file(path: str) -> KeptFile:
    """One for all runs of a process."""
    return KeptFile(path)


def keep_logging(path: str, names: tuple[str, ...]) -> None:
    """Let the handlers that write a log file write it as a ``KeptFile``.

    Args:
        path: the log file.
        names: of the loggers that have such handlers.
    """
    file = _log_file(path)
    for handler in (handler for name in names for handler in logging.getLogger(name).handlers):
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "name", None) == path:
            handler.setStream(file)


class EventFileWriter(TensorboardXWriter):
    """Detectron2's writer for TensorBoard; after an error it goes on in a new file, without what was being written.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str):
        super().__init__(folder)
        self._folder = folder
        self._folder_status: os.stat_result | None = None  # when the file was made in it
        self._backoff = Backoff(largest=64)

    def write(self) -> None:
        """Write what is new, if the file system lets it."""
        if not self._backoff.is_due():
            return
        try:
            self._leave_vanished_folder()
            super().write()
            self._writer.flush()  # else the error of the thread that writes would show steps later
        except Exception as error:  # what that thread raised: an OSError, or one of TensorFlow's where it is installed
            self._start_anew()
            if self._backoff.fail():
                tell(f"TensorBoard's file in {self._folder} cannot be written ({error}); going on, and trying again.")
        else:
            self._backoff.succeed()

    def close(self) -> None:
        """Close the file, as far as it can be."""
        self._start_anew()

    def _leave_vanished_folder(self) -> None:
        os.makedirs(self._folder, exist_ok=True)
        status = os.stat(self._folder)
        if self._folder_status is not None and not os.path.samestat(status, self._folder_status):
            self._start_anew()
        self._folder_status = status

    def _start_anew(self) -> None:
        writer = self.__dict__.pop("_writer", None)
        with contextlib.suppress(Exception):
            if writer is not None:
                writer.close()
