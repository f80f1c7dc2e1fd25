"""Inference: pure functions from one image's predictions to semantic, panoptic or instance results."""

from .instance import instance_inference, top_pairs
from .panoptic import kept_queries, panoptic_inference
from .resize import Geometry, resize_maps
from .semantic import semantic_inference, semantic_labels
from .tta import QueryAverage, ScoreAverage, View, plan_views
from .windows import slide_window

__all__ = [
    "Geometry",
    "QueryAverage",
    "ScoreAverage",
    "View",
    "instance_inference",
    "kept_queries",
    "panoptic_inference",
    "plan_views",
    "resize_maps",
    "semantic_inference",
    "semantic_labels",
    "slide_window",
    "top_pairs",
]
