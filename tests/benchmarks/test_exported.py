"""An exported file stands in evaluation where a model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from brightest_file import write_brightest

from benchmarks.exported import ExportedModel


def test_labels_are_of_rgb_and_of_the_size_that_is_asked_for(tmp_path: Path):
    write_brightest(tmp_path / "model.onnx")
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)  # blue, green, red
    image[0, 0] = 200
    image[1, 1, 0] = image[2, 1, 1] = 100
    model = ExportedModel(tmp_path / "model.onnx", channel_order=(2, 1, 0))
    same, larger = model([{"image": image}, {"image": image, "height": 4, "width": 2}])
    assert same["sem_seg"].tolist() == [[2, 2], [1, 0]]
    assert np.array_equal(larger["sem_seg"], [[2, 2], [2, 2], [1, 0], [1, 0]])
    assert len(model.seconds) == 2 and min(model.seconds) >= 0
