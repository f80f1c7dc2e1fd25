"""Pictures: right pixels coloured, right classes, the same colours every time."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Instances

from maskformer.reports.tasks import ClassTable, draw_instances, draw_panoptic, draw_semantic
from maskformer.structures import Classes, PanopticResult

GREY = np.full((60, 80, 3), 128, dtype=np.uint8)
CLASSES = ClassTable(names=("ball", "grass"), colors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))


def instances(masks: list[np.ndarray], categories: list[int], scores: list[float]) -> Instances:
    result = Instances(GREY.shape[:2])
    result.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *GREY.shape[:2]))
    result.pred_classes = torch.tensor(categories, dtype=torch.int64)
    result.scores = torch.tensor(scores)
    return result


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(GREY.shape[:2], dtype=bool)
    mask[rows, columns] = True
    return mask


def test_semantic_picture_has_each_class_in_its_colour_at_its_place() -> None:
    class_map = np.where(box(slice(0, 60), slice(0, 40)), 0, 1)
    picture = draw_semantic(GREY, class_map, CLASSES)
    assert picture.shape == GREY.shape
    left, right = picture[55, 5].astype(int), picture[55, 75].astype(int)
    assert left[0] > 180 > 100 > left[1]
    assert right[1] > 180 > 100 > right[0]


def test_ignored_pixels_are_left_as_they_are() -> None:
    np.testing.assert_array_equal(draw_semantic(GREY, np.full((60, 80), 255), CLASSES), GREY)


def test_panoptic_void_is_left_and_two_things_of_a_class_differ() -> None:
    segment_map = torch.zeros(60, 80, dtype=torch.int32)
    segment_map[2:30, 2:38], segment_map[2:30, 42:78], segment_map[50:, :] = 1, 2, 3
    segments = [{"id": 1, "isthing": True, "category_id": 0}, {"id": 2, "isthing": True, "category_id": 0}]
    segments.append({"id": 3, "isthing": False, "category_id": 1})
    picture = draw_panoptic(GREY, PanopticResult(segment_map, segments), CLASSES)
    assert picture[45, 5].tolist() == [128, 128, 128]
    assert picture[57, 75].argmax() == 1
    first, second = picture[27, 5].astype(int), picture[27, 75].astype(int)
    assert first.argmax() == second.argmax() == 0
    assert abs(first - second).max() > 20


def test_instances_are_drawn_and_none_leaves_the_image() -> None:
    drawn = draw_instances(GREY, instances([box(slice(5, 50), slice(5, 50))], [0], [0.9]), CLASSES)
    assert drawn[45, 10, 0] > 180
    assert drawn[55, 70].tolist() == [128, 128, 128]
    np.testing.assert_array_equal(draw_instances(GREY, instances([], [], []), CLASSES), GREY)


def test_same_result_gives_the_same_picture() -> None:
    found = instances([box(slice(5, 50), slice(5, 30)), box(slice(5, 50), slice(35, 70))], [0, 0], [0.9, 0.8])
    np.testing.assert_array_equal(draw_instances(GREY, found, CLASSES), draw_instances(GREY, found, CLASSES))


def test_scale_enlarges_the_picture() -> None:
    assert draw_semantic(GREY, np.ones((60, 80), dtype=int), CLASSES, scale=3).shape == (180, 240, 3)


def test_class_table_takes_what_the_model_knows() -> None:
    known = Classes("ours", ("ball", "grass"), colors=((255, 0, 0), (0, 255, 0)))
    assert ClassTable.of(known, 2) == CLASSES
    assert ClassTable.of(Classes("ours", ("ball", "grass")), 2).names == ("ball", "grass")


def test_classes_without_names_are_numbered_and_have_distinct_colours() -> None:
    table = ClassTable.of(None, 30)
    assert table.names[29] == "class 29"
    assert len(set(table.colors)) == 30


def test_label_is_the_first_of_several_names() -> None:
    table = ClassTable(("awning, sunshade", "sky"), ((0.0, 0.0, 0.0),) * 2)
    assert [table.label(0), table.label(1)] == ["awning", "sky"]


def test_hole_of_a_thing_is_not_filled() -> None:
    ring = box(slice(5, 55), slice(5, 75)) & ~box(slice(15, 45), slice(15, 65))
    drawn = draw_instances(GREY, instances([ring], [0], [0.9]), CLASSES)
    assert drawn[35, 40].tolist() == [128, 128, 128]
    assert drawn[50, 40].argmax() == 0
    inner_edge, area = drawn[43:48, 40, 0].max(), drawn[50, 40, 0]
    assert inner_edge > area + 20  # the outline of the hole
