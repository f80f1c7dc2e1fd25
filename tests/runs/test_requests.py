from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any

import pytest
from torch.utils.data import DataLoader

from maskformer.runs.signals import (
    Interrupted,
    Requests,
    StopFlag,
    StoppableLoader,
    passing_signals_on,
    shield_workers,
)


def test_signal_outside_a_training_ends_the_run_at_once():
    requests = Requests()
    with pytest.raises(Interrupted) as error, requests.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert error.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signal_in_a_training_is_noted_for_the_end_of_the_step():
    requests = Requests()
    stop_flag = requests.stop_flag = StopFlag(requests)
    with requests.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop_flag.after_step(save=False, is_last=False)
        assert not stop_flag.after_step(save=False, is_last=False)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same Ctrl-C
        assert not stop_flag.after_step(save=False, is_last=False)
        assert stop_flag.stop_signal == signal.SIGINT


def test_request_that_was_met_is_not_insisted_on(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setattr("maskformer.runs.signals.STOP_SECONDS", 0.2)
    monkeypatch.setattr("maskformer.runs.signals._end_with", lambda code: os.write(2, b"ended"))
    requests = Requests()
    requests.stop_flag = StopFlag(requests)
    with requests.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    assert capfd.readouterr().err == ""
    with requests.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
    assert capfd.readouterr().err == "ended"


def test_evaluation_within_a_training_stops_between_images():
    requests = Requests()
    requests.stop_flag = StopFlag(requests)
    seen = []
    with requests.listening():
        loader = requests.stoppable([1, 2, 3])
        assert len(loader) == 3
        with pytest.raises(Interrupted):
            for image in loader:
                seen.append(image)
                if image == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [1, 2]
    assert list(StoppableLoader([1, 2], StopFlag(Requests()))) == [1, 2]


def wait_for_signals(connection: Any) -> None:
    received: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    connection.send("ready")
    while signal.SIGTERM not in received:
        time.sleep(0.01)
    connection.send(received)


def test_one_process_is_asked_to_save_and_all_are_asked_to_stop():
    context = multiprocessing.get_context("fork")
    ends, their_ends = zip(*(context.Pipe() for _ in range(2)), strict=True)
    processes = [context.Process(target=wait_for_signals, args=(end,), daemon=True) for end in their_ends]
    for process in processes:
        process.start()
    assert [end.recv() for end in ends] == ["ready", "ready"]
    with passing_signals_on(processes):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        received = [end.recv() for end in ends]
        assert [signal.SIGTERM in numbers for numbers in received] == [True, True]
        assert [signal.SIGUSR1 in numbers for numbers in received] == [True, False]


def test_data_workers_outlive_the_signals_of_the_group():
    class Killed:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> int:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                os.kill(os.getpid(), number)
            return index

    loader = shield_workers(DataLoader(Killed(), num_workers=1, batch_size=None))
    assert list(loader) == [0, 1]
