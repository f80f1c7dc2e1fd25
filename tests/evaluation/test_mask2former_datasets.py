"""The datasets of Mask2Former's recipes, drawn in the layout of the real ones: real mappers, real evaluators."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
import pytest
import torch
from cityscapes_layout import write_cityscapes
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import Boxes, Instances
from PIL import Image

from maskformer.config import load_config
from maskformer.data import verify_dataset
from maskformer.data.datasets import register_all
from maskformer.data.files.reading import read_class_map, read_segment_ids
from maskformer.data.mappers.table import build_mapper
from maskformer.evaluation import build_evaluator

RECIPES = Path(__file__).resolve().parents[2] / "configs/mask2former"
SIZE = (48, 64)
FIRST, SECOND, OTHER, SKY, GROUND, CROWD, VOID = 11, 12, 300, 70_000, 5, 6, 0  # two things of one class, one of another


def draw() -> np.ndarray:
    """Segment ids: the void is in a corner, and a crowd is of the class of the first two."""
    ids = np.full(SIZE, GROUND)
    ids[:20] = SKY
    ids[10:30, 4:14], ids[10:30, 20:30], ids[25:40, 40:60], ids[30:34, 2:30] = FIRST, SECOND, OTHER, CROWD
    ids[44:, 60:] = VOID
    return ids


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def encode(mask: np.ndarray) -> dict[str, Any]:
    runs = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"segmentation": {**runs, "counts": runs["counts"].decode()}, "area": int(mask.sum())}


def write(
    folder: Path, name: str, category_of: dict[int, int], *, image: str, panoptic: str, panoptic_json: str
) -> None:
    """A picture of a registered dataset and its panoptic label; category_of: that of each segment."""
    ids = draw()
    write_image(folder / image, np.zeros((*SIZE, 3), np.uint8))
    write_image(folder / panoptic, np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8))
    segments = [{"id": i, "category_id": c, "iscrowd": int(i == CROWD)} for i, c in category_of.items()]
    listed = {"id": 7, "file_name": Path(image).name, "height": SIZE[0], "width": SIZE[1]}
    annotation = {"image_id": 7, "file_name": Path(panoptic).name, "segments_info": segments}
    metadata = MetadataCatalog.get(name)
    ids_of_all, ids_of_things = metadata.stuff_dataset_id_to_contiguous_id, metadata.thing_dataset_id_to_contiguous_id
    categories = [{"id": id_, "name": f"{id_}", "isthing": int(id_ in ids_of_things)} for id_ in ids_of_all]
    content = {"images": [listed], "annotations": [annotation], "categories": categories}
    (folder / panoptic_json).parent.mkdir(parents=True, exist_ok=True)
    (folder / panoptic_json).write_text(json.dumps(content))


def write_instances(path: Path, image: dict[str, Any], category_of: dict[int, int], names: dict[int, str]) -> None:
    """COCO's JSON of the things; ``names`` are of its categories."""
    ids = draw()
    annotations = [
        {
            "id": n,
            "image_id": image["id"],
            "category_id": category_of[i],
            "iscrowd": int(i == CROWD),
            **encode(ids == i),
        }
        for n, i in enumerate((FIRST, SECOND, OTHER, CROWD), start=1)
        if i in category_of
    ]
    for annotation in annotations:
        annotation["bbox"] = rle.toBbox(annotation["segmentation"]).tolist()
    categories = [{"id": id_, "name": name} for id_, name in names.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": categories}))


COCO_IDS = {FIRST: 1, SECOND: 1, OTHER: 3, SKY: 187, GROUND: 193, CROWD: 1}  # person, car, sky, grass


def write_coco(root: Path) -> None:
    names = {each["id"]: each["name"] for each in COCO_CATEGORIES if each["isthing"]}  # which Detectron2 compares
    for split in ("train2017", "val2017"):
        image = f"{split}/000000000007.jpg"
        png, panoptic_json = f"panoptic_{split}/000000000007.png", f"annotations/panoptic_{split}.json"
        write(
            root / "coco",
            "coco_2017_val_panoptic_with_sem_seg",
            COCO_IDS,
            image=image,
            panoptic=png,
            panoptic_json=panoptic_json,
        )
        listed = {"id": 7, "file_name": Path(image).name, "height": SIZE[0], "width": SIZE[1]}
        write_instances(root / f"coco/annotations/instances_{split}.json", listed, COCO_IDS, names)


MAPILLARY_IDS = {FIRST: 20, SECOND: 20, OTHER: 56, SKY: 28, GROUND: 14, CROWD: 20}  # person, car, sky, road


def write_mapillary(root: Path) -> None:
    for split in ("training", "validation"):
        folder = root / "mapillary_vistas" / split
        names = {"image": "images/a.jpg", "panoptic": "panoptic/a.png", "panoptic_json": "panoptic/panoptic_2018.json"}
        write(folder, "mapillary_vistas_panoptic_val", MAPILLARY_IDS, **names)
        labels = np.full(SIZE, 65, np.uint8)
        for segment, category in MAPILLARY_IDS.items():
            labels[draw() == segment] = category - 1
        write_image(folder / "labels/a.png", labels)


ADE20K_IDS = {FIRST: 138, SECOND: 138, OTHER: 7}  # ashcan, bed


def write_ade20k(root: Path) -> None:
    folder = root / "ADEChallengeData2016"
    for split, name in (("training", "train"), ("validation", "val")):
        write_image(folder / f"images/{split}/a.jpg", np.zeros((*SIZE, 3), np.uint8))
        listed = {"id": "a", "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}
        write_instances(
            folder / f"ade20k_instance_{name}.json", listed, ADE20K_IDS, {7: "a", 138: "b"}
        )  # nobody's names


def write_both_cityscapes(root: Path) -> None:
    for split in ("train", "val"):
        write_cityscapes(root, split)


WRITERS: dict[str, Callable[[Path], None]] = {
    "coco": write_coco,
    "mapillary-vistas": write_mapillary,
    "ade20k": write_ade20k,
    "cityscapes": write_both_cityscapes,
}
TASKS = [
    "coco/panoptic",
    "coco/instance",
    "mapillary-vistas/panoptic",
    "mapillary-vistas/semantic",
    "ade20k/instance",
    "cityscapes/panoptic",
    "cityscapes/instance",
    "cityscapes/semantic",
]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Detectron2 has registered its own, COCO's among them, when it was imported."""
    monkeypatch.chdir(tmp_path)
    register_all("datasets")
    yield tmp_path / "datasets"


def load_recipe(task: str, root: Path) -> CfgNode:
    """The configuration of a task's ResNet-50, with images as they are drawn; its dataset is written."""
    dataset = task.split("/")[0]
    WRITERS[dataset](root)
    (path,) = (RECIPES / f"{task}-segmentation").glob("maskformer*_R50_*.yaml")
    sizes = {"INPUT.MIN_SIZE_TRAIN": (SIZE[0],), "INPUT.MAX_SIZE_TRAIN": SIZE[1], "INPUT.CROP.SIZE": list(SIZE)}
    as_drawn = {**sizes, "INPUT.SIZE_DIVISIBILITY": -1, "INPUT.COLOR_AUG_SSD": False}
    if dataset == "coco":
        as_drawn = {"INPUT.IMAGE_SIZE": SIZE[1], "INPUT.MIN_SCALE": 1.0, "INPUT.MAX_SCALE": 1.0}
    as_drawn["INPUT.RANDOM_FLIP"] = "none"
    return load_config(str(path), [str(word) for pair in as_drawn.items() for word in pair])


def segment_map(record: dict[str, Any]) -> np.ndarray:
    return read_segment_ids(record["pan_seg_file_name"])


def true_segments(record: dict[str, Any]) -> list[tuple[int, np.ndarray]]:
    """Class and mask of each segment that training shall predict, read by other means than the mappers'."""
    if "annotations" in record:
        return [
            (each["category_id"], rle.decode(each["segmentation"]) > 0)
            for each in record["annotations"]
            if not each["iscrowd"]
        ]
    if "segments_info" in record:
        ids = segment_map(record)
        return [(s["category_id"], ids == s["id"]) for s in record["segments_info"] if not s["iscrowd"]]
    labels = read_class_map(record["sem_seg_file_name"])
    ignored = {65, 255}
    return [(int(label), labels == label) for label in np.unique(labels) if int(label) not in ignored]


@pytest.mark.parametrize("task", TASKS)
def test_mapper_of_the_recipe_gives_the_drawn_segments(root: Path, task: str):
    cfg = load_recipe(task, root)
    for record in verify_dataset(cfg.DATASETS.TRAIN[0], cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, is_train=True):
        instances = build_mapper(cfg, is_train=True)(record)["instances"]
        masks = np.stack([np.asarray(instances.gt_masks[i].tensor)[0] for i in range(len(instances))])
        found = {(int(c), m[: SIZE[0], : SIZE[1]].tobytes(), m.sum()) for c, m in zip(instances.gt_classes, masks > 0)}
        assert found == {(c, m.tobytes(), m.sum()) for c, m in true_segments(record)}
        assert len(found) >= 3


def perfect(record: dict[str, Any], cfg: CfgNode, name: str) -> dict[str, Any]:
    """What a model that makes no mistake gives for an image of a panoptic dataset."""
    ids, things = segment_map(record), set(MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id.values())
    segments = [s for s in record["segments_info"] if not s["iscrowd"]]
    labels = np.zeros(SIZE, np.int64)
    for segment in record["segments_info"]:
        labels[ids == segment["id"]] = segment["category_id"]
    shown = [{"id": s["id"], "category_id": s["category_id"], "isthing": s["category_id"] in things} for s in segments]
    ids = np.where(np.isin(ids, [s["id"] for s in segments]), ids, VOID)
    scores = torch.nn.functional.one_hot(torch.as_tensor(labels), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES).permute(2, 0, 1)
    found = [(s["category_id"], ids == s["id"]) for s in shown if s["isthing"]]
    return {"sem_seg": scores.float(), "panoptic_seg": (torch.as_tensor(ids), shown), "instances": as_instances(found)}


def as_instances(found: list[tuple[int, np.ndarray]]) -> Instances:
    return Instances(
        SIZE,
        pred_classes=torch.tensor([label for label, _ in found]),
        pred_masks=torch.as_tensor(np.stack([mask for _, mask in found])),
        pred_boxes=Boxes(torch.zeros(len(found), 4)),
        scores=torch.linspace(0.9, 0.8, len(found)),
    )


def scores_of(cfg: CfgNode, output: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, dict[str, float]]:
    (name,) = cfg.DATASETS.TEST
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [output(record)])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("coco/panoptic", {"panoptic_seg": "PQ", "segm": "AP", "sem_seg": "mIoU"}),
        ("mapillary-vistas/panoptic", {"panoptic_seg": "PQ", "sem_seg": "mIoU"}),
    ],
)
def test_perfect_panoptic_predictions_score_100_in_every_measure(root: Path, task: str, expected: dict[str, str]):
    cfg = load_recipe(task, root)
    scores = scores_of(cfg, lambda record: perfect(record, cfg, cfg.DATASETS.TEST[0]))
    assert {kind: scores[kind][metric] for kind, metric in expected.items()} == pytest.approx(
        dict.fromkeys(expected, 100)
    )
    assert scores.keys() == expected.keys()


@pytest.mark.parametrize("task", ["coco/panoptic", "mapillary-vistas/panoptic"])
def test_missed_person_costs_what_the_definitions_say(root: Path, task: str):
    """The second person is ground to the semantic result, void to the panoptic one, and no instance."""
    cfg = load_recipe(task, root)

    def miss(record: dict[str, Any]) -> dict[str, Any]:
        output = perfect(record, cfg, cfg.DATASETS.TEST[0])
        ids, segments = output["panoptic_seg"]
        is_missed = ids == SECOND
        ground = next(s["category_id"] for s in segments if s["id"] == GROUND)
        output["sem_seg"] = output["sem_seg"] * ~is_missed
        output["sem_seg"][ground] += is_missed
        output["panoptic_seg"] = (ids.masked_fill(is_missed, VOID), [s for s in segments if s["id"] != SECOND])
        output["instances"] = output["instances"][[0, 2]]
        return output

    scores = scores_of(cfg, miss)
    areas = {segment: (draw() == segment).sum() for segment in (FIRST, SECOND, CROWD, GROUND)}
    persons, missed = areas[FIRST] + areas[CROWD], areas[SECOND]
    of_person, of_ground = persons / (persons + missed), areas[GROUND] / (areas[GROUND] + missed)
    assert scores["panoptic_seg"]["PQ"] == pytest.approx(100 * (1 / 1.5 + 3) / 4)  # one found, one missed
    assert scores["sem_seg"]["mIoU"] == pytest.approx(100 * (of_person + of_ground + 2) / 4)
    if "coco" in task:  # recall stops at 1/2: 51 of COCO's 101 points
        assert scores["segm"]["AP"] == pytest.approx(100 * (51 / 101 + 1) / 2)


@pytest.mark.parametrize("task", ["ade20k/instance", "coco/instance"])
def test_instances_are_measured_under_their_own_names(root: Path, task: str):
    cfg = load_recipe(task, root)
    records = {record["file_name"]: record for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])}

    def find(record: dict[str, Any]) -> dict[str, Any]:
        return {"instances": as_instances(true_segments(records[record["file_name"]])[1:])}

    scores = scores_of(cfg, find)["segm"]
    repeated, single = {"ade20k": ("ashcan", "bed"), "coco": ("person", "car")}[task.split("/")[0]]
    assert scores[f"AP-{repeated}"] == pytest.approx(100 * 51 / 101)
    assert scores[f"AP-{single}"] == pytest.approx(100)


def test_semantic_truth_of_coco_is_its_panoptic_label_crowds_too(root: Path):
    """As the label maps have it that the original's users make of it."""
    cfg = load_recipe("coco/panoptic", root)
    (name,) = cfg.DATASETS.TEST
    (record,) = DatasetCatalog.get(name)
    assert "sem_seg_file_name" not in record
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    (evaluator,) = build_evaluator(cfg, name).evaluators
    names = [*MetadataCatalog.get(name).stuff_classes, "void"]
    truth = evaluator.truth(record)["sem_seg"].numpy()
    expected = {
        FIRST: "person",
        CROWD: "person",
        OTHER: "car",
        SKY: "sky-other-merged",
        GROUND: "grass-merged",
        VOID: "void",
    }
    for segment, class_name in expected.items():
        assert {names[index] for index in np.unique(truth[draw() == segment])} == {class_name}
