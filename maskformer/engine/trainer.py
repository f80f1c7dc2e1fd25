"""The training loop: Detectron2's, with MaskFormer's parts, on any device."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import DatasetEvaluators
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter, has_event_storage
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskformer.checkpoint import Checkpointer, remove_partial_files
from maskformer.data import build_test_loader, build_train_loader
from maskformer.data.train_loader import TrainLoader
from maskformer.engine.accelerator import Accelerator
from maskformer.engine.best import BestCheckpoint
from maskformer.engine.determinism import DeterminismReport
from maskformer.engine.hooks import AcceleratorHook
from maskformer.engine.optimizer import build_optimizer
from maskformer.engine.run_state import BadImageReport, Resumable, RunState
from maskformer.engine.step import build_step_trainer
from maskformer.engine.testing import apply_test_time_options, labels_instead_of_scores
from maskformer.engine.writers import MetricsWriter, TcappdllWriter
from maskformer.evaluation import append_scores, build_evaluator, format_scores

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with MaskFormer's optimiser, schedule, data, evaluators, checkpointer and step.

    Args:
        cfg: the whole config, with ``MODEL.DEVICE`` resolved.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's own constructor builds steps and process groups for CUDA alone; its parts are made here.
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self.accelerator = Accelerator(cfg.MODEL.DEVICE)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        if comm.get_world_size() > 1:
            model = DistributedDataParallel(model, broadcast_buffers=False)
        self._trainer = build_step_trainer(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            fine_tuning=True,
            keep_last=cfg.SOLVER.KEEP_LAST,
            trainer=weakref.proxy(self),
        )
        self.running_hook = ""
        self._last_finished = -1
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

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

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Detectron2's evaluation, with the test-time options of the configuration and a table of the scores.

        What it times as inference has really been done by the device. Our own evaluators are shown semantic labels
        instead of scores; ``evaluators`` that are given see what the model gives. Outside a training, whose hooks do
        it, a line with the scores is appended to ``OUTPUT_DIR/metrics.json``.
        """
        accelerator = Accelerator(cfg.MODEL.DEVICE)
        loading_cfg, test_model = apply_test_time_options(cfg, model)
        waiting = test_model.register_forward_hook(lambda *_: accelerator.synchronize())
        try:
            with labels_instead_of_scores(test_model) if evaluators is None else contextlib.nullcontext():
                results = super().test(loading_cfg, test_model, evaluators)
        finally:
            waiting.remove()
        if comm.is_main_process() and results:
            by_dataset = results if len(cfg.DATASETS.TEST) > 1 else {cfg.DATASETS.TEST[0]: results}
            logger.info("Scores in percent:\n%s", format_scores(by_dataset))
            if not has_event_storage():
                append_scores(os.path.join(cfg.OUTPUT_DIR, "metrics.json"), results)
        return results

    def resume_or_load(self, resume: bool = True) -> None:
        """Detectron2's; half-written checkpoints that a killed run left are removed."""
        if comm.is_main_process():
            remove_partial_files(self.cfg.OUTPUT_DIR)
        super().resume_or_load(resume)
        if self.start_iter == 0:
            self._run_state.note_start(self.cfg.OUTPUT_DIR, resume)

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, after ours for the accelerator, and before what the log may need beside them."""
        accelerator = AcceleratorHook(
            self.accelerator, images_per_step=self.cfg.SOLVER.IMS_PER_BATCH, local_rank=comm.get_local_rank()
        )
        self._resumable_writers: dict[str, Resumable] = {}
        self._run_state = RunState(self.accelerator, self._trainer.data_loader, self._resumable_writers)
        return [
            accelerator,
            *self._reports(),
            *self._with_checkpoints(super().build_hooks()),
            *self._extra_writers(),
            self._run_state,
        ]

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, with a ``metrics.json`` that a resumed run goes on with."""
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        metrics = self._resumable_writers["metrics"] = MetricsWriter(os.path.join(folder, "metrics.json"))
        return [CommonMetricPrinter(self.max_iter), metrics, TensorboardXWriter(folder)]

    def _reports(self) -> list[HookBase]:
        loader = self._trainer.data_loader
        skips = isinstance(loader, TrainLoader) and loader.max_bad_images is not None
        reports: list[HookBase] = [BadImageReport(loader)] if skips else []
        return [*reports, DeterminismReport()] if torch.are_deterministic_algorithms_enabled() else reports

    def _with_checkpoints(self, hooks: list[HookBase | None]) -> list[HookBase | None]:
        """Have all processes take part in saving, for each has a state, and keep the best after each evaluation."""
        if not comm.is_main_process():
            evaluation = next(index for index, hook in enumerate(hooks) if isinstance(hook, EvalHook))
            hooks.insert(evaluation, PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD))
        if self.cfg.TEST.BEST_METRIC:
            evaluation = next(index for index, hook in enumerate(hooks) if isinstance(hook, EvalHook))
            best = BestCheckpoint(self.checkpointer, self.cfg.TEST.BEST_METRIC, self.cfg.TEST.EVAL_PERIOD)
            hooks.insert(evaluation + 1, best)
        return hooks

    def _extra_writers(self) -> list[HookBase]:
        if not self.cfg.LOG.TCAPPDLL_LINES or not comm.is_main_process():
            return []
        writer = TcappdllWriter(self.cfg.OUTPUT_DIR, images_per_step=self.cfg.SOLVER.IMS_PER_BATCH)
        self._resumable_writers["tcappdll"] = writer
        return [PeriodicWriter([writer], period=1)]

    def after_step(self) -> None:
        """Run the hooks, and note which one runs: a checkpoint that it saves says so."""
        self._run_after_step(self._hooks)

    def finish_iteration(self, saved_by: str) -> None:
        """In a resumed run: what the hooks after the one that saved the checkpoint did in its iteration.

        Args:
            saved_by: name of that hook's class; "": no hook saved it.
        """
        names = [type(hook).__qualname__ for hook in self._hooks]
        if saved_by in names:
            self.iter = self.storage.iter = self.start_iter - 1
            self._run_after_step(self._hooks[names.index(saved_by) + 1 :])
            self.iter = self.storage.iter = self.start_iter

    def _run_after_step(self, hooks: list[HookBase]) -> None:
        self._last_finished = self.iter
        for hook in hooks:
            self.running_hook = type(hook).__qualname__
            hook.after_step()
        self.running_hook = ""

    def after_train(self) -> None:
        """Run the hooks; a run that was resumed after its last step ends at the same iteration as any other."""
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, with the last iteration whose step was made, also after the loop has ended."""
        return {**super().state_dict(), "iteration": self._last_finished}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Detectron2's."""
        super().load_state_dict(state_dict)
        self._last_finished = self.iter
