from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from detectron2.engine import HookBase
from test_trainer import OneWeight, cfg, trained  # noqa: F401

from maskformer.engine.trainer import Trainer
from maskformer.runs.signals import Interrupted
from maskformer.structures import InputError


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
