"""What a run says of itself: on the screen, a few lines each; in ``run.json``, for the report; and the report."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import platform
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from maskformer.config import default_config
from maskformer.data.checks.verification import NUM_IMAGES
from maskformer.runs.record import add_to_record, start_record
from maskformer.structures import SCREEN, printable

from .accelerator import Accelerator
from .hooks.reports import MEGABYTE
from .test_time import innermost

logger = logging.getLogger(__name__)

PERIOD = 20  # iterations from one line to the next; losses are medians of as many
CLASS_SCORES = {"sem_seg": "IoU", "panoptic_seg": "PQ", "segm": "AP"}  # of single classes, on the screen
CLASSES_A_COLUMN, MOST_COLUMNS, LONGEST_NAME = 40, 3, 24  # of their table


def introduce(cfg: CfgNode, args: Namespace) -> None:
    """Say what begins, and write it into ``run.json``; for the main process.

    Args:
        cfg: with the device resolved.
        args: what ``build_argument_parser`` parsed.
    """
    accelerator = Accelerator(cfg.MODEL.DEVICE)
    accelerator.select(comm.get_local_rank())
    version = getattr(sys.modules["maskformer"], "__version__", "")
    facts = {
        "kind": "evaluation" if args.eval_only else "training",
        "config_file": args.config_file,
        "changed": changed_keys(cfg),
        "device": accelerator.describe()["device"],
        "processes": comm.get_world_size(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "detectron2": detectron2.__version__,
            "maskformer": version,
        },
        "weights": cfg.MODEL.WEIGHTS,
        "iterations": cfg.SOLVER.MAX_ITER,
        **({"command": args.command} if "command" in args else {}),
    }
    start_record(cfg.OUTPUT_DIR, facts, resumes=args.resume and not args.eval_only)
    SCREEN.info("MaskFormer %s, %s: %s", version, facts["kind"], args.config_file or "the default configuration")
    processes = f", {facts['processes']} processes" if facts["processes"] > 1 else ""
    _say("device", f"{facts['device']}{processes}")
    _say("results", f"{cfg.OUTPUT_DIR}, where log.txt has every detail")
    if args.eval_only:
        _say("weights", f"the last checkpoint there, else {cfg.MODEL.WEIGHTS}" if args.resume else cfg.MODEL.WEIGHTS)


def changed_keys(cfg: CfgNode) -> dict[str, list[Any]]:
    """The keys that differ from their defaults: [default, value] of each."""
    defaults = dict(flatten(default_config()))
    return {key: [defaults.get(key), value] for key, value in flatten(cfg) if value != defaults.get(key)}


def flatten(node: Mapping[str, Any], beginning: str = "") -> Iterator[tuple[str, Any]]:
    """Each whole key of a configuration with its value."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{beginning}{name}.")
        else:
            yield f"{beginning}{name}", list(value) if isinstance(value, tuple) else value


def _say(title: str, text: str) -> None:
    SCREEN.info("  %-12s %s", title, text)


def say_data_and_model(cfg: CfgNode, model: nn.Module, *, training: bool) -> None:
    """Say what is trained or evaluated, on what data, and write it into ``run.json``; for the main process.

    Args:
        cfg: the whole config.
        model: may be one that several processes train.
        training: whether it is.
    """
    train, test = cfg.DATASETS.TRAIN if training else (), cfg.DATASETS.TEST
    model = innermost(model)
    architecture, parameters = type(model).__name__, sum(parameter.numel() for parameter in model.parameters())
    data = [{"dataset": name, "images": NUM_IMAGES.get(name)} for name in (*train, *test)]
    add_to_record(cfg.OUTPUT_DIR, data=data, model={"architecture": architecture, "parameters": parameters})
    if train:
        _say("training", _with_sizes(train))
    period = cfg.TEST.EVAL_PERIOD
    when = f", every {period} iterations and at the end" if training and period else ""
    _say("testing", _with_sizes(test) + when if test else "nothing (DATASETS.TEST is empty)")
    classes = f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES} classes"
    backbone = f" on {type(model.backbone).__name__}" if hasattr(model, "backbone") else ""
    _say("model", f"{architecture}{backbone}: {parameters / 1e6:.1f} M parameters, {classes}")


def _with_sizes(names: Sequence[str]) -> str:
    sizes = ((name, NUM_IMAGES.get(name)) for name in names)
    return "; ".join(name if size is None else f"{name}, {size} images" for name, size in sizes)


class RunReport(HookBase):
    """Says on the screen what is trained and how far it is, keeps ``run.json``, and has the report written at the end.

    It is for the main process, after the hooks that evaluate and write.

    Args:
        cfg: the whole config.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    def before_train(self) -> None:
        """Say what is trained."""
        cfg, trainer = self.cfg, self.trainer
        say_data_and_model(cfg, trainer.model, training=True)
        random = "none: it starts from random numbers"
        resumed = f"resumed after iteration {trainer.start_iter}"
        _say("weights", resumed if trainer.start_iter else cfg.MODEL.WEIGHTS or random)
        rate = max(group.get("initial_lr", group["lr"]) for group in trainer.optimizer.param_groups)
        images = sum(NUM_IMAGES.get(name, 0) for name in cfg.DATASETS.TRAIN)
        epochs = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / images if images else math.nan
        _say(
            "schedule",
            f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images, {epochs:.1f} epochs; "
            f"{type(trainer.optimizer).__name__} at {rate:g}, {cfg.SOLVER.LR_SCHEDULER_NAME}"
            + (", mixed precision" if cfg.SOLVER.AMP.ENABLED else ""),
        )

    def after_step(self) -> None:
        """Say how far it is: at the first step, which shows that it runs, and at every ``PERIOD``-th."""
        done, total = self.trainer.iter + 1, self.trainer.max_iter
        if done % (self.cfg.SOLVER.CHECKPOINT_PERIOD or total) == 0:
            add_to_record(self.cfg.OUTPUT_DIR)  # the seconds so far, of which a resumed run knows if this one is killed
        if done % PERIOD and done not in (self.trainer.start_iter + 1, total):
            return
        latest = self.trainer.storage.latest_with_smoothing_hint(PERIOD)
        loss, rate, speed, memory = (
            latest.get(name, (math.nan, 0))[0] for name in ("total_loss", "lr", "images_per_second", "memory_peak_mb")
        )
        # The first step compiles and warms up: it says nothing of the others.
        seconds = (total - done) * self.cfg.SOLVER.IMS_PER_BATCH / speed if done % PERIOD == 0 and speed > 0 else None
        SCREEN.info(
            "iteration %*d of %d   loss %-7.4g   learning rate %-8.3g   %.1f images/s   %.0f MB%s",
            len(str(total)), done, total, loss, rate, speed, memory,
            "" if seconds is None else f"   {tqdm.format_interval(seconds)} left",
        )  # fmt: skip

    def after_train(self) -> None:
        """Say where everything is, if the training has come to its end."""
        trainer = self.trainer
        finished = trainer.iter >= trainer.max_iter
        if finished:
            _say("model", os.path.join(self.cfg.OUTPUT_DIR, "model_final.pth"))
        conclude(self.cfg, trainer.accelerator, finished=finished)


def conclude(cfg: CfgNode, accelerator: Accelerator, *, finished: bool = True) -> None:
    """Complete ``run.json`` and, of a run that is finished, write the report and say where it is.

    Only of one that ``setup`` has started; for the main process.
    """
    peak = round(accelerator.memory().peak / MEGABYTE, 1)
    if not add_to_record(cfg.OUTPUT_DIR, finished=finished, peak_memory_mb=peak) or not finished:
        return
    _say("results", cfg.OUTPUT_DIR)
    if (report := _write_report(Path(cfg.OUTPUT_DIR))) is not None:
        _say("report", str(report))


def _write_report(folder: Path) -> Path | None:
    try:
        from maskformer.reports.report import write_report  # here: a training that is not at its end needs none of it

        return write_report(folder)
    except Exception as error:  # the run has its results, whatever the report stumbles over
        logger.warning("%s could not be written (%s: %s).", folder / "report.html", type(error).__name__, error)
        return None


def show_scores(results: Mapping[str, Mapping[str, Any]], folder: str, *, classes: bool) -> None:
    """Show scores on the screen, each kind of result in a line.

    Args:
        results: dataset -> kind of result -> metric -> score in percent; names with "-" are of single classes.
        folder: OUTPUT_DIR, where our evaluators have written what they found.
        classes: whether to show a table of classes too.
    """
    for dataset, kinds in results.items():
        table = format_class_scores(Path(folder, "inference", dataset, "evaluation.json")) if classes else ""
        if table:
            SCREEN.info("Classes of %s, in percent:\n%s", dataset, table)
        SCREEN.info("Scores on %s, in percent:", dataset)
        for kind, scores in kinds.items():
            shown = (f"{name} {score:.2f}" for name, score in scores.items() if "-" not in name)
            _say(kind, "   ".join(shown))


def format_class_scores(file: Path) -> str:
    """A table of the main score of each kind of result by class; "" where there are none.

    Args:
        file: ``evaluation.json`` of a dataset; see ``maskformer.evaluation.results``.
    """
    try:
        per_class = json.loads(file.read_text(encoding="utf-8")).get("per_class", {})
    except OSError:  # evaluators of others write none
        return ""
    kinds = {kind: metric for kind, metric in CLASS_SCORES.items() if per_class.get(kind)}
    rows: dict[tuple[str, int], dict[str, float]] = {}  # by name, and how often that came before: two may have one
    for kind, metric in kinds.items():
        seen: Counter[str] = Counter()
        for row in per_class[kind]:
            score = row.get(metric)
            rows.setdefault((row["class"], seen[row["class"]]), {})[metric] = math.nan if score is None else score
            seen[row["class"]] += 1
    cells = [[_short(name), *(row.get(metric) for metric in kinds.values())] for (name, _), row in rows.items()]
    height = max(CLASSES_A_COLUMN, -(-len(cells) // MOST_COLUMNS))
    columns = [cells[start : start + height] for start in range(0, len(cells), height)]
    lines = [[cell for row in line for cell in row or ()] for line in itertools.zip_longest(*columns)]
    headers = ["class", *kinds.values()] * len(columns)
    names = list(range(0, len(headers), 1 + len(kinds)))  # "1e3" is no number
    layout = {"tablefmt": "simple", "floatfmt": ".2f", "missingval": "", "disable_numparse": names}
    return tabulate(lines, headers=headers, **layout) if lines else ""


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
