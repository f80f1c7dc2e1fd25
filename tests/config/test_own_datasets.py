"""What DATASETS.OWN may say, and what follows from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskformer.config import load_config
from maskformer.config.own_datasets import absolute_paths, read_own_datasets
from maskformer.structures import InputError, LabelValues

TRAIN = {"images": "/a/images", "labels": "/a/labels"}
INSTANCES = {"images": "/a/images", "instances": "/a/train.json"}
OBJECTS = {"images": "/a/images", "objects": "/a/masks"}
COLORS = [[0, 0, 0], [9, 9, 9]]
PANOPTIC = {"images": "/a/images", "panoptic": "/a/pan.json", "panoptic_masks": "/a/masks"}
BASE = {"MODEL": {"SEM_SEG_HEAD": {"NUM_CLASSES": 150, "IGNORE_VALUE": 65535}}}


def garden(**changes: Any) -> dict[str, Any]:
    """A block of one dataset with one split."""
    return {"garden": {"classes": ["grass", "path"], "train": TRAIN, **changes}}


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_every_mapping_in_a_dataset_is_a_split_and_the_name_is_joined():
    datasets = read_own_datasets(garden(val={"images": "/b/images", "labels": "/b/labels"}))
    assert [(d.name, d.key, d.paths["labels"]) for d in datasets] == [
        ("garden_train", "DATASETS.OWN.garden.train", "/a/labels"),
        ("garden_val", "DATASETS.OWN.garden.val", "/b/labels"),
    ]
    assert datasets[0].classes == ("grass", "path") and datasets[0].things == ()


@pytest.mark.parametrize(
    ("settings", "of_classes", "ignored", "ignore_label"),
    [
        ({}, (0, 1), (255,), 255),
        ({"ignore": 7}, (0, 1), (7,), 7),
        ({"offset": 1, "ignore": 0}, (1, 2), (0,), 255),
        ({"offset": 1, "ignore": [0, 255]}, (1, 2), (0, 255), 255),
        ({"ids": [0, 255]}, (0, 255), (), 255),
        ({"ids": [9, 3], "ignore": -1}, (9, 3), (-1,), 255),
        ({"ignore": []}, (0, 1), (), 255),
    ],
)
def test_label_values_are_counted_from_offset_or_listed(settings, of_classes, ignored, ignore_label):
    (dataset,) = read_own_datasets(garden(**settings))
    assert dataset.values == LabelValues(of_classes, ignored)
    assert dataset.ignore_label == ignore_label


def test_what_stands_beside_the_classes_holds_for_each_split():
    block = garden(images="/a", labels="/a", label_suffix="_L.png", train={"list": "/t.txt"}, val={"label_suffix": ""})
    train, val = read_own_datasets(block)
    assert train.paths == {"images": "/a", "labels": "/a", "list": "/t.txt"} and train.label_suffix == "_L.png"
    assert val.paths == {"images": "/a", "labels": "/a"} and val.label_suffix == ""


def test_colours_are_for_labels_too_and_leave_the_default_value_to_ignore():
    (dataset,) = read_own_datasets(garden(colors=COLORS, ignore=[[1, 1, 1]], palette_colors=True))
    assert dataset.values == LabelValues((0, 1), (255,), ((0, 0, 0), (9, 9, 9)), ((1, 1, 1),), by_palette=True)


def test_every_value_of_object_masks_is_an_object_unless_ignored():
    assert read_own_datasets(garden(classes=["a"], train=OBJECTS))[0].values.ignored == ()
    assert read_own_datasets(garden(classes=["a"], train=OBJECTS, ignore=255))[0].values.ignored == (255,)


def test_path_into_a_zip_is_told_by_its_name(tmp_path: Path):
    (tmp_path / "folder.zip").mkdir()
    block = garden(train={"images": "/a/Data.ZIP/x", "labels": f"{tmp_path}/folder.zip"})
    paths = read_own_datasets(block)[0].paths
    assert paths == {"images": "zip:///a/Data.ZIP/x", "labels": f"{tmp_path}/folder.zip"}


def test_ignore_label_of_many_classes_is_beyond_them():
    (dataset,) = read_own_datasets(garden(classes=[f"class {i}" for i in range(300)]))
    assert dataset.values.ignored == ()
    assert dataset.ignore_label == 65535


def test_things_are_all_classes_of_instances_and_the_named_ones_of_a_panoptic_dataset():
    assert read_own_datasets(garden(train=INSTANCES))[0].things == ("grass", "path")
    assert read_own_datasets(garden(train=INSTANCES))[0].ignore_label is None
    assert read_own_datasets(garden(train=PANOPTIC, things=["path"]))[0].things == ("path",)
    assert read_own_datasets(garden(train=PANOPTIC, things=[]))[0].things == ()


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ([], ["DATASETS.OWN is []"]),
        (
            {"a": {**garden()["garden"], "b_c": TRAIN}, "a_b": {**garden()["garden"], "c": TRAIN}},
            ["DATASETS.OWN.a.b_c and DATASETS.OWN.a_b.c would both be named a_b_c"],
        ),
        ({"garden": 3}, ["DATASETS.OWN.garden is 3"]),
        (garden(clases=["a"]), ["DATASETS.OWN.garden.clases does not exist", "Close to it: classes"]),
        (garden(train={"images": "a", "label": "b"}), ["garden.train.label does not exist", "Close to it: labels"]),
        (garden(train={"images": "a"}), ["garden.train gives images", "images + labels, or images + instances"]),
        (garden(train={**TRAIN, "instances": "c"}), ["garden.train gives images, labels, instances"]),
        (garden(train={"images": "a", "labels": 3}), ["garden.train.labels is 3; expected a path"]),
        ({"garden": {"classes": ["a"]}}, ["DATASETS.OWN.garden has no split"]),
        (garden(things={"a": 1}), ["garden.things is a mapping"]),
        (garden(classes=[]), ["garden.classes is []; expected a list of one class name"]),
        (garden(classes="grass"), ["garden.classes is 'grass'"]),
        (garden(classes=["no", True]), ["garden.classes holds True", "quotes"]),
        (garden(classes=["a", "b", "a"]), ["garden.classes names 'a' 2 times"]),
        (garden(offset=1, ids=[1, 2]), ["both offset and ids"]),
        (garden(offset="1"), ["garden.offset is '1'; expected an integer", "'grass'"]),
        (garden(ids=[1, 1]), ["garden.ids is [1, 1]"]),
        (garden(ids=[1, 2, 3]), ["garden.ids has 3 numbers", "classes 2 names"]),
        (garden(ignore=0), ["garden.ignore is 0, which is also the label of 'grass'", "offset: 1"]),
        (garden(ignore="none"), ["garden.ignore is 'none'"]),
        (garden(colors=[[1, 2, 3]]), ["garden.colors", "expected a list of 2 colours"]),
        (garden(colors=[[1, 2, 3], [1, 2, 256]]), ["holds [1, 2, 256]", "0..255"]),
        (garden(things=["path"]), ["garden.things is for panoptic datasets"]),
        (garden(train=PANOPTIC), ["garden.things is missing"]),
        (garden(train=PANOPTIC, things=["pond"]), ["things names 'pond'", "garden.classes"]),
        (garden(train=PANOPTIC, things=[], val=INSTANCES), ["expected two datasets"]),
        (garden(train=INSTANCES, ignore=3), ["garden.ignore is for label maps"]),
        (garden(train=OBJECTS), ["garden.classes names 2 classes", "expected one"]),
        (garden(classes=["a"], train=OBJECTS, offset=1), ["garden.offset has no effect on masks of single objects"]),
        (garden(classes=["a"], train=OBJECTS, val=TRAIN), ["split of objects", "expected two datasets"]),
        (garden(train=INSTANCES, label_suffix="_mask"), ["garden.train.label_suffix has no effect beside a JSON"]),
        (garden(label_suffix=3), ["garden.train.label_suffix is 3", "_mask.png"]),
        (garden(label_suffx="_mask"), ["garden.label_suffx does not exist", "Close to it: label_suffix"]),
        (garden(bands=[1, 2]), ["garden.train.bands is [1, 2]", "three bands"]),
        (garden(bands=[0, 1, 2]), ["garden.train.bands is [0, 1, 2]", "from 1"]),
        (garden(range=[3, 3]), ["garden.train.range is [3, 3]", "[0, 3000]"]),
        (garden(range=[0, float("nan")]), ["garden.train.range is [0, nan]"]),
        (garden(ignore=[[0, 0, 0]]), ["garden.ignore names the colour [0, 0, 0]", "colors"]),
        (garden(colors=COLORS, ignore=[COLORS[0]]), ["garden.ignore names the colour [0, 0, 0]", "is a class's"]),
        (garden(colors=COLORS, ignore=[[0, 0]]), ["garden.ignore holds [0, 0]", "[red, green, blue]"]),
        (garden(palette_colors=True), ["garden.palette_colors is True", "colors"]),
        ({"garden": {"train": TRAIN}}, ["garden.classes is missing"]),
    ],
)
def test_mistake_in_the_block_is_one_sentence_that_names_it(block, parts):
    with pytest.raises(InputError) as error:
        read_own_datasets(block)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_paths_start_from_the_folder_and_know_home_and_variables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PICTURES", "/pictures")
    block = absolute_paths({1: {"train": {"images": "../images", "labels": "$PICTURES/labels"}}}, "/data/yaml")
    assert block == {"1": {"train": {"images": "/data/images", "labels": "/pictures/labels"}}}
    home = absolute_paths({"images": "~/images"}, "/data")["images"]
    assert home == os.path.expanduser("~/images")


# --- in a configuration ---


def configuration(folder: Path, **head: int) -> str:
    """A file with the block above a base of 150 classes, and keys of MODEL.SEM_SEG_HEAD beside the block."""
    write(folder / "base.yaml", BASE)
    datasets = {"OWN": garden(train={"images": "images", "labels": "labels"}, offset=1, ignore=0)}
    content = {"_BASE_": "base.yaml", "DATASETS": {**datasets, "TRAIN": ["garden_train"], "TEST": ["garden_train"]}}
    return write(folder / "own.yaml", {**content, "MODEL": {"SEM_SEG_HEAD": head}})


def head_of(path: str, *options: str) -> tuple[int, int]:
    head = load_config(path, options).MODEL.SEM_SEG_HEAD
    return head.NUM_CLASSES, head.IGNORE_VALUE


def test_class_count_and_ignore_value_follow_whatever_the_base_says(tmp_path: Path):
    assert head_of(configuration(tmp_path)) == (2, 255)
    assert head_of(configuration(tmp_path, NUM_CLASSES=2)) == (2, 255)
    assert head_of(configuration(tmp_path), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2") == (2, 255)


def test_nothing_follows_where_the_dataset_is_not_the_models(tmp_path: Path):
    others = ["DATASETS.TRAIN", "('a_train',)", "DATASETS.TEST", "('a_val',)"]
    assert head_of(configuration(tmp_path), *others) == (150, 65535)
    assert head_of(configuration(tmp_path), "DATASETS.TRAIN", "()") == (2, 255)


def test_class_count_that_disagrees_is_refused_with_both_numbers_and_places(tmp_path: Path):
    path = configuration(tmp_path, NUM_CLASSES=5)
    with pytest.raises(InputError) as error:
        load_config(path)
    assert f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is 5 in {path} but 2 follows from DATASETS.OWN.garden.train in" in str(
        error.value
    )
    with pytest.raises(InputError, match=r"NUM_CLASSES is 7 in the command line but 2 follows"):
        load_config(configuration(tmp_path), ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"])
    with pytest.raises(InputError, match=r"IGNORE_VALUE is 0 in .*own\.yaml but 255 follows"):
        load_config(configuration(tmp_path, IGNORE_VALUE=0))


def test_file_above_the_block_has_to_agree_too(tmp_path: Path):
    configuration(tmp_path)
    leaf = write(tmp_path / "leaf.yaml", {"_BASE_": "own.yaml", "MODEL": {"SEM_SEG_HEAD": {"NUM_CLASSES": 9}}})
    with pytest.raises(InputError, match=r"NUM_CLASSES is 9 in .*leaf\.yaml but 2 follows .* in .*own\.yaml"):
        load_config(leaf)


def test_paths_are_relative_to_the_file_that_holds_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "deep").mkdir()
    configuration(tmp_path / "deep")
    leaf = write(tmp_path / "leaf.yaml", {"_BASE_": "deep/own.yaml"})
    monkeypatch.chdir(tmp_path)
    cfg = load_config("leaf.yaml", ["DATASETS.OWN.garden.train.labels", "elsewhere"])
    assert cfg.DATASETS.OWN.garden.train.images == str(tmp_path / "deep" / "images")
    assert cfg.DATASETS.OWN.garden.train.labels == str(tmp_path / "elsewhere")
    assert load_config(leaf).DATASETS.OWN.garden.train.labels == str(tmp_path / "deep" / "labels")


def test_saved_configuration_describes_the_same_datasets(tmp_path: Path):
    cfg = load_config(configuration(tmp_path))
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    saved = load_config(str(tmp_path / "saved.yaml"))
    assert read_own_datasets(saved.DATASETS.OWN) == read_own_datasets(cfg.DATASETS.OWN)
    assert saved.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2


def test_mistake_in_the_block_names_the_file(tmp_path: Path):
    path = write(tmp_path / "own.yaml", {"DATASETS": {"OWN": garden(clases=[])}})
    with pytest.raises(InputError, match=r"In .*own\.yaml: DATASETS\.OWN\.garden\.clases does not exist"):
        load_config(path)
    path = write(tmp_path / "own.yaml", {"DATASETS": {"OWN": ["garden"]}})
    with pytest.raises(InputError, match=r"own\.yaml.*DATASETS\.OWN"):
        load_config(path)
