"""What holds for every fuzzed input: an answer or an error of ours, in time and memory, and nothing run or written."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskformer.structures import InputError

SECONDS = 10  # of processor time: a busy machine is no hang
MEMORY = 2 * 2**30  # bytes that an input may take beyond what the process has

# What only code out of an input would do. See "Audit events" in Python's documentation.
_FORBIDDEN = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "webbrowser.open"),
    *("os.remove", "os.rename", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.kill"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.unpack_archive", "ctypes.dlopen"),
}


_DRIVER = ("libnvidia-ml.so.1",)  # PyTorch 2.4 counts devices by it, whatever the input


class ForbiddenError(BaseException):
    """An input did what it must not; no Exception, so that no reader can take it for a bad file."""


class _Watch:
    """Python keeps an audit hook for ever, so there is one, switched on around each input."""

    folder: str | None = None
    installed = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _FORBIDDEN and arguments != _DRIVER:
            raise ForbiddenError(f"{event}{arguments!r}")
        if event == "open" and _writes(arguments) and not str(arguments[0]).startswith((self.folder, "/dev/")):
            raise ForbiddenError(f"writes {arguments[0]}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


_watch = _Watch()


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Let nothing in here run foreign code, write outside of a folder, take long, or fill the memory."""
    if not _watch.installed:
        sys.addaudithook(_watch)
        _watch.installed = True
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGPROF, _give_up)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    _watch.folder = str(folder)
    try:
        yield
    finally:
        _watch.folder = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _give_up(*_: Any) -> None:
    raise ForbiddenError(f"took more than {SECONDS} seconds")


def outcome(use: Callable[[], Any], folder: Path) -> str:
    """Use an input: "accepted", or the message of the ``InputError`` that refused it; anything else is raised."""
    with guarded(folder):
        try:
            use()
        except InputError as error:
            message = str(error)
            assert message.strip(), "an error that says nothing"
            return message
    return "accepted"
