"""How learning rates change over a training, and how a resumed one goes on as it is configured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver import LRScheduler

logger = logging.getLogger(__name__)

TWO_STAGES = "TwoStageWarmupPolyLR"
# In groups of the optimiser: whether their parameters wait until all others have warmed up.
WARMS_UP_SECOND = "warms_up_second"


class TwoStageWarmupPolyLR(LRScheduler):
    """What is new warms up first, the backbone stands still meanwhile and warms up then; each falls as a polynomial.

    The factor of a learning rate rises linearly from 0 over the iterations of its stage, and is then
    (1 - progress)^power, where progress goes from 0 to 1 over the iterations that are left.

    Args:
        optimizer: groups whose ``WARMS_UP_SECOND`` is true have the second stage, others the first.
        max_iters: of the training.
        warmup_stages: iterations of the first and of the second stage, together less than ``max_iters``.
        power: of the polynomial.

    Source: EoMT (arXiv 2503.19108); the polynomial is DeepLab's (arXiv 1606.00915).
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, max_iters: int, *, warmup_stages: Sequence[int], power: float = 0.9
    ):
        self.max_iters = max_iters
        self.warmup_stages = tuple(warmup_stages)
        self.power = power
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """The rate of each group at the iteration ``last_epoch``."""
        first, second = self.warmup_stages
        factors = {False: self._factor(0, first), True: self._factor(first, second)}
        groups = self.optimizer.param_groups
        return [base_lr * factors[group[WARMS_UP_SECOND]] for base_lr, group in zip(self.base_lrs, groups)]

    def _factor(self, start: int, length: int) -> float:
        """0 before ``start``, 1 so many iterations later, 0 at the end."""
        iteration, peak = self.last_epoch, start + length
        if iteration < start:
            return 0.0
        if iteration < peak:
            return (iteration - start) / length
        return max(1 - (iteration - peak) / (self.max_iters - peak), 0.0) ** self.power


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule that SOLVER.LR_SCHEDULER_NAME names: TwoStageWarmupPolyLR, WarmupPolyLR, or one of Detectron2's.

    Args:
        cfg: the whole config.
        optimizer: of ``build_optimizer``.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != TWO_STAGES:
        return build_detectron2_lr_scheduler(cfg, optimizer)
    stages, power = solver.WARMUP_STAGES, solver.POLY_LR_POWER
    return TwoStageWarmupPolyLR(optimizer, solver.MAX_ITER, warmup_stages=stages, power=power)


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
