"""Instance inference: by hand, and the reference arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks
from reference_cases import REFERENCE2

from maskformer.inference import Geometry, instance, instance_inference
from maskformer.inference.instance import bounding_boxes, top_pairs

SIZE = Geometry(padded_size=(2, 3), image_size=(2, 3), output_size=(2, 3))
CLASS_LOGITS = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.5, 0.4]]).log()
LOG_3 = torch.tensor(3.0).log()  # probability 3/4
MASK_LOGITS = torch.stack(
    [
        torch.tensor([[1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]]) * LOG_3,
        torch.tensor([[-1.0, -1.0, -1.0], [-1.0, 1.0, 1.0]]) * 100,
    ]
)


def detect(**options):
    options = {"thing_class_ids": None, "max_instances": 10, **options}
    return instance_inference(CLASS_LOGITS, MASK_LOGITS, SIZE, **options)


def test_score_is_class_probability_times_mean_probability_inside_the_mask():
    instances = detect(max_instances=2)
    # Query 0 as class 0: 0.6 * 3/4; query 1 as class 1: 0.5 * 1. Best first.
    torch.testing.assert_close(instances.scores, torch.tensor([0.5, 0.45]))
    assert instances.pred_classes.tolist() == [1, 0]
    assert instances.pred_masks[1].tolist() == [[True, True, False], [False, False, False]]


def test_boxes_enclose_masks():
    assert detect(max_instances=2).pred_boxes.tensor.tolist() == [[1, 1, 3, 2], [0, 0, 2, 1]]


def test_only_things_are_detected_when_the_dataset_tells():
    assert detect(thing_class_ids={1}).pred_classes.tolist() == [1, 1]


def test_stuff_takes_its_places_among_the_most_probable_before_it_is_left_out():
    scores, _, classes = top_pairs(CLASS_LOGITS, {1}, 2)  # the two: 0.6 of class 0, 0.5 of class 1
    assert scores.tolist() == pytest.approx([0.5]) and classes.tolist() == [1]


def test_a_dataset_without_things_has_no_instances():
    assert len(detect(thing_class_ids=frozenset())) == 0


def test_one_query_can_answer_for_two_classes():
    scores, queries, classes = top_pairs(CLASS_LOGITS, None, 3)
    assert list(zip(queries.tolist(), classes.tolist())) == [(0, 0), (1, 1), (0, 1)]
    assert scores.tolist() == pytest.approx([0.6, 0.5, 0.3])


def test_an_empty_mask_scores_zero():
    instances = instance_inference(
        CLASS_LOGITS[:1], torch.full((1, 2, 3), -5.0), SIZE, thing_class_ids=None, max_instances=1
    )
    assert instances.scores.tolist() == [0.0] and not instances.pred_masks.any()


def test_masks_have_the_size_of_the_original_image():
    geometry = Geometry(padded_size=(8, 8), image_size=(6, 8), output_size=(30, 40))
    instances = instance_inference(CLASS_LOGITS, torch.randn(2, 2, 2), geometry, thing_class_ids=None, max_instances=5)
    assert instances.image_size == (30, 40) and instances.pred_masks.shape[1:] == (30, 40)


def test_boxes_are_detectron2s():
    masks = torch.rand(20, 9, 13, generator=torch.Generator().manual_seed(0)) > 0.97
    masks[3] = False
    masks[4] = True
    assert torch.equal(bounding_boxes(masks).tensor, BitMasks(masks).get_bounding_boxes().tensor)
    assert bounding_boxes(masks[:0]).tensor.shape == (0, 4)


@pytest.mark.parametrize("setting", ["instance", "instance_in_panoptic_model", "top_all"])
def test_instances_are_the_released_models(setting: str):
    arrays = np.load(REFERENCE2 / "units" / "units.npz")
    options = json.loads((REFERENCE2 / "units" / "units.json").read_text())[setting]
    predicted = (torch.as_tensor(arrays[f"inst_mask_{name}"]) for name in ("cls", "pred"))
    size = (20, 24)
    instances = instance_inference(
        *predicted,
        Geometry(padded_size=size, image_size=size, output_size=size),
        thing_class_ids=options["things"] if options["panoptic_on"] else None,
        max_instances=options["topk"],
    )
    assert len(instances) == options["kept"]
    right = torch.as_tensor(arrays[f"{setting}_scores"])
    torch.testing.assert_close(instances.scores, right, rtol=1e-9, atol=1e-12)
    # Of equal scores, those of empty masks, any may come first.
    sure = int((right > 0).sum())
    assert instances.pred_classes.tolist()[:sure] == arrays[f"{setting}_classes"].tolist()[:sure]
    assert sorted(instances.pred_classes.tolist()) == sorted(arrays[f"{setting}_classes"].tolist())
    masks = np.unpackbits(arrays[f"{setting}_masks"], axis=-1)[..., : size[1]].astype(bool)
    assert (instances.pred_masks.numpy() == masks).all()


def test_masks_may_be_restored_together(monkeypatch: pytest.MonkeyPatch):
    geometry = Geometry(padded_size=(32, 32), image_size=(30, 28), output_size=(45, 50))
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(7, 4, generator=generator), torch.randn(7, 8, 8, generator=generator)
    one_by_one = instance_inference(*predicted, geometry, thing_class_ids=None, max_instances=12)
    monkeypatch.setattr(instance, "_masks_at_once", lambda *_: 3)  # as accelerators do
    together = instance_inference(*predicted, geometry, thing_class_ids=None, max_instances=12)
    assert torch.equal(together.pred_masks, one_by_one.pred_masks)
    torch.testing.assert_close(together.scores, one_by_one.scores, rtol=1e-6, atol=0)
