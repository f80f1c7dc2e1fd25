"""Measuring results: mIoU, panoptic quality and instance AP, chosen by the dataset's ``evaluator_type``."""

from maskformer.evaluation.build import build_evaluator
from maskformer.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from maskformer.evaluation.instance import InstanceEvaluator
from maskformer.evaluation.panoptic import PanopticEvaluator
from maskformer.evaluation.report import append_scores, check_expected_results, format_scores
from maskformer.evaluation.resume.image_by_image import ImageByImageEvaluators
from maskformer.evaluation.resume.journal import Journal, tidy_partial_results
from maskformer.evaluation.semantic import SemanticEvaluator

__all__ = [
    "CityscapesInstanceEvaluator",
    "CityscapesSemanticEvaluator",
    "ImageByImageEvaluators",
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
