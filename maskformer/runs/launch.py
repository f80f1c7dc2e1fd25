"""From a command line to a run: arguments, configuration, logging, processes, and one line for a user's mistake."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from maskformer.checkpoint import refuse_unknown_weights
from maskformer.config import load_config
from maskformer.config.own_datasets import read_own_datasets
from maskformer.data.datasets import register_all
from maskformer.data.datasets.own import register_own
from maskformer.engine.accelerator import Accelerator, resolve_device
from maskformer.structures import ESCAPING, InputError, RunError

from .failures import EXIT_RUN_ERROR, end_workers_that_cannot_deliver, explain
from .output_folder import keep_logging, lock_output_folder
from .processes import run_in_processes
from .signals import REQUESTS, Interrupted

EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130  # what a shell gives for Ctrl-C
EXIT_TERMINATED = 143  # and for SIGTERM

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

_LOGGERS = ("fvcore", "detectron2", "maskformer")
_REPORTED_PACKAGES = (
    "detectron2",
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "pillow",
    "opencv-python-headless",
    "pycocotools",
)


def build_argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments, with our examples in the help."""
    parser = default_argument_parser(epilog=_EXAMPLES)
    parser.set_defaults(dist_url="auto")  # not the one port of each user: a second run on the machine needs another
    return parser


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
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    if args.resume:
        refuse_unknown_weights(cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS)
    register_datasets(cfg)
    _start_logs(cfg, args)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    accelerator = Accelerator(cfg.MODEL.DEVICE)
    accelerator.search_convolutions(cfg.CUDNN_BENCHMARK and not args.eval_only)
    if not args.eval_only:  # large pictures would leave gaps that smaller ones cannot use
        accelerator.keep_freed_memory()
    if cfg.SOLVER.DETERMINISTIC:
        accelerator.be_deterministic()
    end_workers_that_cannot_deliver()
    # Detectron2's loop logs the traceback of whatever stops it; what can be told in one line, `run` tells.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_unexplained)
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
        The exit code: 0; 2 after a user's mistake and 3 after a failure of the surroundings, of which one line is then
        on the standard error; 130 after Ctrl-C, 143 after SIGTERM (see ``interruption``).
    """
    try:
        with REQUESTS.listening():
            device = resolve_device(load_config(args.config_file, args.opts).MODEL.DEVICE)
            run_in_processes(main, args, device)
    except (InputError, RunError, ProcessRaisedException, ProcessExitedException) as error:
        exit_code = _report(error)
        if exit_code is None:
            raise
        return exit_code
    except Interrupted as error:
        return _interrupted(128 + error.signal_number)
    except KeyboardInterrupt:
        return _interrupted(EXIT_INTERRUPTED)
    return 0


def _report(error: Exception) -> int | None:
    """Write what happened in a line; the exit code that says so, or None of an error that nobody expects."""
    if isinstance(error, ProcessExitedException):
        # Negative: ended by the signal itself, before it listened.
        exit_code = error.exit_code if error.exit_code >= 0 else 128 - error.exit_code
        if exit_code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            return _interrupted(exit_code)
    sentences = {EXIT_INPUT_ERROR: input_error_sentence(error), EXIT_RUN_ERROR: run_error_sentence(error)}
    for exit_code, sentence in sentences.items():
        if sentence is not None:
            sys.stderr.write(f"error: {sentence}\n")
            return exit_code
    return None


def _interrupted(exit_code: int) -> int:
    sys.stderr.write("interrupted\n")
    return exit_code


def input_error_sentence(error: BaseException) -> str | None:
    """The sentence of an ``InputError``, also of one that another process (data worker, rank) raised.

    Args:
        error: what was caught. From another process, its message holds that process's traceback.

    Returns:
        The sentence, or None if the error is none of the user's.
    """
    if not isinstance(error, (InputError, ProcessRaisedException)):
        return None
    sentence = _last_sentence(error, (InputError, *InputError.__subclasses__()))
    return str(error).strip() if sentence is None and isinstance(error, InputError) else sentence


def run_error_sentence(error: BaseException) -> str | None:
    """The sentence of a failure that is no mistake of the user's, also of one in another process (rank).

    Args:
        error: what was caught.

    Returns:
        The sentence, or None if the error is no such failure.
    """
    return _last_sentence(error, (RunError,)) if isinstance(error, ProcessRaisedException) else explain(error)


def _last_sentence(error: BaseException, kinds: tuple[type, ...]) -> str | None:
    """What stands last in a message that holds a traceback, if it is an error of one of these kinds."""
    names = "|".join(re.escape(f"{kind.__module__}.{kind.__qualname__}") for kind in kinds)
    *_, last = re.split(rf"^(?:{names}): ", str(error), flags=re.MULTILINE)
    return None if last == str(error) else last.strip()


def _is_unexplained(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or (input_error_sentence(error) is None and run_error_sentence(error) is None)


def _start_logs(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What Detectron2's ``default_setup`` logs and saves, less its report on CUDA: an accelerator's hook reports."""
    rank = comm.get_rank()
    if comm.is_main_process() and not args.eval_only:
        lock_output_folder(cfg.OUTPUT_DIR)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(ESCAPING)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    keep_logging(os.path.join(cfg.OUTPUT_DIR, f"log.txt.rank{rank}" if rank else "log.txt"), _LOGGERS)
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
