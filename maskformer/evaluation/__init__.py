"""Measuring results: mIoU, panoptic quality and instance AP, chosen by the dataset's ``evaluator_type``."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import log_first_n

from maskformer.data.checks.verification import check_registered, load_dataset
from maskformer.structures import InputError

from .cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from .evaluator import ImageByImageEvaluators, ImageEvaluator
from .instance import InstanceEvaluator
from .journal import Journal, tidy_partial_results
from .loop import append_scores, check_expected_results, format_scores
from .panoptic import PanopticEvaluator
from .semantic import SemanticEvaluator, check_num_classes

__all__ = [
    "CityscapesInstanceEvaluator",
    "CityscapesSemanticEvaluator",
    "ImageByImageEvaluators",
    "ImageEvaluator",
    "InstanceEvaluator",
    "Journal",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "append_scores",
    "build_evaluator",
    "check_expected_results",
    "format_scores",
    "tidy_partial_results",
]

_ALL: tuple[type[ImageEvaluator], ...] = (SemanticEvaluator, PanopticEvaluator, InstanceEvaluator)
MEASURES: dict[str, tuple[type[ImageEvaluator], ...]] = {
    "sem_seg": (SemanticEvaluator,),
    "coco": (InstanceEvaluator,),
    "coco_panoptic_seg": _ALL,
    "ade20k_panoptic_seg": _ALL,
    "mapillary_vistas_panoptic_seg": _ALL,
    "cityscapes_sem_seg": (CityscapesSemanticEvaluator,),
    "cityscapes_instance": (CityscapesInstanceEvaluator,),
    "cityscapes_panoptic_seg": (PanopticEvaluator, CityscapesSemanticEvaluator, CityscapesInstanceEvaluator),
}


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
    test = cfg.MODEL.MASK_FORMER.TEST
    wanted = [measure for measure in possible if test[measure.switch]]
    if not wanted:
        switches = " or ".join(f"MODEL.MASK_FORMER.TEST.{measure.switch}" for measure in possible)
        raise InputError(
            f"Dataset {dataset_name} ({evaluator_type}) cannot judge any result that the model has switched on: set "
            f"{switches} to True, or change DATASETS.TEST."
        )
    if evaluator_type is not None:
        for measure in measures:
            if test[measure.switch] and measure.json_key and measure not in possible:
                log_first_n(
                    logging.WARNING,
                    f"Dataset {dataset_name} ({evaluator_type}) names no file that exists as {measure.json_key} in its "
                    f"metadata: what MODEL.MASK_FORMER.TEST.{measure.switch} gives is not measured.",
                    name=__name__,
                    key="message",
                )
    evaluators = [measure(dataset_name, output_folder) for measure in wanted]
    for evaluator in evaluators:
        evaluator.check(records)
        if evaluator.num_classes is not None:
            check_num_classes(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, evaluator.num_classes)
    return ImageByImageEvaluators(evaluators, output_folder)
