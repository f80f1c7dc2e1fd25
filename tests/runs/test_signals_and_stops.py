from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from detectron2.engine import HookBase
from test_trainer import OneWeight, cfg, trained  # noqa: F401
from torch.utils.data import DataLoader

from maskformer.engine.trainer import Trainer
from maskformer.runs.signals import (
    Interrupted,
    Requests,
    StopFlag,
    StoppableLoader,
    passing_signals_on,
    shield_workers,
)
from maskformer.structures import InputError


def test_signal_outside_a_training_ends_the_run_at_once():
    requests = Requests()
    with pytest.raises(Interrupted) as error, requests.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert error.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signal_in_a_training_is_noted_for_the_end_of_the_step():
    requests = Requests()
    stop_flag = StopFlag(requests)
    with requests.listening(), requests.left_to(stop_flag):
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
    with requests.listening(), requests.left_to(StopFlag(requests)):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    assert capfd.readouterr().err == ""
    with requests.listening(), requests.left_to(StopFlag(requests)):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
    assert capfd.readouterr().err == "ended"


def test_evaluation_within_a_training_stops_between_images():
    requests = Requests()
    stop_flag = StopFlag(requests)
    seen = []
    with requests.listening(), requests.left_to(stop_flag):
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


class SignalHook(HookBase):
    """Sends a signal to this process in a step."""

    def __init__(self, number: int, iteration: int):
        self._number, self._iteration = number, iteration

    def before_step(self) -> None:
        if self.trainer.iter == self._iteration:
            os.kill(os.getpid(), self._number)


def signalled(cfg: Any, number: int, iteration: int) -> Trainer:  # noqa: F811
    trainer = Trainer(cfg)
    trainer.register_hooks([SignalHook(number, iteration)])
    return trainer


def test_interrupted_training_saves_its_step_and_goes_on_from_it(cfg: Any, tmp_path: Path):  # noqa: F811
    with pytest.raises(Interrupted) as error:
        signalled(cfg, signal.SIGINT, 2).train()
    assert error.value.code == 130
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    resumed = trained(cfg, resume=True)
    assert resumed.start_iter == 3
    assert resumed.model.weight.item() == pytest.approx(-(1 + 0.75 + 0.5 + 0.25))


def test_training_asked_in_its_last_step_ends_as_any_other(cfg: Any, tmp_path: Path):  # noqa: F811
    signalled(cfg, signal.SIGTERM, 3).train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_periodic_checkpoint_that_fails_is_tried_again(
    cfg: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    trainer = Trainer(cfg)
    save, names = trainer.checkpointer.save, []

    def fail_once(name: str, **state: Any) -> None:  # stands in for a disk that is full for one step
        names.append(name)
        if len(names) == 1:
            raise OSError(28, "No space left on device")
        save(name, **state)

    monkeypatch.setattr(trainer.checkpointer, "save", fail_once)
    trainer.train()
    assert names == ["model_0000001", "model_0000002", "model_0000003", "model_final"]
    assert "Iteration 1 is not saved ([Errno 28] No space left on device)" in capsys.readouterr().err


def test_last_checkpoint_that_cannot_be_written_is_an_error(cfg: Any, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    cfg.merge_from_list(["SOLVER.SAVE_RETRY_SECONDS", "0"])
    trainer = Trainer(cfg)

    def fail(*_: Any, **__: Any) -> None:  # stands in for a full disk
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.checkpointer, "save", fail)
    with pytest.raises(InputError, match=r"could not be written in 0 s \(\[Errno 28\] No space left.*--resume"):
        trainer.train()
