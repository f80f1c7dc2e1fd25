"""The built-in dataset "shapes": scenes drawn by code, written in the layout of COCO panoptic."""

from maskformer.data.shapes.categories import CATEGORIES, THINGS, Category, dataset_id
from maskformer.data.shapes.writer import FOLDER, generate_shapes

__all__ = ["CATEGORIES", "FOLDER", "THINGS", "Category", "dataset_id", "generate_shapes"]
