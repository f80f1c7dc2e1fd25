"""Run lengths: read as pycocotools wrote them."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as rle

from maskformer.data.files.masks import find_rle_fault, read_runs


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
