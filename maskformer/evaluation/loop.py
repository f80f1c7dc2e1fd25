"""Evaluation on each dataset of ``DATASETS.TEST``, which goes on where an earlier one of the same was interrupted."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from maskformer.files import json_text
from maskformer.kernels import import_loops
from maskformer.structures import SCREEN, InputError, RunError

from .evaluator import ImageByImageEvaluators
from .journal import Journal, tidy_partial_results
from .kept import Draw

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10  # between lines on the screen
# Parts of the configuration that the results of an image depend on, less what changes nothing in them.
_PARTS = ("MODEL", "INPUT", "TEST")
_WITHOUT_EFFECT = {"WEIGHTS", "RESUME", "EVAL_PERIOD", "EXPECTED_RESULTS"}  # of the weights, the values count


def check_evaluation(
    cfg: CfgNode,
    build_loader: Callable[..., Iterable[list[dict[str, Any]]]],
    build_evaluator: Callable[[CfgNode, str], DatasetEvaluator],
) -> None:
    """Build all that evaluating needs, and let go of it, so that what is wrong is known before hours of training.

    Every process does, for each reads the truth later. Images and labels are looked for but not opened.

    Args:
        cfg: the whole config.
        build_loader: see ``evaluate_datasets``.
        build_evaluator: likewise.

    Raises:
        InputError: a dataset of ``DATASETS.TEST`` cannot be loaded or measured.
    """
    for name in cfg.DATASETS.TEST:
        build_evaluator(cfg, name)
        build_loader(cfg, name)
        # A subclass of the trainer may evaluate what is not registered.
        for record in DatasetCatalog.get(name) if name in DatasetCatalog else ():
            for key in ("file_name", "sem_seg_file_name", "pan_seg_file_name"):
                if key in record and not PathManager.isfile(record[key]):
                    raise InputError(
                        f"{record[key]} ({key}) does not exist but the dataset {name} names it; restore it, or change "
                        "DATASETS.TEST."
                    )


def evaluate_datasets(
    cfg: CfgNode,
    model: nn.Module,
    build_loader: Callable[..., Iterable[list[dict[str, Any]]]],
    build_evaluator: Callable[[CfgNode, str], DatasetEvaluator],
    release_memory: Callable[[], None],
    build_drawing: Callable[[str], Draw] | None = None,
) -> dict[str, Any]:
    """Detectron2's loop over datasets, with partial results on disk.

    Our own evaluators write what they measure of each image under ``OUTPUT_DIR/inference/DATASET`` as they go. With
    ``TEST.RESUME``, images that were measured before are not even read; the scores are those of an evaluation that was
    never interrupted, whatever the number of processes then and now.

    Args:
        cfg: the whole config.
        model: as it is evaluated.
        build_loader: (cfg, dataset name, indices of the images to leave out) -> batches.
        build_evaluator: (cfg, dataset name) -> evaluator.
        release_memory: gives what the device no longer needs back, after each dataset.
        build_drawing: (dataset name) -> what draws the worst and best images; None: they are not drawn.

    Returns:
        Scores by kind of result and metric; of several datasets, by their names first. On the main process only.
    """
    results: dict[str, Any] = OrderedDict()
    for name in cfg.DATASETS.TEST:
        evaluator = build_evaluator(cfg, name)
        journal = _keep_journal(cfg, model, name, evaluator, build_drawing)
        loader = build_loader(cfg, name, frozenset() if journal is None else journal.done)
        results[name] = inference_on_dataset(model, WatchedLoader(loader, name), evaluator)
        if comm.is_main_process():
            logger.info("Evaluation results for %s in csv format:", name)
            print_csv_format(results[name])
        del evaluator, loader, journal
        gc.collect()
        release_memory()  # else a training keeps what its evaluations needed
    return next(iter(results.values())) if len(results) == 1 else results


class WatchedLoader:
    """A loader of an evaluation that says on the screen how far it is.

    Args:
        loader: of this process; all processes have one, of about as many images.
        name: of the dataset.
    """

    def __init__(self, loader: Any, name: str):
        self._loader = loader
        self._name = name

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        processes, start = comm.get_world_size(), time.monotonic()
        total, said, done = sum(comm.all_gather(len(self))), start, 0
        SCREEN.info("evaluating %d images of %s", total, self._name)
        for batch in self._loader:
            yield batch
            done, now = min(done + processes, total), time.monotonic()
            if now - said >= PROGRESS_SECONDS or done == total:
                said, speed = now, done / max(now - start, 1e-6)
                left = tqdm.format_interval((total - done) / speed)
                SCREEN.info("image %*d of %d   %.1f images/s   %s left", len(str(total)), done, total, speed, left)


def _keep_journal(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    evaluator: DatasetEvaluator,
    build_drawing: Callable[[str], Draw] | None,
) -> Journal | None:
    """A journal that is given to the evaluator; None where it cannot keep one."""
    if not isinstance(evaluator, ImageByImageEvaluators) or evaluator.output_folder is None:
        return None
    of_main = fingerprint(cfg, model, _describe_dataset(dataset_name)) if comm.is_main_process() else ""
    common = comm.all_gather(of_main)[0]
    journal = Journal(evaluator.output_folder, common, resume=cfg.TEST.RESUME)
    evaluator.keep_in(journal, None if build_drawing is None else build_drawing(dataset_name))
    if comm.is_main_process():
        _report(journal, dataset_name, tidy_partial_results(evaluator.output_folder))
    return journal


def _report(journal: Journal, dataset_name: str, unfinished: int) -> None:
    if journal.done:
        SCREEN.info(
            "Going on with an interrupted evaluation on %s: %d images were measured before, with the same weights, "
            "configuration, data and code (%s). TEST.RESUME False would measure all of them again.",
            dataset_name, len(journal.done), journal.folder,
        )  # fmt: skip
    elif unfinished > 1:
        logger.info(
            "%s holds partial results of %d other evaluations, of other weights, configuration, data or code. They are "
            "not used here; after a week they are removed.", journal.folder.parent, unfinished - 1,
        )  # fmt: skip


def fingerprint(cfg: CfgNode, model: nn.Module, facts: Iterable[Any] = ()) -> str:
    """What the results of images depend on: settings, code and weights.

    Args:
        cfg: the whole config.
        model: as it is evaluated; its values count, not the file that they came from.
        facts: what they depend on besides; each has a ``repr`` of its value.

    Returns:
        24 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=12)
    for part in _PARTS:
        digest.update(repr({key: value for key, value in cfg[part].items() if key not in _WITHOUT_EFFECT}).encode())
    has_loops = import_loops() is not None  # PyTorch's operators round otherwise
    for fact in (torch.__version__, detectron2.__version__, str(has_loops)):
        digest.update(fact.encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    for fact in facts:
        digest.update(repr(fact).encode())
    for tensor in model.state_dict().values():
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _describe_dataset(name: str) -> Iterator[Any]:
    """Facts that change when an image, a label or their order does; no file is opened."""
    records = DatasetCatalog.get(name)  # first: Detectron2 completes the metadata as it reads
    yield {key: _describe_value(value) for key, value in MetadataCatalog.get(name).as_dict().items()}
    for record in records:
        yield {key: _describe_value(value) for key, value in record.items() if not isinstance(value, (list, dict))}


def _describe_value(value: Any) -> Any:
    """A value that is a file with its size and time."""
    if not isinstance(value, str) or not os.path.isfile(value):
        return value
    status = os.stat(value)
    return value, status.st_size, status.st_mtime_ns


def format_scores(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for people, of everything but the scores of single classes.

    Args:
        results: dataset -> kind of result -> metric -> score; names with "-" are of single classes.
    """
    rows = [
        (dataset, kind, metric, score)
        for dataset, kinds in results.items()
        for kind, scores in kinds.items()
        for metric, score in scores.items()
        if "-" not in metric
    ]
    return tabulate(rows, headers=("dataset", "result", "metric", "score"), tablefmt="pipe", floatfmt=".2f")


def append_scores(path: str, results: Mapping[str, Any]) -> None:
    """Append one line of JSON, with the names that scores have in a training's ``metrics.json``; NaN is null.

    Args:
        path: the file, created where it is missing.
        results: nested by dataset (where there are several), kind of result and metric.
    """
    scores = {name: float(score) for name, score in flatten_results_dict(results).items()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_text(dict(sorted(scores.items()))) + "\n")


def check_expected_results(expected: Sequence[Sequence[Any]], results: Mapping[str, Any]) -> None:
    """Hold scores to ``TEST.EXPECTED_RESULTS``.

    Args:
        expected: rows of [task, metric, score, tolerance]; with several datasets a task is "DATASET/task".
        results: as for ``append_scores``.

    Raises:
        RunError: a score is missing, not finite, or further away than the tolerance.
    """
    scores = flatten_results_dict(results)
    for task, metric, score, tolerance in expected:
        actual = scores.get(f"{task}/{metric}")
        if actual is None or not abs(actual - score) <= tolerance:
            raise RunError(
                f"TEST.EXPECTED_RESULTS expects {task} {metric} to be {score} within {tolerance}, but the evaluation "
                f"gave {'none' if actual is None else actual} (scores: {', '.join(scores) or 'none'})."
            )
