"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def samples_root() -> Path:
    """Real annotated images in the datasets' own layouts: $MASKFORMER_SAMPLES, else ../shared/samples."""
    root = Path(os.environ.get("MASKFORMER_SAMPLES", REPOSITORY.parent / "shared" / "samples"))
    if not root.is_dir():
        pytest.skip(f"no real samples in {root}; set MASKFORMER_SAMPLES")
    return root


def pytest_configure() -> None:
    """Small tensors gain nothing from threads, and threads that wait for each other cost much on a shared machine."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a device that is not there."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
