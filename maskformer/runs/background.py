"""Three stages of work that overlap: items are read ahead, computed in batches, and finished in the background.

Threads read, for decoders release Python's lock; the caller's thread computes, which on a device is mostly waiting;
processes finish, for drawing holds the lock. Each stage is ahead of the next by a bounded number of items.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from maskformer.structures import RunError

from .failures import EXIT_RUN_ERROR, is_out_of_memory

BATCHES_IN_SIGHT = 8  # among whose items those of one bucket are looked for
MOST_WORKERS = 16  # by default; a device that computes faster than they finish waits


@dataclass(frozen=True)
class Stages:
    """What is done with each item.

    Attributes:
        read: item -> what is computed with, or None: nothing is to be done. In a thread.
        bucket: of what was read: only equal ones are computed together. In the caller's thread.
        compute: a batch of what was read -> an output for each. In the caller's thread.
        fetch: (what was read, its output) -> what can be pickled, without tensors; waits for the device. In a thread.
        finish: (item, what was fetched) -> the result. In another process, so it must be found by its name.
    """

    read: Callable[[Any], Any]
    bucket: Callable[[Any], Hashable]
    compute: Callable[[list[Any]], list[Any]]
    fetch: Callable[[Any, Any], Any]
    finish: Callable[[Any, Any], Any]


@dataclass
class _Piece:
    item: Any
    reading: Future[Any]
    result: Future[Any] = field(default_factory=Future)  # another one once it is computed, or there is nothing to


class Background:
    """Where stages run; to be made before a device is used and before there are threads, which forking would break.

    Used in a ``with`` block, at whose end nothing runs any more: what is begun is finished, the rest is given up.

    Args:
        workers: threads that read and processes that finish; 0: all is done in the caller's thread, item by item.
        batch_size: the most items that are computed together; halved when there is no memory for so many.
    """

    def __init__(self, workers: int, batch_size: int = 1):
        self.workers, self.batch_size = workers, batch_size
        # First: processes are forked while there are no threads.
        self._processes: Executor = _start_processes(workers) if workers else _Here()
        self._taker, self._readers, self._fetcher, self._finishers = (
            ThreadPoolExecutor(threads) if workers else _Here() for threads in (1, workers, 1, workers)
        )
        self._fetching: deque[Future[Any]] = deque()
        self._finishing: deque[Future[Any]] = deque()

    def run(self, items: Iterable[Any], stages: Stages) -> Iterator[tuple[Any, Future[Any]]]:
        """Yield each item with what comes of it, in order; its ``result()`` raises what any stage raised.

        Which items are computed together depends on the items and their order alone, not on the time that stages take.

        Args:
            items: are taken as they are needed.
            stages: what is done with each; the result is None where nothing was to be done.
        """
        begun: deque[_Piece] = deque()
        reading = self._read_ahead(items, stages)
        while chunk := list(islice(reading, self._in_sight)):
            begun.extend(chunk)
            for bucket in _by_bucket(chunk, stages):
                while bucket:
                    batch, bucket = bucket[: self.batch_size], bucket[self.batch_size :]
                    self._compute(batch, stages)
                    yield from _take_done(begun)
            yield from _take_done(begun)
        for piece in begun:
            yield piece.item, piece.result

    @property
    def _in_sight(self) -> int:
        return 1 if self.batch_size == 1 else BATCHES_IN_SIGHT * self.batch_size

    def _read_ahead(self, items: Iterable[Any], stages: Stages) -> Iterator[_Piece]:
        pieces: deque[_Piece] = deque()
        for item in self._taken(items):
            pieces.append(_Piece(item, self._readers.submit(stages.read, item)))
            if len(pieces) > (self.workers and self.workers + self._in_sight):
                yield pieces.popleft()
        while pieces:
            yield pieces.popleft()

    def _taken(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, of which the next one, such as a frame of a video, is made in a thread."""
        if not self.workers:
            yield from items
            return
        iterator, end = iter(items), object()
        upcoming = self._taker.submit(next, iterator, end)
        while (item := upcoming.result()) is not end:
            upcoming = self._taker.submit(next, iterator, end)
            yield item

    def _compute(self, batch: list[_Piece], stages: Stages) -> None:
        """Compute a batch; if it fails, its halves, so that no item is lost with another."""
        try:
            outputs = stages.compute([piece.reading.result() for piece in batch])
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            if is_out_of_memory(error) and len(batch) > 1:
                self.batch_size = min(self.batch_size, len(batch) // 2)
        else:
            self._finish_behind(batch, outputs, stages)
            return
        if len(batch) == 1 and not self._fetching:
            batch[0].result = failed
            return
        del failed  # and with it what its traceback holds
        _wait_until(0, self._fetching)  # they hold memory too
        middle = max(1, len(batch) // 2)
        for part in (batch[:middle], batch[middle:]):
            if part:
                self._compute(part, stages)

    def _finish_behind(self, batch: list[_Piece], outputs: list[Any], stages: Stages) -> None:
        """Have outputs fetched, while the device computes the next batch, and finished."""
        _wait_until(0, self._fetching)
        for piece, output in zip(batch, outputs, strict=True):
            fetching = self._fetcher.submit(stages.fetch, piece.reading.result(), output)
            piece.result = self._finishers.submit(self._finish, piece.item, fetching, stages)
            piece.reading = Future()  # what was read is not kept
            self._fetching.append(fetching)
            self._finishing.append(piece.result)
        _wait_until(2 * self.workers, self._finishing)

    def _finish(self, item: Any, fetching: Future[Any], stages: Stages) -> Any:
        try:
            return self._processes.submit(stages.finish, item, fetching.result()).result()
        except BrokenProcessPool as error:
            raise RunError(
                "A process that draws and writes was ended: most often the host's memory did not suffice. Lower "
                "--workers; what was written is kept, and --resume goes on."
            ) from error

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *details: object) -> None:
        threads = self._taker, self._readers, self._fetcher, self._finishers
        for pool in threads:
            pool.shutdown(wait=False, cancel_futures=True)
        self._processes.shutdown(cancel_futures=True)  # for these some threads wait
        for pool in threads:
            pool.shutdown()


def _by_bucket(pieces: list[_Piece], stages: Stages) -> list[list[_Piece]]:
    """Those that are to be computed, by their buckets in the order of the first; the others get their results."""
    buckets: dict[Hashable, list[_Piece]] = {}
    for piece in pieces:
        if piece.reading.exception() is not None or piece.reading.result() is None:
            piece.result = piece.reading
        else:
            buckets.setdefault(stages.bucket(piece.reading.result()), []).append(piece)
    return list(buckets.values())


def _take_done(begun: deque[_Piece]) -> Iterator[tuple[Any, Future[Any]]]:
    """Items from the front, as far as their results are there."""
    while begun and begun[0].result.done():
        piece = begun.popleft()
        yield piece.item, piece.result


def _wait_until(count: int, futures: deque[Future[Any]]) -> None:
    """Wait for the first ones until so many are left; their errors are told elsewhere."""
    while len(futures) > count:
        futures.popleft().exception()


class _Here(Executor):
    """Calls at once, in the caller's thread."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _start_processes(count: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)  # others would import PyTorch
    pool = ProcessPoolExecutor(count, context, _work_for_parent)
    pool.submit(os.getpid).result()  # all of them are forked at the first
    return pool


def _work_for_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, of which a waiting process would not notice."""
    gc.freeze()  # the parent frees its garbage itself: a video waits for its decoder, whose threads are there alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(EXIT_RUN_ERROR)


def default_workers(processes: int) -> int:
    """How many workers suit this machine, which several processes like this one share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // processes))
