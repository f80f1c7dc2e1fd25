"""Inference: pure functions from one image's predictions to semantic, panoptic or instance results."""

from .instance import instance_inference, top_pairs
from .panoptic import kept_queries, panoptic_inference
from .resize import Geometry, resize_maps
from .semantic import semantic_inference, semantic_labels
from .tta import QueryAverage, SlidingWindow, View, plan_views

__all__ = [
    "Geometry",
    "QueryAverage",
    "SlidingWindow",
    "View",
    "instance_inference",
    "kept_queries",
    "panoptic_inference",
    "plan_views",
    "resize_maps",
    "semantic_inference",
    "semantic_labels",
    "top_pairs",
]
