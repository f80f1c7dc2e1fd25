"""``DATALOADER.SAMPLER_TRAIN``: how often each image comes in an epoch, by the names and rules of Detectron2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch import Tensor

from maskformer.structures import InputError

from .sampling import choose_subset

Records = Mapping[str, list[dict[str, Any]]]  # dataset -> its entries


def sampling_factors(cfg: CfgNode, datasets: Records, seed: int) -> Tensor:
    """The factor of each image, dataset after dataset.

    Args:
        cfg: ``DATALOADER.SAMPLER_TRAIN`` and what it needs are read.
        datasets: their order is that of the images.
        seed: chooses the images of ``RandomSubsetTrainingSampler``.

    Returns:
        (N,) float64.

    Raises:
        InputError: the name is unknown, or no image would ever be drawn.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in SAMPLERS:
        raise InputError(f"DATALOADER.SAMPLER_TRAIN is {name!r}, expected one of {', '.join(SAMPLERS)}.")
    factors = SAMPLERS[name](cfg, datasets, seed).double()
    if not (factors >= 0).all() or factors.sum() == 0:
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN {name} would draw none of the {len(factors)} training images, or some less than "
            "never; expected positive DATALOADER.RANDOM_SUBSET_RATIO and DATASETS.TRAIN_REPEAT_FACTOR."
        )
    return factors


def _uniform(cfg: CfgNode, datasets: Records, seed: int) -> Tensor:  # noqa: ARG001
    return torch.ones(sum(len(records) for records in datasets.values()))


def _subset(cfg: CfgNode, datasets: Records, seed: int) -> Tensor:
    ratio = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO", 1.0)  # a key of newer Detectron2
    if not 0 < ratio <= 1:
        raise InputError(f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}, expected more than 0 and at most 1.")
    return choose_subset(sum(len(records) for records in datasets.values()), ratio, seed)


def _repeat(cfg: CfgNode, datasets: Records, seed: int) -> Tensor:  # noqa: ARG001
    return _category_factors(cfg, [record for records in datasets.values() for record in records])


def _weighted(cfg: CfgNode, datasets: Records, seed: int) -> Tensor:  # noqa: ARG001
    weights = dict(cfg.DATASETS.get("TRAIN_REPEAT_FACTOR", ()))  # a key of newer Detectron2
    unknown = sorted(weights.keys() - datasets.keys())
    if unknown:
        raise InputError(f"DATASETS.TRAIN_REPEAT_FACTOR names {unknown[0]}, expected one of {', '.join(datasets)}.")
    return torch.cat([torch.full((len(records),), float(weights.get(name, 1))) for name, records in datasets.items()])


def _weighted_by_category(cfg: CfgNode, datasets: Records, seed: int) -> Tensor:
    by_category = torch.cat([_category_factors(cfg, records) for records in datasets.values()])
    factors = by_category * _weighted(cfg, datasets, seed)
    return factors / factors.min()


def _category_factors(cfg: CfgNode, records: list[dict[str, Any]]) -> Tensor:
    if any("annotations" not in record for record in records):
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}, which counts instance annotations, but the "
            "training dataset has none; set it to TrainingSampler."
        )
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )


SAMPLERS: dict[str, Callable[[CfgNode, Records, int], Tensor]] = {
    "TrainingSampler": _uniform,
    "RandomSubsetTrainingSampler": _subset,
    "RepeatFactorTrainingSampler": _repeat,
    "WeightedTrainingSampler": _weighted,
    "WeightedCategoryTrainingSampler": _weighted_by_category,
}
