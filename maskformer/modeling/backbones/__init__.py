"""Backbones: images -> features; chosen by ``MODEL.BACKBONE.NAME``.

Swin is ours. ResNets are Detectron2's: ``build_resnet_backbone``, and ``build_resnet_deeplab_backbone`` with a stem of
three convolutions ("101c"), which its deeplab project registers when it is imported, as here.
"""

from detectron2.projects.deeplab import build_resnet_deeplab_backbone

from .frozen_norm import fold_frozen_norms
from .residual import sum_residuals_in_place
from .swin import D2SwinTransformer

__all__ = ["D2SwinTransformer", "build_resnet_deeplab_backbone", "fold_frozen_norms", "sum_residuals_in_place"]
