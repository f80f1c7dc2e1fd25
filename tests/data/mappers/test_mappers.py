from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pycocotools.mask as rle
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from maskformer.data import (
    DETRPanopticDatasetMapper,
    InferenceMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
    build_mapper,
)
from maskformer.data.mappers.base import TrainingMapper
from maskformer.data.mappers.table import InstanceLSJDatasetMapper
from maskformer.data.transforms.augmentations import ResizedCrop, build_colour_jitter
from maskformer.structures import BadImageError, InputError, SegmentMasks

Write = Callable[[str, Any], str]
PLAIN = {"image_format": "RGB", "num_classes": 3, "ignore_label": 255, "size_divisibility": -1}
UNCHANGED = T.AugmentationList([])
LEFT_COLUMN = T.AugmentationList([T.CropTransform(0, 0, 1, 2)])


@pytest.fixture
def image_2x3(write_png: Write) -> dict[str, Any]:
    """The entry of an image without labels, 2 x 3 pixels, red 0..5."""
    pixels = np.zeros((2, 3, 3))
    pixels[..., 0] = np.arange(6).reshape(2, 3)
    return {"file_name": write_png("image.png", pixels), "image_id": 17}


@pytest.fixture
def semantic_record(image_2x3: dict[str, Any], write_png: Write) -> dict[str, Any]:
    return {**image_2x3, "sem_seg_file_name": write_png("label.png", [[2, 2, 0], [255, 0, 0]])}


@pytest.fixture
def panoptic_record(image_2x3: dict[str, Any], write_panoptic: Write) -> dict[str, Any]:
    segments = [
        {"id": 70000, "category_id": 1, "iscrowd": 0},
        {"id": 300, "category_id": 0, "iscrowd": 1},
        {"id": 9, "category_id": 1, "iscrowd": 0},
    ]
    label = write_panoptic("panoptic.png", [[9, 70000, 300], [9, 70000, 0]])
    return {**image_2x3, "pan_seg_file_name": label, "segments_info": segments}


def annotation(category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {
        "category_id": category,
        "segmentation": segmentation,
        "bbox": [0, 0, 1, 1],
        "bbox_mode": BoxMode.XYXY_ABS,
        **more,
    }


def rectangle(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


class TestSemantic:
    def test_example_holds_the_image_its_label_and_one_mask_per_class(self, semantic_record: dict) -> None:
        example = MaskFormerSemanticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(semantic_record)
        assert set(example) == {"file_name", "image_id", "height", "width", "image", "sem_seg", "instances"}
        assert (example["image_id"], example["height"], example["width"]) == (17, 2, 3)
        assert example["image"].dtype == torch.uint8 and example["image"][0].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert example["sem_seg"].dtype == torch.uint8 and example["sem_seg"].tolist() == [[2, 2, 0], [255, 0, 0]]
        instances = example["instances"]
        assert instances.gt_classes.tolist() == [0, 2]
        assert isinstance(instances.gt_masks, SegmentMasks)
        assert instances.gt_masks.tensor.int().tolist() == [[[0, 0, 1], [0, 1, 1]], [[1, 1, 0], [0, 0, 0]]]

    def test_padding_is_grey_ignored_and_of_no_segment(self, semantic_record: dict) -> None:
        settings = {**PLAIN, "size_divisibility": 4}
        example = MaskFormerSemanticDatasetMapper(augmentations=UNCHANGED, **settings)(semantic_record)
        assert example["instances"].image_size == (4, 4)
        assert example["image"].shape == (3, 4, 4) and (example["image"][:, 2:] == 128).all()
        assert (example["image"][:, :, 3] == 128).all()
        assert (example["sem_seg"][2:] == 255).all() and (example["sem_seg"][:, 3] == 255).all()
        segment_map = example["instances"].gt_masks.segment_map
        assert segment_map.tolist() == [[2, 2, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
        assert (example["height"], example["width"]) == (2, 3)

    def test_class_outside_the_crop_is_no_target(self, semantic_record: dict) -> None:
        example = MaskFormerSemanticDatasetMapper(augmentations=LEFT_COLUMN, **PLAIN)(semantic_record)
        assert example["instances"].gt_classes.tolist() == [2]
        assert example["sem_seg"].tolist() == [[2], [255]]

    def test_image_of_ignored_pixels_is_an_example_without_targets(self, image_2x3: dict, write_png: Write) -> None:
        record = {**image_2x3, "sem_seg_file_name": write_png("ignored.png", np.full((2, 3), 255))}
        instances = MaskFormerSemanticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(record)["instances"]
        assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, 2, 3)

    def test_label_of_another_size_is_refused(self, image_2x3: dict, write_png: Write) -> None:
        record = {**image_2x3, "sem_seg_file_name": write_png("small.png", [[0, 1]])}
        with pytest.raises(InputError, match=r"image\.png is 3 x 2 .*small\.png is 2 x 1"):
            MaskFormerSemanticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(record)

    def test_entry_without_semantic_label_is_refused(self, panoptic_record: dict) -> None:
        with pytest.raises(InputError, match=r"gives no sem_seg_file_name.*DATASET_MAPPER_NAME.*pan_seg_file_name"):
            MaskFormerSemanticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(panoptic_record)


class TestPanoptic:
    def test_example_has_one_mask_per_segment_that_is_no_crowd(self, panoptic_record: dict) -> None:
        example = MaskFormerPanopticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(panoptic_record)
        assert "sem_seg" not in example
        assert example["instances"].gt_classes.tolist() == [1, 1]
        assert example["instances"].gt_masks.segment_map.tolist() == [[2, 1, 0], [2, 1, 0]]

    def test_segment_emptied_by_the_crop_is_no_target(self, panoptic_record: dict) -> None:
        example = MaskFormerPanopticDatasetMapper(augmentations=LEFT_COLUMN, **PLAIN)(panoptic_record)
        assert example["instances"].gt_classes.tolist() == [1]
        assert example["instances"].gt_masks.segment_map.tolist() == [[1], [1]]

    def test_padding_is_of_no_segment(self, panoptic_record: dict, semantic_record: dict) -> None:
        settings = {**PLAIN, "size_divisibility": 4}
        record = {**semantic_record, **panoptic_record}
        example = MaskFormerPanopticDatasetMapper(augmentations=UNCHANGED, **settings)(record)
        assert example["instances"].image_size == (4, 4)
        assert example["instances"].gt_masks.segment_map.tolist() == [[2, 1, 0, 0], [2, 1, 0, 0], [0] * 4, [0] * 4]
        assert example["sem_seg"].tolist() == [[2, 2, 0, 255], [255, 0, 0, 255], [255] * 4, [255] * 4]

    def test_image_without_segments_is_an_example_without_targets(self, image_2x3: dict, write_panoptic: Write) -> None:
        label = write_panoptic("void.png", np.zeros((2, 3), int))
        record = {**image_2x3, "pan_seg_file_name": label, "segments_info": []}
        instances = MaskFormerPanopticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(record)["instances"]
        assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, 2, 3)

    def test_more_segments_than_a_byte_counts_survive_resizing(self, write_png: Write, write_panoptic: Write) -> None:
        ids = 1000 + np.arange(400).reshape(20, 20)
        record = {
            "file_name": write_png("image.png", np.zeros((20, 20, 3))),
            "pan_seg_file_name": write_panoptic("panoptic.png", ids),
            "segments_info": [{"id": int(i), "category_id": int(i) % 3} for i in ids.ravel()],
        }
        doubled = T.AugmentationList([T.Resize((40, 40))])
        instances = MaskFormerPanopticDatasetMapper(augmentations=doubled, **PLAIN)(record)["instances"]
        assert instances.gt_classes.tolist() == [int(i) % 3 for i in ids.ravel()]
        assert np.array_equal(instances.gt_masks.segment_map.numpy(), (ids - 999).repeat(2, 0).repeat(2, 1))

    @pytest.mark.parametrize("with_semantic_label", [True, False])
    def test_crop_avoids_one_category_over_the_area_limit(
        self, with_semantic_label: bool, write_png: Write, write_panoptic: Write
    ) -> None:
        ids = np.repeat([[5, 6]], 20, axis=1).repeat(4, axis=0)
        record = {
            "file_name": write_png("image.png", np.zeros((4, 40, 3))),
            "pan_seg_file_name": write_panoptic("panoptic.png", ids),
            "segments_info": [{"id": 5, "category_id": 0}, {"id": 6, "category_id": 2}],
        }
        if with_semantic_label:
            record["sem_seg_file_name"] = write_png("label.png", ids - 5)
        crop = T.RandomCrop_CategoryAreaConstraint("absolute", (4, 20), 0.9, 255)
        mapper = MaskFormerPanopticDatasetMapper(augmentations=T.AugmentationList([crop]), **PLAIN)
        for _ in range(30):
            areas = mapper(record)["instances"].gt_masks.tensor.flatten(1).sum(1)
            assert areas.max() / areas.sum() < 0.9

    def test_category_outside_the_classes_is_named(self, panoptic_record: dict) -> None:
        panoptic_record["segments_info"][2]["category_id"] = 3
        with pytest.raises(
            InputError, match=r"Segment 9 of .*panoptic\.png has the category 3; expected 0\.\.2.*NUM_CLASSES"
        ):
            MaskFormerPanopticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(panoptic_record)

    def test_segment_that_the_png_lacks_is_named(self, panoptic_record: dict) -> None:
        panoptic_record["segments_info"].append({"id": 12, "category_id": 0})
        with pytest.raises(InputError, match=r"Segment 12 .* has no pixel in .*panoptic\.png"):
            MaskFormerPanopticDatasetMapper(augmentations=LEFT_COLUMN, **PLAIN)(panoptic_record)

    def test_crowd_that_the_png_lacks_is_passed_over(self, panoptic_record: dict) -> None:
        panoptic_record["segments_info"].insert(0, {"id": 12, "category_id": 0, "iscrowd": 1})
        example = MaskFormerPanopticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(panoptic_record)
        assert example["instances"].gt_masks.segment_map.tolist() == [[2, 1, 0], [2, 1, 0]]

    def test_pixels_that_the_json_does_not_name_are_named(self, panoptic_record: dict) -> None:
        del panoptic_record["segments_info"][2]
        with pytest.raises(BadImageError, match=r"panoptic\.png has pixels of the segment 9, which .* does not name"):
            MaskFormerPanopticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(panoptic_record)

    def test_segment_listed_twice_is_named(self, panoptic_record: dict) -> None:
        panoptic_record["segments_info"].append({"id": 9, "category_id": 0})
        with pytest.raises(BadImageError, match=r"panoptic\.png the segment id 9 twice; expected each id once"):
            MaskFormerPanopticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(panoptic_record)

    def test_label_of_another_size_is_refused(self, panoptic_record: dict, write_png: Write) -> None:
        small = write_png("small.png", np.zeros((1, 2, 3)))
        mapper = MaskFormerPanopticDatasetMapper(augmentations=UNCHANGED, **PLAIN)
        with pytest.raises(InputError, match=r"small\.png is 2 x 1"):
            mapper({**panoptic_record, "pan_seg_file_name": small})
        small = write_png("small.png", np.zeros((1, 2)))
        with pytest.raises(InputError, match=r"small\.png is 2 x 1"):
            mapper({**panoptic_record, "sem_seg_file_name": small})

    def test_detr_mapper_makes_the_same_targets(self, panoptic_record: dict) -> None:
        example = DETRPanopticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(panoptic_record)
        assert example["instances"].gt_masks.segment_map.tolist() == [[2, 1, 0], [2, 1, 0]]


class TestInstance:
    def test_overlapping_instances_keep_their_whole_masks(self, image_2x3: dict) -> None:
        record = {
            **image_2x3,
            "annotations": [annotation(2, rectangle(0, 0, 2, 1)), annotation(0, rectangle(1, 0, 3, 2))],
        }
        instances = MaskFormerInstanceDatasetMapper(augmentations=UNCHANGED, **PLAIN)(record)["instances"]
        assert instances.gt_classes.tolist() == [2, 0]
        assert instances.gt_masks.segment_map.tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 2, 2], [0, 2, 2]]]
        assert instances.gt_masks.tensor.int().tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [0, 1, 1]]]

    def test_crowds_and_instances_outside_the_crop_are_no_targets(self, image_2x3: dict) -> None:
        annotations = [
            annotation(0, rectangle(1, 0, 3, 2)),
            annotation(1, rectangle(0, 0, 3, 1)),
            annotation(2, rectangle(0, 0, 3, 2), iscrowd=1),
        ]
        mapper = MaskFormerInstanceDatasetMapper(augmentations=LEFT_COLUMN, **PLAIN)
        instances = mapper({**image_2x3, "annotations": annotations})["instances"]
        assert instances.gt_classes.tolist() == [1]
        assert instances.gt_masks.tensor.int().tolist() == [[[1], [0]]]

    def test_image_without_annotations_is_an_example_without_targets(self, image_2x3: dict) -> None:
        settings = {**PLAIN, "size_divisibility": 4}
        example = MaskFormerInstanceDatasetMapper(augmentations=UNCHANGED, **settings)({**image_2x3, "annotations": []})
        assert len(example["instances"]) == 0
        assert example["instances"].gt_masks.tensor.shape == (0, 4, 4)

    def test_polygons_and_bitmaps_leave_a_worker_in_as_few_maps_as_keep_them_apart(self, write_png: Write) -> None:
        rng = np.random.default_rng(0)
        corners = [(x, y, x + w, y + h) for x, y, w, h in rng.integers(1, 12, (40, 4)).tolist()]
        masks = [np.zeros((24, 24), np.uint8, order="F") for _ in corners]
        for mask, (left, top, right, bottom) in zip(masks, corners, strict=True):
            mask[top:bottom, left:right] = 1
        drawn = [
            annotation(number % 3, rle.encode(mask) if number % 2 else rectangle(*box))
            for number, (mask, box) in enumerate(zip(masks, corners, strict=True))
        ]
        record = {"file_name": write_png("image.png", np.zeros((24, 24, 3))), "annotations": drawn}
        instances = MaskFormerInstanceDatasetMapper(augmentations=UNCHANGED, **PLAIN)(record)["instances"]
        assert np.array_equal(instances.gt_masks.tensor.numpy(), np.array(masks, dtype=bool))
        assert instances.gt_classes.tolist() == [number % 3 for number in range(40)]
        assert instances.gt_masks.segment_map.dtype == torch.uint8 and len(instances.gt_masks.segment_map) < 30

    @pytest.mark.parametrize("seed", range(5))
    def test_polygon_and_rle_of_the_same_mask_agree_under_crop_and_flip(self, seed: int, write_png: Write) -> None:
        mask = np.zeros((12, 16), np.uint8, order="F")
        mask[3:9, 2:13] = 1
        record = {
            "file_name": write_png("image.png", np.repeat(mask[..., None], 3, axis=2)),
            "annotations": [annotation(0, rectangle(2, 3, 13, 9)), annotation(1, rle.encode(mask))],
        }
        recipe = T.AugmentationList([T.RandomCrop("absolute", (7, 6)), T.RandomFlip()])
        np.random.seed(seed)
        example = MaskFormerInstanceDatasetMapper(augmentations=recipe, **{**PLAIN, "size_divisibility": 8})(record)
        expected = example["image"][0] == 1  # the mask is drawn in the image, so it shows where it must lie
        assert example["instances"].gt_masks.tensor.shape == (2, 8, 8)
        assert torch.equal(example["instances"].gt_masks.tensor, expected.expand(2, -1, -1))

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (annotation(0, None), r"image\.png has no mask"),
            (annotation(0, rectangle(0, 0, 2, float("nan"))), r"image\.png has the polygon .*expected finite numbers"),
            (annotation(0, rectangle(0, 0, 1, 1), bbox=[0, 0, float("nan"), 1]), r"image\.png has the box .*nan"),
            (annotation(0, {"size": [2, 3], "counts": b"zzzzzz"}), "no run lengths of 2 x 3 pixels"),
            (annotation(3, rectangle(0, 0, 2, 2)), r"category 3; expected 0\.\.2"),
            (
                annotation(0, rle.encode(np.ones((4, 4), np.uint8, order="F"))),
                r"size \(4, 4\).* the image has \(2, 3\)",
            ),
        ],
    )
    def test_bad_annotation_names_its_image(self, bad: dict, message: str, image_2x3: dict) -> None:
        with pytest.raises(InputError, match=message):
            MaskFormerInstanceDatasetMapper(augmentations=UNCHANGED, **PLAIN)({**image_2x3, "annotations": [bad]})


class TestInference:
    def test_input_is_the_resized_image_with_its_original_size_and_names(self, semantic_record: dict) -> None:
        resize = T.ResizeShortestEdge([4], 100, "choice")
        example = InferenceMapper(resize=resize, image_format="RGB")({**semantic_record, "sem_seg_file_name": "absent"})
        assert set(example) == {"file_name", "image_id", "height", "width", "image"}
        assert (example["height"], example["width"]) == (2, 3)
        assert example["image"].shape == (3, 4, 6) and example["image"].dtype == torch.uint8

    def test_longest_edge_is_limited_and_zero_keeps_the_size(
        self, image_2x3: dict, make_config: Callable[..., CfgNode]
    ) -> None:
        limited = make_config("INPUT.MIN_SIZE_TEST", 4, "INPUT.MAX_SIZE_TEST", 3)
        assert build_mapper(limited, is_train=False)(image_2x3)["image"].shape == (3, 2, 3)
        kept = make_config("INPUT.MIN_SIZE_TEST", 0)
        assert build_mapper(kept, is_train=False)(image_2x3)["image"][0].tolist() == [[0, 1, 2], [3, 4, 5]]

    def test_image_of_another_size_than_declared_is_refused(self, image_2x3: dict) -> None:
        mapper = InferenceMapper(resize=T.NoOpTransform(), image_format="RGB")
        with pytest.raises(InputError, match=r"image\.png is 3 x 2 .*annotation says .* 3 x 5"):
            mapper({**image_2x3, "height": 5, "width": 3})


class TestFromConfig:
    NAMES = ("mask_former_semantic", "mask_former_panoptic", "detr_panoptic", "mask_former_instance")

    def test_name_chooses_the_mapper(self, make_config: Callable[..., CfgNode], register_dataset: Callable) -> None:
        register_dataset("tiny_train", [], ignore_label=7)
        classes = (
            MaskFormerSemanticDatasetMapper,
            MaskFormerPanopticDatasetMapper,
            DETRPanopticDatasetMapper,
            MaskFormerInstanceDatasetMapper,
        )
        for name, mapper_class in zip(self.NAMES, classes, strict=True):
            mapper = build_mapper(
                make_config("INPUT.DATASET_MAPPER_NAME", name, "DATASETS.TRAIN", ("tiny_train",)), is_train=True
            )
            assert type(mapper) is mapper_class
            assert (mapper.ignore_label, mapper.num_classes, mapper.image_format) == (7, 3, "RGB")

    def test_unknown_name_lists_the_valid_ones(self, make_config: Callable[..., CfgNode]) -> None:
        with pytest.raises(InputError) as error:
            build_mapper(make_config("INPUT.DATASET_MAPPER_NAME", "mask_former_depth"), is_train=True)
        for name in ("INPUT.DATASET_MAPPER_NAME", "mask_former_depth", *self.NAMES):
            assert name in str(error.value)

    def test_config_without_training_dataset_is_refused(self, make_config: Callable[..., CfgNode]) -> None:
        with pytest.raises(InputError, match=r"DATASETS\.TRAIN is empty"):
            build_mapper(make_config(), is_train=True)

    def test_mapper_is_made_from_a_config_as_in_the_original_and_never_for_evaluation(
        self, make_config: Callable[..., CfgNode], register_dataset: Callable
    ) -> None:
        cfg = make_config("DATASETS.TRAIN", (register_dataset("tiny_train", []),))
        assert MaskFormerSemanticDatasetMapper(cfg, True).ignore_label == 255
        with pytest.raises(ValueError, match="InferenceMapper"):
            MaskFormerSemanticDatasetMapper(cfg, False)

    @pytest.mark.parametrize("mapper_class", [MaskFormerSemanticDatasetMapper, MaskFormerInstanceDatasetMapper])
    def test_configuration_without_our_keys_is_refused_with_the_key(
        self, mapper_class: type, register_dataset: Callable
    ) -> None:
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = (register_dataset("tiny_train", []),)
        with pytest.raises(InputError, match=r"no SINGLE_CATEGORY_MAX_AREA.*add_maskformer_config"):
            mapper_class(cfg)

    def test_area_limit_is_refused_where_there_is_no_label_map(
        self, make_config: Callable[..., CfgNode], register_dataset: Callable
    ) -> None:
        train = ("DATASETS.TRAIN", (register_dataset("tiny_train", []),), "INPUT.CROP.ENABLED", True)
        cfg = make_config(*train, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.75)
        with pytest.raises(InputError, match=r"SINGLE_CATEGORY_MAX_AREA is 0\.75; expected 1\.0"):
            MaskFormerInstanceDatasetMapper(cfg)

    def test_steps_are_those_that_the_config_switches_on(
        self, make_config: Callable[..., CfgNode], register_dataset: Callable
    ) -> None:
        train = ("DATASETS.TRAIN", (register_dataset("tiny_train", []),))
        plain = MaskFormerSemanticDatasetMapper(make_config(*train)).augmentations
        full = MaskFormerSemanticDatasetMapper(
            make_config(
                *train, "INPUT.CROP.ENABLED", True, "INPUT.COLOR_AUG_SSD", True, "INPUT.RANDOM_FLIP", "horizontal"
            )
        ).augmentations
        assert len(plain.augs) == 1 and len(full.augs) == 3
        assert plain.augs[0].crop is None and full.augs[0].crop is not None

    def test_detr_mapper_flips_first_and_resizes_last(
        self, make_config: Callable[..., CfgNode], register_dataset: Callable
    ) -> None:
        train = ("DATASETS.TRAIN", (register_dataset("tiny_train", []),))
        cfg = make_config(*train, "INPUT.CROP.ENABLED", True, "INPUT.RANDOM_FLIP", "horizontal")
        steps = [type(step) for step in DETRPanopticDatasetMapper(cfg).augmentations.augs]
        assert steps == [T.RandomFlip, T.RandomApply, ResizedCrop]


@pytest.fixture
def large_record(write_png: Write, write_panoptic: Write) -> dict[str, Any]:
    """A 120 x 160 image with 48 segments and a semantic label; its channels show ids and classes."""
    ids = np.arange(48).reshape(6, 8).repeat(20, axis=0).repeat(20, axis=1) + 1
    return {
        "file_name": write_png("image.png", np.stack([ids, ids % 3, ids * 0], axis=-1)),
        "sem_seg_file_name": write_png("label.png", ids % 3),
        "pan_seg_file_name": write_panoptic("panoptic.png", ids * 1000),
        "segments_info": [{"id": i * 1000, "category_id": i % 3} for i in range(1, 49)],
        "annotations": [annotation(i % 3, rectangle(i, 2 * i, i + 50, 2 * i + 40)) for i in range(20)],
    }


def random_recipe(jitter: bool = False) -> T.Augmentation:
    jitters = [build_colour_jitter("RGB")] if jitter else []
    return T.AugmentationList([T.RandomCrop("absolute", (64, 80)), *jitters, T.RandomFlip()])


TRAINING_MAPPERS = (
    MaskFormerSemanticDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    DETRPanopticDatasetMapper,
    MaskFormerInstanceDatasetMapper,
)


@pytest.mark.parametrize("mapper_class", TRAINING_MAPPERS)
def test_entry_of_the_dataset_is_left_as_it_is(mapper_class: type, large_record: dict) -> None:
    before = copy.deepcopy(large_record)
    mapper_class(augmentations=random_recipe(), **PLAIN)(large_record)
    assert large_record == before


@pytest.mark.parametrize("mapper_class", TRAINING_MAPPERS)
def test_same_seed_makes_the_same_example_and_another_seed_another(mapper_class: type, large_record: dict) -> None:
    mapper = mapper_class(augmentations=random_recipe(jitter=True), **PLAIN)

    def example(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        np.random.seed(seed)
        random.seed(seed)
        made = mapper(large_record)
        return made["image"], made["instances"].gt_masks.tensor

    first, again, other = example(1), example(1), example(2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_image_segments_and_semantic_label_move_together(large_record: dict) -> None:
    mapper = MaskFormerPanopticDatasetMapper(augmentations=random_recipe(), **PLAIN)
    for _ in range(10):
        example = mapper(large_record)
        ids, classes = example["image"][0], example["image"][1]
        assert torch.equal(example["sem_seg"], classes)
        instances = example["instances"]
        assert sorted(ids.unique().tolist()) == [int(ids[mask].unique()) for mask in instances.gt_masks.tensor]
        for label, mask in zip(instances.gt_classes, instances.gt_masks.tensor, strict=True):
            assert (classes[mask] == label).all()
        assert instances.gt_masks.tensor.any(dim=0).all()


@pytest.mark.parametrize("mapper_class", [MaskFormerSemanticDatasetMapper, MaskFormerPanopticDatasetMapper])
def test_example_takes_at_most_six_bytes_a_pixel_on_its_way_out_of_the_worker(
    mapper_class: type, large_record: dict
) -> None:
    example = mapper_class(augmentations=random_recipe(), **PLAIN)(large_record)
    assert len(pickle.dumps(example)) <= 6 * 64 * 80


class Crops:
    """Crops a picture of 2 x 3 to its columns, one after another."""

    def __init__(self, *columns: int):
        self.columns = list(columns)

    def __call__(self, labelled: Any) -> Any:
        crop = T.CropTransform(self.columns.pop(0), 0, 1, 2)
        labelled.transform(crop)
        return crop


class TestDraws:
    """A picture whose right column alone has a target."""

    @pytest.fixture
    def record(self, image_2x3: dict, write_png: Write) -> dict[str, Any]:
        return {**image_2x3, "sem_seg_file_name": write_png("right.png", [[255, 255, 1], [255, 255, 1]])}

    @pytest.mark.parametrize(
        ("max_draws", "columns", "seen", "left"),
        [
            (1, (0, 2), [0, 3], [2]),
            (2, (0, 2, 1), [2, 5], [1]),
            (3, (2, 0), [2, 5], [0]),
            (3, (0, 1, 0, 2), [0, 3], [2]),
        ],
    )
    def test_example_without_a_target_is_drawn_anew_up_to_so_many_times(
        self, record: dict, max_draws: int, columns: tuple, seen: list, left: list
    ) -> None:
        crops = Crops(*columns)
        example = MaskFormerSemanticDatasetMapper(augmentations=crops, max_draws=max_draws, **PLAIN)(record)
        assert example["image"][0, :, 0].tolist() == seen
        assert len(example["instances"]) == (seen == [2, 5])
        assert crops.columns == left


class TestLargeScaleJitter:
    """An image of 120 x 160 with an example of 64 x 64: the square is 48 x 64 of content at scale 1."""

    def build(
        self, make_config: Callable, register_dataset: Callable, name: str, scale: float, *more: Any
    ) -> TrainingMapper:
        words = ("INPUT.DATASET_MAPPER_NAME", name, "DATASETS.TRAIN", (register_dataset("tiny_train", []),))
        sizes = ("INPUT.IMAGE_SIZE", 64, "INPUT.MIN_SCALE", scale, "INPUT.MAX_SCALE", scale)
        cfg = make_config(*words, *sizes, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 48, *more)
        return build_mapper(cfg, is_train=True)

    @pytest.mark.parametrize(("scale", "content"), [(1.0, (48, 64)), (0.5, (24, 32)), (2.0, (64, 64))])
    def test_example_is_a_square_with_the_scaled_image_in_it(
        self, make_config: Callable, register_dataset: Callable, large_record: dict, scale: float, content: tuple
    ) -> None:
        mapper = self.build(make_config, register_dataset, "coco_panoptic_lsj", scale)
        example = mapper(large_record)
        assert example["image"].shape == (3, 64, 64)
        assert example["instances"].gt_masks.image_size == (64, 64)
        rows, columns = content
        outside = torch.ones(64, 64, dtype=torch.bool)
        outside[:rows, :columns] = False
        assert (example["image"][:, outside] == 128).all()
        covered = example["instances"].gt_masks.tensor.any(0)
        assert not covered[outside].any()
        assert covered[:rows, :columns].float().mean() > 0.9

    def test_semantic_example_is_padded_with_what_is_asked_for_and_ignored_there(
        self, make_config: Callable, register_dataset: Callable, large_record: dict
    ) -> None:
        options = ("INPUT.PADDING_VALUE", 7)
        mapper = self.build(make_config, register_dataset, "mask_former_semantic_lsj", 0.5, *options)
        example = mapper(large_record)
        assert example["image"].shape == (3, 64, 64) and example["sem_seg"].shape == (64, 64)
        assert (example["image"][:, 24:] == 7).all() and (example["image"][:, :, 32:] == 7).all()
        assert (example["sem_seg"][24:] == 255).all() and (example["sem_seg"][:24, :32] != 255).all()
        assert torch.equal(example["instances"].gt_masks.tensor.any(0), example["sem_seg"] != 255)

    @pytest.mark.parametrize("jitters", [False, True])
    def test_colours_are_jittered_where_asked_for(
        self, make_config: Callable, register_dataset: Callable, large_record: dict, jitters: bool
    ) -> None:
        options = ("INPUT.COLOR_AUG_SSD", jitters, "INPUT.RANDOM_FLIP", "none")
        mapper = self.build(make_config, register_dataset, "mask_former_semantic_lsj", 1.0, *options)
        images = [mapper(large_record)["image"] for _ in range(8)]
        assert any(not torch.equal(image, images[0]) for image in images) == jitters
        assert all((image[:, 48:] == 128).all() for image in images)  # padding is not jittered

    def test_scale_is_drawn_between_the_two(self, make_config: Callable, register_dataset: Callable) -> None:
        words = ("INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj", "DATASETS.TRAIN")
        cfg = make_config(*words, (register_dataset("tiny_train", []),), "INPUT.MIN_SCALE", 0.1, "INPUT.MAX_SCALE", 2.0)
        mapper = build_mapper(cfg, is_train=True)
        assert type(mapper) is InstanceLSJDatasetMapper
        scale, cut = mapper.augmentations.augs[-1].resize, mapper.augmentations.augs[-1].crop
        assert (scale.min_scale, scale.max_scale, scale.target_height) == (0.1, 2.0, 1024)
        assert cut.crop_size == (1024, 1024)

    def test_scales_in_the_wrong_order_are_refused(self, make_config: Callable, register_dataset: Callable) -> None:
        words = ("INPUT.DATASET_MAPPER_NAME", "coco_panoptic_lsj", "DATASETS.TRAIN", (register_dataset("t", []),))
        with pytest.raises(InputError, match=r"INPUT.MIN_SCALE is 3.0 and INPUT.MAX_SCALE 2.0; expected positive"):
            build_mapper(make_config(*words, "INPUT.MIN_SCALE", 3.0), is_train=True)
