"""One contender in a process of its own: sets up once, then does a unit of work each time the parent asks.

The parent writes a line of JSON for each request and reads one for each answer. The process ends with its standard
input, so it never outlives the parent, not even in the middle of a unit.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

import torch

from benchmarks.memory import PeakMemory
from benchmarks.structures import MEMORY, SECONDS
from maskformer.engine.accelerator import Accelerator

Unit = Callable[[], dict[str, float] | None]
SEED = 0


def main() -> int:
    """Answers requests until there are none; returns the exit code."""
    channel, answers = _take_standard_input(), _take_standard_output()
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_requests, args=(channel, requests), daemon=True).start()
    try:
        _serve(requests, answers)
    except Exception as error:
        _write(answers, {"error": describe_error(error)})
        raise
    return 0


def _serve(requests: queue.Queue[dict[str, Any]], answers: TextIO) -> None:
    request = requests.get()
    accelerator = Accelerator(request["device"])
    accelerator.select()
    unit = set_up(request["setup"], request["options"], request["device"])
    memory = PeakMemory(accelerator)
    _write(answers, {"threads": torch.get_num_threads()})
    while True:
        requests.get()
        _write(answers, measure(unit, accelerator, memory))


def set_up(setup: str, options: dict[str, Any], device: str) -> Unit:
    """Call a contender's set-up function, with fixed seeds.

    Args:
        setup: "package.module:function".
        options: its keyword arguments.
        device: given to it as well where it has a parameter of that name.
    """
    torch.manual_seed(SEED)
    module, _, name = setup.partition(":")
    function = getattr(importlib.import_module(module), name)
    if "device" in inspect.signature(function).parameters:
        options = {**options, "device": device}
    return function(**options)


def measure(unit: Unit, accelerator: Accelerator, memory: PeakMemory) -> dict[str, float]:
    """One unit's time and peak memory, and the numbers that it returns."""
    accelerator.synchronize()
    memory.start()
    begin = time.perf_counter()
    numbers = unit()
    accelerator.synchronize()
    seconds = time.perf_counter() - begin
    return {SECONDS: seconds, MEMORY: float(memory.above_base()), **(numbers or {})}


def describe_error(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")


def _take_standard_input() -> TextIO:
    """The channel from the parent, in place of which there is nothing to read.

    A process that a unit forks closes its standard input first, and would wait forever for the thread that reads here.
    """
    channel = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8")
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    return channel


def _take_standard_output() -> TextIO:
    """The channel to the parent; what libraries print goes to the standard error from now on."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel


def _read_requests(channel: TextIO, requests: queue.Queue[dict[str, Any]]) -> None:
    for line in channel:
        requests.put(json.loads(line))
    os._exit(0)  # the parent is done, or gone: what runs in the main thread is of no use to anyone


def _write(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
