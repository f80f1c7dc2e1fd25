"""The log line that the loss comparison of SDAA's users reads, written and read in this one place.

One line an iteration and rank::

    TCAPPDLL 2025-07-16 04:50:44.989637 - Epoch: 0 Iteration: 76  rank : 0  train.loss : 21.28  train.ips : 0.5 imgs/s
    train.total_time : 3.84

It is one line in the log: two spaces before ``rank``, ``train.loss`` and ``train.ips``, one space at its end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

MARKER = "TCAPPDLL"
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"
_LINE = re.compile(
    rf"{MARKER}\s+(?P<time>\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+)\s+-"
    r"\s+Epoch:\s*(?P<epoch>\d+)\s+Iteration:\s*(?P<iteration>\d+)\s+rank\s*:\s*(?P<rank>\d+)"
    r"\s+train\.loss\s*:\s*(?P<loss>\S+)\s+train\.ips\s*:\s*(?P<images_per_second>\S+)\s+imgs/s"
    r"\s+train\.total_time\s*:\s*(?P<total_time>\S+)"
)


@dataclass(frozen=True)
class TcappdllRecord:
    """What one line says of one iteration on one rank.

    Attributes:
        epoch: number of the pass over the data; 0 throughout where a training counts by iterations.
        iteration: number of the iteration, as the run counts it.
        rank: the process that says it.
        loss: the weighted sum of all losses; may be NaN or infinite.
        images_per_second: images of the iteration, divided by ``total_time``.
        total_time: seconds the iteration took.
        time: when it ended, local time.
    """

    epoch: int
    iteration: int
    rank: int
    loss: float
    images_per_second: float
    total_time: float
    time: datetime


def format_record(record: TcappdllRecord) -> str:
    """The line of a record, with the space at its end and without a line break."""
    return (
        f"{MARKER} {record.time.strftime(_TIME_FORMAT)} - Epoch: {record.epoch} Iteration: {record.iteration}"
        f"  rank : {record.rank}  train.loss : {record.loss}"
        f"  train.ips : {record.images_per_second} imgs/s train.total_time : {record.total_time} "
    )


def parse_line(line: str) -> TcappdllRecord | None:
    """The record in a line of a log, or None if the line holds none or not a whole one.

    Args:
        line: any line; the marker may stand anywhere in it, because loggers put prefixes before it.
    """
    match = _LINE.search(line) if MARKER in line else None
    if match is None:
        return None
    try:
        numbers: dict[str, Any] = {name: int(match[name]) for name in ("epoch", "iteration", "rank")}
        numbers |= {name: float(match[name]) for name in ("loss", "images_per_second", "total_time")}
        return TcappdllRecord(**numbers, time=datetime.strptime(match["time"], _TIME_FORMAT))
    except ValueError:  # a number or a date that is none
        return None
