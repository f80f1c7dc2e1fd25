"""A whole training step: forward, matching, losses, backward, clipping, AdamW."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks import definitions
from benchmarks.definitions_of_points import set_losses_at_points
from maskformer.engine.accelerator import Accelerator
from maskformer.engine.optimizer import build_optimizer, parameter_groups
from maskformer.engine.step import build_step_trainer
from maskformer.losses import PointMasks, SetCriterion
from maskformer.runs.launch import keep_freed_memory
from maskformer.structures import MaskPredictions, Targets

from .models import build_hugging_face, build_ours, draw_batch, load_recipe, normalise

Unit = Callable[[], None]


class PlainCriterion(nn.Module):
    """The definitions, where a model has its criterion.

    Args:
        criterion: that criterion.
    """

    def __init__(self, criterion: SetCriterion):
        super().__init__()
        self.num_classes = criterion.num_classes
        weights = definitions.LossWeights(
            of_class=criterion.class_weight,
            of_mask=criterion.mask_weight,
            of_dice=criterion.dice_weight,
            of_no_object=criterion.empty_weight[-1].item(),
        )
        masks = criterion.masks
        self._losses: Callable[..., dict[str, torch.Tensor]]
        if isinstance(masks, PointMasks):
            self._losses = functools.partial(set_losses_at_points, weights=weights, **dataclasses.asdict(masks))
        else:
            self._losses = functools.partial(definitions.set_losses, weights=weights)

    def forward(self, predictions: MaskPredictions, targets: list[Targets]) -> dict[str, torch.Tensor]:
        """Weighted losses by name."""
        return self._losses(predictions, targets)


def load_step_config(
    *,
    recipe: str,
    device: str,
    precision: str = "",
    queries: int = 100,
    classes: int = 150,
    tiny: bool = False,
    keys: Sequence[str] = (),
) -> CfgNode:
    """The configuration of a step; ``precision`` is "float32", "bfloat16", "float16" or "", the recipe's."""
    mixed = ["SOLVER.AMP.ENABLED", str(precision != "float32")] if precision else []
    mixed += ["SOLVER.AMP.PRECISION", precision] if precision not in ("", "float32") else []
    sizes = ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", str(queries), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(classes)]
    return load_recipe(recipe, device, tiny=tiny, options=[*sizes, *mixed, *keys])


def set_up_ours(
    *, size: Sequence[int] = (512, 512), batch: int = 2, masks: int = 10, device: str = "cpu", **sizes: Any
) -> Unit:
    """The step that ``train_net.py`` makes, on one batch again and again.

    Args:
        size: (H,W) of the images.
        batch: B.
        masks: G of each image.
        device: see ``Accelerator``.
        sizes: see ``load_step_config``.
    """
    keep_freed_memory()
    cfg = load_step_config(device=device, **sizes)
    model = build_ours(cfg).train()
    return repeat_step(cfg, model, build_optimizer(cfg, model), draw(cfg, size, batch, masks))


def set_up_definition(
    *, size: Sequence[int] = (512, 512), batch: int = 2, masks: int = 10, device: str = "cpu", **sizes: Any
) -> Unit:
    """The same network with the plain losses, and with one group for each parameter; arguments as above."""
    keep_freed_memory()
    cfg = load_step_config(device=device, **sizes)
    model = build_ours(cfg).train()
    assert isinstance(model.criterion, SetCriterion)
    model.criterion = PlainCriterion(model.criterion)
    return repeat_step(cfg, model, build_plain_optimizer(cfg, model), draw(cfg, size, batch, masks))


def set_up_hugging_face(
    *, size: Sequence[int] = (512, 512), batch: int = 2, masks: int = 10, device: str = "cpu", **sizes: Any
) -> Unit:
    """Hugging Face's model and losses, clipped, with the fused AdamW of its own trainer; arguments as above."""
    accelerator = Accelerator(device)
    keep_freed_memory()
    cfg = load_step_config(device=device, **sizes)
    half_precision = accelerator.half_precision(cfg.SOLVER.AMP.PRECISION) if cfg.SOLVER.AMP.ENABLED else None
    scaler = accelerator.gradient_scaler(half_precision)
    model = build_hugging_face(cfg, every_layer=True).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True)
    inputs = peer_inputs(cfg, draw(cfg, size, batch, masks))
    if cfg.MODEL.META_ARCHITECTURE == "EoMT":
        del inputs["pixel_mask"]
    else:
        inputs["output_hidden_states"] = True

    def step() -> None:
        optimizer.zero_grad()
        with accelerator.autocast(half_precision):
            loss = model(**inputs).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
        scaler.step(optimizer)
        scaler.update()

    return step


def draw(cfg: CfgNode, size: Sequence[int], batch: int, masks: int) -> list[dict[str, Any]]:
    """A batch of the configuration's classes."""
    return draw_batch(batch, (size[0], size[1]), masks, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)


def repeat_step(cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[dict[str, Any]]) -> Unit:
    """The engine's step, on the same batch each time."""
    trainer = build_step_trainer(cfg, model, itertools.repeat(batch), optimizer)

    def step() -> None:
        with EventStorage():
            trainer.iter = 0
            trainer.run_step()

    return step


def build_plain_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as Detectron2's recipes make it: a group for each parameter; gradients clipped over the whole model."""
    solver = cfg.SOLVER
    groups = parameter_groups(model, solver, base_lr=solver.BASE_LR)
    single = [{**group, "params": [parameter]} for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(single, lr=solver.BASE_LR)
    parameters = [group["params"][0] for group in single]

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, solver.CLIP_GRADIENTS.CLIP_VALUE)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def peer_inputs(cfg: CfgNode, batch: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch as Hugging Face's processor gives it: masks as floats."""
    device = cfg.MODEL.DEVICE
    images = [example["image"] for example in batch]
    return {
        "pixel_values": normalise(images, cfg),
        "pixel_mask": torch.ones(len(images), *images[0].shape[-2:], dtype=torch.int64, device=device),
        "mask_labels": [example["instances"].gt_masks.tensor.float().to(device) for example in batch],
        "class_labels": [example["instances"].gt_classes.to(device) for example in batch],
    }
