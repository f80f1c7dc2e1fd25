"""The training loop: Detectron2's, with MaskFormer's parts, on any device."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Container, Iterable
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine import hooks as detectron2_hooks
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, get_event_storage, has_event_storage
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskformer.checkpoint import Checkpointer, remove_partial_files
from maskformer.config.values import check_values
from maskformer.data import build_test_loader, build_train_loader
from maskformer.data.loading.train_loader import TrainLoader
from maskformer.evaluation import append_scores, build_evaluator, check_expected_results, format_scores
from maskformer.evaluation.kept import Draw
from maskformer.evaluation.loop import check_evaluation, evaluate_datasets
from maskformer.meta_arch import know_classes
from maskformer.runs.signals import REQUESTS, StopFlag, shield_workers
from maskformer.structures import SCREEN, InputError

from .accelerator import Accelerator, with_device
from .hooks.annealing import build_annealing
from .hooks.averaging import WeightAverage, explain_batch_norm, share_state
from .hooks.reports import AcceleratorHook, BadImageReport, HistoryHook, LossWatch, LRScheduler
from .hooks.saving import BestCheckpoint, SavingHook
from .hooks.trackers import TRACKERS, Tracker, check_installed
from .hooks.writers import EventFileWriter, MetricsWriter, PictureWriter, TcappdllWriter
from .network import run_as_configured
from .optimizer import build_optimizer
from .pictures import ValidationPictures
from .processes import check_for_several_processes
from .run_report import RunReport, conclude, flatten, say_data_and_model, show_scores
from .run_state import ResumableWriter, RunState
from .schedule import build_lr_scheduler, configured_schedule, go_on_as_configured
from .step import build_step_trainer
from .test_time import RetryingModel, apply_test_time_options, check_test_classes, inference_options

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with MaskFormer's optimiser, schedule, data, evaluators, checkpointer and step.

    Args:
        cfg: the whole config. Datasets of ours that nobody has registered yet are registered.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's own constructor builds steps and process groups for CUDA alone; its parts are made here.
        super(DefaultTrainer, self).__init__()
        check_values(cfg)  # it may have been changed since it was loaded
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(with_device(cfg), comm.get_world_size())
        self.cfg = cfg
        self.accelerator = Accelerator(cfg.MODEL.DEVICE)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        check_test_classes(cfg, model)
        apply_test_time_options(cfg, model)  # what the last step needs is checked before the first
        check_evaluation(cfg, self.build_test_loader, self.build_evaluator)
        if comm.get_world_size() > 1:
            check_for_several_processes(cfg, model)
            explain_batch_norm(cfg, model)
            model = DistributedDataParallel(model, broadcast_buffers=False)
        self._trainer = build_step_trainer(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        keep_last, proxy = cfg.SOLVER.KEEP_LAST, weakref.proxy(self)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, fine_tuning=True, keep_last=keep_last, trainer=proxy)
        self.running_hook = ""
        self._last_finished = -1
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._last_eval_results: dict[str, Any] = {}
        ema, folder = cfg.SOLVER.EMA, cfg.OUTPUT_DIR
        self.average = WeightAverage(model, optimizer, decay=ema.DECAY, folder=folder) if ema.ENABLED else None
        self.stop_flag = StopFlag()
        self._picture_writers: list[PictureWriter] = []
        self._pictures = ValidationPictures(cfg)
        self.hooks: list[HookBase] = []  # in the order of their registration
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Detectron2's; the model knows its classes, and its network runs as ``MODEL.COMPILE`` says."""
        model = super().build_model(cfg)
        know_classes(model, cfg)
        run_as_configured(cfg, model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See ``maskformer.engine.optimizer``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """See ``maskformer.engine.schedule``."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """See ``maskformer.data``."""
        return shield_workers(build_train_loader(cfg))

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, done: Container[int] = ()
    ) -> Iterable[list[dict[str, Any]]]:
        """See ``maskformer.data``; within a training, a signal stops it."""
        return REQUESTS.stoppable(build_test_loader(cfg, dataset_name, done))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        """See ``maskformer.evaluation``."""
        return build_evaluator(cfg, dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Detectron2's evaluation, with the test-time options of the configuration and a table of the scores.

        All processes evaluate the same model. What it times as inference has really been done by the device. Our own
        evaluators are shown semantic labels instead of scores; ``evaluators`` that are given see what the model gives.
        Outside a training, whose hooks do it, a line with the scores is appended to ``OUTPUT_DIR/metrics.json``. After
        an interruption, our own evaluators go on with the next image: see ``evaluate_datasets``.
        """
        cfg = with_device(cfg)
        check_test_classes(cfg, model)
        accelerator = Accelerator(cfg.MODEL.DEVICE)
        share_state(model)
        loading_cfg, test_model = apply_test_time_options(cfg, model)
        if evaluators is None and not has_event_storage():  # in a training, all has been checked
            check_evaluation(loading_cfg, cls.build_test_loader, cls.build_evaluator)
            if comm.is_main_process():
                say_data_and_model(cfg, model, training=False)
        test_model = RetryingModel(model=test_model, accelerator=accelerator)
        waiting = test_model.register_forward_hook(lambda *_: accelerator.synchronize())
        try:
            if evaluators is not None:
                results = super().test(loading_cfg, test_model, evaluators)
            else:
                with inference_options(test_model, semantic_as_labels=True):
                    builders = cls.build_test_loader, cls.build_evaluator
                    drawing = partial(_build_drawing, cfg)
                    release = accelerator.release_unused_memory
                    results = evaluate_datasets(loading_cfg, test_model, *builders, release, drawing)
        finally:
            waiting.remove()
        if comm.is_main_process() and results:
            by_dataset = results if len(cfg.DATASETS.TEST) > 1 else {cfg.DATASETS.TEST[0]: results}
            logger.info("Scores in percent:\n%s", format_scores(by_dataset))
            is_last = not has_event_storage() or get_event_storage().iter >= cfg.SOLVER.MAX_ITER
            show_scores(by_dataset, cfg.OUTPUT_DIR, classes=is_last)
            if not has_event_storage():
                append_scores(os.path.join(cfg.OUTPUT_DIR, "metrics.json"), results)
                conclude(cfg, accelerator)
        return results

    def resume_or_load(self, resume: bool = True) -> None:
        """Detectron2's; half-written checkpoints that a killed run left are removed."""
        if comm.is_main_process():
            remove_partial_files(self.cfg.OUTPUT_DIR)
        super().resume_or_load(resume)
        if self.start_iter == 0:
            self._run_state.note_start(self.cfg.OUTPUT_DIR, resume)

    def train(self) -> Any:
        """Detectron2's training, which SIGTERM and SIGINT end after the step, with a checkpoint.

        Returns:
            The last scores, on the main process.

        Raises:
            Interrupted: one of them did; unless it is caught, the process exits with 143 or 130.
            RunError: the last scores are not those of ``TEST.EXPECTED_RESULTS``.
        """
        with REQUESTS.listening():
            REQUESTS.stop_flag = self.stop_flag
            try:  # DefaultTrainer's own ends the process without a word where TEST.EXPECTED_RESULTS are not met
                super(DefaultTrainer, self).train(self.start_iter, self.max_iter)
            finally:
                REQUESTS.stop_flag = None
                self._trainer.release_data()
        if not comm.is_main_process():
            return None
        check_expected_results(self.cfg.TEST.EXPECTED_RESULTS, self._last_eval_results)
        return self._last_eval_results

    def _evaluate(self) -> dict[str, Any]:
        """Scores of the weights and, under "ema", of their average."""
        results = self.test(self.cfg, self.model)
        if self.average is not None:
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "ema")  # the predictions of both are kept
            cfg.freeze()
            SCREEN.info("The same with the moving average of the weights:")
            with self.average.in_place():
                averaged = self.test(cfg, self.model)
            results = {**results, "ema": averaged} if averaged else results
        self._last_eval_results = results
        if comm.is_main_process() and self.cfg.DATASETS.TEST:
            self._write_pictures()
        return results

    def _write_pictures(self) -> None:
        if not self._picture_writers:
            return
        try:
            drawn = self._pictures.draw(self.model)
        except Exception as error:  # scores are there; a picture is not worth a training
            logger.warning("Validation pictures (LOG.PICTURES) cannot be drawn: %s: %s", type(error).__name__, error)
            return
        for writer in self._picture_writers:
            writer.write_pictures(drawn)

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Add hooks, None left out, after those that there are."""
        super().register_hooks(hooks)
        self.hooks += [hook for hook in hooks if hook is not None]

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, after ours for the accelerator, and before what the log may need beside them.

        Those that save and evaluate are ours: they outlive a full disk, heed signals, and know the average.
        """
        solver, loader = self.cfg.SOLVER, self._trainer.data_loader
        self._resumable_writers: dict[str, ResumableWriter | Tracker] = {}
        self._run_state = RunState(self.accelerator, loader, self._resumable_writers)
        check_installed(self.cfg.LOG.WRITERS)
        skips = isinstance(loader, TrainLoader) and loader.max_bad_images is not None
        hooks: list[HookBase | None] = [
            AcceleratorHook(self.accelerator, images_per_step=solver.IMS_PER_BATCH),
            LossWatch(self.optimizer, max_iter=solver.MAX_ITER),
            build_annealing(self.cfg, self.checkpointer.model),
            self.average,
            BadImageReport(loader) if skips else None,
        ]
        for hook in super().build_hooks():
            if isinstance(hook, EvalHook):
                hooks += self._save_and_evaluate()
            elif isinstance(hook, detectron2_hooks.LRScheduler):
                hooks.append(LRScheduler())
            elif not isinstance(hook, PeriodicCheckpointer):
                hooks.append(hook)
        if self.cfg.LOG.TCAPPDLL_LINES and comm.is_main_process():
            writer = TcappdllWriter(self.cfg.OUTPUT_DIR, images_per_step=solver.IMS_PER_BATCH)
            self._resumable_writers["tcappdll"] = writer
            hooks.append(PeriodicWriter([writer], period=1))
        report = RunReport(self.cfg) if comm.is_main_process() else None
        return [*hooks, HistoryHook(), report, self._run_state]

    def _save_and_evaluate(self) -> list[HookBase]:
        """In every process, for each has a state to save."""
        solver, test = self.cfg.SOLVER, self.cfg.TEST
        saving = SavingHook(self.checkpointer, solver.CHECKPOINT_PERIOD, self.stop_flag, solver.SAVE_RETRY_SECONDS)
        evaluation = EvalHook(test.EVAL_PERIOD, self._evaluate)
        if not test.BEST_METRIC:
            return [saving, evaluation]
        return [saving, evaluation, BestCheckpoint(self.checkpointer, test.BEST_METRIC, test.EVAL_PERIOD)]

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, the files of which a full disk or a lost folder does not end the training by."""
        folder = self.cfg.OUTPUT_DIR
        metrics = self._resumable_writers["metrics"] = MetricsWriter(os.path.join(folder, "metrics.json"))
        self._picture_writers = [] if "tensorboard" not in self.cfg.LOG.WRITERS else [EventFileWriter(folder)]
        for name in TRACKERS.keys() & set(self.cfg.LOG.WRITERS):
            tracker = TRACKERS[name](folder, dict(flatten(self.cfg)))
            self._resumable_writers[name] = tracker
            self._picture_writers.append(tracker)
        return [CommonMetricPrinter(self.max_iter), metrics, *self._picture_writers]

    def after_step(self) -> None:
        """Run the hooks, and note which one runs: a checkpoint that it saves says so."""
        self._run_after_step(self.hooks)

    def finish_iteration(self, saved_by: str) -> None:
        """In a resumed run: what the hooks after that of the class ``saved_by``, if any, did in its iteration."""
        names = [type(hook).__qualname__ for hook in self.hooks]
        if saved_by in names:
            self.iter = self.storage.iter = self.start_iter - 1
            self._run_after_step(self.hooks[names.index(saved_by) + 1 :])
            self.iter = self.storage.iter = self.start_iter

    def _run_after_step(self, hooks: list[HookBase]) -> None:
        self._last_finished = self.iter
        for hook in hooks:
            self.running_hook = type(hook).__qualname__
            hook.after_step()
        self.running_hook = ""

    def after_train(self) -> None:
        """Run the hooks; whatever one of them raises, the others close their files.

        A run that was resumed after its last step ends at the same iteration as any other.
        """
        self.iter = self.storage.iter = min(self.iter, self.max_iter)
        with contextlib.ExitStack() as stack:
            for hook in reversed(self.hooks):
                stack.callback(hook.after_train)

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, with the last iteration whose step was made, also after the loop has ended."""
        return {**super().state_dict(), "iteration": self._last_finished}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Detectron2's, but schedule and hyperparameters stay as they are configured.

        Raises:
            InputError: the checkpoint is of another optimiser, or of an iteration after the last.
        """
        configured = configured_schedule(self.scheduler)
        super().load_state_dict(state_dict)
        if self.iter >= self.max_iter:
            raise InputError(
                f"SOLVER.MAX_ITER is {self.max_iter}, but {self.iter + 1} iterations of the run that is resumed are "
                "done: set it to as many or more, or start anew without --resume."
            )
        go_on_as_configured(self.scheduler, configured)
        self._last_finished = self.iter


def _build_drawing(cfg: CfgNode, dataset_name: str) -> Draw:
    from maskformer.reports.comparison import Comparison  # here: importing the package loads no Matplotlib

    return Comparison(dataset_name, num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, image_format=cfg.INPUT.FORMAT)
