"""The training loop: Detectron2's, with MaskFormer's parts."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluators
from detectron2.projects.deeplab import build_lr_scheduler
from torch import nn

from maskformer.checkpoint import Checkpointer
from maskformer.data import build_test_loader, build_train_loader
from maskformer.engine.optimizer import build_optimizer
from maskformer.evaluation import build_evaluator


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with MaskFormer's optimiser, schedule, data, evaluators and checkpointer."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See ``maskformer.engine.optimizer``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """The schedule that SOLVER.LR_SCHEDULER_NAME names: WarmupPolyLR, or one of Detectron2's."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """See ``maskformer.data``."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """See ``maskformer.data``."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        """See ``maskformer.evaluation``."""
        return build_evaluator(cfg, dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name))

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, which save through our checkpointer: it takes the place of Detectron2's just before."""
        self.checkpointer = Checkpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        return super().build_hooks()
