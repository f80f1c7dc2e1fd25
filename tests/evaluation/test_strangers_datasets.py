"""Datasets as strangers have them, on drawn rectangles: parts that are empty, fields left out, and Python functions."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_dataset
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BitMasks, BoxMode, Instances
from PIL import Image

from maskformer.config import load_config
from maskformer.data import verify_dataset
from maskformer.data.datasets.registration import panoptic_metadata, register
from maskformer.evaluation import InstanceEvaluator, build_evaluator
from maskformer.structures import InputError

NAME = "toy_val"
CATEGORIES = [{"id": i + 1, "name": name, "isthing": i > 0} for i, name in enumerate(toy_dataset.NAMES)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_dataset.build(folder, count=3)
    return folder


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(drawn, tmp_path / "toy")
    yield tmp_path / "toy"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def each(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The segments or instances of a JSON."""
    parts = [annotation.get("segments_info", [annotation]) for annotation in content["annotations"]]
    return [entry for part in parts for entry in part]


def register_panoptic(folder: Path) -> str:
    content = json.loads((folder / "panoptic.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    class_of = {category["id"]: index for index, category in enumerate(content["categories"])}
    records = [
        {
            "file_name": str(folder / "images" / names[annotation["image_id"]]),
            "image_id": annotation["image_id"],
            "pan_seg_file_name": str(folder / "panoptic" / annotation["file_name"]),
            "segments_info": [{**s, "category_id": class_of[s["category_id"]]} for s in annotation["segments_info"]],
        }
        for annotation in content["annotations"]
    ]
    files = {"panoptic_json": str(folder / "panoptic.json"), "panoptic_root": str(folder / "panoptic")}
    table = panoptic_metadata([{**c, "color": [0, 0, 0]} for c in CATEGORIES])
    register(NAME, lambda: records, evaluator_type="coco_panoptic_seg", **files, **table)
    return NAME


def register_instances(folder: Path, **metadata: Any) -> str:
    def load() -> list[dict[str, Any]]:
        return load_coco_json(str(folder / "instances.json"), str(folder / "images"), NAME)

    register(NAME, load, evaluator_type="coco", json_file=str(folder / "instances.json"), **metadata)
    return NAME


def config(num_classes: int = 3) -> Any:
    switches = [f"MODEL.MASK_FORMER.TEST.{name}_ON" for name in ("SEMANTIC", "PANOPTIC", "INSTANCE")]
    words = [word for switch in switches for word in (switch, "True")]
    return load_config("", [*words, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(num_classes)])


def measure(outputs: Callable[[dict[str, Any]], dict[str, Any]], num_classes: int = 3) -> dict[str, dict[str, float]]:
    """Scores, by our own set-up, of a function of the dataset's entries."""
    evaluator = build_evaluator(config(num_classes), NAME)
    evaluator.reset()
    for record in DatasetCatalog.get(NAME):
        evaluator.process([record], [outputs(record)])
    return evaluator.evaluate()


def ids_of(record: dict[str, Any]) -> np.ndarray:
    rgb = np.asarray(Image.open(record["pan_seg_file_name"])).astype(np.int64)
    return rgb @ (1, 256, 65536)


def true_segments(record: dict[str, Any]) -> dict[str, Any]:
    segments = record["segments_info"]
    shown = [{"id": s["id"], "category_id": s["category_id"], "isthing": s["category_id"] > 0} for s in segments]
    return {"panoptic_seg": (torch.as_tensor(ids_of(record)), shown)}


def true_instances(folder: Path, first_class: int = 1) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Of an entry, each drawn object as an instance; ``first_class``: the category id of class 0."""
    content = json.loads((folder / "panoptic.json").read_text())
    of_file = {annotation["file_name"]: annotation["segments_info"] for annotation in content["annotations"]}

    def find(record: dict[str, Any]) -> dict[str, Any]:
        name = Path(record["file_name"]).name
        objects = [segment for segment in of_file[name] if segment["category_id"] > 1]
        ids = ids_of({"pan_seg_file_name": folder / "panoptic" / name})
        masks = torch.as_tensor(np.array([ids == segment["id"] for segment in objects]))
        return {"instances": instances(masks, [segment["category_id"] - first_class for segment in objects])}

    return find


def instances(masks: torch.Tensor, classes: list[int], scores: Any = None) -> Instances:
    found = Instances(tuple(masks.shape[1:]))
    found.pred_masks, found.pred_boxes = masks, BitMasks(masks).get_bounding_boxes()
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    found.scores = torch.full((len(masks),), 0.9) if scores is None else torch.as_tensor(scores)
    return found


# --- panoptic quality ---


def keep(folder: Path, wanted: Callable[[int], bool]) -> None:
    """Make void of the segments of all other categories, in JSON and PNG."""

    def change(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            path = folder / "panoptic" / annotation["file_name"]
            rgb = np.array(Image.open(path))
            for segment in annotation["segments_info"]:
                if not wanted(segment["category_id"]):
                    rgb[rgb[..., 0] == segment["id"]] = 0
            Image.fromarray(rgb).save(path)
            annotation["segments_info"] = [s for s in annotation["segments_info"] if wanted(s["category_id"])]

    edit(folder / "panoptic.json", change)


@pytest.mark.parametrize(("kept", "part", "empty"), [((2, 3), "th", "st"), ((1,), "st", "th")])
def test_things_or_stuff_alone_are_measured(folder: Path, kept: tuple[int, ...], part: str, empty: str):
    keep(folder, lambda category: category in kept)
    register_panoptic(folder)
    scores = measure(true_segments)["panoptic_seg"]
    for metric in ("PQ", "SQ", "RQ"):
        assert scores[metric] == scores[f"{metric}_{part}"] == 100
        assert math.isnan(scores[f"{metric}_{empty}"])


def test_all_void_is_undefined(folder: Path):
    keep(folder, lambda category: False)
    register_panoptic(folder)
    assert all(math.isnan(score) for score in measure(true_segments)["panoptic_seg"].values())


@pytest.mark.parametrize("change", [lambda s: s.update(area=0), lambda s: s.update(area=4 * s["area"])])
@pytest.mark.parametrize("iscrowd", ["given", "left out"])
def test_areas_are_counted(folder: Path, change: Callable[[dict[str, Any]], Any], iscrowd: str):
    edit(folder / "panoptic.json", lambda content: [change(segment) for segment in each(content)])
    if iscrowd == "left out":
        edit(folder / "panoptic.json", lambda content: [segment.pop("iscrowd") for segment in each(content)])
    register_panoptic(folder)
    assert set(measure(true_segments)["panoptic_seg"].values()) == {100}


def test_iou_of_segments_is_of_counted_pixels(folder: Path):
    edit(folder / "panoptic.json", lambda content: [segment.pop("area") for segment in each(content)])
    register_panoptic(folder)
    sizes = {}

    def all_but_a_row(record: dict[str, Any]) -> dict[str, Any]:
        ids, segments = true_segments(record)["panoptic_seg"]
        water = ids == 1
        sizes[record["image_id"]] = (int(water[1:].sum()), int(water.sum()))
        ids[0][water[0]] = 0
        return {"panoptic_seg": (ids, segments)}

    scores = measure(all_but_a_row)["panoptic_seg"]
    assert scores["SQ_st"] == pytest.approx(100 * np.mean([part / whole for part, whole in sizes.values()]))


def test_segment_without_a_pixel_is_none(folder: Path):
    ghost = {"id": 77, "category_id": 2, "area": 9, "bbox": [0, 0, 3, 3], "iscrowd": 0}
    edit(folder / "panoptic.json", lambda content: content["annotations"][0]["segments_info"].append(ghost))
    register_panoptic(folder)

    def without_ghost(record: dict[str, Any]) -> dict[str, Any]:
        ids, segments = true_segments(record)["panoptic_seg"]
        return {"panoptic_seg": (ids, [segment for segment in segments if segment["id"] != 77])}

    assert measure(without_ghost)["panoptic_seg"]["PQ"] == 100


def test_tables_of_ids_that_metadata_lacks_come_from_names(folder: Path):
    register_panoptic(folder)
    given = MetadataCatalog.get(NAME)
    kept = {key: given.get(key) for key in ("stuff_classes", "panoptic_json", "panoptic_root", "evaluator_type")}
    records = DatasetCatalog.get(NAME)
    register(NAME, lambda: records, **kept)
    assert measure(true_segments)["panoptic_seg"]["PQ_th"] == 100
    register(NAME, lambda: records, **{**kept, "stuff_classes": ["water", "box", "bowl"]})
    with pytest.raises(InputError, match=r"panoptic\.json has the categories water, box, ball .* water, box, bowl"):
        measure(true_segments)


# --- mask AP ---


@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("ids", [lambda index: index, lambda index: f"n{index}", lambda index: 2**60 - index])
def test_ids_of_annotations_do_not_matter(folder: Path, objects: int, ids: Callable[[int], Any]):
    toy_dataset.build(folder, count=1, objects=objects)
    edit(folder / "instances.json", lambda content: [a.update(id=ids(i)) for i, a in enumerate(each(content))])
    register_instances(folder)
    assert measure(true_instances(folder, 2))["segm"]["AP"] == pytest.approx(100)


def test_ids_that_occur_twice_are_refused(folder: Path):
    edit(folder / "instances.json", lambda content: content["annotations"][1].update(id=1))
    register_instances(folder)
    with pytest.raises(InputError, match=r"instances\.json has id 1; expected each id once"):
        build_evaluator(config(2), NAME)


def empty_mask(content: dict[str, Any]) -> None:
    first = content["annotations"][0]
    for number, nothing in enumerate([[], [[1.0, 1.0, 9.0, 9.0]], {"size": [64, 80], "counts": [64 * 80]}]):
        content["annotations"].append({**first, "id": 900 + number, "segmentation": nothing})


def leave_out(*names: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: [entry.pop(name) for entry in each(content) for name in names]


@pytest.mark.parametrize(
    "change", [leave_out("iscrowd"), leave_out("area"), leave_out("iscrowd", "area", "bbox"), empty_mask]
)
def test_what_is_optional_has_its_plain_value(folder: Path, change: Callable[[dict[str, Any]], Any]):
    edit(folder / "instances.json", change)
    register_instances(folder)
    scores = measure(true_instances(folder, 2))["segm"]
    assert (scores["AP"], scores["APs"]) == (pytest.approx(100), pytest.approx(100))
    drawn = sum(len(record["annotations"]) for record in verify_dataset(NAME, 2, is_train=True))
    assert drawn == 9  # training has the same objects


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("instances", lambda c: c["annotations"][4].update(area="12"), r"Annotation 4 of .* has area '12'"),
        ("instances", lambda c: c["annotations"][4].update(area=float("nan")), r"Annotation 4 of .* has area nan"),
        ("instances", lambda c: c["annotations"][4].update(area=-1), r"Annotation 4 of .* has area -1"),
        ("instances", lambda c: c["annotations"][4].pop("segmentation"), r"Annotation 4 .* has no mask"),
        ("instances", lambda c: c["annotations"][4].pop("image_id"), r"Annotation 4 .* has image_id None"),
        ("instances", lambda c: c["annotations"][4].update(category_id=9), r"Annotation 4 .* has category_id 9"),
        ("instances", lambda c: c.pop("categories"), r"instances\.json has no categories"),
        ("instances", lambda c: [a.update(image_id=str(a["image_id"])) for a in each(c)], r"image_id"),
        ("panoptic", lambda c: c["categories"][1].pop("isthing"), r"Category 1 of .* has isthing None"),
        ("panoptic", lambda c: c["annotations"][1].pop("image_id"), r"Annotation 1 .* has image_id None"),
        ("panoptic", lambda c: each(c)[0].update(area="12"), r"Annotation 0 .* has area '12'"),
        ("panoptic", lambda c: each(c)[0].update(category_id=9), r"Annotation 0 .* has category_id 9"),
        ("panoptic", lambda c: c.pop("categories"), r"panoptic\.json has no categories"),
    ],
)
def test_what_is_required_is_named_in_training_and_evaluation(folder: Path, file: str, change: Any, message: str):
    {"instances": register_instances, "panoptic": register_panoptic}[file](folder)
    edit(folder / f"{file}.json", change)
    num_classes = 2 if file == "instances" else 3
    with pytest.raises(InputError, match=message):
        build_evaluator(config(num_classes), NAME)
    if "has no categories" not in message or file == "instances":  # a panoptic training needs none
        with pytest.raises(InputError, match=message):
            verify_dataset(NAME, num_classes, is_train=True)


@pytest.mark.parametrize("ids", [lambda record: record.pop("image_id"), lambda record: record.update(image_id=77)])
@pytest.mark.parametrize("kind", [register_instances, register_panoptic])
def test_image_that_the_truth_does_not_know_is_named_before(folder: Path, kind: Any, ids: Any):
    kind(folder)
    records = [dict(record) for record in DatasetCatalog.get(NAME)]
    ids(records[1])
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: records)
    with pytest.raises(InputError, match=r"\.json has no annotation of image .*001\.png"):
        build_evaluator(config(2 if kind is register_instances else 3), NAME)


def test_ap_is_of_the_images_shown(folder: Path):
    register_instances(folder)
    records = DatasetCatalog.get(NAME)[:2]
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: records)
    assert measure(true_instances(folder, 2))["segm"]["AP"] == pytest.approx(100)


def test_categories_that_are_no_things_of_the_dataset_are_passed_over_unless_used(folder: Path):
    edit(folder / "instances.json", lambda content: content["categories"].insert(0, {"id": 1, "name": "water"}))
    register_instances(folder)
    DatasetCatalog.get(NAME)
    records, table = DatasetCatalog.get(NAME), {2: 0, 3: 1}
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] -= 1
    files = {"json_file": str(folder / "instances.json"), "evaluator_type": "coco"}
    register(NAME, lambda: records, thing_classes=["box", "ball"], thing_dataset_id_to_contiguous_id=table, **files)
    scores = measure(true_instances(folder, 2))["segm"]
    assert (scores["AP-box"], scores["AP-ball"]) == (pytest.approx(100), pytest.approx(100))
    edit(folder / "instances.json", lambda content: content["annotations"][0].update(category_id=1))
    with pytest.raises(InputError, match=r"category 1, which is none of the 2 things"):
        InstanceEvaluator(NAME)


# --- datasets that are Python functions ---


def function_records(folder: Path, polygons: bool = False) -> list[dict[str, Any]]:
    """As Detectron2's tutorial writes them."""
    content = json.loads((folder / "instances.json").read_text())
    records = []
    for image in content["images"]:
        annotations = []
        for annotation in each(content):
            if annotation["image_id"] == image["id"]:
                x, y, width, height = annotation["bbox"]
                corners = [x, y, x + width, y, x + width, y + height, x, y + height]
                mask = [[float(value) for value in corners]] if polygons else dict(annotation["segmentation"])
                place = {"bbox": [x, y, x + width, y + height], "bbox_mode": BoxMode.XYXY_ABS}
                annotations.append({**place, "segmentation": mask, "category_id": annotation["category_id"] - 2})
        size = {"height": 64, "width": 80, "image_id": image["id"] - 1}
        records.append({"file_name": str(folder / "images" / image["file_name"]), **size, "annotations": annotations})
    return records


def shifted(folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Instances that are a little wrong, by their number."""
    truth = true_instances(folder, 2)

    def find(record: dict[str, Any]) -> dict[str, Any]:
        found = truth(record)["instances"]
        rng = np.random.default_rng(len(record["annotations"]) + record.get("image_id", 0))
        masks = torch.stack([mask.roll(int(rng.integers(0, 4)), 1) for mask in found.pred_masks])
        classes = [int(c) if rng.random() < 0.9 else 1 - int(c) for c in found.pred_classes]
        return {"instances": instances(masks, classes, rng.random(len(classes)).round(1))}

    return find


@pytest.mark.parametrize("polygons", [False, True])
def test_function_with_annotations_is_measured_as_by_detectron2(folder: Path, tmp_path: Path, polygons: bool):
    register(NAME, lambda: function_records(folder, polygons), thing_classes=["box", "ball"])
    ours = measure(shifted(folder), num_classes=2)["segm"]
    theirs = COCOEvaluator(NAME, ("segm",), output_dir=str(tmp_path), use_fast_impl=False)
    theirs.reset()
    for record in DatasetCatalog.get(NAME):
        theirs.process([record], [shifted(folder)(record)])
    expected = theirs.evaluate()["segm"]
    assert list(ours) == list(expected)
    assert ours == pytest.approx(dict(expected), nan_ok=True, rel=1e-12)
    assert 10 < ours["AP"] < 95


def test_entries_of_a_function_need_no_image_id(folder: Path):
    def load() -> list[dict[str, Any]]:
        records = function_records(folder)
        for record in records:
            del record["image_id"]
        return records

    register(NAME, load, thing_classes=["box", "ball"])
    assert measure(true_instances(folder, 2), num_classes=2)["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("height"), r"Image 1 of dataset toy_val has height None"),
        (lambda record: record["annotations"][0].pop("segmentation"), r"001\.png \(dataset toy_val\) has no mask"),
        (lambda record: record["annotations"][0].update(category_id="box"), r"001\.png .* has category_id 'box'"),
        (lambda record: record["annotations"][0].update(category_id=2), r"has category_id 2"),
    ],
)
def test_what_a_function_leaves_out_is_named(folder: Path, change: Any, message: str):
    records = function_records(folder)
    change(records[1])
    register(NAME, lambda: records, thing_classes=["box", "ball"])
    with pytest.raises(InputError, match=message):
        build_evaluator(config(2), NAME)


def test_entry_without_a_file_is_named(folder: Path):
    register(NAME, lambda: [{"image": "a.jpg", "annotations": []}], thing_classes=["box", "ball"])
    with pytest.raises(InputError, match=r"Dataset toy_val gives the entry \{.*file_name"):
        verify_dataset(NAME, 2, is_train=True)


@pytest.mark.parametrize("told_by", ["table", "segments", "names"])
def test_function_with_panoptic_labels_is_measured(folder: Path, told_by: str):
    register_panoptic(folder)
    records = [{k: v for k, v in r.items() if k != "image_id"} for r in DatasetCatalog.get(NAME)]
    metadata: dict[str, Any] = {"stuff_classes": list(toy_dataset.NAMES)}
    if told_by == "table":
        metadata["thing_dataset_id_to_contiguous_id"] = {2: 1, 3: 2}
    elif told_by == "names":
        metadata["thing_classes"] = ["box", "ball"]
    else:
        segments = [segment for record in records for segment in record["segments_info"]]
        for segment in segments:
            segment["isthing"] = segment["category_id"] > 0
    register(NAME, lambda: records, **metadata)

    def no_boxes(record: dict[str, Any]) -> dict[str, Any]:
        ids, segments = true_segments(record)["panoptic_seg"]
        for segment in segments:
            ids[ids == segment["id"]] *= int(segment["category_id"] != 1)
        return {"panoptic_seg": (ids, [segment for segment in segments if segment["category_id"] != 1])}

    assert measure(true_segments)["panoptic_seg"]["PQ"] == 100
    scores = measure(no_boxes)["panoptic_seg"]
    assert (scores["PQ_th"], scores["PQ_st"]) == (50, 100)


def test_function_with_label_maps_is_measured_without_metadata_but_names(folder: Path):
    files = sorted((folder / "images").iterdir())
    records = [{"file_name": str(f), "sem_seg_file_name": str(folder / "labels" / f.name)} for f in files]
    register(NAME, lambda: records, stuff_classes=list(toy_dataset.NAMES))

    def truth(record: dict[str, Any]) -> dict[str, Any]:
        return {"sem_seg": torch.as_tensor(np.array(Image.open(record["sem_seg_file_name"]))).long()}

    scores = measure(truth)["sem_seg"]
    assert (scores["mIoU"], scores["mBoundaryIoU"], scores["pACC"]) == (100, 100, 100)
    records[1].pop("sem_seg_file_name")
    with pytest.raises(InputError, match=r"001\.png has no sem_seg_file_name"):
        build_evaluator(config(), NAME)
    register(NAME, lambda: records[:1])
    with pytest.raises(InputError, match=f"{NAME} has no stuff_classes"):
        build_evaluator(config(), NAME)
