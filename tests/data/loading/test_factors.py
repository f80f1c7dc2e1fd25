from __future__ import annotations

from typing import Any

import pytest
from detectron2.config import CfgNode

from maskformer.config import load_config
from maskformer.data.loading.loaders import build_repeat_factors
from maskformer.structures import InputError


def config(sampler: str, **keys: Any) -> CfgNode:
    cfg = load_config("")
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = keys.get("weights", [])
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = keys.get("ratio", 1.0)
    return cfg


def images(*categories: list[int]) -> list[dict[str, Any]]:
    return [{"annotations": [{"category_id": category} for category in of_image]} for of_image in categories]


# Category 0 is in all of the eight images, 1 in one: its factor is the root of 0.5 / (1 / 8) = 4.
DATASETS = {"a": images([0], [0], [0], [0, 1]), "b": images([0], [0], [0], [0])}


def test_every_image_comes_once():
    assert build_repeat_factors(config("TrainingSampler"), DATASETS, 0).tolist() == [1] * 8


def test_a_part_of_the_images_comes_once():
    factors = build_repeat_factors(config("RandomSubsetTrainingSampler", ratio=0.5), DATASETS, 0)
    assert sorted(factors.tolist()) == [0] * 4 + [1] * 4


def test_images_of_rare_categories_come_more_often():
    assert build_repeat_factors(config("RepeatFactorTrainingSampler"), DATASETS, 0).tolist() == [1, 1, 1, 2, 1, 1, 1, 1]


def test_datasets_have_weights():
    factors = build_repeat_factors(config("WeightedTrainingSampler", weights=[("b", 2.5)]), DATASETS, 0)
    assert factors.tolist() == [1] * 4 + [2.5] * 4


def test_weights_of_datasets_and_categories_are_multiplied_and_the_least_is_one():
    factors = build_repeat_factors(config("WeightedCategoryTrainingSampler", weights=[("b", 0.5)]), DATASETS, 0)
    rare = (0.5 / 0.25) ** 0.5  # in one of the four images of its dataset
    assert factors.tolist() == pytest.approx([2, 2, 2, 2 * rare, 1, 1, 1, 1])


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"SAMPLER_TRAIN is 'Other', expected one of TrainingSampler, "):
        build_repeat_factors(config("Other"), DATASETS, 0)
    with pytest.raises(InputError, match=r"TRAIN_REPEAT_FACTOR names c, expected one of a, b"):
        build_repeat_factors(config("WeightedTrainingSampler", weights=[("c", 2)]), DATASETS, 0)
    with pytest.raises(InputError, match=r"RANDOM_SUBSET_RATIO is 0, expected more than 0"):
        build_repeat_factors(config("RandomSubsetTrainingSampler", ratio=0), DATASETS, 0)
    with pytest.raises(InputError, match=r"would draw none of the 8 training images"):
        build_repeat_factors(config("RandomSubsetTrainingSampler", ratio=0.1), DATASETS, 0)
    with pytest.raises(InputError, match=r"counts instance annotations, but the training dataset has none"):
        build_repeat_factors(config("RepeatFactorTrainingSampler"), {"a": [{}]}, 0)
