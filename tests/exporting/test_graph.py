"""The results of a graph are those of ``maskformer.inference``, and its input is the model's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from tiny_model import EOMT_CONFIG, SHAPES_CONFIG, TINY, TINY_EOMT

from maskformer.config import load_config
from maskformer.exporting.graph import SegmentationGraph, instance_batch, panoptic_batch, semantic_batch
from maskformer.inference import Geometry, instance_inference, panoptic_inference, semantic_labels
from maskformer.structures import InputError

NUM_CLASSES, QUERIES, SIZE, THINGS = 5, 12, (30, 41), {0, 3}
IS_THING = torch.tensor([index in THINGS for index in range(NUM_CLASSES + 1)])
PER_PIXEL = {"MODEL.META_ARCHITECTURE": "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselineHead"}
GEOMETRY = Geometry(padded_size=SIZE, image_size=SIZE, output_size=SIZE)


def draw_predictions(seed: int, sharpness: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two images, with masks of several cells."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = sharpness * torch.randn(2, QUERIES, NUM_CLASSES + 1, generator=generator)
    coarse = 4 * torch.randn(2, QUERIES, 4, 5, generator=generator)
    return class_logits, torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def test_semantic_labels_are_those_of_inference():
    class_logits, mask_logits = draw_predictions(0)
    labels = semantic_batch(class_logits, mask_logits)
    assert labels.dtype == torch.int32 and len(labels.unique()) > 2
    for actual, *prediction in zip(labels, class_logits, mask_logits):
        assert torch.equal(actual, semantic_labels(*prediction, GEOMETRY, restore_masks_first=False))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("within_masks", [False, True])
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.0), (0.4, 0.3), (1.0, 0.3)])
def test_panoptic_tables_are_the_segments_of_inference(seed, within_masks, thresholds):
    class_logits, mask_logits = draw_predictions(seed)
    options = {
        "object_mask_threshold": thresholds[0],
        "overlap_threshold": thresholds[1],
        "within_masks": within_masks,
    }
    outputs = panoptic_batch(class_logits, mask_logits, is_thing=IS_THING, **options)
    for segment_map, classes, scores, *prediction in zip(*outputs, class_logits, mask_logits):
        expected = panoptic_inference(*prediction, GEOMETRY, thing_class_ids=THINGS, **options)
        assert torch.equal(segment_map, expected.segment_map)
        segments = [segment["category_id"] for segment in expected.segments_info]
        assert classes.tolist() == segments + [-1] * (QUERIES - len(segments))
        padded = expected.scores + [0.0] * (QUERIES - len(segments))
        torch.testing.assert_close(scores, torch.tensor(padded))
    assert (thresholds[0] == 1) == (not outputs[0].any())


def test_segment_stays_whose_visible_fraction_is_the_threshold():
    """Of five pixels that the first query claims, the second, a more probable one, takes one: 4/5 is not below 0.8."""
    class_logits = torch.tensor([[[9.0, 0, 0, 0, 0, 0], [0, 9.5, 0, 0, 0, 0]]])
    mask_logits = torch.full((1, 2, 1, 8), -9.0)
    mask_logits[0, 0, 0, :5] = 5
    mask_logits[0, 1, 0, 4:] = 5
    for threshold, expected in ((0.8, [1, 1, 1, 1, 2, 2, 2, 2]), (0.81, [0, 0, 0, 0, 1, 1, 1, 1])):
        segment_map, *_ = panoptic_batch(
            class_logits,
            mask_logits,
            is_thing=IS_THING,
            object_mask_threshold=0.0,
            overlap_threshold=threshold,
            within_masks=False,
        )
        assert segment_map[0, 0].tolist() == expected


@pytest.mark.parametrize("max_instances", [1, 9, 100])
def test_instances_are_those_of_inference_and_the_rest_is_marked(max_instances):
    class_logits, mask_logits = draw_predictions(1)
    mask_logits[0, :3] = -1  # empty masks, of score 0
    outputs = instance_batch(class_logits, mask_logits, is_thing=IS_THING, max_instances=max_instances)
    assert outputs[0].shape == (2, min(max_instances, QUERIES * NUM_CLASSES))
    for scores, labels, masks, *prediction in zip(*outputs, class_logits, mask_logits):
        expected = instance_inference(*prediction, GEOMETRY, thing_class_ids=THINGS, max_instances=max_instances)
        count = len(expected)
        torch.testing.assert_close(scores[:count], expected.scores)
        assert not scores[count:].any() and (labels[count:] == -1).all()
        order = [sorted(zip(s, c, m)) for s, c, m in (
            (scores[:count].tolist(), labels.tolist(), masks.flatten(1).int().tolist()),
            (scores[:count].tolist(), expected.pred_classes.tolist(), expected.pred_masks.flatten(1).int().tolist()),
        )]  # fmt: skip
        assert order[0] == order[1]


def build(config: str, options: dict[str, object]):
    torch.manual_seed(0)
    return build_model(load_config(config, [str(word) for pair in options.items() for word in pair])).eval()


@pytest.mark.parametrize(
    "config, options",
    [
        (SHAPES_CONFIG, {**TINY, "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32}),
        (SHAPES_CONFIG, {**TINY, "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 0}),
        (EOMT_CONFIG, TINY_EOMT),
        (EOMT_CONFIG, {**TINY_EOMT, "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 64}),
    ],
)
@torch.no_grad()
def test_network_sees_what_it_sees_in_the_model(config, options):
    model = build(config, options)
    images = torch.randint(0, 256, (2, 3, 51, 70), dtype=torch.uint8)
    expected = model._normalise([{"image": image.flip(0)} for image in images]).tensor
    graph = SegmentationGraph(model, "queries", channel_order=(2, 1, 0))
    assert torch.equal(graph._prepare(images), expected)
    outputs = graph(images)
    for image, prediction in enumerate(model.predict([{"image": image.flip(0)} for image in images])):
        for name, logits in zip(("class_logits", "mask_logits"), prediction):
            torch.testing.assert_close(outputs[name][image], logits, rtol=1e-4, atol=1e-4)


def test_task_is_the_first_that_the_model_has_on_and_may_be_another():
    model = build(SHAPES_CONFIG, TINY)
    for switched_off, task in (((), "panoptic"), (("panoptic_on",), "instance"), (("instance_on",), "semantic")):
        model.inference = replace(model.inference, **dict.fromkeys(switched_off, False))
        assert SegmentationGraph(model).task == task
    assert SegmentationGraph(model, "panoptic").task == "panoptic"
    model.inference = replace(model.inference, semantic_on=False)
    with pytest.raises(InputError, match=r"MODEL\.MASK_FORMER\.TEST"):
        SegmentationGraph(model)
    with pytest.raises(InputError, match=r"depth.*panoptic.*queries"):
        SegmentationGraph(model, "depth")


def test_what_a_model_cannot_do_is_refused():
    model = build(SHAPES_CONFIG, TINY)
    model.classes = None
    with pytest.raises(InputError, match="things"):
        SegmentationGraph(model, "instance")
    per_pixel = build(SHAPES_CONFIG, {**TINY, **PER_PIXEL})
    assert SegmentationGraph(per_pixel).task == "semantic"
    with pytest.raises(InputError, match="semantic"):
        SegmentationGraph(per_pixel, "queries")
    grey = build(SHAPES_CONFIG, {**TINY, "MODEL.PIXEL_MEAN": [100.0], "MODEL.PIXEL_STD": [50.0]})
    with pytest.raises(InputError, match=r"PIXEL_MEAN.*1.*RGB"):
        SegmentationGraph(grey, "semantic")
    with pytest.raises(InputError, match=r"Linear.*MaskFormer"):
        SegmentationGraph(torch.nn.Linear(1, 1))
