"""The picture of a comparison."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from loss_cases import make_losses, pair_losses
from matplotlib.axes import Axes
from PIL import Image

from maskformer.sdaa.verdict import Thresholds
from maskformer.tools.compare_loss import CUDA_COLOR, draw_comparison


def draw(sdaa: np.ndarray, cuda: np.ndarray, **limits: float) -> list[Axes]:
    return draw_comparison(pair_losses(sdaa, cuda), Thresholds(**limits), "both").axes


def find_line(axes: Axes, label: str) -> np.ndarray:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.array(line.get_data(), dtype=float)


def test_raw_losses_and_their_means_are_drawn() -> None:
    cuda = make_losses(60)
    above, _ = draw(cuda * 1.1, cuda)
    np.testing.assert_array_equal(find_line(above, "CUDA, every loss"), [np.arange(60), cuda])
    np.testing.assert_allclose(find_line(above, "SDAA, mean of 10")[1][5], (cuda * 1.1)[:10].mean())
    assert (above.get_title(), above.get_ylabel()) == ("both", "total loss")


def test_difference_is_relative_to_cuda_and_its_means_are_those_of_the_check() -> None:
    cuda = make_losses(60)
    _, below = draw(cuda * 1.1, cuda, window=20)
    np.testing.assert_allclose(find_line(below, "(SDAA - CUDA) / |CUDA|, every loss")[1], 0.1)
    middles, values = find_line(below, "of the means of 20 losses")
    assert (middles[0], middles[-1], len(middles)) == (9, 49, 41)
    np.testing.assert_allclose(values, 0.1)
    assert find_line(below, "limit for means: ±10%")[1][0] == 0.1
    assert (below.get_xlabel(), below.get_ylabel()) == ("iteration", "relative difference")


def test_losses_that_are_not_finite_get_a_cross_and_a_gap() -> None:
    above, _ = draw(np.array([1.0, math.nan, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, math.inf]))
    np.testing.assert_array_equal(find_line(above, "NaN or infinite")[0], [1, 3])
    np.testing.assert_array_equal(find_line(above, "SDAA, every loss")[1], [1, math.nan, 3, math.nan])


@pytest.mark.parametrize("cuda", [math.nan, 0.0])
def test_runs_with_nothing_to_compare_are_drawn(tmp_path: Path, cuda: float) -> None:
    figure = draw_comparison(pair_losses([1.0], [cuda]), Thresholds(), "both")
    figure.savefig(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (1200, 900)


def test_picture_shows_the_curves(tmp_path: Path) -> None:
    cuda = make_losses(60)
    draw_comparison(pair_losses(cuda * 1.3, cuda), Thresholds(), "both").savefig(tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    color = np.array([int(CUDA_COLOR[i : i + 2], 16) for i in (1, 3, 5)])
    assert (np.abs(pixels - color).max(axis=2) < 8).sum() > 1000
