"""Backbones of ours, to compare with those of peers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peer_models import R50
from torch import nn

from maskformer.config import load_config


@pytest.fixture(scope="session")
def build_backbone() -> Callable[..., nn.Module]:
    """From KEY, VALUE, ... to a model with the backbone of the ADE20K recipe as its only part."""
    from detectron2.modeling import build_backbone

    class BackboneAlone(nn.Module):
        def __init__(self, *options: str):
            super().__init__()
            self.backbone = build_backbone(load_config(R50, [*options, "MODEL.DEVICE", "cpu"]))

    return BackboneAlone
