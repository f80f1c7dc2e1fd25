"""Bands of rows: they are the rows of the whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskformer.inference import Geometry
from maskformer.inference.resize import plan_bands


def test_bands_cover_all_rows_once_in_steps_of_four():
    assert list(plan_bands(10, row_bytes=10, band_bytes=55)) == [range(4), range(4, 8), range(8, 10)]
    assert list(plan_bands(10, row_bytes=10, band_bytes=99)) == [range(8), range(8, 10)]
    assert list(plan_bands(3, row_bytes=10, band_bytes=1)) == [range(3)]


@pytest.mark.parametrize("padded_size", [(64, 96), (66, 90)])  # of the second, the stride is no integer
@pytest.mark.parametrize("rows", [range(1), range(3, 10), range(50, 61), range(61)])
def test_upsampled_rows_are_bit_for_bit_those_of_the_whole(padded_size, rows):
    masks = torch.randn(3, 16, 24)
    geometry = Geometry(padded_size=padded_size, image_size=(61, 85), output_size=(61, 85))
    expected = geometry.upsample(masks)[:, rows.start : rows.stop, :85]
    assert torch.equal(geometry.upsample_rows(masks, rows), expected)


@pytest.mark.parametrize("output_size", [(30, 41), (97, 131), (500, 20), (61, 85), (61, 90)])
def test_restored_rows_are_those_of_the_whole(output_size):
    geometry = Geometry(padded_size=(64, 96), image_size=(61, 85), output_size=output_size)
    maps = torch.randn(2, 64, 96, dtype=torch.float64)
    weights = geometry.row_weights(maps)
    for rows in plan_bands(output_size[0], row_bytes=1, band_bytes=16):
        source = rows if geometry.keeps_size else geometry.restored_from(rows)
        actual = geometry.restore_rows(maps[:, source.start : source.stop, :85], rows, weights)
        expected = geometry.restore(maps)[:, rows.start : rows.stop]
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_fewer_bytes_are_computed_at_once_where_memory_did_not_suffice():
    geometry = Geometry(padded_size=(4, 4), image_size=(4, 4), output_size=(4, 4))
    for device, bytes_at_once in (("cpu", 32), ("meta", 2**27)):
        assert geometry.bytes_at_once(32, torch.device(device)) == bytes_at_once
        assert replace(geometry, band_divisor=4).bytes_at_once(32, torch.device(device)) == bytes_at_once // 4
