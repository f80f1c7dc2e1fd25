"""What tests against several peers share."""

from __future__ import annotations

import torch
from reference_cases import CONFIGS
from torch import nn

R50 = str(CONFIGS / "ade20k-150" / "maskformer_R50_bs16_160k.yaml")


def shake(model: nn.Module) -> nn.Module:
    """Move biases, norms and statistics, which start at 0 and 1, so that each matters."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.dim() == 1:
                value.add_(0.2 * torch.rand_like(value))
    return model
