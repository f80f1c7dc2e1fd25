"""Panoptic inference: by hand, against the definition, and the reference cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE, read_json

from benchmarks import definitions
from maskformer.inference import Geometry, panoptic, panoptic_inference
from maskformer.inference.panoptic import assign_pixels, kept_queries, merge_segments

CASES = read_json("panoptic", "cases.json")
ARRAYS = np.load(REFERENCE / "panoptic" / "cases.npz")
THINGS = {0, 1, 2, 3}


def at_output_size(mask_logits: torch.Tensor) -> Geometry:
    size = tuple(mask_logits.shape[-2:])
    return Geometry(padded_size=size, image_size=size, output_size=size)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_segments_are_the_reference(case):
    class_logits = torch.as_tensor(ARRAYS[f"{case['name']}_mask_cls"])
    mask_logits = torch.as_tensor(ARRAYS[f"{case['name']}_mask_pred"])
    result = panoptic_inference(
        class_logits,
        mask_logits,
        at_output_size(mask_logits),
        thing_class_ids=set(case["thing_classes"]),
        object_mask_threshold=case["object_mask_threshold"],
        overlap_threshold=case["overlap_threshold"],
    )
    assert (result.segment_map.numpy() == ARRAYS[f"{case['name']}_panoptic"]).all()
    assert result.segments_info == case["segments_info"]
    assert result.segment_map.dtype == torch.int32


def test_query_of_no_object_or_at_the_threshold_is_not_kept():
    probs = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25], [0.25, 0.7, 0.05]])
    assert kept_queries(probs.log(), 0.5).tolist() == [0, 3]  # 2 is not above 0.5; 1 is "no object"


def test_pixel_goes_to_the_largest_weighted_probability_and_ties_to_the_first():
    logits = torch.tensor([[[0.0, 2.0]], [[0.0, 2.0]], [[4.0, -4.0]]])
    owner, visible, predicted = assign_pixels(
        torch.tensor([0.9, 0.9, 0.8]), lambda slot, rows: logits[slot, rows.start : rows.stop], (1, 2), [range(1)]
    )
    assert owner.tolist() == [[2, 0]]
    assert visible.tolist() == [1, 0, 1]
    assert predicted.tolist() == [2, 2, 1]


def test_within_masks_a_pixel_that_its_owner_does_not_predict_is_nobodys_but_counts_as_visible():
    # Slot 0 wins the first two pixels and predicts the first; slot 1 wins the third, which it does not predict.
    logits = torch.tensor([[[3.0, -0.1, -9.0, -9.0]], [[-9.0, -9.0, -0.1, -3.0]]])
    options = {"size": (1, 4), "bands": [range(1)]}
    won = assign_pixels(torch.tensor([0.9, 0.8]), lambda slot, _: logits[slot], **options)
    owned = assign_pixels(torch.tensor([0.9, 0.8]), lambda slot, _: logits[slot], **options, within_masks=True)
    assert [x.tolist() for x in won] == [[[0, 0, 1, 1]], [2, 2], [1, 0]]
    assert [x.tolist() for x in owned] == [[[0, -1, -1, -1]], [2, 0], [1, 0]]


def test_segment_below_overlap_threshold_is_dropped():
    ids, info = merge_segments([0, 1], [79, 80], [100, 100], THINGS, 0.8)
    assert ids == [0, 1]
    assert info == [{"id": 1, "isthing": True, "category_id": 1}]


def test_segment_without_a_pixel_of_its_own_or_of_its_mask_is_dropped():
    assert merge_segments([0, 1], [0, 5], [9, 0], THINGS, 0.0) == ([0, 0], [])


def test_stuff_of_one_class_merges_and_things_do_not():
    ids, info = merge_segments([5, 0, 5, 0], [1, 1, 1, 1], [1, 1, 1, 1], THINGS, 0.0)
    assert ids == [1, 2, 1, 3]
    assert [(segment["category_id"], segment["isthing"]) for segment in info] == [(5, False), (0, True), (0, True)]


def test_resized_masks_equal_the_definition_on_all_queries_at_once():
    class_logits, mask_logits = torch.randn(12, 6) * 3, torch.randn(12, 8, 10) * 4
    geometry = Geometry(padded_size=(32, 40), image_size=(30, 33), output_size=(45, 50))
    result = panoptic_inference(
        class_logits, mask_logits, geometry, thing_class_ids=THINGS, object_mask_threshold=0.3, overlap_threshold=0.2
    )
    probs = geometry.restore(geometry.upsample(mask_logits)).sigmoid()
    scores, classes = class_logits.softmax(-1).max(-1)
    kept = [query for query in range(12) if classes[query] != 5 and scores[query] > 0.3]
    owner = (scores[kept, None, None] * probs[kept]).argmax(0)
    expected, info, stuff = torch.zeros(45, 50, dtype=torch.int32), [], {}
    for slot, query in enumerate(kept):
        category, mask = classes[query].item(), owner == slot
        visible, predicted = mask.sum().item(), (probs[query] >= 0.5).sum().item()
        if not visible or not predicted or visible / predicted < 0.2:
            continue
        if category not in THINGS and category in stuff:
            expected[mask] = stuff[category]
            continue
        info.append({"id": len(info) + 1, "isthing": category in THINGS, "category_id": category})
        expected[mask] = len(info)
        stuff.setdefault(category, len(info))
    assert len(info) > 2  # the random problem is not trivial
    assert result.segments_info == info
    assert torch.equal(result.segment_map, expected)


def test_one_pixel_and_no_kept_query_is_void():
    result = panoptic_inference(
        torch.tensor([[0.0, 9.0]]),
        torch.zeros(1, 1, 1),
        at_output_size(torch.zeros(1, 1, 1)),
        thing_class_ids=(),
        object_mask_threshold=0.0,
        overlap_threshold=0.0,
    )
    assert result.segment_map.tolist() == [[0]] and result.segments_info == []


@pytest.mark.parametrize("within_masks", [False, True])
def test_bands_give_the_ids_of_the_definition(monkeypatch, within_masks):
    monkeypatch.setattr(panoptic, "_BAND_BYTES", 1024)  # several bands
    torch.manual_seed(1)
    class_logits, mask_logits = torch.randn(12, 6) * 3, torch.randn(12, 16, 20) * 4
    sizes = {"padded_size": (64, 80), "image_size": (61, 77), "output_size": (61, 77)}
    options = {
        "thing_class_ids": THINGS, "object_mask_threshold": 0.3, "overlap_threshold": 0.2, "within_masks": within_masks,
    }  # fmt: skip
    actual = panoptic_inference(class_logits, mask_logits, Geometry(**sizes), **options)
    expected = definitions.panoptic_inference(class_logits, mask_logits, *sizes.values(), **options)
    assert torch.equal(actual.segment_map, expected.segment_map)
    assert actual.segments_info == expected.segments_info and len(actual.segments_info) > 2
