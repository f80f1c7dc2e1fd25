from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
import torch
from detectron2.engine import TrainerBase

from maskformer.engine.accelerator import Accelerator
from maskformer.engine.hooks.reports import DeterminismReport


class Warned(TrainerBase):
    """Warns at each step as PyTorch does on a device (the CPU's operations are deterministic), and of other things."""

    def run_step(self) -> None:
        for name in ("grid_sampler_2d_backward_cuda", "upsample_bilinear2d_backward_out_cuda"):
            warnings.warn(
                f"{name} does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True, warn_only=True)'.",
                stacklevel=1,
            )
        warnings.warn(
            "Memory Efficient attention defaults to a non-deterministic algorithm. To explicitly enable determinism "
            "call torch.use_deterministic_algorithms(True, warn_only=False).",
            stacklevel=1,
        )
        warnings.warn("something else", stacklevel=1)


def test_operations_are_named_once_and_listed_at_the_end(caplog: pytest.LogCaptureFixture):
    trainer = Warned()
    trainer.register_hooks([DeterminismReport()])
    show = warnings.showwarning
    with caplog.at_level(logging.INFO, "maskformer"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(0, 3)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("maskformer")] == [
        "Not deterministic on this device: grid_sampler_2d_backward_cuda",
        "Not deterministic on this device: upsample_bilinear2d_backward_out_cuda",
        "Not deterministic on this device: Memory Efficient attention",
        "SOLVER.DETERMINISTIC: operations that were not deterministic: Memory Efficient attention, "
        "grid_sampler_2d_backward_cuda, upsample_bilinear2d_backward_out_cuda",
    ]
    assert warnings.showwarning is show


@pytest.fixture
def _settings() -> Iterator[None]:
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.usefixtures("_settings")
def test_accelerator_turns_to_deterministic_algorithms_and_warns_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True
    Accelerator("cpu").be_deterministic()
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
