"""One update of a model's parameters: clipping and AdamW."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from torch import nn

from maskformer.engine.optimizer import build_optimizer

from .models import build_ours, load_recipe
from .training import build_plain_optimizer

GRADIENT_SIZE = 1e-4


def set_up(*, implementation: str, recipe: str, device: str = "cpu", tiny: bool = False) -> Callable[[], None]:
    """Update a recipe's model from gradients that are there.

    Args:
        implementation: one of ``IMPLEMENTATIONS``.
        recipe: a file under ``configs/``.
        device: see ``Accelerator``.
        tiny: make the network small.
    """
    cfg = load_recipe(recipe, device, tiny=tiny)
    model = build_ours(cfg).train()
    optimizer = IMPLEMENTATIONS[implementation](cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * GRADIENT_SIZE

    def update() -> None:
        optimizer.step()

    return update


IMPLEMENTATIONS: dict[str, Callable[[CfgNode, nn.Module], torch.optim.Optimizer]] = {
    "maskformer": build_optimizer,
    "definition": build_plain_optimizer,
}
