"""Heads: backbone features -> predictions; chosen by ``MODEL.SEM_SEG_HEAD.NAME``."""

from .mask_former import MaskFormerHead
from .per_pixel import PerPixelBaselineHead, PerPixelBaselinePlusHead
from .predictor import MLP, MaskFormerPredictor

__all__ = ["MLP", "MaskFormerHead", "MaskFormerPredictor", "PerPixelBaselineHead", "PerPixelBaselinePlusHead"]
