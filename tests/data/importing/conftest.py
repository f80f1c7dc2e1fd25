"""Imports a folder as the command does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from imported import Imported

from maskformer.tools import import_dataset


@pytest.fixture
def import_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Imported]]:
    """Runs the command on ``tmp_path/source``, into ``tmp_path/garden``."""

    def run(program: str, *options: object, source: str = "source", target: str = "garden") -> Imported:
        words = ["--from", program, tmp_path / source, tmp_path / target, *options]
        code = import_dataset.main(list(map(str, words)))
        return Imported(code, "".join(capsys.readouterr()), tmp_path / target)

    before = set(DatasetCatalog.list())
    yield run
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"
