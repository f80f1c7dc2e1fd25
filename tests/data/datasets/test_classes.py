"""What is known of the classes of datasets and models: looked up once, and a failed look-up is not an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from maskformer.data.datasets import register_all, register_missing
from maskformer.data.datasets.classes import check_classes, ignore_label_of, read_classes, require, resolve_classes
from maskformer.structures import InputError

OURS = ("ade20k_panoptic_train", "shapes_panoptic_train", "cityscapes_fine_sem_seg_train")


@pytest.fixture
def _unregistered() -> Iterator[None]:
    """As after an import alone, whatever other tests have registered; what Detectron2 registers stays."""
    kept = [(catalog, dict(catalog)) for catalog in (DatasetCatalog, MetadataCatalog)]
    for name in [name for name in DatasetCatalog if name.startswith(("shapes_", "ade20k_panoptic"))]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    yield
    for catalog, content in kept:
        catalog.clear()
        catalog.update(content)


@pytest.mark.parametrize(
    ("name", "count", "things", "first"),
    [
        ("shapes_panoptic_val", 9, range(5), "ball"),
        ("shapes_instance_val", 5, range(5), "ball"),
        ("shapes_sem_seg_val", 9, range(5), "ball"),
        ("cityscapes_fine_panoptic_val", 19, range(11, 19), "road"),
        ("cityscapes_fine_instance_seg_val", 8, range(8), "person"),
        ("coco_2017_val_panoptic", 133, range(80), "person"),
        ("coco_2017_val", 80, range(80), "person"),
        ("coco_2017_val_panoptic_separated", 54, None, "things"),  # its numbers of things are of another list
        ("ade20k_sem_seg_val", 150, None, "wall"),
    ],
)
def test_classes_of_a_dataset(name: str, count: int, things: range | None, first: str) -> None:
    register_missing({})
    classes = read_classes(name, count)
    assert classes is not None
    assert len(classes) == count and classes.names[0] == first and classes.source == f"dataset {name}"
    assert classes.things == (None if things is None else frozenset(things))


def test_ids_and_colours_are_the_datasets_own() -> None:
    classes = read_classes("coco_2017_val_panoptic", 133)
    assert classes is not None and classes.ids is not None and classes.colors is not None
    assert (classes.ids[0], classes.ids[79], classes.ids[80], classes.ids[-1]) == (1, 90, 92, 200)
    assert classes.colors[0] == (220, 20, 60)


def test_a_look_up_that_fails_gives_nothing_and_leaves_nothing() -> None:
    assert read_classes("moon_val", 3) is None
    check_classes("moon_val", "DATASETS.TEST", 3, None)
    assert "moon_val" not in MetadataCatalog.list()
    assert read_classes("coco_2017_val_panoptic", 5) is None


def test_metadata_alone_say_enough(register_dataset: Callable) -> None:
    """A prediction needs no entries, so users set the names alone; things may be listed among themselves."""
    register_dataset("toy", list, stuff_classes=["water", "box", "ball"], thing_classes=["box", "ball"])
    MetadataCatalog.get("toy").thing_dataset_id_to_contiguous_id = {2: 1, 3: 2}
    DatasetCatalog.remove("toy")
    classes = read_classes("toy", 3)
    DatasetCatalog.register("toy", list)  # which the fixture removes
    assert classes is not None and (classes.names, classes.things) == (("water", "box", "ball"), {1, 2})


def test_names_that_detectron2_takes_from_the_json_are_known_before_it_is_loaded(tmp_path: Path) -> None:
    categories = [{"id": 7, "name": "ball"}, {"id": 4, "name": "box"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    register_coco_instances("lazy_train", {}, str(tmp_path / "a.json"), str(tmp_path))
    register_coco_instances("vanished_train", {}, str(tmp_path / "none.json"), str(tmp_path))
    try:
        classes = read_classes("lazy_train", 2)
        assert classes is not None and (classes.names, classes.ids) == (("box", "ball"), (4, 7))
        assert read_classes("vanished_train", 2) is None
    finally:
        for name in ("lazy_train", "vanished_train"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


# --- of a configuration ---


def test_a_model_knows_its_classes_without_anybody_registering_them(
    _unregistered: None, make_config: Callable[..., CfgNode]
) -> None:
    words = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 9, "DATASETS.TRAIN", ("shapes_panoptic_train",)]
    assert "shapes_panoptic_train" not in DatasetCatalog
    classes = resolve_classes(make_config(*words))
    assert classes is not None and classes.things == set(range(5))


def test_own_datasets_are_known_and_what_one_dataset_leaves_open_another_tells(
    register_dataset: Callable, make_config: Callable[..., CfgNode]
) -> None:
    paths = {"images": "/none", "panoptic": "/none.json", "panoptic_masks": "/none"}
    block = {"yard": {"classes": ["grass", "cat", "dog"], "things": ["cat", "dog"], "train": paths}}
    register_dataset("yard_sem_seg", list, stuff_classes=["grass", "cat", "dog"])
    register_dataset("other", list, stuff_classes=["sky", "cat", "dog"], thing_dataset_id_to_contiguous_id={0: 0})
    cfg = make_config("DATASETS.TRAIN", ("unknown", "yard_sem_seg"), "DATASETS.TEST", ("other", "yard_train"))
    cfg.DATASETS.OWN = CfgNode(block)
    try:
        classes = resolve_classes(cfg)
    finally:
        DatasetCatalog.remove("yard_train")
        MetadataCatalog.remove("yard_train")
    assert classes is not None
    assert (classes.source, classes.things) == ("dataset yard_sem_seg", {1, 2})


def test_what_is_registered_already_stays(_unregistered: None, tmp_path: Path) -> None:
    register_all(tmp_path)
    DatasetCatalog.remove("ade20k_panoptic_train")
    DatasetCatalog.register("ade20k_panoptic_train", lambda: ["the user's"])
    for _ in range(2):
        register_missing({})
    assert MetadataCatalog.get("shapes_panoptic_train").panoptic_root.startswith(str(tmp_path))
    assert DatasetCatalog.get("ade20k_panoptic_train") == ["the user's"]
    assert MetadataCatalog.get("cityscapes_fine_sem_seg_train").gt_dir.startswith(str(tmp_path))


# --- the same classes in two datasets ---


@pytest.mark.parametrize(
    ("model", "count", "dataset"),
    [
        ("ade20k_panoptic_train", 150, "ade20k_sem_seg_val"),
        ("ade20k_sem_seg_train", 150, "ade20k_panoptic_val"),
        ("cityscapes_fine_panoptic_train", 19, "cityscapes_fine_sem_seg_val"),
        ("coco_2017_train_panoptic", 133, "coco_2017_val_panoptic"),
        ("coco_2017_train_panoptic", 133, "coco_2017_val_panoptic_with_sem_seg"),
        ("mapillary_vistas_panoptic_train", 65, "mapillary_vistas_sem_seg_val"),
        ("ade20k_instance_train", 100, "ade20k_instance_val"),
        ("coco_2017_train_panoptic", 133, "coco_2017_val"),  # the things, which come first
        ("shapes_panoptic_train", 9, "shapes_instance_val"),
        ("shapes_panoptic_train", 9, "shapes_sem_seg_val"),
        ("shapes_instance_train", 5, "shapes_instance_val"),
    ],
)
def test_forms_of_one_dataset_go_together(model: str, count: int, dataset: str) -> None:
    register_missing({})
    check_classes(dataset, "DATASETS.TEST", count, read_classes(model, count))


@pytest.mark.parametrize(
    ("model", "count", "dataset", "facts"),
    [
        ("ade20k_panoptic_train", 150, "ade20k_instance_val", ["class 0 is 'wall'", "'bed'"]),
        ("cityscapes_fine_panoptic_train", 19, "cityscapes_fine_instance_seg_val", ["'road'", "'person'"]),
    ],
)
def test_classes_that_another_dataset_numbers_otherwise_are_refused(
    model: str, count: int, dataset: str, facts: list[str]
) -> None:
    register_missing({})
    with pytest.raises(InputError) as error:
        check_classes(dataset, "DATASETS.TEST", count, read_classes(model, count))
    assert all(fact in str(error.value) for fact in [*facts, dataset, "DATASETS.TEST"])


@pytest.mark.parametrize(
    ("metadata", "refused"),
    [
        ({"stuff_classes": ["water", "ball", "box"]}, True),
        ({"stuff_classes": ["Water", "box, crate", "ball-merged"]}, False),
        ({"thing_classes": ["water", "ball", "box"]}, True),
        ({"thing_classes": ["ball", "box"]}, True),  # whose class 0 would be water
        # Lists of all classes, but instances are numbered among themselves: class 0 would be a box.
        ({"stuff_classes": ["water", "box", "ball"], "thing_classes": ["box", "ball"], "evaluator_type": "coco"}, True),
        ({}, False),
    ],
)
def test_order_of_a_users_classes_is_compared(metadata: dict, refused: bool, register_dataset: Callable) -> None:
    register_dataset("toy_train", list, stuff_classes=["water", "box", "ball"])
    register_dataset("toy_val", list, **metadata)
    model = read_classes("toy_train", 3)
    if not refused:
        check_classes("toy_val", "DATASETS.TEST", 3, model)
        return
    with pytest.raises(InputError) as error:
        check_classes("toy_val", "DATASETS.TEST", 3, model)
    theirs = metadata.get("thing_classes") or metadata["stuff_classes"]
    assert all(words in str(error.value) for words in ("water, box, ball", ", ".join(theirs), "toy_train", "toy_val"))


# --- single values ---


def test_label_to_ignore_is_detectron2s_where_none_is_named() -> None:
    assert ignore_label_of(Metadata(name="a")) == 255
    assert ignore_label_of(Metadata(name="a"), 65535) == 65535
    assert ignore_label_of(Metadata(name="a", ignore_label=0), 65535) == 0


def test_a_value_that_is_needed_names_dataset_and_key() -> None:
    with pytest.raises(InputError, match="toy_val has no stuff_classes in its metadata"):
        require(Metadata(name="toy_val"), "stuff_classes")
