"""Two verdicts on a pair of loss curves: the vendor's, as it is, and a strict one.

The vendor's takes signed means over the pairs that both logs have, and drops pairs with a NaN. So a loss that
collapses, noise that alternates and lines that are missing all pass. The strict one looks at the size of every
difference and at every stretch of the run.

Letters in the sentences: s is a loss with SDAA, c the one with CUDA, which is the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .curves import LossPairs

RELATIVE_LIMIT = 0.05
ABSOLUTE_LIMIT = 0.0002
MIN_WINDOW = 10  # fewer losses say nothing about how much a loss varies
QUIET = 0.02  # relative steps that deviate less are rounding, not batches: those of 2 images deviate by 0.18


@dataclass(frozen=True)
class VendorReport:
    """The vendor's two numbers, both signed: less than the reference is always good.

    Attributes:
        relative_error: mean of (sdaa - cuda) / cuda.
        absolute_error: mean of sdaa - cuda.
    """

    relative_error: float
    absolute_error: float

    @property
    def passed(self) -> bool:
        """Whether one of the two is within its limit; NaN is not."""
        return self.relative_error <= RELATIVE_LIMIT or self.absolute_error <= ABSOLUTE_LIMIT

    def lines(self) -> list[str]:
        """What the vendor's script prints."""
        relative, absolute = self.relative_error, self.absolute_error
        smaller = f"relative_error {relative}" if relative <= absolute else f"absolute_error {absolute}"
        verdict, sign, joint = ("pass", "<=", "or") if self.passed else ("fail", ">", "and")
        return [
            f"MeanRelativeError: {relative}",
            f"MeanAbsoluteError: {absolute}",
            f"Rule,mean_{smaller}",
            f"{verdict} mean_relative_error={relative} {sign} {RELATIVE_LIMIT} {joint} "
            f"mean_absolute_error={absolute} {sign} {ABSOLUTE_LIMIT}",
        ]


def apply_vendor_rule(pairs: LossPairs) -> VendorReport:
    """The vendor's report, which drops pairs with a NaN; without any pair both numbers are NaN."""
    told = pairs.select(~np.isnan(pairs.sdaa) & ~np.isnan(pairs.cuda))
    if not len(told):
        return VendorReport(float("nan"), float("nan"))
    with np.errstate(all="ignore"):  # a reference of 0 or infinity gives NaN or infinity, which fails
        difference = told.sdaa - told.cuda
        return VendorReport(float(np.mean(difference / told.cuda)), float(np.mean(difference)))


@dataclass(frozen=True)
class Thresholds:
    """Limits of the strict verdict, as fractions; the reasons for the defaults are in the help of ``compare_loss``.

    Attributes:
        first: most that the first losses may differ by.
        bias: most that the signed mean of the differences may be, on either side.
        mean: most that the mean size of a difference may be.
        p95: most that the 95th percentile of the sizes may be.
        window: losses in a stretch of the run.
        window_error: most that the means of any stretch may differ by.
        variation: least ratio of the steps' standard deviations in any stretch, the smaller over the larger.
        correlation: least correlation of the steps from loss to loss; 0 switches it off.
    """

    first: float = 0.02
    bias: float = 0.05
    mean: float = 0.10
    p95: float = 0.30
    window: int = 50
    window_error: float = 0.10
    variation: float = 0.25
    correlation: float = 0.4


@dataclass
class StrictVerdict:
    """What the strict comparison found.

    Attributes:
        reasons: one sentence a failure; none means pass.
        measured: what was compared with the limits.
        unchecked: what these logs cannot show.
    """

    reasons: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.reasons

    def judge(self, name: str, value: float, limit: float) -> None:
        """Compares the size of a measured fraction with its limit."""
        self.note(abs(value) <= limit, f"{name}: {value:.2%} (limit {limit:.2%})")  # NaN is a reason

    def note(self, passed: bool, sentence: str, cause: str = "") -> None:
        """Adds what was measured; a failure says what may be its cause first."""
        (self.measured if passed else self.reasons).append(sentence if passed else cause + sentence)

    def extend(self, other: StrictVerdict) -> None:
        """Adds another verdict's findings."""
        self.reasons += other.reasons
        self.measured += other.measured
        self.unchecked += other.unchecked

    def lines(self) -> list[str]:
        """The verdict, and a line a finding."""
        named = (("reason", self.reasons), ("measured", self.measured), ("not checked", self.unchecked))
        head = "strict: pass" if self.passed else "strict: fail"
        return [head, *(f"  {name}: {finding}" for name, findings in named for finding in findings)]


def check_losses(pairs: LossPairs, span: int, limits: Thresholds) -> StrictVerdict:
    """How far the losses of two aligned curves are apart.

    Args:
        pairs: what both logs have.
        span: iterations that one loss is the median of.
        limits: what is allowed.
    """
    usable = pairs.select(np.isfinite(pairs.sdaa) & np.isfinite(pairs.cuda) & (pairs.cuda != 0))
    verdict = StrictVerdict()
    if not len(usable):
        verdict.reasons.append("there is no pair of finite losses with a reference other than 0")
        return verdict
    if span > 1:
        verdict.unchecked.append(f"the first batch: a loss of metrics.json is the median of {span} iterations")
    with np.errstate(all="ignore"):  # what overflows is NaN or infinite, and fails
        for check in (_check_first, _check_sizes, _check_windows, _check_variation, _check_order):
            check(usable, limits, verdict)
    return verdict


def _check_first(pairs: LossPairs, limits: Thresholds, verdict: StrictVerdict) -> None:
    sdaa, cuda = pairs.sdaa[0], pairs.cuda[0]
    error = abs(sdaa - cuda) / abs(cuda)
    sentence = (
        f"first losses (iteration {pairs.iterations[0]}): {sdaa:.6g} and {cuda:.6g}, {error:.2%} apart "
        f"(limit {limits.first:.2%})"
    )
    verdict.note(error <= limits.first, sentence, "different seed, weights or data order: ")


def _check_sizes(pairs: LossPairs, limits: Thresholds, verdict: StrictVerdict) -> None:
    signed = (pairs.sdaa - pairs.cuda) / np.abs(pairs.cuda)
    size = np.abs(signed)
    verdict.judge(f"mean of |s-c|/|c| over {len(pairs)} losses", size.mean(), limits.mean)
    verdict.judge("95th percentile of |s-c|/|c|", np.percentile(size, 95), limits.p95)
    verdict.judge("signed mean of (s-c)/|c|", signed.mean(), limits.bias)


def _check_windows(pairs: LossPairs, limits: Thresholds, verdict: StrictVerdict) -> None:
    """A stretch cannot hide behind the rest of the run, as it can in a mean over all of it."""
    length = min(limits.window, len(pairs))
    sdaa, cuda = (mean_windows(losses, length) for losses in (pairs.sdaa, pairs.cuda))
    error = np.abs(sdaa - cuda) / np.maximum(np.abs(cuda), np.finfo(float).tiny)
    worst = int(error.argmax())
    first, last = pairs.iterations[worst], pairs.iterations[worst + length - 1]
    name = f"worst difference between means of {length} losses in a row (iterations {first} to {last})"
    verdict.judge(name, error[worst], limits.window_error)


def mean_windows(values: np.ndarray, length: int) -> np.ndarray:
    """(N,) -> (N-length+1,): the mean of every stretch of consecutive values."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[length:] - sums[:-length]) / length


def smooth(values: np.ndarray, length: int) -> np.ndarray:
    """(N,) -> (N,): the mean of the ``length`` values around each one, of fewer at the ends."""
    kernel = np.ones(min(length, len(values)))
    return np.convolve(values, kernel, mode="same") / np.convolve(np.ones(len(values)), kernel, mode="same")


def _take_steps(pairs: LossPairs) -> tuple[np.ndarray, np.ndarray]:
    """From each loss to the next, over the reference's level around it: without the trend, with the batches' noise.

    Returns:
        (N-1,) of SDAA, (N-1,) of CUDA.
    """
    level = smooth(np.abs(pairs.cuda), MIN_WINDOW)[:-1]
    return np.diff(pairs.sdaa) / level, np.diff(pairs.cuda) / level


def _check_variation(pairs: LossPairs, limits: Thresholds, verdict: StrictVerdict) -> None:
    """A constant near the reference, and noise around it, have a small difference and the wrong steps."""
    length = min(limits.window, len(pairs) - 1)
    if length < MIN_WINDOW:
        verdict.unchecked.append(f"variation: stretches have {length} steps from loss to loss, {MIN_WINDOW} are enough")
        return
    sdaa, cuda = (_deviate_windows(steps, length) for steps in _take_steps(pairs))
    larger = np.maximum(np.maximum(sdaa, cuda), QUIET)
    if not (larger > QUIET).any():
        verdict.unchecked.append(f"variation: no stretch has steps from loss to loss of more than {QUIET:.0%}")
        return
    ratio = np.where(larger > QUIET, np.minimum(sdaa, cuda) / larger, 1.0)
    worst = int(ratio.argmin())
    sentence = (
        f"standard deviation of the steps from loss to loss, in iterations {pairs.iterations[worst]} to "
        f"{pairs.iterations[worst + length]}: {sdaa[worst]:.2%} with SDAA, {cuda[worst]:.2%} with CUDA "
        f"(ratio at least {limits.variation})"
    )
    verdict.note(ratio[worst] >= limits.variation, sentence)


def _deviate_windows(values: np.ndarray, length: int) -> np.ndarray:
    """(N,) -> (N-length+1,): the standard deviation of every stretch of consecutive values."""
    variance = mean_windows(values**2, length) - mean_windows(values, length) ** 2
    return np.sqrt(np.maximum(variance, 0))  # rounding may leave a little less than 0


def _check_order(pairs: LossPairs, limits: Thresholds, verdict: StrictVerdict) -> None:
    """Batches differ in difficulty, so the same order of data moves both losses up and down together.

    Steps of unrelated runs correlate by 0 with a standard deviation of sqrt(1.5 / N), because neighbouring steps share
    a loss. The check is made where its limit is three of those or more.
    """
    needed = int(np.ceil(9 * 1.5 / limits.correlation**2)) + 1 if limits.correlation > 0 else 0
    if not needed or len(pairs) < needed:
        why = f"{len(pairs)} losses are too few to correlate, {needed} are enough" if needed else "it is switched off"
        verdict.unchecked.append(f"data order by correlation: {why}")
        return
    sdaa, cuda = _take_steps(pairs)
    if cuda.std() < QUIET:
        verdict.unchecked.append(f"data order by correlation: steps of CUDA's loss are only {cuda.std():.2%}")
        return
    correlation = float(np.corrcoef(sdaa, cuda)[0, 1]) if sdaa.std() > 0 else 0.0
    sentence = f"correlation of the steps from loss to loss: {correlation:.2f} (at least {limits.correlation})"
    verdict.note(correlation >= limits.correlation, sentence, "different seed or data order: ")
