"""Heads: backbone features -> predictions; chosen by ``MODEL.SEM_SEG_HEAD.NAME``."""

from ..query_decoders.standard import MLP, MaskFormerPredictor
from .mask_former import MaskFormerHead
from .per_pixel import PerPixelBaselineHead, PerPixelBaselinePlusHead

__all__ = ["MLP", "MaskFormerHead", "MaskFormerPredictor", "PerPixelBaselineHead", "PerPixelBaselinePlusHead"]
