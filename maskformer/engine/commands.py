"""Training and evaluation: what ``train_net.py`` runs, and the same for Python code and notebooks."""

from __future__ import annotations

import argparse
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from maskformer.checkpoint import Checkpointer
from maskformer.config import as_options
from maskformer.evaluation import check_expected_results
from maskformer.runs.launch import build_argument_parser, process_as_it_was
from maskformer.runs.output_folder import release_output_folder
from maskformer.runs.signals import REQUESTS, Interrupted

from .setup import CHANGED_LOGGERS, end_logs, setup
from .trainer import Trainer


def train_or_evaluate(args: argparse.Namespace) -> Any:
    """Do what the command line asks for, in one process.

    Args:
        args: what ``build_argument_parser`` parsed.

    Returns:
        Scores by task and metric, where something was evaluated; on the main process.
    """
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        Checkpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            check_expected_results(cfg.TEST.EXPECTED_RESULTS, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


_ONE_AT_A_TIME = threading.Lock()  # a run has the process's loggers, flags and Detectron2's storage of events


@dataclass(frozen=True)
class Outcome:
    """What a training or an evaluation left.

    Attributes:
        scores: in percent, by kind of result and metric; of several datasets, by their names first.
        output: the folder with all results; ``maskformer.load`` takes that of a training.
        report: the page in it, for a browser; None: it could not be written.
    """

    scores: dict[str, Any]
    output: Path
    report: Path | None


def train(
    config: str | Path,
    data: str | Path = "",
    *,
    output: str | Path,
    resume: bool = False,
    device: str = "auto",
    **keys: Any,
) -> Outcome:
    """Train a model in this process, as ``train_net.py`` does; a notebook may do so any number of times.

    Of several threads, one trains or evaluates at a time, and the others wait.

    Args:
        config: the model's configuration file.
        data: a file whose ``DATASETS`` say what it is trained on; "": the configuration's.
        output: the folder for all results, OUTPUT_DIR.
        resume: go on with the training that is there.
        device: cpu, cuda, ...; "auto": an accelerator, else the CPU.
        **keys: changes of the configuration, with a double underscore for each point: ``SOLVER__MAX_ITER=500``.

    Raises:
        InputError: something is not there, does not fit, or makes no sense; the message says which key to change.
        KeyboardInterrupt: it was interrupted, and has saved a checkpoint; ``resume=True`` goes on.
    """
    return _run(["--resume"] if resume else [], config, data, output, device, keys)


def evaluate(
    config: str | Path,
    weights: str | Path,
    data: str | Path = "",
    *,
    output: str | Path,
    device: str = "auto",
    **keys: Any,
) -> Outcome:
    """Measure a model on ``DATASETS.TEST``, as ``train_net.py --eval-only`` does.

    Args:
        config: the model's configuration file.
        weights: its weights, MODEL.WEIGHTS.
        data: as for ``train``.
        output: as for ``train``.
        device: as for ``train``.
        **keys: as for ``train``.

    Raises:
        InputError: see ``train``.
    """
    return _run(["--eval-only"], config, data, output, device, {"MODEL.WEIGHTS": os.path.expanduser(weights), **keys})


def _run(
    mode: list[str], config: str | Path, data: str | Path, output: str | Path, device: str, keys: dict[str, Any]
) -> Outcome:
    output = Path(output).expanduser()
    words = [*mode, "--config-file", os.path.expanduser(config)]
    words += ["--data", os.path.expanduser(data)] if data else []
    args = build_argument_parser().parse_args(words)
    args.opts = as_options({"MODEL.DEVICE": device, "OUTPUT_DIR": output, **keys})
    args.command = ["train_net.py", *words, *map(str, args.opts)]
    with _ONE_AT_A_TIME, process_as_it_was(CHANGED_LOGGERS):
        try:
            with REQUESTS.listening():
                scores = train_or_evaluate(args)
        except Interrupted as error:  # which would end a notebook's process
            raise KeyboardInterrupt("interrupted; resume=True goes on with a training") from error
        finally:
            release_output_folder(os.fspath(output))
            end_logs()
            logging.captureWarnings(False)
    report = output / "report.html"
    return Outcome(scores=_plain(scores or {}), output=output, report=report if report.is_file() else None)


def _plain(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores as Python's own dictionaries and numbers."""
    return {key: _plain(value) if isinstance(value, Mapping) else float(value) for key, value in scores.items()}
