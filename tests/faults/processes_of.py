"""What the operating system says of the processes of a run that has a session of its own."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path


def members(session: int) -> dict[int, int]:
    """Process id -> that of its parent, of all living processes of a session."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split() if folder.name.isdigit() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields and int(fields[3]) == session and fields[0] not in "ZX":
            found[int(folder.name)] = int(fields[1])
    return found


def children(session: int, parent: int) -> list[int]:
    """In the order in which they were started; Python's resource tracker left out."""
    ids = sorted(process for process, of in members(session).items() if of == parent)
    return [process for process in ids if b"resource_tracker" not in Path(f"/proc/{process}/cmdline").read_bytes()]


def ranks_of(torchrun: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started, each in a session of its own, in the order of their ranks."""
    ids = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    return sorted(process for process in map(int, ids) if b"RANK=" in Path(f"/proc/{process}/environ").read_bytes())


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> float:
    """Seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - start


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What a run prints, up to the line that holds these words; a run that does not say them in time is ended."""
    assert process.stdout is not None
    printed = ""
    deadline = threading.Timer(180, process.kill)
    deadline.start()
    try:
        for line in process.stdout:
            printed += line
            if words in line:
                return printed
    finally:
        deadline.cancel()
    raise AssertionError(f"{words!r} was never printed:\n{printed[-3000:]}")
