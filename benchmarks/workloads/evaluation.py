"""Measuring predictions, ours and Detectron2's way: each image is processed, then all are evaluated, with all files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator, SemSegEvaluator
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from maskformer.evaluation import PanopticEvaluator, SemanticEvaluator

Unit = Callable[[], dict[str, float]]

NAME = "benchmark_evaluation"
PREDICTIONS = 4  # different ones, shown in turn: the scores of one ADE20K image are 210 MB
IGNORE = 255
MISS = 5  # pixels by which predictions are beside the labels


def semantic_evaluation(
    *,
    evaluator: str,
    num_images: int = 2000,
    size: Sequence[int] = (512, 683),
    classes: int = 150,
    present: int = 15,
    device: str = "cpu",
) -> Unit:
    """Mean IoU of scores as the model gives them.

    Args:
        evaluator: "maskformer" or "detectron2".
        num_images: in a unit.
        size: (height, width) of an image.
        classes: K of the dataset, at most 255: the labels are bytes.
        present: classes of an image.
        device: where the scores are.
    """
    assert classes <= IGNORE
    folder = tempfile.TemporaryDirectory(prefix="maskformer_benchmark_")
    outputs = [draw_scores(seed, classes, present, size, device) for seed in range(PREDICTIONS)]
    for index, output in enumerate(outputs):
        save_semantic_label(output.argmax(dim=0).cpu().numpy(), Path(folder.name, f"{index}.png"))
    records = [
        {"file_name": f"{index}.jpg", "sem_seg_file_name": str(Path(folder.name, f"{index % PREDICTIONS}.png"))}
        for index in range(num_images)
    ]
    _register(records, stuff_classes=[f"class {index}" for index in range(classes)], ignore_label=IGNORE)
    measure = _SEMANTIC[evaluator](str(Path(folder.name, "predictions")))

    def evaluate() -> dict[str, float]:
        measure.reset()
        for index, record in enumerate(records):
            measure.process([record], [{"sem_seg": outputs[index % PREDICTIONS]}])
        return {"mIoU": float(measure.evaluate()["sem_seg"]["mIoU"])}

    return _keep(folder, evaluate)


def panoptic_evaluation(
    *,
    evaluator: str,
    num_images: int = 500,
    size: Sequence[int] = (640, 853),
    classes: int = 133,
    segments: int = 20,
    device: str = "cpu",
) -> Unit:
    """Panoptic quality of ids and segments as the model gives them.

    Args:
        evaluator: "maskformer" or "detectron2".
        num_images: in a unit.
        size: (height, width) of an image.
        classes: of which the first three in five are things.
        segments: of an image, in label and prediction.
        device: where the ids are.
    """
    folder = tempfile.TemporaryDirectory(prefix="maskformer_benchmark_")
    maps = [draw_segments(seed, segments, size) for seed in range(PREDICTIONS)]
    things = classes * 3 // 5
    infos = [
        [
            {"id": number, "isthing": number * 7 % classes < things, "category_id": number * 7 % classes}
            for number in ids
        ]
        for ids in (np.unique(id_map[id_map > 0]).tolist() for id_map in maps)
    ]
    _write_panoptic(Path(folder.name), maps, infos, num_images, classes, things)
    ids = range(classes)
    _register(
        [],
        panoptic_json=str(Path(folder.name, "truth.json")),
        panoptic_root=folder.name,
        thing_dataset_id_to_contiguous_id={index: index for index in ids[:things]},
        stuff_dataset_id_to_contiguous_id={index: index for index in ids[things:]},
    )
    measure = _PANOPTIC[evaluator](NAME, str(Path(folder.name, "predictions")))
    outputs = [torch.as_tensor(id_map, device=device) for id_map in maps]

    def evaluate() -> dict[str, float]:
        measure.reset()
        for index in range(num_images):
            found = [dict(info) for info in infos[index % PREDICTIONS]]  # Detectron2's evaluator changes them
            record = {"file_name": f"{index}.jpg", "image_id": index}
            measure.process([record], [{"panoptic_seg": (outputs[index % PREDICTIONS], found)}])
        return {"PQ": float(measure.evaluate()["panoptic_seg"]["PQ"])}

    return _keep(folder, evaluate)


def draw_scores(seed: int, classes: int, present: int, size: Sequence[int], device: str) -> Tensor:
    """(K,height,width) smooth scores, in which some classes are always above the others."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, classes, 12, 16, generator=generator)
    coarse[:, torch.randperm(classes, generator=generator)[present:]] *= 0.1
    return F.interpolate(coarse, tuple(size), mode="bilinear")[0].to(device)


def save_semantic_label(label: np.ndarray, path: Path) -> None:
    """Write (height,width) classes a few pixels beside, with a border without a class."""
    moved = np.roll(label, MISS, axis=1).astype(np.uint8)
    moved[:MISS] = IGNORE
    Image.fromarray(moved).save(path)


def draw_segments(seed: int, segments: int, size: Sequence[int]) -> np.ndarray:
    """(height,width) int32 ids from 1; 0 is void."""
    scores = draw_scores(seed, segments + 1, segments + 1, size, "cpu")
    return scores.argmax(dim=0).numpy().astype(np.int32)


def _write_panoptic(
    folder: Path, maps: list[np.ndarray], infos: list[list[dict[str, Any]]], num_images: int, classes: int, things: int
) -> None:
    """Labels a few pixels beside the maps; images share files."""
    truth = [np.roll(id_map, MISS, axis=1) for id_map in maps]
    for index, id_map in enumerate(truth):
        Image.fromarray(np.stack([id_map, id_map * 0, id_map * 0], axis=2).astype(np.uint8)).save(
            folder / f"{index}.png"
        )
    segments = [
        [
            {
                "id": info["id"],
                "category_id": info["category_id"],
                "iscrowd": 0,
                "area": int((id_map == info["id"]).sum()),
            }
            for info in found
        ]
        for id_map, found in zip(truth, infos, strict=True)
    ]
    height, width = truth[0].shape
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in range(num_images)],
        "annotations": [
            {"image_id": i, "file_name": f"{i % PREDICTIONS}.png", "segments_info": segments[i % PREDICTIONS]}
            for i in range(num_images)
        ],
        "categories": [{"id": i, "name": f"class {i}", "isthing": int(i < things)} for i in range(classes)],
    }
    (folder / "truth.json").write_text(json.dumps(content))


def _register(records: list[dict[str, Any]], **metadata: Any) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog.list():
            catalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(**metadata)


def _keep(folder: tempfile.TemporaryDirectory[str], unit: Unit) -> Unit:
    """A unit that owns the folder it works in."""

    def run() -> dict[str, float]:
        Path(folder.name, "predictions").mkdir(exist_ok=True)
        return unit()

    return run


def _detectron2_semantic(output_folder: str) -> DatasetEvaluator:
    def read(file_name: str, dtype: type) -> np.ndarray:  # Detectron2's own needs NumPy 1
        return np.asarray(Image.open(file_name)).astype(dtype)

    return SemSegEvaluator(NAME, output_dir=output_folder, sem_seg_loading_fn=read)


def _our_semantic(output_folder: str) -> DatasetEvaluator:
    return SemanticEvaluator(NAME, output_folder)


_SEMANTIC = {"maskformer": _our_semantic, "detectron2": _detectron2_semantic}
_PANOPTIC = {"maskformer": PanopticEvaluator, "detectron2": COCOPanopticEvaluator}
