"""Loaders over verified datasets and our mappers: our own for training, Detectron2's for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch import Tensor

from maskformer.structures import InputError

from ..checks.verification import verify_dataset
from ..datasets.classes import check_classes, ignore_label_of, read_classes
from ..mappers.table import build_mapper
from .sampling import Sampler, choose_subset
from .train_loader import TrainLoader

logger = logging.getLogger(__name__)


Records = Mapping[str, list[dict[str, Any]]]  # dataset -> its entries

SAMPLERS = (
    "TrainingSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)


def build_train_loader(cfg: CfgNode) -> TrainLoader:
    """Build the endless loader of training batches.

    Images without annotations are trained with: they teach the network to say "no object". Therefore
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` has no effect, whatever the kind of dataset. Without ``SEED``, a seed is
    drawn that all processes share.

    Args:
        cfg: ``DATASETS.TRAIN``, ``INPUT``, ``DATALOADER``, ``SEED`` and ``SOLVER.IMS_PER_BATCH`` are read.

    Returns:
        Lists of examples, ``IMS_PER_BATCH`` over the number of processes each; see ``TrainingMapper``.

    Raises:
        InputError: see ``verify_dataset``, ``build_mapper`` and ``build_repeat_factors``; or a batch that the processes
            cannot share evenly; or datasets whose classes differ.
    """
    mapper = build_mapper(cfg, is_train=True)
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    datasets = {name: verify_dataset(name, num_classes, is_train=True) for name in cfg.DATASETS.TRAIN}
    records = [record for of_dataset in datasets.values() for record in of_dataset]
    _check_same_ignore_label(datasets, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    classes = read_classes(cfg.DATASETS.TRAIN[0], num_classes)
    for name in cfg.DATASETS.TRAIN[1:]:
        check_classes(name, "DATASETS.TRAIN", num_classes, classes)
    world_size = comm.get_world_size()
    _check_batch_size(cfg.SOLVER.IMS_PER_BATCH, world_size)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    logger.info(
        "Training on %d images of %s with %s, in the order that the seed %d gives.",
        len(records), ", ".join(datasets), type(mapper).__name__, seed,
    )  # fmt: skip
    return TrainLoader(
        records,
        mapper,
        Sampler(seed, build_repeat_factors(cfg, datasets, seed)),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        group_by_shape=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        rank=comm.get_rank(),
        world_size=world_size,
        max_bad_images=_max_bad_images(cfg),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str, done: Container[int] = ()) -> Iterable[list[dict[str, Any]]]:
    """Build the loader of one evaluation, an image at a time, each once.

    Args:
        cfg: ``INPUT``, ``DATALOADER.NUM_WORKERS`` and ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` are read.
        dataset_name: one of ``DATASETS.TEST``.
        done: indices in the dataset of images that are left out, unread; every example has its ``dataset_index``.

    Raises:
        InputError: see ``verify_dataset``.
    """
    records = verify_dataset(dataset_name, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, is_train=False)
    numbered = [{**record, "dataset_index": index} for index, record in enumerate(records)]
    records = [record for record in numbered if record["dataset_index"] not in done]
    if not records:  # which Detectron2's loader cannot be built from
        return []
    mapper = build_mapper(cfg, is_train=False)
    return build_detection_test_loader(records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def _max_bad_images(cfg: CfgNode) -> int | None:
    on_bad_image, limit = cfg.DATALOADER.ON_BAD_IMAGE, cfg.DATALOADER.MAX_BAD_IMAGES
    if on_bad_image not in ("raise", "skip"):
        raise InputError(f"DATALOADER.ON_BAD_IMAGE is {on_bad_image!r}, expected raise or skip.")
    if limit < 0:
        raise InputError(f"DATALOADER.MAX_BAD_IMAGES is {limit}, expected 0 or more.")
    return limit if on_bad_image == "skip" else None


def _check_batch_size(images_per_step: int, num_processes: int) -> None:
    if images_per_step < 1 or images_per_step % num_processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {images_per_step}, expected a multiple of the number of processes, "
            f"{num_processes}: change it, or --num-gpus."
        )


def _check_same_ignore_label(names: Iterable[str], default: int) -> None:
    ignore_labels = {name: ignore_label_of(MetadataCatalog.get(name), default) for name in names}
    if len(set(ignore_labels.values())) > 1:
        raise InputError(
            f"The datasets of DATASETS.TRAIN ignore different label values, {ignore_labels}; expected one value: name "
            "datasets that agree."
        )


def build_repeat_factors(cfg: CfgNode, datasets: Records, seed: int) -> Tensor:
    """The repeat factor of each image: how often it comes in an epoch, by the names and rules of Detectron2.

    Args:
        cfg: ``DATALOADER.SAMPLER_TRAIN`` and what it needs are read.
        datasets: their images come one dataset after the other.
        seed: chooses the images of ``RandomSubsetTrainingSampler``.

    Returns:
        (N,) float64.

    Raises:
        InputError: the name is unknown, or no image would ever be drawn.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in SAMPLERS:
        raise InputError(f"DATALOADER.SAMPLER_TRAIN is {name!r}, expected one of {', '.join(SAMPLERS)}.")
    records = [record for of_dataset in datasets.values() for record in of_dataset]
    if name == "TrainingSampler":
        factors = torch.ones(len(records))
    elif name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO", 1.0)  # a key of newer Detectron2
        if not 0 < ratio <= 1:
            raise InputError(f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}, expected more than 0 and at most 1.")
        factors = choose_subset(len(records), ratio, seed)
    elif name == "RepeatFactorTrainingSampler":
        factors = _category_factors(cfg, records)
    else:
        factors = _dataset_factors(cfg, datasets)
        if name == "WeightedCategoryTrainingSampler":
            factors = factors * torch.cat([_category_factors(cfg, of_dataset) for of_dataset in datasets.values()])
            factors = factors / factors.min()
    if not (factors >= 0).all() or factors.sum() == 0:
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN {name} would draw none of the {len(factors)} training images, or some less than "
            "never; expected positive DATALOADER.RANDOM_SUBSET_RATIO and DATASETS.TRAIN_REPEAT_FACTOR."
        )
    return factors.double()


def _dataset_factors(cfg: CfgNode, datasets: Records) -> Tensor:
    weights = dict(cfg.DATASETS.get("TRAIN_REPEAT_FACTOR", ()))  # a key of newer Detectron2
    unknown = sorted(weights.keys() - datasets.keys())
    if unknown:
        raise InputError(f"DATASETS.TRAIN_REPEAT_FACTOR names {unknown[0]}, expected one of {', '.join(datasets)}.")
    return torch.cat([torch.full((len(records),), float(weights.get(name, 1))) for name, records in datasets.items()])


def _category_factors(cfg: CfgNode, records: list[dict[str, Any]]) -> Tensor:
    if any("annotations" not in record for record in records):
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}, which counts instance annotations, but the "
            "training dataset has none; set it to TrainingSampler."
        )
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
