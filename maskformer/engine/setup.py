"""From arguments to a run that is ready: configuration, datasets, output folder, logs and seed."""

from __future__ import annotations

import argparse
import logging
import os
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from maskformer.checkpoint import refuse_checkpoints, refuse_unknown_weights
from maskformer.config import load_config
from maskformer.config.own_datasets import read_own_datasets
from maskformer.data.datasets import register_all
from maskformer.data.datasets.own import register_own
from maskformer.runs.failures import end_workers_that_cannot_deliver, find_sentence, report
from maskformer.runs.launch import (
    compute_deterministically,
    is_restarted,
    keep_freed_memory,
    may_be_restarted,
    run_in_processes,
)
from maskformer.runs.output_folder import KeptFile, keep_logging, lock_output_folder
from maskformer.runs.screen import keep_warnings_off_screen, show_on_screen
from maskformer.runs.signals import REQUESTS
from maskformer.structures import ESCAPING

from .accelerator import Accelerator, resolve_device
from .run_report import introduce

_LOGGERS = ("fvcore", "detectron2", "maskformer", "py.warnings")
_LOOP = "detectron2.engine.train_loop"
CHANGED_LOGGERS = (*_LOGGERS, _LOOP)
_REPORTED_PACKAGES = (
    "detectron2", "torch", "torchvision", "numpy", "numba", "pillow", "opencv-python-headless", "pycocotools",
)  # fmt: skip


def setup(args: argparse.Namespace) -> CfgNode:
    """Prepare a run: configuration, device, datasets, output folder, logs and seed.

    Args:
        args: what ``build_argument_parser`` parsed; ``resume`` is set in a training that torchrun has started again.

    Returns:
        The frozen config, with the device resolved.

    Raises:
        InputError: a mistake in the configuration.
    """
    cfg = load_config(args.config_file, args.opts, args.data)
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    if not args.eval_only and not args.resume:
        args.resume = _goes_on_by_itself(cfg)
    if args.resume:
        refuse_unknown_weights(cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS)
    register_datasets(cfg)
    _start_logs(cfg, args)
    if comm.is_main_process():
        introduce(cfg, args)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    if not args.eval_only and cfg.MODEL.DEVICE == "cpu":  # large pictures would leave gaps that smaller ones cannot use
        keep_freed_memory()
    if cfg.SOLVER.DETERMINISTIC:
        compute_deterministically()
    end_workers_that_cannot_deliver()
    # Detectron2's loop logs the traceback of whatever stops it; what can be told in one line, `run` tells.
    logging.getLogger(_LOOP).addFilter(
        lambda record: record.exc_info is None or find_sentence(record.exc_info[1]) is None
    )
    return cfg


def _goes_on_by_itself(cfg: CfgNode) -> bool:
    """Whether torchrun has started this training again; at a first start that it may repeat, the folder is looked at.

    The first checkpoint may not be there when a process is lost: what was there before the start would be gone on from.
    On machines that lost no process, torchrun's count of restarts stays as it was, so that all have to ask each other.
    """
    if any(comm.all_gather(is_restarted())):
        return True
    if may_be_restarted():
        refuse_checkpoints(cfg.OUTPUT_DIR)
        refuse_unknown_weights(cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS)
    return False


def register_datasets(cfg: CfgNode) -> None:
    """Register the datasets under ``$DETECTRON2_DATASETS``, and the user's own, as often as wanted.

    Args:
        cfg: ``DATASETS.OWN`` is read.

    Raises:
        InputError: an own dataset has the name of another.
    """
    register_all(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))  # as Detectron2 does
    register_own(read_own_datasets(cfg.DATASETS.OWN))


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> int:
    """Run ``main(args)``, in as many processes as the arguments, or torchrun, ask for.

    Args:
        main: a function at the top of a module, so that other processes can find it.
        args: what ``build_argument_parser`` parsed.

    Returns:
        The exit code: 0; 2 after a user's mistake and 3 after a failure of the surroundings, of which one line is then
        on the standard error; 130 after Ctrl-C, 143 after SIGTERM (see ``maskformer.runs.signals``).
    """
    keep_warnings_off_screen()
    try:
        with REQUESTS.listening():
            device = resolve_device(load_config(args.config_file, args.opts, args.data).MODEL.DEVICE)
            run_in_processes(main, args, Accelerator(device))
    except BaseException as error:
        if (exit_code := report(error)) is None:
            raise
        return exit_code
    return 0


def end_logs() -> None:
    """Let go of the log file of an earlier run of this process."""
    for logger in map(logging.getLogger, _LOGGERS):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, KeptFile):
                handler.flush()
                logger.removeHandler(handler)
    setup_logger.cache_clear()  # it gives a logger the handlers of a folder once


def _start_logs(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What Detectron2's ``default_setup`` logs and saves, less its report on CUDA: an accelerator's hook reports."""
    rank = comm.get_rank()
    if comm.is_main_process() and not args.eval_only:
        lock_output_folder(cfg.OUTPUT_DIR)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    keep_warnings_off_screen()
    end_logs()
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(ESCAPING)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name, configure_stdout=False)
    keep_logging(os.path.join(cfg.OUTPUT_DIR, f"log.txt.rank{rank}" if rank else "log.txt"), _LOGGERS)
    if comm.is_main_process():
        show_on_screen(_LOGGERS)
    logger = logging.getLogger(__name__)
    logger.info("Rank %d of %d processes; %s", rank, comm.get_world_size(), platform.platform())
    installed = {str(each.name).lower(): each.version for each in metadata.distributions()}
    logger.info("Packages: %s", ", ".join(f"{name} {installed.get(name, 'absent')}" for name in _REPORTED_PACKAGES))
    logger.info("Arguments: %s", args)
    logger.info("Configuration:\n%s", cfg.dump())
    if comm.is_main_process():
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w", encoding="utf-8") as file:
            file.write(cfg.dump())
