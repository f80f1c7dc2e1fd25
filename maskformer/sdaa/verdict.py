"""Two verdicts on a pair of loss curves: the vendor's, as it is, and a strict one.

The vendor's takes signed means over the pairs that both logs have, and drops pairs with a NaN. So a loss that
collapses, noise that alternates and lines that are missing all pass. The strict one looks at the size of every
difference, at every stretch of the run, at losses that are not there and at runs that were started differently.

Letters in the sentences: s is a loss with SDAA, c the one with CUDA, which is the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from maskformer.structures import InputError

from .curves import LossCurve, LossPairs

SETTING_KEYS = ("SEED", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "DATASETS.TRAIN")

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


def _limit(default: float, option: str, meaning: str) -> Any:
    """A limit, the option of ``compare_loss`` that sets it, and its help with what was measured."""
    return field(default=default, metadata={"option": option, "help": f"{meaning} (default: %(default)s)"})


@dataclass(frozen=True)
class Thresholds:
    """Limits of the strict verdict, as fractions; the epilog of ``compare_loss`` says what "same" and "order" are."""

    first: float = _limit(
        0.02,
        "--first-tolerance",
        "difference of the first losses; same 0.000001, half precision rounds by 0.0005, order 0.028",
    )
    bias: float = _limit(
        0.05, "--bias-tolerance", "signed mean of the differences, on either side: the vendor's limit; same 0.013"
    )
    mean: float = _limit(0.10, "--mean-tolerance", "mean size of the differences; same 0.05, order 0.13")
    p95: float = _limit(0.30, "--p95-tolerance", "95th percentile of their sizes; same 0.18, order 0.36")
    window: int = _limit(
        50, "--window", "losses in a stretch; in a shorter one noise remains, in a longer one a failure hides"
    )
    window_error: float = _limit(
        0.10, "--window-tolerance", "difference of the mean losses of any stretch; same 0.03, order 0.07"
    )
    variation: float = _limit(
        0.25,
        "--min-variation",
        "ratio of the standard deviations of the steps from loss to loss, the smaller over the larger, in any stretch; "
        "same 0.8, a constant loss 0",
    )
    correlation: float = _limit(
        0.4,
        "--min-correlation",
        "correlation of the steps from loss to loss, which batches of the same order cause; same 0.87, order 0.04; "
        "looked at where the limit is three standard deviations of chance (86 losses for the default); 0 is never",
    )


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

    def lines(self) -> list[str]:
        """The verdict, and a line a finding."""
        named = (("reason", self.reasons), ("measured", self.measured), ("not checked", self.unchecked))
        head = "strict: pass" if self.passed else "strict: fail"
        return [head, *(f"  {name}: {finding}" for name, findings in named for finding in findings)]


def check_losses(pairs: LossPairs, span: int, limits: Thresholds, verdict: StrictVerdict) -> None:
    """How far the losses of two aligned curves are apart.

    Args:
        pairs: what both logs have.
        span: iterations that one loss is the median of.
        limits: what is allowed.
        verdict: findings are added.
    """
    usable = pairs.select(np.isfinite(pairs.sdaa) & np.isfinite(pairs.cuda) & (pairs.cuda != 0))
    if not len(usable):
        verdict.reasons.append("there is no pair of finite losses with a reference other than 0")
        return
    if span > 1:
        verdict.unchecked.append(f"the first batch: a loss of metrics.json is the median of {span} iterations")
    with np.errstate(all="ignore"):  # what overflows is NaN or infinite, and fails
        for check in (_check_first, _check_sizes, _check_windows, _check_variation, _check_order):
            check(usable, limits, verdict)


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
    """(N-1,) of SDAA and of CUDA: from each loss to the next, over the level around it, so without the trend."""
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


def check_logs(sdaa: LossCurve, cuda: LossCurve) -> Iterator[str]:
    """Yields what is wrong with the logs as they are: losses that are not finite, not there or there twice."""
    for name, curve in (("SDAA", sdaa), ("CUDA", cuda)):
        wrong = ~np.isfinite(curve.losses)
        if wrong.any():
            first = curve.iterations[wrong][0]
            yield f"{name}: {wrong.sum()} of {len(wrong)} losses are NaN or infinite, the first at iteration {first}"
        iterations, counts = np.unique(curve.iterations, return_counts=True)
        twice = iterations[counts > 1]
        if len(twice):
            yield f"{name}: {len(twice)} iterations are there more than once, the first is {twice[0]} (a resumed run?)"
        distances = np.diff(iterations)
        if curve.span > 1 and len(distances) and distances[-1] < curve.step:
            distances = distances[:-1]  # Detectron2 also writes the last iteration
        gaps = np.flatnonzero(distances != curve.step)
        if len(gaps):
            start, end = iterations[gaps[0]], iterations[gaps[0] + 1]
            yield (
                f"{name}: {len(gaps)} gaps where iterations are missing, the first between {start} and {end} "
                f"(there is a loss every {curve.step})"
            )
    ends = int(sdaa.iterations.max()), int(cuda.iterations.max())
    if ends[0] != ends[1]:
        yield f"different length: SDAA ends at iteration {ends[0]}, CUDA at {ends[1]}"


def check_presence(sdaa: LossCurve, cuda: LossCurve) -> Iterator[str]:
    """Yields the iterations that only one of two aligned curves has, up to where the shorter one ends."""
    end = min(sdaa.iterations.max(), cuda.iterations.max())
    for name, one, other in (("SDAA", sdaa, cuda), ("CUDA", cuda, sdaa)):
        missing = np.setdiff1d(other.iterations[other.iterations <= end], one.iterations)
        if len(missing):
            yield f"{name}: {len(missing)} iterations of the other log are missing, the first is {missing[0]}"


def check_settings(sdaa: Path, cuda: Path) -> StrictVerdict:
    """Whether both runs were started alike, as far as the ``config.yaml`` that Detectron2 writes beside a log tells.

    Args:
        sdaa: the SDAA log.
        cuda: the CUDA log.

    Raises:
        InputError: a ``config.yaml`` holds something else than keys and values.
    """
    verdict = StrictVerdict()
    paths = [log.parent / "config.yaml" for log in (sdaa, cuda)]
    shared = paths[0].resolve() == paths[1].resolve()
    settings = [_read_settings(path, verdict) for path in (paths[:1] if shared else paths)]
    if None in settings:
        return verdict
    if shared:
        verdict.unchecked.append(f"seed and settings: both logs are beside one {paths[0]}, which is of one run")
        return verdict
    for key, (of_sdaa, of_cuda) in zip(SETTING_KEYS, zip(*settings, strict=True), strict=True):
        if of_sdaa != of_cuda:
            verdict.reasons.append(f"different {key}: {of_sdaa} with SDAA, {of_cuda} with CUDA")
    return verdict


def _read_settings(path: Path, verdict: StrictVerdict) -> list[Any] | None:
    """The values of SETTING_KEYS, None without a file; a seed that says nothing goes into the verdict."""
    if not path.is_file():
        verdict.unchecked.append(f"seed and settings: there is no {path}")
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not the plain YAML that Detectron2 writes beside a log: {reason}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no keys and values; expected what Detectron2 writes beside a log.")
    settings = [_look_up(content, key) for key in SETTING_KEYS]
    seed = settings[0]
    if not isinstance(seed, int) or seed < 0:
        verdict.reasons.append(f"SEED is not set in {path}, so the two runs cannot be compared")
    return settings


def _look_up(content: Any, key: str) -> Any:
    for name in key.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content
