"""Measuring results: mIoU, panoptic quality and instance AP, chosen by the dataset's ``evaluator_type``."""

from .build import build_evaluator
from .cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from .instance import InstanceEvaluator
from .panoptic import PanopticEvaluator
from .report import append_scores, check_expected_results, format_scores
from .resume.image_by_image import ImageByImageEvaluators
from .resume.journal import Journal, tidy_partial_results
from .semantic import SemanticEvaluator

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
