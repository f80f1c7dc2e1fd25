"""Scores and files are those of Detectron2's evaluators, on random predictions of all that can go wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator, SemSegEvaluator
from panopticapi.utils import id2rgb
from PIL import Image

from maskformer.evaluation import PanopticEvaluator, SemanticEvaluator
from maskformer.structures import InputError

NAME = "random_images"
HEIGHT, WIDTH, IMAGES = 40, 56, 6
THINGS, STUFF = {11: 0, 12: 1, 13: 2}, {21: 3, 22: 4, 23: 5}  # dataset id -> contiguous


@pytest.fixture(autouse=True)
def _forget():
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)


def random_regions(rng: np.random.Generator, count: int) -> np.ndarray:
    """(HEIGHT,WIDTH) of 0..count-1: pixels belong to the nearest of some points, and a few to anyone."""
    points = rng.random((count, 2)) * (HEIGHT, WIDTH)
    grid = np.stack(np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij"), axis=2)
    regions = np.square(grid[:, :, None] - points).sum(3).argmin(2)
    noise = rng.random((HEIGHT, WIDTH)) < 0.05
    regions[noise] = rng.integers(0, count, noise.sum())
    return regions


def measure(evaluator: DatasetEvaluator, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> Any:
    evaluator.reset()
    for example, output in zip(inputs, outputs):
        evaluator.process([example], [output])
    return evaluator.evaluate()


# --- semantic ---


def register_semantic(root: Path, num_classes: int, ignore_label: int, **metadata: Any) -> list[dict[str, Any]]:
    rng, records = np.random.default_rng(num_classes), []
    for index in range(IMAGES):
        label = random_regions(rng, 12) * num_classes // 12
        label[rng.random(label.shape) < 0.1] = ignore_label
        path = root / f"{index}.tif"  # PNG has no 32 bits
        Image.fromarray(label.astype(np.uint8 if ignore_label < 256 else np.int32)).save(path)
        records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(path)})
    DatasetCatalog.register(NAME, lambda: records)
    classes = [f"class {index}" for index in range(num_classes)]
    MetadataCatalog.get(NAME).set(stuff_classes=classes, ignore_label=ignore_label, **metadata)
    return records


def noisy_scores(records: list[dict[str, Any]], num_classes: int) -> list[dict[str, Any]]:
    generator, outputs = torch.Generator().manual_seed(0), []
    for record in records:
        label = torch.as_tensor(np.asarray(Image.open(record["sem_seg_file_name"])).astype(np.int64))
        label[label >= num_classes] = 0
        right = torch.nn.functional.one_hot(label.roll(2, dims=1), num_classes).permute(2, 0, 1)
        noise = torch.rand(right.shape, generator=generator).round(decimals=2)  # with ties
        outputs.append({"sem_seg": 0.8 * right + noise})
    return outputs


def reference(output_folder: Path) -> SemSegEvaluator:
    def read(file_name: str, dtype: type) -> np.ndarray:  # Detectron2's own needs NumPy 1
        return np.asarray(Image.open(file_name)).astype(dtype)

    return SemSegEvaluator(NAME, output_dir=str(output_folder), sem_seg_loading_fn=read)


@pytest.mark.parametrize(
    ("num_classes", "ignore_label"),
    [(3, 255), (20, 20), (150, 255), (300, 65535)],
    ids=["few", "ignore150", "many", "16bit"],
)
def test_semantic_scores_and_files_are_those_of_detectron2(tmp_path: Path, num_classes: int, ignore_label: int):
    records = register_semantic(tmp_path, num_classes, ignore_label)
    outputs = noisy_scores(records, num_classes)
    expected = measure(reference(tmp_path / "theirs"), records, outputs)
    ours = measure(SemanticEvaluator(NAME, str(tmp_path / "ours")), records, outputs)
    ours, expected = ({"sem_seg": without_boundaries(scores["sem_seg"])} for scores in (ours, expected))
    assert list(ours["sem_seg"]) == list(expected["sem_seg"])
    np.testing.assert_array_equal([*ours["sem_seg"].values()], [*expected["sem_seg"].values()])
    assert 5 < ours["sem_seg"]["mIoU"] < 95
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "ours").iterdir())
    predictions = "sem_seg_predictions.json"
    assert (tmp_path / "ours" / predictions).read_text() == (tmp_path / "theirs" / predictions).read_text()


def without_boundaries(scores: dict[str, float]) -> dict[str, float]:
    """Detectron2 erodes the map of labels instead of each mask: a class that is nowhere right has 6.44."""
    return {name: score for name, score in scores.items() if "Boundary" not in name and "B-Iou" not in name}


def test_semantic_predictions_have_the_ids_of_the_dataset(tmp_path: Path):
    records = register_semantic(tmp_path, 3, 255, stuff_dataset_id_to_contiguous_id={70: 0, 50: 1, 60: 2})
    outputs = noisy_scores(records, 3)
    measure(reference(tmp_path / "theirs"), records, outputs)
    measure(SemanticEvaluator(NAME, str(tmp_path / "ours")), records, outputs)
    ours = json.loads((tmp_path / "ours/sem_seg_predictions.json").read_text())
    assert ours == json.loads((tmp_path / "theirs/sem_seg_predictions.json").read_text())
    assert {entry["category_id"] for entry in ours} == {50, 60, 70}


# --- panoptic ---


def register_panoptic(root: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Images with void, crowds, large ids, and one without any segment."""
    rng, annotations = np.random.default_rng(seed), []
    (root / "png").mkdir()
    for image_id in range(IMAGES):
        ids = rng.choice(2**24 - 1, 9, replace=False) + 1
        categories = rng.permutation([*THINGS, *THINGS, *STUFF])
        regions = random_regions(rng, 9)
        shown = range(7 if image_id else 0)  # the others are void
        id_map = np.where(np.isin(regions, shown), ids[regions], 0)
        Image.fromarray(id2rgb(id_map)).save(root / "png" / f"{image_id}.png")
        segments = [
            {
                "id": int(ids[index]),
                "category_id": int(categories[index]),
                "iscrowd": int(index == 0 or (index == 1 and image_id == 2)),
                "area": int((regions == index).sum()),
            }
            for index in shown
        ]
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
    kinds = [{"id": id_, "isthing": int(id_ in THINGS)} for id_ in THINGS | STUFF]
    content = {"images": [{"id": index} for index in range(IMAGES)], "annotations": annotations, "categories": kinds}
    (root / "truth.json").write_text(json.dumps(content))
    MetadataCatalog.get(NAME).set(
        panoptic_json=str(root / "truth.json"),
        panoptic_root=str(root / "png"),
        thing_dataset_id_to_contiguous_id=THINGS,
        stuff_dataset_id_to_contiguous_id=STUFF,
        label_divisor=1000,
    )
    return annotations


def perturb(annotations: list[dict[str, Any]], root: Path, seed: int = 1) -> tuple[list[dict], list[dict]]:
    """The labels, moved and joined, in part of other classes or left out; one image has no segment, one all in one."""
    rng, inputs, outputs = np.random.default_rng(seed), [], []
    for annotation in annotations:
        rgb = np.asarray(Image.open(root / "png" / annotation["file_name"])).astype(np.int64)
        truth = np.roll(rgb @ (1, 256, 65536), rng.integers(0, 4), axis=1)
        id_map, segments = np.zeros(truth.shape, dtype=np.int32), []
        kept = [segment for segment in annotation["segments_info"] if rng.random() > 0.15]
        for number, segment in enumerate(kept if annotation["image_id"] != 3 else [], start=1):
            category = segment["category_id"] if rng.random() > 0.2 else int(rng.choice([*THINGS, *STUFF]))
            id_map[truth == segment["id"]] = number
            segments.append(describe(number, category))
        if annotation["image_id"] == 1:
            id_map[id_map == 0] = 99
            segments.append(describe(99, 21))
        if annotation["image_id"] == 0:  # where all is void
            id_map[:], segments = 5, [describe(5, 11)]
        inputs.append({"file_name": f"folder/{annotation['image_id']}.jpg", "image_id": annotation["image_id"]})
        outputs.append({"panoptic_seg": (torch.as_tensor(id_map), segments)})
    return inputs, outputs


def describe(segment_id: int, category: int) -> dict[str, Any]:
    return {"id": segment_id, "isthing": category in THINGS, "category_id": (THINGS | STUFF)[category]}


def copies(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Detectron2's evaluator changes what it is given."""
    given = [output["panoptic_seg"] for output in outputs]
    return [{"panoptic_seg": (ids.clone(), infos and [dict(info) for info in infos])} for ids, infos in given]


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_scores_and_files_are_those_of_detectron2(tmp_path: Path, seed: int):
    inputs, outputs = perturb(register_panoptic(tmp_path, seed), tmp_path, seed + 10)
    expected = measure(COCOPanopticEvaluator(NAME, str(tmp_path / "theirs")), inputs, copies(outputs))["panoptic_seg"]
    ours = measure(PanopticEvaluator(NAME, str(tmp_path / "ours")), inputs, outputs)["panoptic_seg"]
    assert list(ours) == list(expected)
    assert ours == pytest.approx(dict(expected), rel=1e-12)
    assert 5 < ours["PQ"] < 95
    assert (tmp_path / "ours/predictions.json").read_text() == (tmp_path / "theirs/predictions.json").read_text()


def test_panoptic_maps_of_category_and_number_are_read_as_detectron2_does(tmp_path: Path):
    inputs, outputs = perturb(register_panoptic(tmp_path), tmp_path)
    for output in outputs:
        id_map, segments = output["panoptic_seg"]
        coded = torch.full_like(id_map, -1)
        for segment in segments:
            coded[id_map == segment["id"]] = 1000 * segment["category_id"] + segment["id"]
        output["panoptic_seg"] = (coded, None)
    expected = measure(COCOPanopticEvaluator(NAME, str(tmp_path / "theirs")), inputs, copies(outputs))["panoptic_seg"]
    ours = measure(PanopticEvaluator(NAME, str(tmp_path / "ours")), inputs, outputs)["panoptic_seg"]
    assert ours == pytest.approx(dict(expected), rel=1e-12)
    assert (tmp_path / "ours/predictions.json").read_text() == (tmp_path / "theirs/predictions.json").read_text()


def test_panoptic_predictions_are_left_as_they_are(tmp_path: Path):
    inputs, outputs = perturb(register_panoptic(tmp_path), tmp_path)
    evaluator = PanopticEvaluator(NAME)
    assert measure(evaluator, inputs, outputs) == measure(evaluator, inputs, outputs)
    assert outputs[0]["panoptic_seg"][1] == [describe(5, 11)]


def test_image_without_a_panoptic_prediction_is_named(tmp_path: Path):
    inputs, outputs = perturb(register_panoptic(tmp_path), tmp_path)
    with pytest.raises(InputError, match=r"1 images of .*truth\.json have no prediction, first 5"):
        measure(PanopticEvaluator(NAME), inputs[:-1], outputs[:-1])


def change_image_id(example: dict, _ids: torch.Tensor, _segments: list) -> None:
    example["image_id"] = 70


def change_size(_example: dict, ids: torch.Tensor, _segments: list) -> None:
    ids.resize_(HEIGHT, WIDTH - 1)


def forget_a_segment(_example: dict, _ids: torch.Tensor, segments: list) -> None:
    segments.pop()


def invent_a_segment(_example: dict, _ids: torch.Tensor, segments: list) -> None:
    segments.append({"id": 31, "isthing": True, "category_id": 0})


def invent_a_category(_example: dict, _ids: torch.Tensor, segments: list) -> None:
    segments[0] = {"id": segments[0]["id"], "category_id": 77}  # one of the dataset's own: it is not converted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_image_id, r"no annotation of image 70 \(folder/4\.jpg\)"),
        (change_size, r"4\.jpg is 55 x 40 pixels .*4\.png is 56 x 40"),
        (forget_a_segment, r"4\.jpg has the segment \d+ in only one"),
        (invent_a_segment, r"4\.jpg has the segment 31 in only one"),
        (invent_a_category, r"segment of category 77, which is none of the 6 .*NUM_CLASSES"),
    ],
)
def test_panoptic_prediction_that_does_not_fit_is_named(tmp_path: Path, change: Any, message: str):
    inputs, outputs = perturb(register_panoptic(tmp_path), tmp_path)
    change(inputs[4], *outputs[4]["panoptic_seg"])
    with pytest.raises(InputError, match=message):
        measure(PanopticEvaluator(NAME), inputs, outputs)
