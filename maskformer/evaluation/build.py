"""From a dataset's ``evaluator_type`` to what measures it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from maskformer.data.classes import require
from maskformer.data.verification import check_registered
from maskformer.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from maskformer.evaluation.image_by_image import ImageByImageEvaluators
from maskformer.evaluation.instance import InstanceEvaluator
from maskformer.evaluation.label_map import check_num_classes
from maskformer.evaluation.panoptic import PanopticEvaluator
from maskformer.evaluation.semantic import SemanticEvaluator
from maskformer.structures import InputError


@dataclass(frozen=True)
class Measure:
    """One kind of result and how to measure it.

    Attributes:
        switch: the key under ``MODEL.MASK_FORMER.TEST`` that has the model give this result.
        has_truth: whether a dataset, by its name, holds what the result is compared with.
        build: dataset name and output folder -> evaluator.
        needs: keys of the dataset's metadata that cannot be done without.
    """

    switch: str
    has_truth: Callable[[str], bool]
    build: Callable[[str, str | None], DatasetEvaluator]
    needs: tuple[str, ...] = ()


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> ImageByImageEvaluators:
    """All that the model's switches have on and the dataset can judge.

    Args:
        cfg: the whole config; ``MODEL.MASK_FORMER.TEST`` is read.
        dataset_name: registered, with ``evaluator_type`` in its metadata.
        output_folder: where predictions are written; None: nowhere.

    Raises:
        InputError: there is no such dataset, its type is unknown, its metadata lack something, a package is missing,
            nothing applies, or model and dataset have another number of classes.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in MEASURES:
        check_registered(dataset_name, "DATASETS.TEST")
        raise InputError(
            f"Dataset {dataset_name} has evaluator_type {evaluator_type!r} in its metadata, expected one of "
            f"{', '.join(MEASURES)}; change DATASETS.TEST, or the type where the dataset is registered."
        )
    possible = [measure for measure in MEASURES[evaluator_type] if measure.has_truth(dataset_name)]
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
    for key in (key for measure in wanted for key in measure.needs):
        require(MetadataCatalog.get(dataset_name), key)
    evaluators = [measure.build(dataset_name, output_folder) for measure in wanted]
    for evaluator in evaluators:
        if isinstance(evaluator, (SemanticEvaluator, CityscapesSemanticEvaluator)):
            check_num_classes(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, evaluator.num_classes)
    return ImageByImageEvaluators(evaluators, output_folder)


def _always(_dataset_name: str) -> bool:
    return True


def _has_semantic_labels(dataset_name: str) -> bool:
    return "sem_seg_file_name" in next(iter(DatasetCatalog.get(dataset_name)), {})


def _has_instance_json(dataset_name: str) -> bool:
    return os.path.isfile(MetadataCatalog.get(dataset_name).get("json_file") or "")


def _cityscapes_semantic(dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return CityscapesSemanticEvaluator(dataset_name)


def _cityscapes_instance(dataset_name: str, _output_folder: str | None) -> DatasetEvaluator:
    return CityscapesInstanceEvaluator(dataset_name)


_ID_TABLES = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
_PANOPTIC = Measure("PANOPTIC_ON", _always, PanopticEvaluator, ("panoptic_json", "panoptic_root", *_ID_TABLES))
_INSTANCE = Measure("INSTANCE_ON", _has_instance_json, InstanceEvaluator)
_SEMANTIC = Measure("SEMANTIC_ON", _has_semantic_labels, SemanticEvaluator)
_CITYSCAPES_SEMANTIC = Measure("SEMANTIC_ON", _always, _cityscapes_semantic)
_CITYSCAPES_INSTANCE = Measure("INSTANCE_ON", _always, _cityscapes_instance)

MEASURES: dict[str, tuple[Measure, ...]] = {
    "sem_seg": (_SEMANTIC,),
    "coco": (_INSTANCE,),
    "coco_panoptic_seg": (_SEMANTIC, _PANOPTIC, _INSTANCE),
    "ade20k_panoptic_seg": (_SEMANTIC, _PANOPTIC, _INSTANCE),
    "cityscapes_sem_seg": (_CITYSCAPES_SEMANTIC,),
    "cityscapes_instance": (_CITYSCAPES_INSTANCE,),
    "cityscapes_panoptic_seg": (_PANOPTIC, _CITYSCAPES_SEMANTIC, _CITYSCAPES_INSTANCE),
}
