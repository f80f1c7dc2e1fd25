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
    and it holds between machines on network file systems that pass locks on (NFS with its lock service, Lustre with
    ``flock``, GPFS, CephFS). Where a file system has no locks, one warning says so. The file stays; what it says is who
    had the lock last. (filelock's ``flock`` is inherited by data workers, which outlive a training that was killed.)

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
        self._is_failing = False

    def write(self, text: str) -> int:
        """Keep a text for the next ``flush``."""
        with self._lock:
            self._kept.append(text)
        return len(text)

    def flush(self) -> None:
        """Write what is kept, if the file system lets it."""
        with self._lock:
            if not self._kept:
                return
            try:
                self._append("".join(self._kept).encode())
            except OSError as error:
                if not self._is_failing:
                    tell(f"{self.name} cannot be written ({error.strerror}); going on, and trying again.")
                self._is_failing = True
            else:
                self._kept.clear()
                self._is_failing = False

    close = flush  # the file is open while it is written to alone

    def _append(self, content: bytes) -> None:
        os.makedirs(os.path.dirname(self.name) or ".", exist_ok=True)
        with open(self.name, "ab", buffering=0) as file:
            start, written = file.tell(), 0
            try:
                while written < len(content):
                    written += file.write(content[written:])
                if self._durable:
                    os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(start)
                raise


def tell(sentence: str) -> None:
    """A warning on the standard error itself, for the log may be what cannot be written."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"warning: {printable(sentence)}\n")
        sys.stderr.flush()


def release_output_folder(folder: str) -> None:
    """Let other processes have a folder again, in a process that goes on after its run."""
    descriptor = _HELD.pop(os.path.realpath(folder), None)
    if descriptor is not None:
        os.close(descriptor)


_log_file = functools.cache(KeptFile)  # one for all runs of a process


def keep_logging(path: str, names: tuple[str, ...]) -> None:
    """Let the handlers of loggers that write a log file write it as a ``KeptFile``."""
    file = _log_file(path)
    for handler in (handler for name in names for handler in logging.getLogger(name).handlers):
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "name", None) == path:
            handler.setStream(file)
