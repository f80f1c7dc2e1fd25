"""Measuring results: mIoU, panoptic quality and instance AP, chosen by the dataset's ``evaluator_type``."""

from .build import build_evaluator
from .cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from .evaluator import ImageByImageEvaluators, ImageEvaluator
from .instance import InstanceEvaluator
from .journal import Journal, tidy_partial_results
from .loop import append_scores, check_expected_results, format_scores
from .panoptic import PanopticEvaluator
from .semantic import SemanticEvaluator

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
