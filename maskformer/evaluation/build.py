"""From a dataset's ``evaluator_type`` to what measures it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from maskformer.data.checks.verification import check_registered, load_dataset
from maskformer.structures import InputError

from .cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from .instance import InstanceEvaluator
from .label_map import check_num_classes
from .panoptic import PanopticEvaluator
from .resume.image_by_image import ImageByImageEvaluators
from .semantic import SemanticEvaluator

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Measure:
    """One kind of result and how to measure it.

    Attributes:
        switch: the key under ``MODEL.MASK_FORMER.TEST`` that has the model give this result.
        has_truth: whether a dataset, by its metadata and entries, holds what the result is compared with.
        build: dataset name and output folder -> evaluator.
    """

    switch: str
    has_truth: Callable[[Metadata, Records], bool]
    build: Callable[[str, str | None], Any]


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> ImageByImageEvaluators:
    """All that the model's switches have on and the dataset can judge.

    Args:
        cfg: the whole config; ``MODEL.MASK_FORMER.TEST`` is read.
        dataset_name: registered. ``evaluator_type`` in its metadata says how it is measured; without one, all that its
            entries have labels for.
        output_folder: where predictions are written; None: nowhere.

    Raises:
        InputError: the dataset cannot be loaded, its type is unknown, a package is missing, nothing applies, the truth
            lacks something that measuring needs, or model and dataset have another number of classes.
    """
    check_registered(dataset_name, "DATASETS.TEST")
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type is not None and evaluator_type not in MEASURES:
        raise InputError(
            f"Dataset {dataset_name} has evaluator_type {evaluator_type!r} in its metadata, expected one of "
            f"{', '.join(MEASURES)}; change DATASETS.TEST, or the type where the dataset is registered."
        )
    records = load_dataset(dataset_name, "DATASETS.TEST")
    metadata = MetadataCatalog.get(dataset_name)
    measures = _ALL if evaluator_type is None else MEASURES[evaluator_type]
    possible = [measure for measure in measures if measure.has_truth(metadata, records)]
    if not possible:
        raise InputError(
            f"Dataset {dataset_name} ({evaluator_type}) holds no labels to compare with; change DATASETS.TEST."
        )
    wanted = [measure for measure in possible if cfg.MODEL.MASK_FORMER.TEST[measure.switch]]
    if not wanted:
        switches = " or ".join(f"MODEL.MASK_FORMER.TEST.{measure.switch}" for measure in possible)
        raise InputError(
            f"Dataset {dataset_name} ({evaluator_type}) cannot judge any result that the model has switched on: set "
            f"{switches} to True, or change DATASETS.TEST."
        )
    evaluators = [measure.build(dataset_name, output_folder) for measure in wanted]
    for evaluator in evaluators:
        evaluator.check(records)
        if isinstance(evaluator, (SemanticEvaluator, CityscapesSemanticEvaluator)):
            check_num_classes(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, evaluator.num_classes)
    return ImageByImageEvaluators(evaluators, output_folder)


def _always(_metadata: Metadata, _records: Records) -> bool:
    return True


def _has_semantic_labels(_metadata: Metadata, records: Records) -> bool:
    return any("sem_seg_file_name" in record for record in records)


def _has_panoptic_labels(metadata: Metadata, records: Records) -> bool:
    return metadata.get("panoptic_json") is not None or any("pan_seg_file_name" in record for record in records)


def _has_instances(metadata: Metadata, records: Records) -> bool:
    json_file = metadata.get("json_file")
    return any("annotations" in record for record in records) if json_file is None else os.path.isfile(json_file)


def _cityscapes_semantic(dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return CityscapesSemanticEvaluator(dataset_name)


def _cityscapes_instance(dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return CityscapesInstanceEvaluator(dataset_name)


_PANOPTIC = Measure("PANOPTIC_ON", _has_panoptic_labels, PanopticEvaluator)
_INSTANCE = Measure("INSTANCE_ON", _has_instances, InstanceEvaluator)
_SEMANTIC = Measure("SEMANTIC_ON", _has_semantic_labels, SemanticEvaluator)
_CITYSCAPES_SEMANTIC = Measure("SEMANTIC_ON", _always, _cityscapes_semantic)
_CITYSCAPES_INSTANCE = Measure("INSTANCE_ON", _always, _cityscapes_instance)

_ALL = (_SEMANTIC, _PANOPTIC, _INSTANCE)
MEASURES: dict[str, tuple[Measure, ...]] = {
    "sem_seg": (_SEMANTIC,),
    "coco": (_INSTANCE,),
    "coco_panoptic_seg": _ALL,
    "ade20k_panoptic_seg": _ALL,
    "cityscapes_sem_seg": (_CITYSCAPES_SEMANTIC,),
    "cityscapes_instance": (_CITYSCAPES_INSTANCE,),
    "cityscapes_panoptic_seg": (_PANOPTIC, _CITYSCAPES_SEMANTIC, _CITYSCAPES_INSTANCE),
}
