from __future__ import annotations

import numpy as np
import pytest

from maskformer.data.files.counting import count_values, present_values, replace_values

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_counts_are_those_of_every_value(dtype: type) -> None:
    values = np.array([[0, 3, 3], [255, 3, 0]], dtype)
    counts = count_values(values[:, ::-1])
    assert {value: int(counts[value]) for value in np.flatnonzero(counts)} == {0: 2, 3: 3, 255: 1}
    assert counts.sum() == 6 and np.issubdtype(counts.dtype, np.integer)


def test_bytes_are_counted_wherever_they_begin_and_end() -> None:
    rng = np.random.default_rng(0)
    smooth = np.repeat(rng.integers(0, 256, 60, dtype=np.uint8), rng.integers(1, 40, 60))
    for values in (smooth, rng.integers(0, 256, 1000, dtype=np.uint8), np.full(4096, 255, np.uint8)):
        for first, last in ((0, 0), (1, 0), (3, 5), (0, 9)):
            part = values[first : len(values) - last]
            assert count_values(part).tolist() == np.bincount(part, minlength=len(count_values(part))).tolist()


def test_map_without_pixels_has_no_values() -> None:
    assert count_values(np.zeros((0, 3), np.uint8)).sum() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_values_present_are_those_of_every_pixel(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for size in [(1, 1), (1, 7), (5, 1), (6, 9)]:
        values = rng.choice([0, 3, 200, 255], size).astype(dtype)
        assert present_values(values[:, ::-1]).tolist() == np.unique(values).tolist()
    assert present_values(np.zeros((0, 3), dtype)).size == 0


@pytest.mark.parametrize("map_type", [np.uint8, np.int32])
@pytest.mark.parametrize("table_type", [np.uint8, np.int16])
@pytest.mark.parametrize("length", [3, 300])
def test_values_are_replaced_by_the_tables(map_type: type, table_type: type, length: int) -> None:
    values, table = np.array([[2, 0], [1, 2]], map_type), np.arange(length).astype(table_type) * 5
    replaced = replace_values(values, table)
    assert replaced.dtype == table_type and replaced.tolist() == [[10, 0], [5, 10]]
