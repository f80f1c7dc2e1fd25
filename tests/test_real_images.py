"""The R50 recipes on real ADE20K photographs: train, evaluate, draw, through the command lines.

MASKFORMER_REAL_ITERATIONS=20 trains longer than the two iterations that are enough to see that everything fits.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference_cases import CONFIGS

REPOSITORY = CONFIGS.parent
ITERATIONS = os.environ.get("MASKFORMER_REAL_ITERATIONS", "2")
SHORTER = [
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "SEED", "1", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", ITERATIONS, "INPUT.CROP.SIZE", "(512,512)"),
    *("INPUT.SIZE_DIVISIBILITY", "512", "INPUT.MIN_SIZE_TEST", "256"),
]

pytestmark = [pytest.mark.slow, pytest.mark.samples]


def run(samples_root: Path, *arguments: str | Path) -> None:
    """A command line as a user types it; the real images are its datasets."""
    environment = {**os.environ, "DETECTRON2_DATASETS": str(samples_root)}
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]


@pytest.mark.parametrize(
    ("config", "scores"),
    [
        ("ade20k-150/maskformer_R50_bs16_160k.yaml", ["sem_seg/mIoU"]),
        ("ade20k-150-panoptic/maskformer_panoptic_R50_bs16_720k.yaml", ["sem_seg/mIoU", "panoptic_seg/PQ"]),
    ],
)
def test_recipe_trains_evaluates_and_draws_real_images(samples_root, tmp_path, config, scores):
    file = CONFIGS / config
    run(samples_root, "train_net.py", "--config-file", file, *SHORTER, "OUTPUT_DIR", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses and all(math.isfinite(loss) for loss in losses)
    assert all(math.isfinite(lines[-1][score]) for score in scores)

    photograph = samples_root / "ADEChallengeData2016" / "images" / "validation" / "ADE_val_00000002.jpg"
    weights = tmp_path / "model_final.pth"
    predict = ["-m", "maskformer.tools.predict", "--config-file", file, "--weights", weights, "--input", photograph]
    run(samples_root, *predict, "--output", tmp_path / "drawn.png", "--device", "cpu", "INPUT.MIN_SIZE_TEST", "256")
    size = Image.open(photograph).size
    assert Image.open(tmp_path / "drawn.png").size == size
    ids = np.asarray(Image.open(tmp_path / "drawn_ids.png"))
    assert ids.shape[:2] == size[::-1]
    assert json.loads((tmp_path / "drawn_ids.json").read_text())["task"] in ("semantic", "panoptic")
