"""The small pictures that an evaluation keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from maskformer.reports.comparison import LONGEST_SIDE, Comparison

NAME = "test_comparison"
COLORS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


@pytest.fixture(autouse=True)
def _metadata() -> Iterator[None]:
    MetadataCatalog.get(NAME).set(stuff_classes=["路", "sky", "cat, pet"], stuff_colors=COLORS)
    yield
    MetadataCatalog.remove(NAME)


def draw(truth: dict[str, Any], output: dict[str, Any], image: torch.Tensor | None = None, image_format: str = "RGB"):
    image = torch.full((3, 20, 30), 100, dtype=torch.uint8) if image is None else image
    return Comparison(NAME, num_classes=3, image_format=image_format)({"image": image}, truth, output)


def main_color(pixels: np.ndarray) -> int:
    """Which class most pixels of an area are coloured by; -1: none."""
    color = np.median(pixels.reshape(-1, 3), axis=0)
    return -1 if color.max() - color.min() < 20 else int(color.argmax())


def halves(left: int, right: int) -> torch.Tensor:
    return torch.tensor([left, right]).repeat_interleave(100).expand(80, 200)


def test_semantic_results_are_coloured_by_class_and_ignored_pixels_are_not():
    drawn = draw({"sem_seg": halves(0, 3)}, {"sem_seg": torch.nn.functional.one_hot(halves(1, 2), 3).permute(2, 0, 1)})
    assert {picture.shape for picture in drawn.values()} == {(80, 200, 3)}
    assert np.all(drawn["picture"] == 100)
    assert [main_color(drawn["truth"][:, side]) for side in (slice(99), slice(102, None))] == [0, -1]
    assert [main_color(drawn["prediction"][:, side]) for side in (slice(99), slice(102, None))] == [1, 2]


def test_panoptic_results_are_coloured_by_the_class_of_their_segments():
    segments = [{"id": 7, "category_id": 2, "isthing": True}, {"id": 9, "category_id": 0, "isthing": False}]
    drawn = draw({"panoptic_seg": (halves(7, 0), segments[:1])}, {"panoptic_seg": (halves(9, 7), segments)})
    assert [main_color(drawn["truth"][:, side]) for side in (slice(99), slice(102, None))] == [2, -1]
    assert [main_color(drawn["prediction"][:, side]) for side in (slice(99), slice(102, None))] == [0, 2]


def test_certain_instances_lie_on_top_and_uncertain_ones_are_not_drawn():
    def instances(scores: list[float], classes: list[int]) -> dict[str, Any]:
        masks = torch.stack([halves(1, 0), halves(1, 1), halves(0, 1)])[: len(scores)].bool()
        scores_and_classes = {"scores": torch.tensor(scores), "pred_classes": torch.tensor(classes, dtype=torch.int64)}
        return {"instances": Instances((80, 200), pred_masks=masks.reshape(-1, 80, 200), **scores_and_classes)}

    drawn = draw(instances([], []), instances([0.9, 0.8, 0.4], [0, 1, 2]))
    assert main_color(drawn["truth"]) == -1
    assert [main_color(drawn["prediction"][:, side]) for side in (slice(99), slice(102, None))] == [0, 1]


def test_large_pictures_become_small_and_one_pixel_stays():
    for height, width in ((1000, 2000), (1, 1), (3, 5000)):
        labels = torch.zeros(height, width, dtype=torch.int16)
        for picture in draw({"sem_seg": labels}, {"sem_seg": labels}).values():
            longest = min(LONGEST_SIDE, max(height, width))
            assert picture.shape[1] == longest and picture.shape[0] == max(1, round(height * longest / width))
            assert picture.dtype == np.uint8


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_pictures_are_red_where_images_are(image_format: str):
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[image_format.index("R")] = 200
    labels = {"sem_seg": halves(0, 0)}
    assert np.all(draw(labels, labels, image, image_format)["picture"] == (200, 0, 0))


@pytest.mark.parametrize("image", [torch.rand(5, 20, 30), torch.arange(600).reshape(1, 20, 30), torch.zeros(2, 20, 30)])
def test_images_of_any_bands_and_range_are_shown(image: torch.Tensor):
    labels = {"sem_seg": halves(0, 0)}
    picture = draw(labels, labels, image)["picture"]
    assert picture.shape == (80, 200, 3) and (image.max() == image.min() or picture.max() > 200)


def test_segments_are_named_unless_they_are_too_small():
    large, small = ({"sem_seg": torch.full((side, side), 1)} for side in (200, 5))
    assert draw(large, large)["truth"].max() > 230
    assert draw(small, small)["truth"].max() < 200
