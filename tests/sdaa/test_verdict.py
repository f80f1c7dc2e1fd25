"""The strict verdict: each limit on a case that only it catches, and honest runs that pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
from loss_cases import add_device_noise, make_losses, pair_losses

from maskformer.sdaa.verdict import StrictVerdict, Thresholds, check_losses, mean_windows, smooth

LIMITS = Thresholds()


def judge(sdaa: np.ndarray, cuda: np.ndarray, limits: Thresholds = LIMITS, span: int = 1) -> StrictVerdict:
    verdict = StrictVerdict()
    check_losses(pair_losses(sdaa, cuda), span, limits, verdict)
    return verdict


def assert_only_reason(verdict: StrictVerdict, *beginnings: str) -> None:
    assert len(verdict.reasons) == len(beginnings), verdict.reasons
    for reason, beginning in zip(verdict.reasons, beginnings):
        assert reason.startswith(beginning)


def test_honest_pair_passes_with_every_check_made() -> None:
    losses = make_losses()
    verdict = judge(add_device_noise(losses), losses)
    assert verdict.passed
    assert verdict.unchecked == []
    assert len(verdict.measured) == 7


def test_device_noise_of_a_long_run_passes() -> None:
    losses = make_losses(120)
    verdict = judge(add_device_noise(losses, 0.06), losses)  # as measured between kernels: mean of sizes 0.05
    assert verdict.passed


def test_curve_without_batch_noise_passes_and_tells_what_it_cannot_show() -> None:
    losses = make_losses(batch_noise=0)
    verdict = judge(add_device_noise(losses), losses)
    assert verdict.passed
    assert [sentence.split(":")[0] for sentence in verdict.unchecked] == ["variation", "data order by correlation"]


def test_short_run_passes_and_tells_what_it_cannot_show() -> None:
    verdict = judge(np.array([3.0, 2.0, 1.0]), np.array([3.0, 2.0, 1.0]))
    assert verdict.passed
    assert verdict.unchecked == [
        "variation: stretches have 2 steps from loss to loss, 10 are enough",
        "data order by correlation: 3 losses are too few to correlate, 86 are enough",
    ]


def test_collapsed_loss_fails() -> None:
    losses = make_losses()
    collapsed = losses * np.where(np.arange(200) < 20, 1, 0.001)
    verdict = judge(collapsed, losses)
    assert_only_reason(
        verdict,
        "mean of |s-c|/|c| over 200 losses: 89.91% (limit 10.00%)",
        "95th percentile of |s-c|/|c|: 99.90%",
        "signed mean of (s-c)/|c|: -89.91%",
        "worst difference between means of 50 losses in a row",
        "standard deviation of the steps from loss to loss, in iterations ",
        "different seed or data order: correlation of the steps",
    )


def test_noise_that_alternates_fails() -> None:
    losses = make_losses()
    noise = np.where(np.arange(200) == 0, 1, np.tile([1.2, 0.8], 100))
    assert any(reason.startswith("mean of |s-c|/|c| over 200") for reason in judge(losses * noise, losses).reasons)


def test_small_alternation_on_a_smooth_curve_has_too_large_steps() -> None:
    losses = make_losses(batch_noise=0)
    noise = np.where(np.arange(200) == 0, 1, np.tile([1.05, 0.95], 100))
    assert_only_reason(judge(losses * noise, losses), "standard deviation of the steps from loss to loss")


def test_loss_that_freezes_near_the_reference_has_too_small_steps() -> None:
    losses = make_losses(400)
    frozen = np.where(np.arange(400) < 250, losses, 5.1)
    assert_only_reason(
        judge(frozen, losses), "standard deviation of the steps from loss to loss, in iterations 250 to 300: 0.00% with"
    )


def test_spikes_fail_by_the_percentile_alone() -> None:
    losses = make_losses(batch_noise=0)
    spikes = np.where(np.arange(200) % 16 == 8, 1.4, 1.0) * np.where(np.arange(200) % 16 == 0, 0.6, 1.0)
    spikes[0] = 1
    verdict = judge(losses * spikes, losses, Thresholds(variation=0))
    assert_only_reason(verdict, "95th percentile of |s-c|/|c|: 40.00%")


@pytest.mark.parametrize("factor", [0.93, 1.07])
def test_loss_that_is_off_on_one_side_fails_on_either(factor: float) -> None:
    losses = make_losses()
    off = np.where(np.arange(200) == 0, 1, factor) * losses
    assert_only_reason(judge(off, losses), "signed mean of (s-c)/|c|: ")


def test_bad_stretch_does_not_hide_in_a_long_run() -> None:
    losses = make_losses(2000)
    stretch = (np.arange(2000) >= 1000) & (np.arange(2000) < 1050)
    verdict = judge(np.where(stretch, 1.15, 1) * losses, losses)
    name = "worst difference between means of 50 losses in a row (iterations 1000 to 1049): 15.00%"
    assert_only_reason(verdict, name)


def test_first_loss_tells_other_weights() -> None:
    losses = make_losses()
    other = np.where(np.arange(200) == 0, 20.5, losses)
    assert_only_reason(
        judge(other, losses),
        "different seed, weights or data order: first losses (iteration 0): 20.5 and 20, 2.50% apart (limit 2.00%)",
    )


def test_other_order_of_the_data_fails_by_correlation_alone() -> None:
    verdict = judge(make_losses(seed=1, batch_noise=0.05), make_losses(batch_noise=0.05))
    assert_only_reason(verdict, "different seed or data order: correlation of the steps from loss to loss: ")


def test_correlation_is_not_looked_at_where_chance_reaches_its_limit() -> None:
    sdaa, cuda = make_losses(85, seed=1, batch_noise=0.05), make_losses(85, batch_noise=0.05)
    assert judge(sdaa, cuda).passed
    sdaa, cuda = make_losses(86, seed=1, batch_noise=0.05), make_losses(86, batch_noise=0.05)
    assert not judge(sdaa, cuda).passed
    switched_off = judge(sdaa, cuda, Thresholds(correlation=0))
    assert switched_off.passed
    assert switched_off.unchecked == ["data order by correlation: it is switched off"]


def test_unrelated_runs_of_the_least_length_hardly_ever_correlate() -> None:
    found = [
        any(
            "correlation" in reason
            for reason in judge(make_losses(86, seed=seed), make_losses(86, seed=seed + 1)).reasons
        )
        for seed in range(0, 400, 2)
    ]
    assert sum(found) >= 198  # three standard deviations leave 0.3 of 200


def test_medians_tell_that_they_hide_the_first_batch() -> None:
    losses = make_losses()
    assert judge(losses, losses, span=20).unchecked == [
        "the first batch: a loss of metrics.json is the median of 20 iterations"
    ]


def test_losses_without_a_usable_pair_fail() -> None:
    verdict = judge(np.array([1.0, math.nan, 1.0]), np.array([0.0, 1.0, math.inf]))
    assert verdict.reasons == ["there is no pair of finite losses with a reference other than 0"]


def test_a_measure_that_is_nan_fails() -> None:
    verdict = StrictVerdict()
    verdict.judge("x", math.nan, 1.0)
    assert verdict.reasons == ["x: nan% (limit 100.00%)"]


def test_lines_begin_with_the_verdict_and_name_each_finding() -> None:
    verdict = StrictVerdict(reasons=["a"], measured=["b"], unchecked=["c"])
    assert verdict.lines() == ["strict: fail", "  reason: a", "  measured: b", "  not checked: c"]
    assert StrictVerdict(measured=["b"]).lines() == ["strict: pass", "  measured: b"]


def test_windows_are_every_stretch() -> None:
    np.testing.assert_allclose(mean_windows(np.array([1.0, 2.0, 6.0, 1.0]), 2), [1.5, 4.0, 3.5])


def test_smoothing_takes_fewer_values_at_the_ends() -> None:
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, 6.0, 1.0]), 3), [1.5, 3.0, 3.0, 3.5])
    np.testing.assert_allclose(smooth(np.array([1.0, 3.0, 5.0]), 50), [2.0, 3.0, 4.0])
