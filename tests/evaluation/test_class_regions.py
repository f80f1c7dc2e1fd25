from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

from maskformer.evaluation.class_regions import NO_CLASS, RegionCounts, count_regions


def counts_of(predicted: list, label: list, num_classes: int = 2) -> RegionCounts:
    return count_regions(np.array(predicted), np.array(label), num_classes)


def test_a_perfect_prediction_has_100():
    assert counts_of([[0, 0], [1, 1]], [[0, 0], [1, 1]]).scores() == {"PQ": 100, "SQ": 100, "RQ": 100}


def test_quality_of_four_pixels_by_hand():
    """Class 0 has three of four pixels in common: IoU 3/4. Class 1 is invented."""
    counts = counts_of([[0, 0], [0, 1]], [[0, 0], [0, 0]])
    assert counts.scores() == {"PQ": pytest.approx(37.5), "SQ": pytest.approx(37.5), "RQ": pytest.approx(50)}
    assert (counts.invented.tolist(), counts.missed.tolist()) == ([0, 1], [0, 0])


def test_an_iou_of_one_half_is_no_match():
    counts = counts_of([[0, 0], [1, 1]], [[0, 0], [0, 0]])
    assert counts.matched.tolist() == [0, 0]
    assert (counts.invented.tolist(), counts.missed.tolist()) == ([1, 1], [1, 0])
    assert counts.scores()["PQ"] == 0


def test_ignored_pixels_count_for_nobody():
    counts = counts_of([[0, 0], [0, 1]], [[0, 0], [NO_CLASS, NO_CLASS]])
    assert counts.scores()["PQ"] == 100  # class 1 lies on ignored pixels alone
    counts = counts_of([[0, 1], [0, 1]], [[0, 0], [0, NO_CLASS]])
    assert counts.invented.tolist() == [0, 1]  # half on ignored pixels is not more than half


def test_pixels_without_prediction_are_missed():
    assert counts_of([[NO_CLASS, NO_CLASS]], [[1, 1]]).missed.tolist() == [0, 1]


def test_the_region_of_a_class_is_one_segment_though_it_is_in_two_pieces():
    assert counts_of([[0, 1, 0]], [[0, 1, 0]]).matched.tolist() == [1, 1]


def test_counts_of_images_add_up():
    counts = counts_of([[0, 0]], [[0, 0]]) + counts_of([[1, 1]], [[0, 0]]) + RegionCounts.none(2)
    assert (counts.matched.tolist(), counts.invented.tolist(), counts.missed.tolist()) == ([1, 0], [0, 1], [1, 0])
    assert counts.scores()["PQ"] == pytest.approx(100 * (1 / 1.5 + 0) / 2)


def test_without_any_segment_quality_is_nan():
    assert all(math.isnan(score) for score in RegionCounts.none(3).scores().values())


def test_quality_is_panopticapis(tmp_path: Path, capsys: pytest.CaptureFixture):
    rng, num_classes = np.random.default_rng(0), 4
    annotations, counts = [], RegionCounts.none(num_classes)
    for name in ("truth", "predicted"):
        (tmp_path / name).mkdir()
    for index in range(30):
        label = np.repeat(rng.integers(-1, num_classes, (3, 2)), 4, axis=1)
        predicted = np.where(rng.random(label.shape) < 0.3, rng.integers(-1, num_classes, label.shape), label)
        counts += count_regions(predicted, label, num_classes)
        pair = []
        for name, class_map in (("truth", label), ("predicted", predicted)):
            Image.fromarray(id2rgb(class_map + 1)).save(tmp_path / name / f"{index}.png")
            segments = [{"id": i + 1, "category_id": i, "iscrowd": 0} for i in np.unique(class_map).tolist() if i >= 0]
            areas = [{**segment, "area": int((class_map + 1 == segment["id"]).sum())} for segment in segments]
            pair.append({"image_id": index, "file_name": f"{index}.png", "segments_info": areas})
        annotations.append(tuple(pair))
    categories = {index: {"isthing": 0} for index in range(num_classes)}
    folders = (str(tmp_path / "truth"), str(tmp_path / "predicted"))
    average, _ = pq_compute_single_core(0, annotations, *folders, categories).pq_average(categories, isthing=None)
    expected = {name.upper(): pytest.approx(100 * average[name]) for name in ("pq", "sq", "rq")}
    assert counts.scores() == expected
    assert 0 < average["pq"] < average["sq"] < 1
