"""Reading of logs, and bringing two of them to one scale."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from loss_cases import make_curve, make_losses, write_metrics, write_tcappdll

from maskformer.sdaa.curves import align, pair, read_curve
from maskformer.structures import InputError


def test_tcappdll_log_gives_the_losses_of_rank_0_in_order(tmp_path: Path) -> None:
    log = write_tcappdll(tmp_path / "log", [3.0, 2.0, math.nan])
    write_tcappdll(log, [30.0, 20.0, 10.0], rank=1)
    curve = read_curve(log)
    np.testing.assert_array_equal(curve.iterations, [0, 1, 2])
    np.testing.assert_array_equal(curve.losses, [3.0, 2.0, math.nan])
    assert curve.span == 1
    np.testing.assert_array_equal(read_curve(log, rank=1).losses, [30.0, 20.0, 10.0])


@pytest.mark.parametrize("nan", ["NaN", "null"])  # earlier versions wrote the former
def test_metrics_give_total_losses_and_lines_of_evaluations_none(tmp_path: Path, nan: str) -> None:
    log = tmp_path / "metrics.json"
    log.write_text(
        f'{{"iteration": 19, "total_loss": 4.5}}\n{{"iteration": 39, "total_loss": {nan}}}\n'
        '{"iteration": 39, "PQ": 1.0}\n'
        '{"iteration": 59, "total_loss": 3}\n{"iteration": 79, "total_lo'
    )
    curve = read_curve(log)
    np.testing.assert_array_equal(curve.iterations, [19, 39, 59])
    np.testing.assert_array_equal(curve.losses, [4.5, math.nan, 3.0])
    assert curve.span == 20


def test_iterations_that_begin_anew_with_every_epoch_are_counted_through(tmp_path: Path) -> None:
    log = write_tcappdll(tmp_path / "log", [9, 8, 7], iterations=[0, 10, 20], epochs=1)
    write_tcappdll(log, [6, 5], iterations=[0, 20], epochs=2)
    np.testing.assert_array_equal(read_curve(log).iterations, [0, 10, 20, 30, 50])


def test_iterations_that_are_counted_through_stay(tmp_path: Path) -> None:
    log = write_tcappdll(tmp_path / "log", [9, 8], iterations=[0, 1])
    write_tcappdll(log, [7, 6], iterations=[2, 3], epochs=1)
    np.testing.assert_array_equal(read_curve(log).iterations, [0, 1, 2, 3])


def test_other_file_is_named_with_what_is_expected(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("iter: 19  total_loss: 4.5\n[1, 2]\n17\n")
    expected = "expected a log with whole TCAPPDLL lines, or Detectron2's metrics.json with iteration and total_loss."
    with pytest.raises(InputError) as caught:
        read_curve(log)
    assert str(caught.value) == f"{log} holds no losses; {expected}"


def test_missing_file_and_missing_rank_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^Log .*nothing cannot be read: No such file or directory\. Expected a text"):
        read_curve(tmp_path / "nothing")
    log = write_tcappdll(tmp_path / "log", [1.0])
    write_tcappdll(log, [1.0], rank=2)
    with pytest.raises(InputError, match=r"no TCAPPDLL line of rank 1, only of rank 0, 2; change --rank\.$"):
        read_curve(log, rank=1)


def test_binary_file_is_a_file_without_losses(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="holds no losses"):
        read_curve(tmp_path / "log")


def test_step_is_the_most_frequent_distance() -> None:
    assert make_curve([1.0] * 5, [0, 10, 20, 40, 50]).step == 10
    assert make_curve([1.0]).step == 1


def test_raw_losses_become_the_medians_that_detectron2_writes(tmp_path: Path) -> None:
    losses = make_losses(70)
    raw = read_curve(write_tcappdll(tmp_path / "log", losses))
    medians = read_curve(write_metrics(tmp_path / "metrics.json", losses))
    for curve in (align(raw, medians)[0], align(medians, raw)[1]):
        np.testing.assert_array_equal(curve.iterations, [19, 39, 59, 69])
        np.testing.assert_array_equal(curve.losses, medians.losses)
        assert curve.span == 20


def test_median_over_a_nan_is_nan() -> None:
    raw = make_curve([1.0, math.nan, *[2.0] * 38])
    aligned, _ = align(raw, make_curve([1.0, 2.0], [19, 39], span=20))
    np.testing.assert_array_equal(aligned.losses, [math.nan, 2.0])


def test_curves_of_one_scale_stay_as_they_are() -> None:
    curves = make_curve([1.0]), make_curve([2.0])
    assert align(*curves) == curves


def test_pairs_are_made_by_iteration_and_the_last_of_two_counts() -> None:
    pairs = pair(make_curve([1.0, 2.0, 3.0, 4.0], [5, 1, 1, 7]), make_curve([10.0, 20.0, 30.0], [1, 2, 5]))
    np.testing.assert_array_equal(pairs.iterations, [1, 5])
    np.testing.assert_array_equal(pairs.sdaa, [3.0, 1.0])
    np.testing.assert_array_equal(pairs.cuda, [10.0, 30.0])


def test_logs_without_a_common_iteration_are_a_mistake() -> None:
    with pytest.raises(InputError, match="have no iteration in common; expected two logs of the same training"):
        pair(make_curve([1.0], [0]), make_curve([1.0], [1]))
