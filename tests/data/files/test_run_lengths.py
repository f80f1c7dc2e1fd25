"""Run lengths: read as pycocotools wrote them, and painted where its masks are."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as rle
import pytest

from maskformer.data.files.run_lengths import _read_compressed, find_rle_fault, have_value, paint, read_runs

pytestmark = pytest.mark.usefixtures("way")


def random_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 9), (7, 1), (30, 40), (300, 500)]
    masks = [rng.random(size) < share for size in sizes for share in (0, 0.01, 0.5, 1)]
    return [*masks, np.arange(12).reshape(3, 4) < 6]


def test_runs_are_those_that_pycocotools_wrote() -> None:
    for mask in random_masks():
        encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        for counts in (encoded["counts"], encoded["counts"].decode("ascii")):
            runs = read_runs(counts)
            assert runs is not None and runs.dtype == np.int64
            inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(mask.shape[::-1]).T
            assert np.array_equal(inside, mask)
        assert find_rle_fault(encoded, mask.shape) is None


def test_list_of_runs_is_read_and_anything_else_is_none() -> None:
    runs = read_runs([3, 0, 9])
    assert runs is not None and runs.tolist() == [3, 0, 9]
    for counts in ([1.0], [True], [2**70], None, 5, "", b"", "ä", "/", "p", "P", "0P", "PPPPPPP0", "P" * 9):
        assert read_runs(counts) is None, counts
    longest = read_runs("oooooo0")  # seven characters, five bits each
    assert longest is not None and longest.tolist() == [2**30 - 1]


def test_any_text_is_read_the_same_with_and_without_numba() -> None:
    rng = np.random.default_rng(0)
    num_good = 0
    for _ in range(2000):
        text = rng.integers(47 if rng.random() < 0.1 else 48, 96 if rng.random() < 0.7 else 112, rng.integers(1, 12))
        read, expected = read_runs(bytes(text.astype(np.uint8))), _read_compressed(text.astype(np.uint8))
        assert (read is None) == (expected is None)
        if read is not None and expected is not None:
            assert read.tolist() == expected.tolist()
            num_good += 1
    assert 200 < num_good < 1900


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_painting_changes_the_mask_alone_and_finds_what_is_painted(dtype: type) -> None:
    for mask in random_masks():
        runs = read_runs(rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"])
        outside = read_runs(rle.encode(np.asfortranarray((~mask).astype(np.uint8)))["counts"])
        assert runs is not None and outside is not None
        values = np.zeros(mask.size, dtype)
        assert not have_value(runs, values)
        paint(runs, 7, values)
        assert np.array_equal(values.reshape(mask.shape[::-1]).T, mask * 7)
        assert have_value(runs, values) == mask.any()
        assert not have_value(outside, values)
