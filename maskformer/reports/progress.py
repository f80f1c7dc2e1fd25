"""One progress line: what happens now, how much of it is done, how long it still takes.

On a terminal the line is rewritten in place; in a log file a new line comes every ten seconds.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TextIO, TypeVar

from maskformer.structures import printable

Item = TypeVar("Item")

BAR_WIDTH = 16  # characters
TERMINAL_INTERVAL = 0.1  # seconds between two drawings
LOG_INTERVAL = 10.0  # seconds between two lines
CLEAR_LINE = "\r\x1b[K"


def format_duration(seconds: float) -> str:
    """A time that a person reads: "45 s", "3 min 05 s", "2 h 10 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class ProgressLine:
    """The progress of one task. Use it in a ``with`` block, or call ``finish`` at the end.

    Args:
        title: what happens now.
        total: how many units there are; None where nobody knows.
        unit: what is counted, in the plural.
        start: units that were done before (a training that resumes).
        quiet: write nothing; for work too short to tell of.
        stream: where to write; standard error by default.
        clock: seconds, never running backwards.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        unit: str = "",
        start: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._title = title
        self._total = total
        self._unit = unit
        self._quiet = quiet
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._on_terminal = self._stream.isatty()
        self._begin = clock()
        self._done = start
        self._note = ""
        self._anchor: tuple[int, float] | None = None  # the first update: what came before it was start-up
        self._last_drawn: float | None = None
        self._draw()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count units that have just been done."""
        self.update(self._done + count, note)

    def update(self, done: int, note: str = "") -> None:
        """Say how many units are done, and a word about them, such as the loss."""
        now = self._clock()
        self._done, self._note = done, printable(note)
        if self._anchor is None:
            self._anchor = (done, now)
        interval = TERMINAL_INTERVAL if self._on_terminal else LOG_INTERVAL
        if self._last_drawn is None or now - self._last_drawn >= interval:
            self._draw()

    def finish(self, note: str = "") -> None:
        """Leave one last line: what was done, and in what time."""
        elapsed = format_duration(self._clock() - self._begin)
        self._write(", ".join(filter(None, [self._title, self._count(), note, f"done in {elapsed}"])) + "\n")

    def remaining(self) -> float | None:
        """Seconds still to go at the pace so far; None where it cannot be known yet."""
        if self._total is None or self._anchor is None or self._done <= self._anchor[0]:
            return None
        first, begin = self._anchor
        return (self._clock() - begin) / (self._done - first) * max(self._total - self._done, 0)

    def _draw(self) -> None:
        self._last_drawn = self._clock()
        remaining = self.remaining()
        time_left = "" if remaining is None else f"{format_duration(remaining)} left"
        line = ", ".join(filter(None, [f"{self._title} {self._bar()}".rstrip(), self._count(), self._note, time_left]))
        if not self._on_terminal:
            self._write(line + "\n")
            return
        self._write(line[: shutil.get_terminal_size().columns - 1])  # a line that wraps cannot be rewritten

    def _bar(self) -> str:
        if not self._total or not self._on_terminal:
            return ""
        filled = min(self._done * BAR_WIDTH // self._total, BAR_WIDTH)
        return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}]"

    def _count(self) -> str:
        if self._total is None and not self._done:
            return ""
        count = str(self._done) if self._total is None else f"{self._done}/{self._total}"
        return f"{count} {self._unit}".rstrip()

    def _write(self, text: str) -> None:
        if self._quiet:
            return
        self._stream.write(CLEAR_LINE + text if self._on_terminal else text)
        self._stream.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish(self._note)
        elif self._on_terminal and not self._quiet:
            self._stream.write("\n")  # the error message begins on a line of its own


def track(items: Iterable[Item], title: str, total: int, *, unit: str, stream: TextIO | None = None) -> Iterator[Item]:
    """Yield the items, counting each one when the caller has finished with it."""
    with ProgressLine(title, total, unit=unit, stream=stream) as line:
        for item in items:
            yield item
            line.advance()
