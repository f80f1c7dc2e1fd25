from __future__ import annotations

import logging
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer.data.loading.sampling import Sampler
from maskformer.data.loading.train_loader import TrainLoader, seeded
from maskformer.structures import BadImageError, InputError


def draw_numbers() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def note_draws(record: dict[str, Any]) -> dict[str, Any]:
    """A mapper that shows what the random generators give; a bad record raises."""
    if record.get("bad"):
        raise BadImageError(f"Image file {record['file_name']} is bad.")
    return {"name": record["file_name"], "draws": draw_numbers()}


def records_of(size: int, bad: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    return [
        {"file_name": str(index), "bad": index in bad, "width": 1 + index % 2, "height": 1} for index in range(size)
    ]


def loader_of(size: int = 5, *, bad: tuple[int, ...] = (), seed: int = 0, batch_size: int = 2, **options: Any):
    sampler = Sampler(seed, torch.ones(size, dtype=torch.float64))
    return TrainLoader(records_of(size, bad), note_draws, sampler, batch_size=batch_size, **options)


@pytest.mark.parametrize("group_by_shape", [False, True])
def test_restart_and_workers_change_nothing(group_by_shape: bool):
    whole = list(islice(loader_of(group_by_shape=group_by_shape), 12))
    for workers in (0, 2):
        first = loader_of(group_by_shape=group_by_shape, num_workers=workers)
        begun = list(islice(first, 5))
        resumed = loader_of(group_by_shape=group_by_shape, num_workers=workers)
        resumed.load_state_dict(first.state_dict())
        assert begun + list(islice(resumed, 7)) == whole


def test_an_image_is_augmented_anew_in_each_epoch_and_by_each_seed():
    examples = [example for batch in islice(loader_of(), 10) for example in batch]
    draws = {example["draws"] for example in examples}
    assert len(draws) == len(examples) == 20
    assert draws.isdisjoint(example["draws"] for batch in islice(loader_of(seed=1), 10) for example in batch)


def test_loading_leaves_the_generators_of_the_process_alone():
    with seeded([1, 2, 3]):
        expected = draw_numbers()
    with seeded([1, 2, 3]):
        next(iter(loader_of()))
        assert draw_numbers() == expected


def test_seed_of_the_resumed_run_is_kept():
    first = loader_of(seed=7)
    begun = list(islice(first, 3))
    resumed = loader_of(seed=8)
    resumed.load_state_dict(first.state_dict())
    assert begun + list(islice(resumed, 3)) == list(islice(loader_of(seed=7), 6))


def test_another_dataset_goes_on_at_the_start_of_the_epoch(caplog: pytest.LogCaptureFixture):
    first = loader_of(size=4)
    list(islice(first, 3))
    resumed = loader_of(size=6)
    with caplog.at_level(logging.WARNING, "maskformer"):
        resumed.load_state_dict(first.state_dict())
    assert "had 4 training images, this one has 6: it goes on at the start of epoch 1" in caplog.text
    assert sorted(example["name"] for batch in islice(resumed, 3) for example in batch) == list("012345")


def test_shape_comes_from_the_head_of_an_upright_image_where_the_dataset_gives_none(tmp_path: Path):
    sizes = {"broad": (4, 2, 1), "high": (2, 4, 1), "on_its_side": (4, 2, 6), "turned": (2, 4, 8)}
    records = []
    for name, (width, height, orientation) in sizes.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (width, height)).save(tmp_path / f"{name}.jpg", exif=exif)
        records.append({"file_name": str(tmp_path / f"{name}.jpg")})
    sampler = Sampler(0, torch.ones(4, dtype=torch.float64))
    loader = TrainLoader(records, note_draws, sampler, batch_size=2, group_by_shape=True)
    for batch in islice(loader, 8):
        assert {Path(example["name"]).stem for example in batch} in ({"broad", "turned"}, {"high", "on_its_side"})


def test_bad_image_is_raised_unless_it_may_be_skipped():
    with pytest.raises(BadImageError, match="Image file 3 is bad"):
        list(islice(loader_of(bad=(3,)), 5))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_image_is_named_once_counted_and_replaced_in_the_same_way(
    workers: int, caplog: pytest.LogCaptureFixture
):
    expected = list(islice(loader_of(bad=(3,), max_bad_images=1), 10))
    loader = loader_of(bad=(3,), max_bad_images=1, num_workers=workers)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "maskformer"):
        batches = list(islice(loader, 10))
    assert batches == expected
    assert [len(batch) for batch in batches] == [2] * 10
    assert {example["name"] for batch in batches for example in batch} == {"0", "1", "2", "4"}
    assert set(batches[0][0]) == {"name", "draws"}
    assert loader.bad_images == {3}
    assert [record.getMessage() for record in caplog.records] == [
        "Training goes on without an image, 1 so far: Image file 3 is bad."
    ]


def test_images_that_are_not_bad_are_the_same_with_and_without_skipping():
    plain = [example for batch in islice(loader_of(), 10) for example in batch]
    skipping = [example for batch in islice(loader_of(bad=(3,), max_bad_images=1), 10) for example in batch]
    assert all(a == b for a, b in zip(plain, skipping, strict=True) if a["name"] != "3")
    assert sum(a != b for a, b in zip(plain, skipping, strict=True)) == 4  # epochs


def test_replacement_has_the_shape_of_its_batch():
    for batch in islice(loader_of(size=8, bad=(0, 1), max_bad_images=2, group_by_shape=True), 20):
        assert len({int(example["name"]) % 2 for example in batch}) == 1


def test_count_of_bad_images_outlives_a_restart():
    first = loader_of(bad=(3,), max_bad_images=5)
    list(islice(first, 5))
    resumed = loader_of(bad=(3,), max_bad_images=5)
    resumed.load_state_dict(first.state_dict())
    assert resumed.bad_images == {3}


def test_too_many_bad_images_stop_the_training():
    with pytest.raises(InputError, match=r"2 training images cannot be used .* DATALOADER\.MAX_BAD_IMAGES is 1"):
        list(islice(loader_of(bad=(0, 3), max_bad_images=1), 10))


def test_ten_bad_images_in_a_row_stop_the_training():
    with pytest.raises(InputError, match=r"10 training images in a row cannot be used.*Image file \d is bad"):
        list(islice(loader_of(bad=tuple(range(5)), max_bad_images=100), 1))
