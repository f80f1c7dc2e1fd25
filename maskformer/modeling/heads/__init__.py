"""Heads: backbone features -> predictions; chosen by ``MODEL.SEM_SEG_HEAD.NAME``."""

from .mask_former import MaskFormerHead, MaskFormerNetwork
from .per_pixel import PerPixelBaselineHead, PerPixelBaselinePlusHead

__all__ = ["MaskFormerHead", "MaskFormerNetwork", "PerPixelBaselineHead", "PerPixelBaselinePlusHead"]
