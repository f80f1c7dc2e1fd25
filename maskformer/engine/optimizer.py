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

from .schedule import TWO_STAGES, WARMS_UP_SECOND

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
    """Sort the trainable parameters into one group for all that learn and decay alike.

    Few groups matter: an optimiser updates a whole group in one sweep.

    Args:
        model: a parameter that several of its modules share is taken once.
        solver: those of ``model.backbone`` learn at ``base_lr`` times BACKBONE_MULTIPLIER, less where LAYER_DECAY says
            so; WEIGHT_DECAY_NORM is of normalisation layers, WEIGHT_DECAY_EMBED of ``nn.Embedding``, WEIGHT_DECAY of
            everything else.
        base_lr: learning rate outside the backbone.

    Returns:
        Dicts ``params``, ``lr``, ``weight_decay``, and whether they are a backbone's that is to warm up after the rest
        (``WARMS_UP_SECOND``), in the order of first appearance.
    """

    def decay(module: nn.Module, parameter_name: str) -> float:
        if isinstance(module, NORM_MODULES):
            return solver.WEIGHT_DECAY_NORM
        if isinstance(module, nn.Embedding):
            return solver.WEIGHT_DECAY_EMBED
        return 0.0 if parameter_name in POSITION_TABLES else solver.WEIGHT_DECAY

    backbone = getattr(model, "backbone", None)
    factors = {} if backbone is None else _backbone_factors(backbone, solver)
    has_stages = solver.LR_SCHEDULER_NAME == TWO_STAGES
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                lr = base_lr * factors.get(parameter, 1.0)
                key = lr, decay(module, name), has_stages and parameter in factors
                groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "lr": lr, "weight_decay": amount, WARMS_UP_SECOND: is_second}
        for (lr, amount, is_second), params in groups.items()
    ]


def _backbone_factors(backbone: nn.Module, solver: CfgNode) -> dict[nn.Parameter, float]:
    """What multiplies the learning rate of each parameter: of block b of n, LAYER_DECAY^(n-1-b)."""
    factors = dict.fromkeys(backbone.parameters(), solver.BACKBONE_MULTIPLIER)
    body = getattr(backbone, "bottom_up", backbone)  # what a feature pyramid adds learns as its top
    blocks = find_blocks(body)
    if solver.LAYER_DECAY_SPARED >= len(blocks) > 0:
        raise InputError(
            f"SOLVER.LAYER_DECAY_SPARED is {solver.LAYER_DECAY_SPARED}, but the backbone, {type(body).__name__}, has "
            f"{len(blocks)} blocks: expected less, or SOLVER.LAYER_DECAY 1.0."
        )
    numbers = {parameter: index for index, block in enumerate(blocks) for parameter in block.parameters()}
    number = 0  # what stands before the first block is counted with it; what stands after one, with that
    for parameter in body.parameters():
        number = numbers.get(parameter, number)
        is_spared = number >= len(blocks) - solver.LAYER_DECAY_SPARED
        factors[parameter] *= 1.0 if is_spared else solver.LAYER_DECAY ** (len(blocks) - 1 - number)
    return factors


def find_blocks(backbone: nn.Module) -> list[nn.Module]:
    """The blocks of a backbone, from input to output, as its modules are built; of one without, its layers.

    They are the members of its stacks (``Sequential``, ``ModuleList``, or modules of like parts), where a stack of
    stacks is one of stages. A block has at least two weights (matrices, kernels), however it is built inside.

    Args:
        backbone: any; of parallel branches each is a block.
    """
    blocks = _find_blocks(backbone, levels=2)
    return blocks or [module for module in backbone.modules() if _count_weights(module, recurse=False)]


def _find_blocks(module: nn.Module, levels: int) -> list[nn.Module]:
    """The members of stacks in a module, or of stacks in those, as ``levels`` has it."""
    parts = [part for part in module.children() if _count_weights(part) > 1]
    are_alike = len(parts) > 1 and len({type(part) for part in parts}) == 1
    is_stack = isinstance(module, (nn.Sequential, nn.ModuleList)) or are_alike
    if is_stack and levels == 0:
        return []
    found = [(part, _find_blocks(part, levels - is_stack)) for part in parts]
    return [block for part, within in found for block in (within or [part] * is_stack)]


def _count_weights(module: nn.Module, *, recurse: bool = True) -> int:
    return sum(parameter.ndim > 1 for parameter in module.parameters(recurse))


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
                "WEIGHT_DECAY_EMBED so that the same are equal, LAYER_DECAY, LAYER_DECAY_SPARED, LR_SCHEDULER_NAME and "
                "MODEL.BACKBONE.FREEZE_AT as there, or start anew without --resume, with MODEL.WEIGHTS set to the "
                "checkpoint."
            )

    def restore(_: torch.optim.Optimizer) -> None:
        for group, own in zip(optimizer.param_groups, configured):
            changes = {key: (group.get(key), value) for key, value in own.items() if group.get(key, value) != value}
            for key in changes.keys() - {"fused", "lr"}:  # the device's business, and the schedule's
                logger.info("The resumed run's %s changes from %s to %s, as configured.", key, *changes[key])
            group.update(own)

    optimizer.register_load_state_dict_pre_hook(check)
    optimizer.register_load_state_dict_post_hook(restore)


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
