"""Inference: pure functions from one image's predictions to semantic, panoptic or instance results."""

from .instance import instance_inference
from .panoptic import panoptic_inference
from .resize import Geometry, resize_maps
from .semantic import semantic_inference
from .sliding import slide_window
from .tta import QueryAverage, ScoreAverage, View, plan_views

__all__ = [
    "Geometry",
    "QueryAverage",
    "ScoreAverage",
    "View",
    "instance_inference",
    "panoptic_inference",
    "plan_views",
    "resize_maps",
    "semantic_inference",
    "slide_window",
]
