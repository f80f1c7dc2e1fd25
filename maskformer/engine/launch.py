"""From a command line to a run: arguments, configuration, logging, processes, and one line for a user's mistake."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessRaisedException

from maskformer.config import load_config
from maskformer.data.catalog import register_all
from maskformer.data.catalog.own import register_own
from maskformer.engine.accelerator import Accelerator, resolve_device
from maskformer.engine.processes import run_in_processes
from maskformer.own_datasets import read_own_datasets
from maskformer.structures import InputError

EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130  # what a shell gives for Ctrl-C

_EXAMPLES = """
Examples:

Train, and evaluate on the way and at the end; results go to OUTPUT_DIR:
    $ python train_net.py --config-file configs/shapes/maskformer_panoptic.yaml OUTPUT_DIR output/shapes

Go on with a run that was interrupted:
    $ python train_net.py --resume --config-file FILE OUTPUT_DIR output/shapes

Train in several processes, one for each device of this machine; or let torchrun start them, on several machines too:
    $ python train_net.py --config-file FILE --num-gpus 8
    $ torchrun --nproc-per-node 8 train_net.py --config-file FILE

Evaluate weights:
    $ python train_net.py --eval-only --config-file FILE MODEL.WEIGHTS output/shapes/model_final.pth

Change any key of the configuration:
    $ python train_net.py --config-file FILE MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.0001
"""

_REPORTED_PACKAGES = ("detectron2", "torch", "torchvision", "numpy", "pillow", "opencv-python-headless", "pycocotools")

# Detectron2 builds by these names; its own errors for an unknown one do not list the valid ones.
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
_SCHEDULES = ["WarmupCosineLR", "WarmupMultiStepLR", "WarmupPolyLR", "WarmupStepWithFixedGammaLR"]


def build_argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments, with our examples in the help."""
    return default_argument_parser(epilog=_EXAMPLES)


def setup(args: argparse.Namespace) -> CfgNode:
    """Prepare a run: configuration, device, datasets, output folder, logs and seed.

    Args:
        args: what ``build_argument_parser`` parsed.

    Returns:
        The frozen config, with the device resolved.

    Raises:
        InputError: a mistake in the configuration.
    """
    cfg = load_config(args.config_file, args.opts)
    _check_names(cfg)
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    register_datasets(cfg)
    _start_logs(cfg, args)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    accelerator = Accelerator(cfg.MODEL.DEVICE)
    accelerator.search_convolutions(cfg.CUDNN_BENCHMARK and not args.eval_only)
    if cfg.SOLVER.DETERMINISTIC:
        accelerator.be_deterministic()
    # Detectron2's loop logs the traceback of whatever stops it; a user's mistake is told in one line, by `run`.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_input_error)
    return cfg


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
        The exit code: 0; 2 after a user's mistake, of which one line is then on the standard error; 130 after Ctrl-C.
    """
    try:
        device = resolve_device(load_config(args.config_file, args.opts).MODEL.DEVICE)
        run_in_processes(main, args, device)
    except (InputError, ProcessRaisedException) as error:
        sentence = input_error_sentence(error)
        if sentence is None:
            raise
        sys.stderr.write(f"error: {sentence}\n")
        return EXIT_INPUT_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    return 0


def input_error_sentence(error: BaseException) -> str | None:
    """The sentence of an ``InputError``, also of one that another process (data worker, rank) raised.

    Args:
        error: what was caught. From another process, its message holds that process's traceback.

    Returns:
        The sentence, or None if the error is none of the user's.
    """
    if not isinstance(error, (InputError, ProcessRaisedException)):
        return None
    marker = f"{InputError.__module__}.{InputError.__qualname__}: "
    _, found, sentence = str(error).rpartition(marker)
    return sentence.strip() if found or isinstance(error, InputError) else None


def _is_no_input_error(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or input_error_sentence(error) is None


def _start_logs(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What Detectron2's ``default_setup`` logs and saves, less its report on CUDA: an accelerator's hook reports."""
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    rank = comm.get_rank()
    for name in ("fvcore", "detectron2", "maskformer"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    logger = logging.getLogger(__name__)
    logger.info("Rank %d of %d processes; %s", rank, comm.get_world_size(), platform.platform())
    logger.info("Packages: %s", ", ".join(f"{name} {_installed_version(name)}" for name in _REPORTED_PACKAGES))
    logger.info("Arguments: %s", args)
    logger.info("Configuration:\n%s", cfg.dump())
    if comm.is_main_process():
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w", encoding="utf-8") as file:
            file.write(cfg.dump())


def _installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _check_names(cfg: CfgNode) -> None:
    valid = {key: sorted(name for name, _ in registry) for key, registry in _REGISTRIES.items()}
    valid["SOLVER.LR_SCHEDULER_NAME"] = _SCHEDULES
    for key, names in valid.items():
        value = functools.reduce(CfgNode.__getitem__, key.split("."), cfg)
        if value not in names:
            raise InputError(f"{key} is {value!r}, expected one of {', '.join(names)}.")
