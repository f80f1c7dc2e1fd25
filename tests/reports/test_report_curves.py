from __future__ import annotations

import math

import pytest

from maskformer.reports import curves


def places(curve: curves.Curve) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (place.split(",") for place in curve.points.split())]


def test_curve_spans_the_view_from_0_to_the_last_iteration() -> None:
    chart = curves.make_chart("Loss", {"loss": [(0, 4.0), (50, 0.0), (100, 2.0)]}, {})
    assert chart is not None
    top, bottom = curves.TOP, curves.HEIGHT - curves.BOTTOM
    left, right = curves.LEFT, curves.WIDTH - curves.RIGHT
    assert places(chart.curves[0]) == [(left, top), ((left + right) / 2, bottom), (right, (top + bottom) / 2)]
    assert chart.y_ticks[0] == (bottom, "0")
    assert chart.y_ticks[-1] == (top, "4")
    assert (chart.x_ticks[0], chart.x_ticks[-1]) == ((left, "0"), (right, "100"))


def test_a_loss_over_decades_has_a_logarithmic_axis_and_a_score_has_not() -> None:
    line = {"a": [(0, 100.0), (1, 10.0), (2, 1.0)]}
    loss, score = curves.make_chart("", line, {}, is_loss=True), curves.make_chart("", line, {}, is_score=True)
    assert loss is not None
    assert score is not None
    heights = [y for _, y in places(loss.curves[0])]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])
    assert {"1", "10", "100"} <= {text for _, text in loss.y_ticks}
    assert "0" in {text for _, text in score.y_ticks}


def test_runs_share_the_colour_of_a_name() -> None:
    chart = curves.make_chart("", {"a": [(1, 1.0)], "b": [(1, 1.0)]}, {"b": [(5, 2.0)], "c": [(5, 2.0)]})
    assert chart is not None
    assert [(curve.name, curve.color, curve.is_other) for curve in chart.curves] == [
        ("a", 0, False), ("b", 1, False), ("b", 1, True), ("c", 2, True)
    ]  # fmt: skip
    assert chart.curves[0].dots  # a line of one point would not be seen


def test_thinning_keeps_ends_peaks_and_order() -> None:
    points = [(iteration, math.sin(iteration / 5000)) for iteration in range(100_000)]
    points[12_345], points[77_777] = (12_345, 50.0), (77_777, -50.0)
    kept = curves.thin(points)
    assert len(kept) <= 2 * curves.BUCKETS + 1
    assert {points[0], points[-1], points[12_345], points[77_777]} <= set(kept)
    assert [iteration for iteration, _ in kept] == sorted({iteration for iteration, _ in kept})
    assert curves.thin(points[:100]) == points[:100]


@pytest.mark.parametrize(
    "points", [[(0, 0.0)], [(7, -3.0)], [(5, 1e-300), (6, 1e299)], [(0, 5.0), (1, 5.0)], [(-5, 1.0)]]
)
def test_odd_values_are_drawn_inside_the_view(points: list[tuple[int, float]]) -> None:
    chart = curves.make_chart("", {"a": points}, {}, is_loss=True)
    assert chart is not None
    for x, y in places(chart.curves[0]):
        assert 0 <= x <= curves.WIDTH
        assert 0 <= y <= curves.HEIGHT


def test_without_points_there_is_no_chart() -> None:
    assert curves.make_chart("", {"a": []}, {}) is None
