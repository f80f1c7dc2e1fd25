"""Matcher and losses alone, forward and backward, on random predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import definitions
from maskformer.losses import HungarianMatcher, SetCriterion
from maskformer.structures import MaskPredictions, Targets

from .models import draw_labels, draw_segment_map

MASK_STRIDE = 4
SEED = 0


def draw_problem(
    *, size: Sequence[int], batch: int, masks: int, queries: int, classes: int, layers: int, device: str
) -> tuple[MaskPredictions, list[Targets]]:
    """Predictions that take gradients, and targets of (H,W) = ``size``."""
    torch.manual_seed(SEED)
    height, width = size
    grid = (height // MASK_STRIDE, width // MASK_STRIDE)
    predictions = MaskPredictions(
        torch.randn(layers, batch, queries, classes + 1, device=device).requires_grad_(),
        (torch.randn(layers, batch, queries, *grid, device=device) * 2).requires_grad_(),
    )
    numbers = torch.arange(1, masks + 1)[:, None, None]
    targets = [
        Targets(
            draw_labels(masks, classes, seed).to(device),
            (draw_segment_map(masks, (height, width), seed) == numbers).to(device),
        )
        for seed in range(batch)
    ]
    return predictions, targets


def set_up(
    *,
    implementation: str,
    size: Sequence[int] = (512, 512),
    batch: int = 2,
    masks: int = 10,
    queries: int = 100,
    classes: int = 150,
    layers: int = 6,
    device: str = "cpu",
) -> Callable[[], None]:
    """Match, compute the losses, take their gradients.

    Args:
        implementation: one of ``IMPLEMENTATIONS``.
        size: (H,W) of the network input.
        batch: B.
        masks: G of each image.
        queries: Q.
        classes: K.
        layers: L.
        device: see ``Accelerator``.
    """
    predictions, targets = draw_problem(
        size=size, batch=batch, masks=masks, queries=queries, classes=classes, layers=layers, device=device
    )
    compute = IMPLEMENTATIONS[implementation](classes, device)

    def step() -> None:
        predictions.class_logits.grad = predictions.mask_logits.grad = None
        sum(compute(predictions, targets).values()).backward()

    return step


def _ours(classes: int, device: str) -> Callable[..., dict[str, Any]]:
    return SetCriterion(classes, matcher=HungarianMatcher()).to(device)


def _definition(_classes: int, _device: str) -> Callable[..., dict[str, Any]]:
    return definitions.set_losses


IMPLEMENTATIONS: dict[str, Callable[[int, str], Callable[..., dict[str, Any]]]] = {
    "maskformer": _ours,
    "definition": _definition,
}
