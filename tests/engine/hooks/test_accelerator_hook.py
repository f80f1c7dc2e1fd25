from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import JSONWriter

from maskformer.engine.accelerator import Accelerator, Memory
from maskformer.engine.hooks.reports import AcceleratorHook
from maskformer.engine.hooks.writers import TcappdllWriter
from maskformer.sdaa.tcappdll import parse_line


class Waiting(TrainerBase):
    """Three steps that do nothing but say a loss."""

    def run_step(self) -> None:
        self.storage.put_scalar("total_loss", 10.0 - self.iter)


class Recording(Accelerator):
    """The CPU, with known memory, that notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.calls: list[object] = []

    def select(self, local_rank: int = 0) -> None:
        self.calls.append(("select", local_rank))

    def reset_peak_memory(self) -> None:
        self.calls.append("reset")

    def memory(self) -> Memory:
        return Memory(in_use=3 * 2**20, peak=5 * 2**20)


@pytest.fixture
def trained(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    trainer = Waiting()
    accelerator = Recording()
    hook = AcceleratorHook(accelerator, images_per_step=4)
    trainer.register_hooks([hook, PeriodicWriter([TcappdllWriter(str(tmp_path), images_per_step=4)], period=1)])
    with caplog.at_level(logging.INFO, logger="maskformer.engine.hooks.reports"):
        trainer.train(0, 3)
    return trainer, accelerator


def test_device_is_selected_before_training(trained):
    assert trained[1].calls == [("select", 0), "reset"]


def test_device_is_reported(trained, caplog: pytest.LogCaptureFixture):
    records = caplog.get_records("setup")
    report, peak = (record.getMessage() for record in records if record.name == "maskformer.engine.hooks.reports")
    assert "  device: cpu (" in report
    assert f"  PyTorch: {torch.__version__}" in report
    assert peak == "Peak memory of this process on cpu: 5 MB"


def test_memory_and_speed_are_measured_at_each_step(trained):
    latest = trained[0].storage.latest()
    assert latest["memory_in_use_mb"] == (3.0, 2)
    assert latest["memory_peak_mb"] == (5.0, 2)
    assert latest["images_per_second"][0] > 0
    assert len(trained[0].storage.history("images_per_second").values()) == 3


def test_every_iteration_has_one_line_of_tcappdll(trained, tmp_path: Path, capsys: pytest.CaptureFixture):
    lines = (tmp_path / "tcappdll.log").read_text().splitlines()
    records = [parse_line(line) for line in lines]
    assert [(record.iteration, record.loss, record.rank, record.epoch) for record in records] == [
        (0, 10.0, 0, 0),
        (1, 9.0, 0, 0),
        (2, 8.0, 0, 0),
    ]
    for record in records:
        assert record.images_per_second * record.total_time == pytest.approx(4)
    assert all(line.endswith(" ") for line in lines)


def test_lines_of_tcappdll_go_to_the_standard_output_too(tmp_path: Path, capsys: pytest.CaptureFixture):
    trainer = Waiting()
    hook = AcceleratorHook(Recording(), images_per_step=4)
    trainer.register_hooks([hook, PeriodicWriter([TcappdllWriter(str(tmp_path), images_per_step=4)], period=1)])
    trainer.train(0, 2)
    assert capsys.readouterr().out == (tmp_path / "tcappdll.log").read_text()


def test_measurements_reach_metrics_json(tmp_path: Path):
    trainer = Waiting()
    writer = PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], period=1)
    trainer.register_hooks([AcceleratorHook(Recording(), images_per_step=4), writer])
    trainer.train(0, 1)
    line = json.loads((tmp_path / "metrics.json").read_text().splitlines()[0])
    assert {"memory_in_use_mb", "memory_peak_mb", "images_per_second"} <= line.keys()
