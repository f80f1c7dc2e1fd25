"""Reading ahead, batches and finishing behind: order, errors, memory, and the time that is hidden."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pytest

from maskformer.runs.background import Background, Stages
from maskformer.structures import BadImageError, RunError

REPOSITORY = Path(__file__).resolve().parents[2]
WORKERS = (0, 2)


def double(item: int, fetched: int) -> tuple[int, int]:
    """Tells of a process too."""
    return 2 * fetched, os.getpid()


def refuse_three(item: int, fetched: int) -> int:
    if item == 3:
        raise BadImageError("three cannot be written")
    return fetched


def end(item: int, fetched: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Garbage:
    """Of the parent; refers to itself, so that it is there until somebody collects it."""

    freed_in: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        self.freed_in.append(os.getpid())


def collect(item: int, fetched: int) -> list[int]:
    gc.collect()
    return Garbage.freed_in


def stages(finish: Callable = double, **changed: Any) -> Stages:
    plain: dict[str, Any] = {
        "read": lambda item: item,
        "bucket": lambda read: read % 3,
        "compute": lambda batch: [each + 1 for each in batch],
        "fetch": lambda read, output: output,
    }
    return Stages(**{**plain, "finish": finish, **changed})


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_results_come_in_order_and_batches_hold_one_bucket(workers: int, batch_size: int):
    batches: list[list[int]] = []

    def compute(batch: list[int]) -> list[int]:
        batches.append(batch)
        return [each + 1 for each in batch]

    with Background(workers, batch_size) as background:
        results = [
            (item, future.result()) for item, future in background.run(iter(range(100)), stages(compute=compute))
        ]
    assert [(item, value) for item, (value, _) in results] == [(item, 2 * (item + 1)) for item in range(100)]
    assert sorted(chain.from_iterable(batches)) == list(range(100))
    assert all(len({each % 3 for each in batch}) == 1 and len(batch) <= batch_size for batch in batches)
    assert batch_size == 1 or len(batches) < 100 / batch_size + 3 * (100 // (8 * batch_size) + 1)
    assert len({process for _, (_, process) in results} - {os.getpid()}) <= workers
    assert (os.getpid() in {process for _, (_, process) in results}) == (workers == 0)


def test_processes_do_not_free_what_the_parent_has_left():
    """An open video of an earlier run, for whose decoder's threads a process waited for ever."""
    gc.disable()
    try:
        Garbage()
        with Background(1) as background:
            (result,) = [future.result() for _, future in background.run([0], stages(collect))]
    finally:
        gc.enable()
    assert not result


def test_batches_do_not_depend_on_time():
    def batches_with(delay: Callable[[int], float]) -> list[list[int]]:
        batches: list[list[int]] = []

        def read(item: int) -> int:
            time.sleep(delay(item))
            return item

        def compute(batch: list[int]) -> list[int]:
            batches.append(batch)
            return batch

        with Background(3, 3) as background:
            list(background.run(range(40), stages(read=read, compute=compute)))
        return batches

    assert batches_with(lambda item: 0.01 * (item % 2)) == batches_with(lambda item: 0.01 * (item % 3 == 0))


@pytest.mark.parametrize("workers", WORKERS)
def test_what_fails_loses_no_other_item(workers: int):
    def read(item: int) -> int | None:
        if item == 5:
            raise BadImageError("five cannot be read")
        return None if item == 7 else item

    def compute(batch: list[int]) -> list[int]:
        if 4 in batch:
            raise ValueError("four")
        return batch

    outcomes = {}
    with Background(workers, 4) as background:
        for item, future in background.run(range(12), stages(refuse_three, read=read, compute=compute)):
            error = future.exception()
            outcomes[item] = future.result() if error is None else (type(error), str(error))
    assert outcomes == {
        **{item: item for item in range(12)},
        3: (BadImageError, "three cannot be written"),
        4: (ValueError, "four"),
        5: (BadImageError, "five cannot be read"),
        7: None,
    }


def test_batch_without_memory_is_tried_in_halves_and_later_ones_are_smaller():
    sizes = []

    def compute(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 2 or 10 in batch:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return batch

    with Background(2, 8) as background:
        run = background.run(range(64), stages(compute=compute, bucket=lambda read: 0))
        failed = [item for item, future in run if future.exception() is not None]
        assert background.batch_size == 1  # with 10 there was no memory for two
    assert failed == [10]
    assert sizes[:4] == [8, 4, 2, 2]
    assert max(sizes[20:]) <= 2


def test_an_item_has_the_memory_of_results_that_are_not_fetched_yet():
    """The device holds one result, which the host takes late."""
    held = []

    def compute(batch: list[int]) -> list[int]:
        if held:
            raise RuntimeError("CUDA out of memory")
        held.append(batch)
        return batch

    def fetch(read: int, output: int) -> int:
        time.sleep(0.05)
        held.clear()
        return output

    with Background(2) as background:
        run = background.run(range(5), stages(compute=compute, fetch=fetch))
        assert [future.exception() for _, future in run] == [None] * 5


def test_few_items_are_in_memory():
    taken, alive = [], []

    def items() -> Iterator[int]:
        for item in range(200):
            taken.append(item)
            yield item

    with Background(2) as background:
        for item, _ in background.run(items(), stages()):
            alive.append(len(taken) - item)
    assert 1 < max(alive) <= 14  # two are taken by a thread, three read, four finished, ...


def sleep_a_little(item: int, fetched: int) -> None:
    time.sleep(0.06)


def test_reading_and_writing_hide_behind_a_device():
    """A simulated one: it computes elsewhere, for 0.05 s each, while the host waits in the caller's thread."""

    def read(item: int) -> int:
        time.sleep(0.06)
        return item

    def compute(batch: list[int]) -> list[int]:
        time.sleep(0.05)
        return batch

    times = {}
    for workers in (0, 2):
        with Background(workers) as background:
            start = time.monotonic()
            list(background.run(range(30), stages(sleep_a_little, read=read, compute=compute)))
            times[workers] = time.monotonic() - start
    assert times[0] > 30 * 0.17
    assert times[2] < 30 * 0.05 * 1.6 + 0.3, "the sum would be 5.1 s, the longest stage is 1.5 s"


def test_a_process_that_is_killed_is_told():
    with Background(2) as background:
        (_, future), *_ = background.run(range(3), stages(end))
        with pytest.raises(RunError, match="--workers"):
            future.result()


def test_nothing_runs_after_the_block_that_an_error_ends():
    begun, before = [], set(threading.enumerate())

    def read(item: int) -> int:
        begun.append(item)
        return item

    with pytest.raises(BadImageError), Background(2) as background:
        for _, future in background.run(range(1000), stages(refuse_three, read=read)):
            future.result()
    assert len(begun) < 30
    assert not multiprocessing.active_children()
    assert not [each for each in threading.enumerate() if "ThreadPool" in each.name and each not in before]


def test_no_process_outlives_a_parent_that_is_killed():
    program = (
        "import os, time\nfrom maskformer.runs.background import Background\nbackground = Background(3)\n"
        "print(*background._processes._processes, flush=True)\ntime.sleep(60)"
    )
    words = [sys.executable, "-W", "ignore", "-c", program]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert len(children) == 3
    end = time.monotonic() + 10
    while any(map(runs, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [child for child in children if runs(child)]


def runs(process: int) -> bool:
    """Whether a process is there that has not ended (and waits for its parent to notice)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
