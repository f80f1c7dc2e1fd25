"""Optimisers: parameter groups, and gradient clipping over the whole model."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import Tensor, nn

from maskformer.structures import InputError

NORM_MODULES = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,  # Detectron2's NaiveSyncBatchNorm is one of these
    nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm,
    nn.LocalResponseNorm,
)  # fmt: skip
logger = logging.getLogger(__name__)
POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")  # Swin's; they never decay


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that SOLVER.OPTIMIZER names, with MaskFormer's parameter groups and SOLVER.CLIP_GRADIENTS.

    Args:
        cfg: the whole config.
        model: its parameters that require a gradient are optimised.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(model, solver, base_lr=_scaled_learning_rate(solver))
    if solver.OPTIMIZER == "SGD":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV
        )
    else:
        # On a CPU one pass over a group is a fifth of the time of a dozen; other devices choose by themselves.
        is_on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
        optimizer = torch.optim.AdamW(groups, lr=solver.BASE_LR, fused=True if is_on_cpu else None)
    _obey_configuration(optimizer)
    clipping = solver.CLIP_GRADIENTS
    if not clipping.ENABLED:
        return optimizer
    if clipping.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)
    clip_full_model(optimizer, max_norm=clipping.CLIP_VALUE, norm_type=clipping.NORM_TYPE)
    return optimizer


def _scaled_learning_rate(solver: CfgNode) -> float:
    """BASE_LR for IMS_PER_BATCH images: linear (arXiv 1706.02677, section 2.1) or sqrt (arXiv 1404.5997, section 5)."""
    rule, batch_size, reference_batch_size = solver.LR_SCALING, solver.IMS_PER_BATCH, solver.LR_REFERENCE_BATCH
    if rule == "none":
        return solver.BASE_LR
    ratio = batch_size / reference_batch_size
    lr = solver.BASE_LR * (ratio if rule == "linear" else math.sqrt(ratio))
    logger.info(
        "Learning rate %g, chosen for %d images a step, becomes %g for %d (SOLVER.LR_SCALING is %s)",
        solver.BASE_LR, reference_batch_size, lr, batch_size, rule,
    )  # fmt: skip
    return lr


def parameter_groups(model: nn.Module, solver: CfgNode, *, base_lr: float) -> list[dict[str, Any]]:
    """Sort the trainable parameters into one group for each pair of learning rate and weight decay.

    Few groups matter: an optimiser updates a whole group in one sweep.

    Args:
        model: a parameter that several of its modules share is taken once.
        solver: ``backbone`` learns at ``base_lr`` times BACKBONE_MULTIPLIER; WEIGHT_DECAY_NORM is of normalisation
            layers, WEIGHT_DECAY_EMBED of ``nn.Embedding``, WEIGHT_DECAY of everything else.
        base_lr: learning rate outside ``backbone``.

    Returns:
        Dicts ``params``, ``lr``, ``weight_decay``, in the order of first appearance.
    """

    def decay(module: nn.Module, parameter_name: str) -> float:
        if isinstance(module, NORM_MODULES):
            return solver.WEIGHT_DECAY_NORM
        if isinstance(module, nn.Embedding):
            return solver.WEIGHT_DECAY_EMBED
        return 0.0 if parameter_name in POSITION_TABLES else solver.WEIGHT_DECAY

    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        lr = base_lr * (solver.BACKBONE_MULTIPLIER if module_name.split(".")[0] == "backbone" else 1.0)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                groups.setdefault((lr, decay(module, name)), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": amount} for (lr, amount), params in groups.items()]


def _obey_configuration(optimizer: torch.optim.Optimizer) -> None:
    """Let a checkpoint bring what the optimiser has gathered (moments), but no hyperparameter: those are configured.

    A checkpoint of another optimiser, or of other groups, is an ``InputError``: there its state has no meaning.
    """
    configured = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]

    def check(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        groups = state["param_groups"]
        saved = "ADAMW" if "betas" in groups[0] else "SGD"
        here = "ADAMW" if "betas" in configured[0] else "SGD"
        if saved != here:
            raise InputError(
                f"SOLVER.OPTIMIZER is {here}, but the run that is resumed has {saved}: set it to that, or start anew "
                "without --resume, with MODEL.WEIGHTS set to the checkpoint."
            )
        sizes = [[len(group["params"]) for group in parts] for parts in (groups, optimizer.param_groups)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"The run that is resumed has groups of {sizes[0]} parameters that learn and decay alike, here there "
                f"are {sizes[1]}: set SOLVER.BASE_LR, BACKBONE_MULTIPLIER, WEIGHT_DECAY, WEIGHT_DECAY_NORM and "
                "WEIGHT_DECAY_EMBED so that the same are equal, MODEL.BACKBONE.FREEZE_AT as there, or start anew "
                "without --resume, with MODEL.WEIGHTS set to the checkpoint."
            )

    def restore(_: torch.optim.Optimizer) -> None:
        for group, own in zip(optimizer.param_groups, configured):
            changes = {key: (group.get(key), value) for key, value in own.items() if group.get(key, value) != value}
            for key in changes.keys() - {"fused", "lr"}:  # the device's business, and the schedule's
                logger.info("The resumed run's %s changes from %s to %s, as configured.", key, *changes[key])
            group.update(own)

    optimizer.register_load_state_dict_pre_hook(check)
    optimizer.register_load_state_dict_post_hook(restore)


def configured_schedule(scheduler: Any) -> dict[str, Any]:
    """What a schedule has of the configuration; the rest is progress."""
    state = scheduler.state_dict()
    return {key: state[key] for key in state if key != "last_epoch" and not key.startswith("_")}


def go_on_as_configured(scheduler: Any, configured: dict[str, Any]) -> None:
    """After a checkpoint was loaded, go on from its iteration with what ``configured_schedule`` gave before."""
    saved = scheduler.state_dict()
    for key in (key for key in configured if saved[key] != configured[key]):
        logger.info("The resumed run's %s changes from %s to %s, as configured.", key, saved[key], configured[key])
    scheduler.load_state_dict(configured)
    for group, lr in zip(scheduler.optimizer.param_groups, scheduler.get_lr()):
        group["lr"] = lr


def clip_full_model(optimizer: torch.optim.Optimizer, *, max_norm: float, norm_type: float = 2.0) -> None:
    """Scale all gradients together, before each step, so that the norm over every parameter is at most ``max_norm``."""

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(_parameters_of(optimizer), max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def gradient_norm(optimizer: torch.optim.Optimizer, norm_type: float = 2.0) -> Tensor:
    """The norm over all values of all gradients that there are: a scalar."""
    gradients = [parameter.grad for parameter in _parameters_of(optimizer) if parameter.grad is not None]
    if hasattr(nn.utils, "get_total_norm"):  # PyTorch 2.6 and newer
        return nn.utils.get_total_norm(gradients, norm_type)
    return torch.stack([gradient.norm(norm_type) for gradient in gradients]).norm(norm_type)
