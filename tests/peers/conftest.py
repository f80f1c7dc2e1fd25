"""What several peers need: backbones of ours and weights that make every parameter matter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference_cases import CONFIGS
from torch import nn

from maskformer.config import load_config

R50 = str(CONFIGS / "ade20k-150" / "maskformer_R50_bs16_160k.yaml")


def shake(model: nn.Module) -> nn.Module:
    """Move biases, norms and statistics, which start at 0 and 1, so that each matters."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.dim() == 1:
                value.add_(0.2 * torch.rand_like(value))
    return model


@pytest.fixture(scope="session")
def build_backbone() -> Callable[..., nn.Module]:
    """From KEY, VALUE, ... to a model with the backbone of the ADE20K recipe as its only part."""
    from detectron2.modeling import build_backbone

    class BackboneAlone(nn.Module):
        def __init__(self, *options: str):
            super().__init__()
            self.backbone = build_backbone(load_config(R50, [*options, "MODEL.DEVICE", "cpu"]))

    return BackboneAlone
