"""Pictures of the worst and best images: which are kept, over processes and interruptions."""

from __future__ import annotations

import json
import logging
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskformer.evaluation.kept import KEPT, LAYERS, KeptPictures

SCORES = [float(score) for score in random.Random(0).choices(range(60), k=100)]  # with equal ones


def draw(example: dict[str, Any], truth: dict[str, Any], output: dict[str, Any]) -> dict[str, np.ndarray]:
    """Grey, as bright as the image's index."""
    return {layer: np.full((8, 8, 3), example["index"] % 256, dtype=np.uint8) for layer in LAYERS}


def keeper(folder: Path) -> KeptPictures:
    return KeptPictures(folder / "partial", draw)


def show(pictures: KeptPictures, indices: range | list[int], scores: list[float] = SCORES) -> None:
    for index in indices:
        pictures.offer(
            index, scores[index], {"file_name": f"{index}.jpg", "index": index}, lambda _: {"sem_seg": 0}, {}
        )


def publish(pictures: KeptPictures, folder: Path, scores: list[float] = SCORES) -> tuple[list[str], list[str]]:
    images = [(index, {"file_name": f"{index}.jpg", "score": score}) for index, score in enumerate(scores)]
    pictures.publish(images, folder)
    content = json.loads((folder / "pictures.json").read_text())
    for row in content["worst"] + content["best"]:
        index = int(row["file_name"].removesuffix(".jpg"))
        assert row["score"] == scores[index]
        for layer in LAYERS:
            with Image.open(folder / row[layer]) as picture:
                assert abs(int(np.asarray(picture).mean()) - index) <= 1
    assert len(list((folder / "pictures").iterdir())) == 3 * len(content["worst"] + content["best"])
    return tuple([row["file_name"] for row in content[part]] for part in ("worst", "best"))


def expected(scores: list[float]) -> tuple[list[str], list[str]]:
    ranked = sorted(range(len(scores)), key=lambda index: (scores[index], zlib.crc32(str(index).encode())))
    return [f"{index}.jpg" for index in ranked[:KEPT]], [f"{index}.jpg" for index in ranked[::-1][:KEPT]]


@pytest.mark.parametrize("scores", [SCORES, [0.0] * 100])
def test_the_worst_and_best_are_kept_and_no_others(tmp_path: Path, scores: list[float]):
    pictures = keeper(tmp_path)
    show(pictures, range(100), scores)
    assert len(list((tmp_path / "partial").iterdir())) == 3 * 2 * KEPT
    assert publish(pictures, tmp_path, scores) == expected(scores)


@pytest.mark.parametrize("scores", [SCORES, [0.0] * 100])
def test_processes_and_those_before_them_keep_the_same(tmp_path: Path, scores: list[float]):
    show(keeper(tmp_path), range(30), scores)  # it was killed
    show(keeper(tmp_path), range(70, 100), scores)
    main = keeper(tmp_path)
    show(main, range(30, 70), scores)
    assert publish(main, tmp_path, scores) == expected(scores)


def test_image_whose_evaluator_gives_no_truth_is_not_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pictures = KeptPictures(tmp_path / "partial", lambda *_: pytest.fail("drawn"))
    pictures.offer(0, 50.0, {"file_name": "0.jpg", "index": 0}, lambda _: {}, {})
    assert publish(pictures, tmp_path, [50.0]) == ([], []) and not caplog.records


def test_few_images_of_many_equal_ones_are_drawn(tmp_path: Path):
    drawn = []
    pictures = KeptPictures(tmp_path, lambda example, *_: drawn.append(example["index"]) or draw(example, {}, {}))
    show(pictures, range(2000), [0.0] * 2000)
    assert len(drawn) < 250  # 40, and 40 times the sum of 1/41, 1/42, .., 1/2000, which is 3.9


def test_of_few_images_none_is_both_worst_and_best(tmp_path: Path):
    pictures = keeper(tmp_path)
    show(pictures, range(3), [50, 10, 90])
    assert publish(pictures, tmp_path, [50, 10, 90]) == (["1.jpg", "0.jpg"], ["2.jpg"])


def test_images_without_a_score_and_without_a_file_are_left_out(tmp_path: Path):
    scores = [1.0, float("nan"), 3.0, 4.0]
    pictures = keeper(tmp_path)
    show(pictures, [0, 1, 3], scores)  # another machine has the third
    assert publish(pictures, tmp_path, scores) == (["0.jpg"], ["3.jpg"])
    assert publish(keeper(tmp_path / "none"), tmp_path, scores) == ([], [])


def test_pictures_replace_those_of_the_evaluation_before(tmp_path: Path):
    for first in (0, 50):
        pictures = keeper(tmp_path)
        show(pictures, range(first, first + 3))
        worst, best = publish(pictures, tmp_path)
        assert {*worst, *best} == {f"{index}.jpg" for index in range(first, first + 3)}


def test_a_picture_that_cannot_be_drawn_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def fail(*_: Any) -> dict[str, np.ndarray]:
        raise ValueError("no picture")

    pictures = KeptPictures(tmp_path / "partial", fail)
    with caplog.at_level(logging.WARNING, "maskformer"):
        show(pictures, range(3))
        assert publish(pictures, tmp_path) == ([], [])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "0.jpg" in caplog.text and "no picture" in caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "partial").write_text("")
    pictures = keeper(tmp_path)
    show(pictures, range(3))
    assert "0.jpg" in caplog.text
    pictures.publish([], tmp_path / "partial")
    assert len(caplog.records) == 2
