from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "prepare_ade20k_sem_seg.py"


def run(root: Path, *options: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, env=environment)


def test_zero_becomes_ignored_and_classes_start_at_zero(write_png: Callable[[str, Any], str], tmp_path: Path) -> None:
    for split in ("training", "validation"):
        write_png(f"ADEChallengeData2016/annotations/{split}/a.png", [[0, 1], [2, 150]])
    finished = run(tmp_path)
    assert finished.returncode == 0
    for split in ("training", "validation"):
        folder = tmp_path / "ADEChallengeData2016" / "annotations_detectron2" / split
        assert np.asarray(Image.open(folder / "a.png")).tolist() == [[255, 0], [1, 149]]
        assert [path.name for path in folder.iterdir()] == ["a.png"]
        assert f"1 labels written to {folder}" in finished.stdout


def test_missing_folder_and_foreign_value_end_in_one_sentence(
    write_png: Callable[[str, Any], str], tmp_path: Path
) -> None:
    finished = run(tmp_path)
    assert finished.returncode == 1
    assert "annotations/training has no labels" in finished.stderr and "Traceback" not in finished.stderr
    label = write_png("ADEChallengeData2016/annotations/training/a.png", [[151]])
    finished = run(Path("elsewhere"), "--root", str(tmp_path))
    assert finished.returncode == 1
    assert f"{label} is no ADE20K label" in finished.stderr and "Traceback" not in finished.stderr


@pytest.mark.samples
def test_real_labels_become_the_prepared_ones(samples_root: Path, tmp_path: Path) -> None:
    source = samples_root / "ADEChallengeData2016"
    shutil.copytree(source / "annotations", tmp_path / "ADEChallengeData2016" / "annotations")
    assert run(tmp_path).returncode == 0
    prepared = sorted((source / "annotations_detectron2").rglob("*.png"))
    assert len(prepared) == 5
    for path in prepared:
        made = tmp_path / "ADEChallengeData2016" / path.relative_to(source)
        assert np.array_equal(np.asarray(Image.open(made)), np.asarray(Image.open(path)))
