"""Backbones: images -> features; chosen by ``MODEL.BACKBONE.NAME``.

Swin is ours, and any model of timm comes by its name: ``build_timm_backbone``. ResNets are Detectron2's:
``build_resnet_backbone``, and ``build_resnet_deeplab_backbone`` with a stem of three convolutions ("101c"), which its
deeplab project registers when it is imported, as here.
"""

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone
from detectron2.projects.deeplab import build_resnet_deeplab_backbone

from maskformer.structures import check_choice

from .resnet import fold_frozen_norms
from .swin import D2SwinTransformer
from .timm import TimmBackbone

__all__ = [
    "D2SwinTransformer",
    "TimmBackbone",
    "build_backbone_by_name",
    "build_resnet_deeplab_backbone",
    "fold_frozen_norms",
]


def build_backbone_by_name(cfg: CfgNode) -> Backbone:
    """Build the backbone that ``MODEL.BACKBONE.NAME`` names, its frozen norms folded.

    Raises:
        InputError: no backbone has that name.
    """
    check_choice(cfg.MODEL.BACKBONE.NAME, (name for name, _ in BACKBONE_REGISTRY), "MODEL.BACKBONE.NAME")
    return fold_frozen_norms(build_backbone(cfg))
