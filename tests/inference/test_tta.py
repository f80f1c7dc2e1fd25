from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from torch.nn import functional as F

from maskformer.inference import Geometry, QueryAverage, View, plan_views
from maskformer.inference.tta import match_queries, resample_masks

YES, NO = 12.0, -12.0  # logits of a sure yes and a sure no


def test_views_are_every_size_and_its_mirror_image_the_largest_first():
    views = plan_views((10, 20), min_sizes=(5, 20, 10), max_size=30, flip=True)
    assert views == [View(size, flipped) for size in ((15, 30), (10, 20), (5, 10)) for flipped in (False, True)]
    assert plan_views((10, 20), min_sizes=(5,), max_size=30, flip=False) == [View((5, 10))]


def test_a_view_is_resized_as_plain_evaluation_resizes():
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    expected = T.ResizeShortestEdge([5], 100, "choice").get_transform(image).apply_image(image)
    shown = View((5, 8)).show(torch.from_numpy(image).permute(2, 0, 1))
    assert torch.equal(shown, torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_a_flipped_view_shows_the_mirror_image_and_flips_its_result_back():
    image = torch.arange(6, dtype=torch.uint8).view(1, 2, 3).expand(3, 2, 3)
    view = View((2, 3), flipped=True)
    assert view.show(image)[0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert torch.equal(view.restore(view.show(image)), image)
    assert torch.equal(View((2, 3)).restore(image), image)


def plain(rows: int, columns: int) -> Geometry:
    return Geometry(padded_size=(rows, columns), image_size=(rows, columns), output_size=(rows, columns))


def test_masks_read_on_their_own_grid_are_the_same():
    masks, geometry = torch.randn(3, 4, 6), Geometry((16, 24), (13, 24), (20, 30))
    resampled = resample_masks(masks, geometry, geometry, (4, 6), flipped=False)
    torch.testing.assert_close(resampled[:, :3], masks[:, :3])  # the last row of cells is centred in the padding


def test_masks_read_on_another_grid_are_resized_bilinearly():
    masks = torch.randn(2, 4, 6)
    expected = F.interpolate(masks[None], size=(8, 12), mode="bilinear", align_corners=False)[0]
    resampled = resample_masks(masks, plain(16, 24), plain(32, 48), (8, 12), flipped=False)
    torch.testing.assert_close(resampled, expected)


def test_masks_of_the_mirror_image_are_flipped_back_whatever_its_padding():
    masks = torch.tensor([[[1.0, 2.0, 3.0, 0.0]]])  # the last cell is padding
    geometry = Geometry(padded_size=(1, 4), image_size=(1, 3), output_size=(1, 3))
    assert resample_masks(masks, geometry, plain(1, 3), (1, 3), flipped=True).tolist() == [[[3.0, 2.0, 1.0]]]


def test_queries_match_by_class_and_overlap_whatever_their_order():
    class_probs = torch.tensor([[0.9, 0.0, 0.1], [0.9, 0.0, 0.1], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]])
    mask_logits = torch.tensor([[YES, NO, NO, NO], [NO, YES, NO, NO], [YES, NO, NO, NO], [NO, NO, NO, YES]]).view(
        4, 2, 2
    )
    permutation = torch.tensor([2, 0, 3, 1])
    order = match_queries(class_probs, mask_logits, class_probs[permutation], mask_logits[permutation])
    assert permutation[order].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("common", "matched"), [(3, True), (1, False)])
def test_sure_queries_of_a_class_match_from_an_iou_of_one_half(common, matched):
    """Both masks have four pixels: an IoU of 3/5, or of 1/7."""
    masks, others = torch.zeros(2, 1, 8), torch.zeros(2, 1, 8)
    masks[0, 0, :4] = 1
    others[0, 0, 4 - common : 8 - common] = 1
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # an object, no object
    assert match_queries(probs, masks, probs, others).tolist() == ([0, 1] if matched else [1, 0])


def two_queries() -> tuple[torch.Tensor, torch.Tensor]:
    """One class; an object on the left cell, and no object with a mask on the right."""
    return torch.tensor([[YES, NO], [NO, YES]]), torch.tensor([[[4.0, -4.0]], [[-4.0, 4.0]]])


def test_the_average_of_one_view_is_that_view():
    class_logits, mask_logits = torch.randn(5, 4), torch.randn(5, 2, 3)
    average = QueryAverage(class_logits, mask_logits, plain(8, 12))
    torch.testing.assert_close(average.class_logits.softmax(-1), class_logits.softmax(-1))
    assert average.mask_logits is mask_logits


def test_the_average_with_the_mirrored_and_permuted_same_view_is_the_view():
    class_logits, mask_logits = 5 * torch.randn(6, 4), 5 * torch.randn(6, 4, 4)
    class_logits[4:, 3] = 40
    average = QueryAverage(class_logits, mask_logits, plain(16, 16))
    average.add(class_logits.flip(0), mask_logits.flip(0).flip(-1), plain(16, 16), flipped=True)
    is_object = class_logits.argmax(-1) < 3  # which "no object" goes with which does not matter
    assert is_object.tolist() == [True] * 4 + [False] * 2
    torch.testing.assert_close(average.mask_logits[is_object], mask_logits[is_object])
    torch.testing.assert_close(average.class_logits.softmax(-1)[is_object], class_logits.softmax(-1)[is_object])


def test_class_probabilities_are_the_mean_over_views():
    class_logits, mask_logits = two_queries()
    average = QueryAverage(class_logits, mask_logits, plain(4, 8))
    for unsure in (0.0, 0.0):
        average.add(torch.tensor([[unsure, unsure], [NO, YES]]), mask_logits, plain(4, 8), flipped=False)
    probs = average.class_logits.softmax(-1)
    torch.testing.assert_close(probs, torch.tensor([[2 / 3, 1 / 3], [0.0, 1.0]]), atol=1e-4, rtol=0)


def test_a_view_without_the_object_has_no_say_in_its_mask_but_in_its_probability():
    class_logits, mask_logits = two_queries()
    average = QueryAverage(class_logits, mask_logits, plain(4, 8))
    average.add(torch.tensor([[NO, YES], [NO, YES]]), -mask_logits, plain(4, 8), flipped=False)
    torch.testing.assert_close(average.mask_logits[0], mask_logits[0], atol=1e-3, rtol=0)
    assert average.class_logits.softmax(-1)[0, 0].item() == pytest.approx(0.5, abs=1e-3)


def test_mask_logits_of_sure_views_are_averaged_with_equal_weights():
    class_logits, mask_logits = two_queries()
    average = QueryAverage(class_logits, mask_logits, plain(4, 8))
    average.add(class_logits, mask_logits * 2, plain(4, 8), flipped=False)
    average.add(class_logits, mask_logits * 6, plain(4, 8), flipped=False)
    torch.testing.assert_close(average.mask_logits[0], mask_logits[0] * 3)


def test_an_object_that_only_a_later_view_sees_takes_the_place_of_no_object():
    class_logits, mask_logits = two_queries()
    average = QueryAverage(class_logits, mask_logits, plain(4, 8))
    elsewhere = torch.tensor([[[-4.0, 4.0]], [[4.0, -4.0]]])  # the object is on the right
    average.add(class_logits, elsewhere, plain(4, 8), flipped=False)
    probs = average.class_logits.softmax(-1)
    torch.testing.assert_close(probs[:, 0], torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(average.mask_logits, mask_logits, atol=1e-2, rtol=0)
