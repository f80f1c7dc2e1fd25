"""What a model may be handed, and the sentence for what it may not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor

from maskformer.model_inputs import check_images, output_size, read_targets
from maskformer.structures import InputError, SegmentMasks

LEFT = [[0.0, 0.0, 2.0, 0.0, 2.0, 3.0, 0.0, 3.0]]  # the two left columns of 3 rows
RIGHT = [[2.0, 0.0, 4.0, 0.0, 4.0, 3.0, 2.0, 3.0]]
BITS = torch.tensor([[[1, 1, 0, 0]] * 3, [[0, 0, 1, 1]] * 3], dtype=torch.bool)
MASKS = {
    "polygons": PolygonMasks([LEFT, RIGHT]),
    "bit masks": BitMasks(BITS),
    "tensor": BITS,
    "bytes": BITS.byte() * 255,
    "floats": BITS.float(),
    "array": BITS.numpy(),
    "id map": SegmentMasks(torch.tensor([[1, 1, 2, 2]] * 3, dtype=torch.uint8), 2),
}
IMAGE = torch.zeros(3, 3, 4, dtype=torch.uint8)


def example(labels: object = (4, 1), masks: object = BITS, **fields: object) -> dict:
    instances = Instances((3, 4), gt_classes=torch.tensor(labels) if isinstance(labels, tuple) else labels, **fields)
    if masks is not None:
        instances.set("gt_masks", masks)
    return {"image": IMAGE, "file_name": "a.jpg", "instances": instances}


def read(given: dict) -> tuple[list[int], Tensor]:
    labels, masks = read_targets(given, num_classes=5)
    assert labels.dtype == torch.int64
    return labels.tolist(), (masks.tensor if isinstance(masks, SegmentMasks) else masks).bool()


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask_is_read(kind: str):
    labels, masks = read(example(masks=MASKS[kind], gt_boxes=Boxes(torch.zeros(2, 4))))
    assert labels == [4, 1] and torch.equal(masks, BITS)


@pytest.mark.parametrize("labels", [[4, 1], np.array([4, 1], np.uint8), torch.tensor([4, 1], dtype=torch.int16)])
def test_every_kind_of_integer_is_a_label(labels: object):
    assert read(example(labels))[0] == [4, 1]


@pytest.mark.parametrize("masks", [None, PolygonMasks([]), torch.tensor([]), torch.zeros(0, 3, 4)])
def test_an_image_without_objects_has_no_segments(masks: object):
    """Detectron2 gives it boxes and classes of length 0 and no masks at all."""
    labels, masks = read(example(torch.tensor([]), masks, gt_boxes=Boxes(torch.zeros(0, 4))))
    assert labels == [] and masks.shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (example((4, 5)), r"label 5; expected 0\.\.4 \(MODEL\.SEM_SEG_HEAD\.NUM_CLASSES\)"),
        (example((255, 1)), "label 255"),
        (example((-1, 1)), "label -1"),
        (example(torch.tensor([4.0, 1.0])), "torch.float32; expected one integer"),
        (example(torch.tensor([[4], [1]])), r"shape \(2, 1\)"),
        (example(["box", "ball"]), "gt_classes .* list that is no tensor"),
        (example(masks=BITS[:, :, :3]), r"3 x 3 pixels, its 'image' of 3 x 4 \(rows x columns\)"),
        (example(masks=BITS[:, None]), "1 x 3 x 4 pixels"),
        (example(masks=SegmentMasks(torch.zeros(3, 8, dtype=torch.uint8), 2)), "3 x 8 pixels"),
        ({**example(masks=MASKS["polygons"]), "image": IMAGE[:, :2]}, "3 x 4 pixels, its 'image' of 2 x 4"),
        (example(masks=BITS * 0.7), "a.jpg hold values that are no integers"),
        (example(masks=BITS * torch.nan), "a.jpg hold values that are no integers, or NaN"),
        (example(masks=[LEFT, [[1.0]]]), "gt_masks .* list that is no tensor"),
        (example(masks=None, gt_boxes=Boxes(torch.zeros(2, 4))), r"gt_boxes but no gt_masks.*MODEL\.MASK_ON"),
        ({**example(), "instances": Instances((3, 4))}, "have no gt_classes"),
        ({**example(), "instances": [1, 2]}, r"comes with list.*INPUT\.DATASET_MAPPER_NAME"),
        ({"image": IMAGE, "file_name": "a.jpg"}, r"comes with NoneType.*INPUT\.DATASET_MAPPER_NAME"),
        ({"image": IMAGE, "file_name": "a.jpg", "sem_seg": BITS[0]}, "'sem_seg'.*mask_former_semantic"),
    ],
)
def test_what_is_no_target_is_named(given: dict, message: str):
    with pytest.raises(InputError, match=message) as caught:
        read(given)
    assert "a.jpg" in str(caught.value)


@pytest.mark.parametrize(
    "image",
    [
        torch.full((3, 3, 4), 0.5) * 255,
        torch.zeros(3, 3, 4),  # black
        torch.tensor([0.0, 1.0]).expand(3, 5, 2),  # nearly so: no values between
        torch.full((3, 3, 4), 200, dtype=torch.uint8),
        torch.full((3, 3, 4), 200, dtype=torch.bfloat16),
        torch.linspace(-9.5, 263.5, 36).view(3, 3, 4),  # of cubic interpolation
    ],
)
def test_images_of_bytes_and_of_floats_to_255_are_taken(image: Tensor):
    check_images([{"image": image}])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], "given an empty list"),
        (IMAGE, "given a Tensor"),
        ({"image": IMAGE}, "given a dict"),
        ([IMAGE], "given a list"),
        ([{"file_name": "a.jpg"}], "'image' of a.jpg is not there"),
        ([{"image": None}], "is a NoneType"),
        ([{"image": np.zeros((3, 4, 4))}], "is a ndarray"),
        ([{"image": IMAGE}, {"image": torch.zeros(5, 6, 3), "file_name": "b.jpg"}], r"b\.jpg.*permute\(2, 0, 1\)"),
        ([{"image": IMAGE[None]}], r"shape \(1, 3, 3, 4\)"),
        ([{"image": torch.zeros(4, 5, 6)}], r"shape \(4, 5, 6\); expected a tensor of \(3, rows, columns\)"),
        ([{"image": IMAGE[:, :0]}], r"shape \(3, 0, 4\)"),
        ([{"image": IMAGE.to(torch.uint16)}], "type torch.uint16"),
        ([{"image": IMAGE.bool()}], "type torch.bool"),
        ([{"image": torch.full((3, 3, 4), torch.nan)}], "not finite"),
        ([{"image": torch.linspace(0, 1.0000001, 36).view(3, 3, 4)}], r"0\.\.1, which are to be multiplied by 255"),
        ([{"image": torch.linspace(-2.1, 2.6, 36).view(3, 3, 4)}], r"-2\.1\.\.2\.6, as if normalised"),
        ([{"image": torch.linspace(0, 65535, 36).view(3, 3, 4)}], r"0\.\.65535; expected .* 0\.\.255"),
        ([{"image": torch.rand(3, 3, 4)}], r"0\.\.1, which are to be multiplied by 255"),
    ],
)
def test_what_is_no_image_is_named(batch: object, message: str):
    with pytest.raises(InputError, match=message):
        check_images(batch)


def test_size_of_results_is_the_images_where_nothing_else_is_asked_for():
    assert output_size({}, (3, 4)) == (3, 4)
    assert output_size({"height": np.int64(5)}, (3, 4)) == (5, 4)
    assert output_size({"height": torch.tensor(5), "width": 6}, (3, 4)) == (5, 6)


@pytest.mark.parametrize("height", [0, -5, 7.5, "7", None, 10**9, torch.tensor([1, 2])])
def test_a_size_that_is_none_is_named(height: object):
    with pytest.raises(InputError, match=r"a\.jpg.*expected the size of its results"):
        output_size({"file_name": "a.jpg", "height": height}, (3, 4))
