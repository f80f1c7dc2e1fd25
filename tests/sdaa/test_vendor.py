"""The vendor's numbers and rule, by hand, and what the rule lets pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
from loss_cases import make_losses, pair_losses

from maskformer.sdaa.verdict import VendorReport, apply_vendor_rule


def test_numbers_of_three_losses_by_hand() -> None:
    report = apply_vendor_rule(pair_losses([2.5, 3.0, 9.0], [2.0, 4.0, 8.0]))
    assert report.relative_error == pytest.approx((0.5 / 2 - 1 / 4 + 1 / 8) / 3)
    assert report.absolute_error == pytest.approx((0.5 - 1 + 1) / 3)


def test_lines_of_a_pass_are_the_vendors() -> None:
    assert VendorReport(0.0625, -0.5).lines() == [
        "MeanRelativeError: 0.0625",
        "MeanAbsoluteError: -0.5",
        "Rule,mean_absolute_error -0.5",
        "pass mean_relative_error=0.0625 <= 0.05 or mean_absolute_error=-0.5 <= 0.0002",
    ]


def test_lines_of_a_fail_are_the_vendors() -> None:
    assert VendorReport(0.0625, 0.5).lines() == [
        "MeanRelativeError: 0.0625",
        "MeanAbsoluteError: 0.5",
        "Rule,mean_relative_error 0.0625",
        "fail mean_relative_error=0.0625 > 0.05 and mean_absolute_error=0.5 > 0.0002",
    ]


@pytest.mark.parametrize(
    ("relative", "absolute", "passed"),
    [(0.05, 1.0, True), (0.06, 0.0002, True), (0.06, 0.0003, False), (math.nan, math.nan, False)],
)
def test_one_number_within_its_limit_is_enough(relative: float, absolute: float, passed: bool) -> None:
    assert VendorReport(relative, absolute).passed is passed


def test_pairs_with_a_nan_are_dropped() -> None:
    report = apply_vendor_rule(pair_losses([2.5, math.nan, 8.0], [2.0, 4.0, math.nan]))
    assert (report.relative_error, report.absolute_error) == (0.25, 0.5)


def test_nothing_but_nan_fails() -> None:
    assert not apply_vendor_rule(pair_losses([math.nan], [1.0])).passed


def test_reference_of_zero_gives_infinity_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    report = apply_vendor_rule(pair_losses([1.0], [0.0]))
    assert (report.relative_error, report.absolute_error, report.passed) == (math.inf, 1.0, False)
    assert not recwarn.list


def test_collapsed_loss_passes() -> None:
    assert apply_vendor_rule(pair_losses(np.zeros(200), make_losses())).passed


def test_noise_that_alternates_passes() -> None:
    losses = make_losses()
    assert apply_vendor_rule(pair_losses(losses * np.tile([1.4, 0.6], 100), losses)).passed
