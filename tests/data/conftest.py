"""Small datasets, written as files and registered for one test."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from maskformer.config import load_config
from maskformer.data.datasets.registration import register


@pytest.fixture(autouse=True)
def _seed_augmentations() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture
def register_dataset() -> Iterator[Callable[..., str]]:
    """A function (name, records, **metadata) that registers a dataset until the end of the test."""
    names: list[str] = []

    def register_until_end(name: str, records: Any, **metadata: Any) -> str:
        names.append(name)
        register(name, records if callable(records) else lambda: records, **metadata)
        return name

    yield register_until_end
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def write_png(tmp_path: Path) -> Callable[[str, Any], str]:
    """A function (name, pixels) that writes a PNG and returns its path."""

    def write(name: str, pixels: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
        return str(path)

    return write


@pytest.fixture
def write_panoptic(write_png: Callable[[str, Any], str]) -> Callable[[str, Any], str]:
    """A function (name, ids) that writes a panoptic PNG and returns its path."""

    def write(name: str, ids: Any) -> str:
        ids = np.asarray(ids)
        return write_png(name, np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1))

    return write


@pytest.fixture
def make_config() -> Callable[..., CfgNode]:
    """A function of KEY, VALUE, ... that makes a configuration without resizing, cropping, flipping or workers."""

    def make(*options: Any) -> CfgNode:
        plain = [
            *("INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice"),
            *("INPUT.RANDOM_FLIP", "none", "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
            *("DATALOADER.ASPECT_RATIO_GROUPING", False, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3),
        ]
        return load_config("", [value if isinstance(value, str) else repr(value) for value in (*plain, *options)])

    return make
