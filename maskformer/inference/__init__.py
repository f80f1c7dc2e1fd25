"""Inference: pure functions from one image's predictions to semantic, panoptic or instance results."""

from .instance import instance_inference
from .panoptic import panoptic_inference
from .resize import Geometry
from .semantic import semantic_inference

__all__ = ["Geometry", "instance_inference", "panoptic_inference", "semantic_inference"]
