"""Measuring results: mIoU, panoptic quality and instance AP, chosen by the dataset's ``evaluator_type``."""

from maskformer.evaluation.build import build_evaluator
from maskformer.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from maskformer.evaluation.instance import InstanceEvaluator
from maskformer.evaluation.panoptic import PanopticEvaluator
from maskformer.evaluation.semantic import SemanticEvaluator

__all__ = [
    "CityscapesInstanceEvaluator",
    "CityscapesSemanticEvaluator",
    "InstanceEvaluator",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "build_evaluator",
]
