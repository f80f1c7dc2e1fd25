"""Heads: backbone features -> predictions; chosen by ``MODEL.SEM_SEG_HEAD.NAME``."""

from .mask_former import MaskFormerHead
from .predictor import MLP, MaskFormerPredictor

__all__ = ["MLP", "MaskFormerHead", "MaskFormerPredictor"]
