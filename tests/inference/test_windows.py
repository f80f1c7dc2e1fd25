from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from maskformer.inference.tta import SlidingWindow, window_starts


@pytest.mark.parametrize(
    ("length", "window", "overlap", "expected"),
    [
        (4, 4, 0.0, [0]),
        (3, 8, 0.5, [0]),
        (8, 4, 0.0, [0, 4]),
        (8, 4, 0.5, [0, 2, 4]),
        (9, 4, 0.0, [0, 2, 5]),  # two windows would leave a pixel out
        (14, 10, 0.8, [0, 2, 4]),
        (3, 1, 0.9, [0, 1, 2]),  # a step of one pixel at least
    ],
)
def test_windows_start_where_expected(length, window, overlap, expected):
    assert window_starts(length, window, overlap) == expected


@pytest.mark.parametrize("overlap", [0.0, 0.33, 0.5, 0.8])
def test_windows_cover_a_side_with_at_least_the_overlap(overlap):
    for length in range(8, 40):
        starts = window_starts(length, 8, overlap)
        assert starts[0] == 0 and starts[-1] + 8 == length
        assert all(8 - (after - before) >= 8 * overlap for before, after in pairwise(starts))


def test_windows_go_row_by_row_and_stay_inside_the_image():
    image, seen = torch.arange(12.0).view(1, 3, 4), []
    SlidingWindow((5, 2), 0.0).average(image, lambda part: seen.append(part[0, :, 0].tolist()) or part)
    assert seen == [[0.0, 4.0, 8.0], [2.0, 6.0, 10.0]]


def test_scores_of_two_overlapping_windows_are_averaged_where_they_overlap():
    seen = iter([10.0, 20.0])

    def scores_of(part: torch.Tensor) -> torch.Tensor:
        assert part.shape == (3, 1, 2)
        return torch.full((1, 1, 2), next(seen))

    scores = SlidingWindow((1, 2), 0.5).average(torch.zeros(3, 1, 3), scores_of)
    assert scores.tolist() == [[[10.0, 15.0, 20.0]]]


def test_windows_of_a_scorer_that_looks_at_single_pixels_change_nothing():
    image = torch.rand(3, 13, 17)
    torch.testing.assert_close(SlidingWindow((5, 6), 0.4).average(image, lambda part: part * 2), image * 2)


def test_a_window_as_large_as_the_image_is_the_image():
    parts = []
    SlidingWindow((4, 9), 0.5).average(torch.rand(3, 4, 5), lambda part: parts.append(part.shape) or part)
    assert parts == [(3, 4, 5)]
