"""The built-in dataset "shapes": scenes drawn by code, written in the layout of COCO panoptic."""

from .writer import generate_shapes

__all__ = ["generate_shapes"]
