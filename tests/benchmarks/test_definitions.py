"""The plain definitions: by hand on a few pixels, and against the fast code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import definitions
from maskformer.data.mappers.targets import panoptic_targets, semantic_targets
from maskformer.inference import Geometry, instance_inference, panoptic_inference, semantic_inference
from maskformer.losses import HungarianMatcher, SetCriterion
from maskformer.structures import MaskPredictions, Targets

LOGIT_OF_THREE_QUARTERS = math.log(3.0)
THINGS = {0, 1, 2}
SIZES = {"padded_size": (32, 40), "image_size": (30, 33), "output_size": (45, 50)}


def bools(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_focal_of_one_pixel_is_worked_by_hand():
    # p = 3/4. Inside: 0.25 * (1/4)^2 * -log(3/4). Outside: 0.75 * (3/4)^2 * -log(1/4).
    logits = torch.full((2, 1), LOGIT_OF_THREE_QUARTERS, dtype=torch.float64)
    inside, outside = definitions.focal_loss(logits, bools([1], [0])).tolist()
    assert inside == pytest.approx(0.25 / 16 * -math.log(0.75))
    assert outside == pytest.approx(0.75 * 9 / 16 * math.log(4))


def test_dice_of_two_by_two_pixels_is_worked_by_hand():
    # p = 1/2 everywhere, two pixels of four are inside: 1 - (2 * 1 + 1) / (2 + 2 + 1).
    assert definitions.dice_loss(torch.zeros(1, 4), bools([1, 1, 0, 0])).tolist() == [pytest.approx(0.4)]


def test_pairwise_costs_are_the_losses_of_each_pair():
    logits, masks = torch.randn(3, 20, dtype=torch.float64), torch.rand(4, 20) > 0.5
    for pairwise, single in (
        (definitions.pairwise_focal_cost, definitions.focal_loss),
        (definitions.pairwise_dice_cost, definitions.dice_loss),
    ):
        expected = torch.stack([single(logits, masks[[row]].expand(3, -1)) for row in range(4)], dim=1)
        torch.testing.assert_close(pairwise(logits, masks), expected, rtol=1e-12, atol=0)


def test_matching_gives_each_target_the_query_that_draws_it():
    masks = bools([1, 1, 0, 0], [0, 0, 1, 1]).view(2, 2, 2)
    mask_logits = (2.0 * masks.flip(0) - 1) * 9
    target = Targets(torch.tensor([0, 0]), masks)
    found = definitions.match(torch.zeros(2, 2), mask_logits, target, definitions.LossWeights())
    assert (found.query_indices.tolist(), found.target_indices.tolist()) == ([0, 1], [1, 0])


def test_class_loss_is_a_weighted_mean_worked_by_hand():
    # Query 0 has the target, with 4 equal logits: log 4. Query 1 is surely "no object": 0. (log 4 + 0.1 * 0) / 1.1.
    class_logits = torch.zeros(1, 2, 4)
    class_logits[0, 1, 3] = 100.0
    targets = [Targets(torch.tensor([2]), torch.ones(1, 2, 2, dtype=torch.bool))]
    matches = [definitions.Match(torch.tensor([0]), torch.tensor([0]))]
    loss = definitions.class_loss(class_logits, targets, matches, definitions.LossWeights())
    assert loss.item() == pytest.approx(math.log(4) / 1.1, rel=1e-5)


def random_problem(dtype: torch.dtype, counts=(3, 2), num_queries=6) -> tuple[MaskPredictions, list[Targets]]:
    predictions = MaskPredictions(
        torch.randn(3, len(counts), num_queries, 5, dtype=dtype).requires_grad_(),
        torch.randn(3, len(counts), num_queries, 6, 7, dtype=dtype).requires_grad_(),
    )
    return predictions, [Targets(torch.randint(4, (count,)), torch.rand(count, 24, 28) > 0.5) for count in counts]


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 0), (9, 1)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
def test_losses_and_gradients_of_the_criterion_are_the_definition(counts, dtype, tolerance):
    predictions, targets = random_problem(dtype, counts)
    criterion = SetCriterion(4, matcher=HungarianMatcher())
    results = []
    for losses in (criterion(predictions, targets), definitions.set_losses(predictions, targets)):
        gradients = torch.autograd.grad(sum(losses.values()), [predictions.class_logits, predictions.mask_logits])
        results.append(({name: value.detach() for name, value in losses.items()}, gradients))
    assert results[0][0].keys() == results[1][0].keys()
    for name, value in results[1][0].items():
        torch.testing.assert_close(results[0][0][name], value, rtol=tolerance, atol=tolerance * 1e-2)
    for ours, plain in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance * plain.abs().max().item())


def test_losses_are_float32_under_autocast():
    predictions, targets = random_problem(torch.float32)
    half = MaskPredictions(predictions.class_logits.bfloat16(), predictions.mask_logits.bfloat16())
    right = definitions.set_losses(MaskPredictions(half.class_logits.float(), half.mask_logits.float()), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = definitions.set_losses(half, targets)
    assert all(value.dtype == torch.float32 and torch.equal(value, right[name]) for name, value in losses.items())


def test_panoptic_segments_are_worked_by_hand():
    # Pixel by pixel, score * p: query 0 (class 0, a thing) has the left half, query 2 (class 3, stuff) the right;
    # query 1 is "no object", query 3 is stuff of the same class and owns no pixel.
    class_probs = torch.tensor([[0.9, 0, 0, 0.05, 0.05], [0, 0, 0, 0.1, 0.9], [0, 0, 0, 1, 0], [0, 0, 0, 0.8, 0.2]])
    mask_logits = torch.tensor([[[9.0, -9], [9, -9]], [[9, 9], [9, 9]], [[-9, 9], [-9, 9]], [[-9, 9], [-9, 9]]])
    result = definitions.panoptic_segmentation(
        class_probs.log(), mask_logits, thing_class_ids=THINGS, object_mask_threshold=0.5, overlap_threshold=0.8
    )
    assert result.segment_map.tolist() == [[1, 2], [1, 2]]
    assert [(info["category_id"], info["isthing"]) for info in result.segments_info] == [(0, True), (3, False)]


def test_a_tie_between_queries_goes_to_the_first_and_half_is_inside():
    class_logits = torch.tensor([[3.0, 0.0, -9.0], [0.0, 3.0, -9.0]])
    result = definitions.panoptic_segmentation(
        class_logits, torch.zeros(2, 1, 2), thing_class_ids=THINGS, object_mask_threshold=0.5, overlap_threshold=0.5
    )
    assert result.segments_info == [{"id": 1, "isthing": True, "category_id": 0}]
    assert result.segment_map.tolist() == [[1, 1]]


def test_semantic_scores_are_worked_by_hand():
    # Class probabilities 1/2, 1/4 (and 1/4 for "no object") and 1/4, 1/2; masks 3/4 and 1/2.
    class_logits = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]).log()
    mask_logits = torch.tensor([LOGIT_OF_THREE_QUARTERS, 0.0]).view(2, 1, 1)
    scores = definitions.semantic_scores(class_logits, mask_logits).flatten().tolist()
    assert scores == pytest.approx([0.5 * 0.75 + 0.25 * 0.5, 0.25 * 0.75 + 0.5 * 0.5])


def test_an_instances_score_is_its_class_times_the_mean_inside_its_mask():
    class_logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    mask_logits = torch.tensor([[[LOGIT_OF_THREE_QUARTERS, LOGIT_OF_THREE_QUARTERS], [-5.0, 0.0]]])
    found = definitions.detect_instances(class_logits, mask_logits, thing_class_ids=None, max_instances=1)
    assert found.scores.tolist() == [pytest.approx(0.6 * 0.75)]
    assert found.masks.tolist() == [[[True, True], [False, False]]]
    assert found.classes.tolist() == [0]


def random_predictions(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(12, 6, dtype=dtype) * 3, torch.randn(12, 8, 10, dtype=dtype) * 4


@pytest.mark.parametrize("restore_masks_first", [True, False])
def test_semantic_inference_is_the_definition(restore_masks_first: bool):
    predicted = random_predictions()
    ours = semantic_inference(*predicted, Geometry(**SIZES), restore_masks_first=restore_masks_first)
    plain = definitions.semantic_inference(*predicted, **SIZES, restore_masks_first=restore_masks_first)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("within_masks", [False, True])
def test_panoptic_inference_is_the_definition(within_masks):
    predicted = random_predictions(torch.float32)
    options = {
        "thing_class_ids": THINGS, "object_mask_threshold": 0.3, "overlap_threshold": 0.2, "within_masks": within_masks,
    }  # fmt: skip
    ours = panoptic_inference(*predicted, Geometry(**SIZES), **options)
    plain = definitions.panoptic_inference(*predicted, **SIZES, **options)
    assert len(plain.segments_info) > 2 and ours.segments_info == plain.segments_info
    assert torch.equal(ours.segment_map, plain.segment_map)


@pytest.mark.parametrize("things", [THINGS, None], ids=["things", "all classes"])
def test_instance_inference_is_the_definition(things: set[int] | None):
    predicted = random_predictions()
    ours = instance_inference(*predicted, Geometry(**SIZES), thing_class_ids=things, max_instances=10)
    plain = definitions.instance_inference(*predicted, **SIZES, thing_class_ids=things, max_instances=10)
    torch.testing.assert_close(ours.scores, plain.scores, rtol=1e-9, atol=1e-12)
    assert torch.equal(ours.pred_classes, plain.classes) and torch.equal(ours.pred_masks, plain.masks)


def test_semantic_targets_are_a_mask_of_each_class_present():
    label_map = np.array([[2, 255], [0, 2]])
    plain = definitions.semantic_targets(label_map, 255)
    labels, masks = semantic_targets(label_map, 255)
    assert plain.labels.tolist() == labels.tolist() == [0, 2]
    assert (
        plain.masks.tolist()
        == masks.tensor.tolist()
        == [[[False, False], [True, False]], [[True, False], [False, True]]]
    )


def test_panoptic_targets_leave_out_crowds_and_empty_segments():
    pan_ids = np.array([[7, 9], [4, 7]])
    segments = [
        {"id": 9, "category_id": 1, "iscrowd": 1},
        {"id": 7, "category_id": 3},
        {"id": 5, "category_id": 0},
        {"id": 4, "category_id": 2},
    ]
    plain, (labels, masks) = definitions.panoptic_targets(pan_ids, segments), panoptic_targets(pan_ids, segments)
    assert plain.labels.tolist() == labels.tolist() == [3, 2]
    assert torch.equal(plain.masks, masks.tensor)


def test_an_image_without_a_target_has_no_masks_of_its_size():
    assert definitions.semantic_targets(np.full((2, 3), 255), 255).masks.shape == (0, 2, 3)
