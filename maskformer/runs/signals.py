"""Signals that ask a run to stop or to save, and the flag by which all its processes do so at the same step.

SIGTERM (preemption) and SIGINT (Ctrl-C) in a training: the step is finished, a checkpoint saved, and the exit code is
128 and the signal's number: 143 or 130. SIGUSR1: a checkpoint is saved and the training goes on. Outside a training
SIGTERM and SIGINT end the run at once, with the same codes. A second Ctrl-C ends it at once in any case, and a run that
has not come to its end ``STOP_SECONDS`` after it was asked to is ended.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from detectron2.utils import comm
from torch import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOP_SECONDS = 300
# One Ctrl-C may come twice: from the terminal, and passed on by torchrun or by the process that started this one.
SAME_REQUEST_SECONDS = 1.0
WORKER_SECONDS = 15  # that a data worker lives on after SIGTERM; usually it ends with the process that it works for


class Interrupted(SystemExit):
    """A run ended because the signal of a number asked it to."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)


class Requests:
    """What signals have asked of this process.

    Attributes:
        stop_signal: the first signal that asked it to stop; 0: none.
        save: whether a checkpoint was asked for.
        stop_flag: of the training that this process is in: it acts on signals, which are only noted; None: none.
    """

    def __init__(self) -> None:
        self.stop_signal = 0
        self.save = False
        self._stop_time = 0.0
        self.stop_flag: StopFlag | None = None
        self._timer: threading.Timer | None = None
        self._listener = 0  # id of the process that listens: data workers inherit its handlers, and ignore signals

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of signals in the ``with`` block; within another one, or outside the main thread: nothing new."""
        if self._listener == os.getpid() or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._listener, self.stop_signal, self.save = os.getpid(), 0, False
        try:
            with _handling(self._handle):
                yield
        finally:
            self._listener = 0
            if self._timer is not None:
                self._timer.cancel()

    def stoppable(self, loader: Any) -> Any:
        """A loader for evaluation that a signal stops in all processes alike, if this is within a training."""
        return loader if self.stop_flag is None else StoppableLoader(shield_workers(loader), self.stop_flag)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if os.getpid() != self._listener:
            return
        if number == signal.SIGUSR1:
            self.save = True
            return
        now = time.monotonic()
        if self.stop_signal and now - self._stop_time <= SAME_REQUEST_SECONDS:
            return
        if self.stop_signal and number == signal.SIGINT:
            os.write(2, b"interrupted again: ended at once\n")
            os._exit(128 + number)
        if not self.stop_signal:
            self.stop_signal, self._stop_time = number, now
            self._timer = threading.Timer(STOP_SECONDS, _end_with, [128 + number])
            self._timer.daemon = True
            self._timer.start()
        if self.stop_flag is None:
            raise Interrupted(self.stop_signal)


REQUESTS = Requests()  # of this process, as signals are


def _end_with(exit_code: int) -> None:
    os.write(2, f"not ended {STOP_SECONDS} s after it was asked to: ended without saving\n".encode())
    os._exit(exit_code)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """In the ``with`` block, a function handles ``SIGNALS``."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopFlag:
    """The same answer, at the same step, in all processes, to what signals have asked of any of them.

    Several processes exchange two numbers a step over gloo, on the host. The exchange goes on during the next step and
    is read after it, so nothing waits for it, least of all a device; stopping takes one more step.

    Attributes:
        stop_signal: the signal by which all processes stop now; 0: none.
        requests: of this process; the others may not know of them yet.
    """

    def __init__(self, requests: Requests = REQUESTS):
        self.stop_signal = 0
        self.requests = requests
        self._group: Any = distributed.new_group(backend="gloo") if comm.get_world_size() > 1 else None
        self._exchange: tuple[Any, torch.Tensor] | None = None

    def after_step(self, *, save: bool, is_last: bool) -> bool:
        """Whether all processes save a checkpoint now; sets ``stop_signal``.

        Args:
            save: whether this process has a reason of its own to.
            is_last: no step follows, so nothing is asked any more.
        """
        asked = torch.tensor([save or self.requests.save, self.requests.stop_signal])
        self.requests.save = False
        if self._group is None:
            return self._conclude(asked)
        save = False
        if self._exchange is not None:
            work, answer = self._exchange
            work.wait()
            save, self._exchange = self._conclude(answer), None
        if not is_last and not self.stop_signal:
            work = distributed.all_reduce(asked, distributed.ReduceOp.MAX, group=self._group, async_op=True)
            self._exchange = (work, asked)
        return save

    def meet(self) -> None:
        """Wait for all processes, and stop in all of them if one was asked to.

        Raises:
            Interrupted: one was.
        """
        asked = torch.tensor([0, self.requests.stop_signal])
        if self._group is not None:
            distributed.all_reduce(asked, distributed.ReduceOp.MAX, group=self._group)
        self._conclude(asked)
        if self.stop_signal:
            raise Interrupted(self.stop_signal)

    def _conclude(self, answer: torch.Tensor) -> bool:
        save, stop_signal = answer.tolist()
        self.stop_signal = self.stop_signal or stop_signal
        return bool(save)


class StoppableLoader:
    """A loader for evaluation within a training, that stops in all processes if a signal asks one of them to."""

    def __init__(self, loader: Any, stop_flag: StopFlag):
        self._loader = loader
        self._stop_flag = stop_flag

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if self._stop_flag.requests.stop_signal:
                break
            yield batch
        self._stop_flag.meet()


def shield_workers(loader: Any) -> Any:
    """Keep the signals that ask a whole group of processes to stop from its data workers, which the last step needs.

    Workers are not started yet. A loader without ``worker_init_fn``, as a ``DataLoader`` has, is left alone.
    """
    if hasattr(loader, "worker_init_fn"):
        loader.worker_init_fn = functools.partial(_start_shielded, loader.worker_init_fn)
    return loader


def _start_shielded(start: Callable[[int], None] | None, worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_SECONDS))  # SIGALRM ends a process
    if start is not None:
        start(worker)


@contextlib.contextmanager
def passing_signals_on(processes: Iterable[BaseProcess]) -> Iterator[None]:
    """In the ``with`` block, hand this process's signals to others, and leave it to them to end in bounded time.

    SIGUSR1 goes to one of them, which asks the others: all would be heard at two different steps, and save twice.
    """
    asked_at: list[float] = []

    def hand_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        again = number == signal.SIGINT and bool(asked_at) and time.monotonic() - asked_at[0] > SAME_REQUEST_SECONDS
        alive = [process for process in processes if process.is_alive()]
        for process in alive[:1] if number == signal.SIGUSR1 else alive:
            os.kill(process.pid or 0, signal.SIGKILL if again else number)
        if again:
            os._exit(128 + number)
        if number != signal.SIGUSR1:
            asked_at.append(time.monotonic())

    with _handling(hand_on):
        yield
