from __future__ import annotations

import pytest

from benchmarks.workloads.evaluation import panoptic_evaluation, semantic_evaluation


def test_semantic_contenders_find_the_same_miou_again_and_again():
    sizes = {"num_images": 5, "size": (48, 64), "classes": 20, "present": 6}
    expected = semantic_evaluation(evaluator="detectron2", **sizes)()
    unit = semantic_evaluation(evaluator="maskformer", **sizes)
    assert 10 < expected["mIoU"] < 90
    assert unit() == unit() == expected


def test_panoptic_contenders_find_the_same_quality_again_and_again():
    sizes = {"num_images": 5, "size": (192, 256), "classes": 20, "segments": 6}
    expected = panoptic_evaluation(evaluator="detectron2", **sizes)()
    unit = panoptic_evaluation(evaluator="maskformer", **sizes)
    assert 5 < expected["PQ"] < 95
    assert unit() == unit() == pytest.approx(expected, rel=1e-12)
