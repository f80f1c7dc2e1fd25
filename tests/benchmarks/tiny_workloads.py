"""Workloads for tests of the benchmark: they take milliseconds, or fail in a known way."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import time
from collections.abc import Callable

import torch


def work(
    path: str, name: str, device: str, seconds: float = 0.0, megabytes: int = 0, numbers: dict[str, float] | None = None
) -> Callable[[], dict[str, float]]:
    """Writes the contender's name down, waits, touches memory, prints, and says in what environment it is.

    What it holds from the start is no part of a unit's memory.
    """
    model = torch.ones(300 << 20, dtype=torch.uint8)

    def unit() -> dict[str, float]:
        print("a library says something, which must not reach the channel to the parent")
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        time.sleep(seconds)
        assert torch.ones(max(megabytes, 1) << 20, dtype=torch.uint8)[-1] == model[0]
        has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
        seen = {"is cpu": device == "cpu", "has avx512": has_avx512, "OF_THE_CASE": os.environ["OF_THE_CASE"]}
        return {**{key: float(value) for key, value in seen.items()}, **(numbers or {})}

    return unit


def fail(where: str) -> Callable[[], None]:
    """Fails while it sets up, at a unit, or takes the whole process with it."""
    if where == "setup":
        raise ValueError("nothing to set up\nand a second line")

    def unit() -> None:
        if where == "process":
            os.abort()
        raise RuntimeError("no unit today")

    return unit


def fork() -> Callable[[], dict[str, float]]:
    """A unit has another process do its work, as panopticapi does."""

    def unit() -> dict[str, float]:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return {"result": float(pool.apply(abs, (-3,)))}

    return unit


def lock(path: str) -> Callable[[], None]:
    """Locks a file for as long as its process lives, in a unit that takes a minute."""
    file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write("locked")
    file.flush()
    return lambda: time.sleep(60 + file.fileno())
