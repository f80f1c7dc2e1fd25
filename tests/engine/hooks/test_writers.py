from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskformer.engine.hooks.writers import EventFileWriter, MetricsWriter
from maskformer.evaluation import append_scores


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def strict_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), np.float32("nan"), np.float64("inf")])
def test_metrics_that_are_not_finite_are_null(tmp_path: Path, value: float):
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = MetricsWriter(str(path))
        storage.put_scalars(total_loss=value, lr=0.5)
        writer.write()
    append_scores(str(path), {"segm": {"AP": value, "AP50": 1.5}})
    assert strict_lines(path) == [
        {"iteration": 0, "lr": 0.5, "total_loss": None},
        {"segm/AP": None, "segm/AP50": 1.5},
    ]


def test_lines_of_null_are_resumed_as_any_other(tmp_path: Path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 19, "total_loss": null}\n{"sem_seg/mIoU": null}\n{"iteration": 39, "total_l')
    MetricsWriter(str(path)).load_state_dict({"size": 0, "last_iteration": -1})
    assert path.read_text() == '{"sem_seg/mIoU": null}\n'


def test_pictures_reach_tensorboard_as_they_are(tmp_path: Path):
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[:, :3, 0] = 255
    with EventStorage(start_iter=7) as storage:
        writer = EventFileWriter(str(tmp_path))
        writer.write_pictures({"validation/a": picture})
        storage.put_scalar("lr", 1.0)
        writer.write()
        writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images("validation/a")
    assert (image.step, image.width, image.height) == (7, 6, 4)
