from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data.datasets import load_sem_seg
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng

from maskformer.data import build_test_loader, build_train_loader
from maskformer.data.loading.loaders import _check_batch_size
from maskformer.structures import InputError

Write = Callable[[str, Any], str]


@pytest.fixture
def semantic_dataset(register_dataset: Callable, write_png: Write, tmp_path: Path) -> str:
    """Five images of 6 x 8 pixels; pixels of image i are i, labels i % 3."""
    for index in range(5):
        write_png(f"images/{index}.png", np.full((6, 8, 3), index))
        write_png(f"labels/{index}.png", np.full((6, 8), index % 3))
    images, labels = str(tmp_path / "images"), str(tmp_path / "labels")
    return register_dataset(
        "tiny_semantic",
        lambda: load_sem_seg(labels, images, image_ext="png"),
        image_root=images,
        sem_seg_root=labels,
        stuff_classes=["a", "b", "c"],
        ignore_label=255,
    )


def test_train_loader_gives_batches_without_end_and_every_image(
    semantic_dataset: str, make_config: Callable[..., CfgNode]
) -> None:
    batches = list(islice(build_train_loader(make_config("DATASETS.TRAIN", (semantic_dataset,))), 6))
    assert [len(batch) for batch in batches] == [2] * 6
    for example in (example for batch in batches for example in batch):
        assert example["instances"].gt_classes.tolist() == [int(example["image"][0, 0, 0]) % 3]
    assert {Path(example["file_name"]).stem for batch in batches for example in batch} == set("01234")


def test_dataset_is_loaded_once(
    register_dataset: Callable, write_png: Write, make_config: Callable[..., CfgNode]
) -> None:
    record = {"file_name": write_png("a.png", np.zeros((2, 2, 3))), "sem_seg_file_name": write_png("b.png", [[0]])}
    loaded = []

    def load() -> list:
        loaded.append(record)
        return [record]

    build_train_loader(make_config("DATASETS.TRAIN", (register_dataset("tiny", load),)))
    assert len(loaded) == 1


def test_same_seed_gives_the_same_stream(semantic_dataset: str, make_config: Callable[..., CfgNode]) -> None:
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "relative_range", "INPUT.CROP.SIZE", [0.3, 0.3])
    cfg = make_config("DATASETS.TRAIN", (semantic_dataset,), *crop, "INPUT.COLOR_AUG_SSD", True)

    def images(seed: int) -> list[torch.Tensor]:
        seed_all_rng(seed)
        return [example["image"] for batch in islice(build_train_loader(cfg), 5) for example in batch]

    first, again, other = images(1), images(1), images(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("sampler", ["TrainingSampler", "WeightedTrainingSampler"])
def test_image_without_annotations_is_trained_with_though_detectron2_would_filter_it(
    sampler: str, register_dataset: Callable, write_png: Write, make_config: Callable[..., CfgNode]
) -> None:
    box = {"bbox": [0, 0, 2, 2], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [[0, 0, 2, 0, 2, 2]], "category_id": 1}
    records = [
        {"file_name": write_png("full.png", np.zeros((4, 4, 3))), "annotations": [box], "height": 4, "width": 4},
        {"file_name": write_png("empty.png", np.zeros((4, 4, 3))), "annotations": [], "height": 4, "width": 4},
    ]
    cfg = make_config(
        *("DATASETS.TRAIN", (register_dataset("tiny", records, thing_classes=["a", "b", "c"]),)),
        *("INPUT.DATASET_MAPPER_NAME", "mask_former_instance", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", True),
        *("DATALOADER.SAMPLER_TRAIN", sampler),
    )
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [("tiny", 2.0)]  # the weighted sampler's key; the pinned Detectron2 lacks it
    batches = islice(build_train_loader(cfg), 10)
    counts = {Path(e["file_name"]).stem: len(e["instances"]) for batch in batches for e in batch}
    assert counts == {"full": 1, "empty": 0}
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS is True


def test_images_of_a_like_shape_are_grouped(
    register_dataset: Callable, write_png: Write, make_config: Callable[..., CfgNode]
) -> None:
    sizes = [(4, 6), (6, 4), (4, 7), (7, 4)]
    records = [
        {
            "file_name": write_png(f"image{index}.png", np.zeros((*size, 3))),
            "sem_seg_file_name": write_png(f"label{index}.png", np.zeros(size)),
        }
        for index, size in enumerate(sizes)
    ]
    name = register_dataset("tiny", records, stuff_classes=["a", "b", "c"])
    cfg = make_config("DATASETS.TRAIN", (name,), "DATALOADER.ASPECT_RATIO_GROUPING", True)
    for batch in islice(build_train_loader(cfg), 6):
        assert len({example["width"] > example["height"] for example in batch}) == 1


def test_several_datasets_are_joined(
    semantic_dataset: str, register_dataset: Callable, write_png: Write, make_config: Callable[..., CfgNode]
) -> None:
    record = {
        "file_name": write_png("more.png", np.zeros((2, 2, 3))),
        "sem_seg_file_name": write_png("more_label.png", np.zeros((2, 2))),
    }
    other = register_dataset("tiny_more", [record], stuff_classes=["a", "b", "c"], ignore_label=255)
    cfg = make_config("DATASETS.TRAIN", (semantic_dataset, other))
    names = {Path(e["file_name"]).stem for batch in islice(build_train_loader(cfg), 6) for e in batch}
    assert names == {*"01234", "more"}


def test_datasets_that_ignore_different_values_are_refused(
    semantic_dataset: str, register_dataset: Callable, make_config: Callable[..., CfgNode]
) -> None:
    record = {"file_name": "a.jpg", "sem_seg_file_name": "a.png"}
    other = register_dataset("tiny_more", [record], stuff_classes=["a", "b", "c"], ignore_label=0)
    with pytest.raises(InputError, match=r"ignore different label values.*'tiny_more': 0"):
        build_train_loader(make_config("DATASETS.TRAIN", (semantic_dataset, other)))


def test_wrong_number_of_classes_is_found_before_training(
    semantic_dataset: str, make_config: Callable[..., CfgNode]
) -> None:
    cfg = make_config("DATASETS.TRAIN", (semantic_dataset,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150)
    with pytest.raises(InputError, match=r"has 3 classes but .* is 150"):
        build_train_loader(cfg)
    with pytest.raises(InputError, match=r"has 3 classes but .* is 150"):
        build_test_loader(cfg, semantic_dataset)


def test_bad_file_is_named_by_an_input_error_out_of_a_worker_too(
    semantic_dataset: str, tmp_path: Path, make_config: Callable[..., CfgNode]
) -> None:
    for index in range(5):
        (tmp_path / "images" / f"{index}.png").write_bytes(b"")
    cfg = make_config("DATASETS.TRAIN", (semantic_dataset,), "DATALOADER.NUM_WORKERS", 1)
    with pytest.raises(InputError, match=r"Image file .*\.png cannot be read: it is empty"):
        next(iter(build_train_loader(cfg)))


def test_test_loader_gives_each_image_once_in_order_without_its_label(
    semantic_dataset: str, make_config: Callable[..., CfgNode]
) -> None:
    batches = list(build_test_loader(make_config("INPUT.MIN_SIZE_TEST", 12), semantic_dataset))
    assert [Path(example["file_name"]).stem for (example,) in batches] == list("01234")
    for (example,) in batches:
        assert set(example) == {"file_name", "dataset_index", "height", "width", "image"}
        assert example["image"].shape == (3, 12, 16)


def test_test_loader_leaves_out_what_is_done_without_reading_it(
    semantic_dataset: str, make_config: Callable[..., CfgNode], tmp_path: Path
) -> None:
    for index in (0, 3):
        (tmp_path / "images" / f"{index}.png").write_bytes(b"")
    cfg = make_config("INPUT.MIN_SIZE_TEST", 12)
    batches = list(build_test_loader(cfg, semantic_dataset, done={0, 3}))
    assert [(Path(example["file_name"]).stem, example["dataset_index"]) for (example,) in batches] == [
        ("1", 1),
        ("2", 2),
        ("4", 4),
    ]
    assert list(build_test_loader(cfg, semantic_dataset, done=range(5))) == []


@pytest.mark.parametrize(("images", "processes"), [(3, 2), (0, 1), (1, 4)])
def test_batch_that_processes_cannot_share_is_refused(images: int, processes: int):
    with pytest.raises(InputError, match=rf"IMS_PER_BATCH is {images}, expected a multiple .*, {processes}: change it"):
        _check_batch_size(images, processes)
    _check_batch_size(8, processes)


@pytest.mark.parametrize("name", ["mask_former_semantic", "mask_former_panoptic", "detr_panoptic", "coco_panoptic_lsj"])
def test_examples_leave_a_worker_in_at_most_six_bytes_a_pixel(
    name: str, register_dataset: Callable, write_png: Write, write_panoptic: Write, make_config: Callable[..., CfgNode]
) -> None:
    ids = np.arange(80).reshape(8, 10).repeat(20, axis=0).repeat(20, axis=1) + 1
    record = {
        "file_name": write_png("image.png", np.stack([ids] * 3, axis=-1)),
        "sem_seg_file_name": write_png("label.png", ids % 3),
        "pan_seg_file_name": write_panoptic("panoptic.png", ids),
        "segments_info": [{"id": i, "category_id": i % 3} for i in range(1, 81)],
    }
    cfg = make_config(
        *("DATASETS.TRAIN", (register_dataset("tiny", [record], stuff_classes=["a", "b", "c"], ignore_label=255),)),
        *("INPUT.DATASET_MAPPER_NAME", name, "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"),
        *("INPUT.CROP.SIZE", [128, 128], "INPUT.SIZE_DIVISIBILITY", 128, "INPUT.MIN_SIZE_TRAIN", (200,)),
        *("INPUT.IMAGE_SIZE", 128, "INPUT.RANDOM_FLIP", "horizontal", "DATALOADER.NUM_WORKERS", 1, "SEED", 1),
    )
    for example in next(iter(build_train_loader(cfg))):
        instances = example["instances"]
        tensors = [example["image"], example["sem_seg"], instances.gt_masks.segment_map]
        pixels = example["image"][0].numel()
        assert len(instances) > 10 or name == "mask_former_semantic"
        assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) <= 5 * pixels  # no view of a larger image
        assert len(pickle.dumps(example)) <= 6 * pixels


def test_datasets_whose_classes_stand_in_another_order_are_refused(
    semantic_dataset: str, register_dataset: Callable, make_config: Callable[..., CfgNode]
) -> None:
    record = {"file_name": "a.jpg", "sem_seg_file_name": "a.png"}
    other = register_dataset("tiny_more", [record], stuff_classes=["a", "c", "b"], ignore_label=255)
    with pytest.raises(InputError, match=r"tiny_more \(DATASETS.TRAIN\).*class 1 is 'b'.*'c'.*a, b, c; a, c, b"):
        build_train_loader(make_config("DATASETS.TRAIN", (semantic_dataset, other)))


@pytest.mark.parametrize("names_it", [False, True])
def test_dataset_that_names_no_label_to_ignore_has_the_usual_one(
    names_it: bool, semantic_dataset: str, register_dataset: Callable, write_png: Write, make_config: Callable
) -> None:
    """Beside one that names it, too: they agree."""
    pixels = [[255, 1], [1, 2]]
    record = {"file_name": write_png("x.png", np.zeros((2, 2, 3))), "sem_seg_file_name": write_png("y.png", pixels)}
    other = register_dataset("tiny_more", [record], stuff_classes=["a", "b", "c"])
    names = (semantic_dataset, other) if names_it else (other,)
    batches = islice(build_train_loader(make_config("DATASETS.TRAIN", names)), 6)
    labels = [
        e["instances"].gt_classes.tolist() for batch in batches for e in batch if e["file_name"].endswith("x.png")
    ]
    assert labels and all(of_image == [1, 2] for of_image in labels)
