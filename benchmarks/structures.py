"""What a benchmark is made of: cases, their contenders and targets; and what was measured of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SECONDS = "seconds"
MEMORY = "memory_bytes"


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Attributes:
        name: "maskformer", "definition", "hugging face", "detectron2", ...
        setup: "package.module:function". The function returns a callable without arguments that does one unit of work
            and may return numbers by name; one called "seconds" replaces the time that was taken around it.
        options: keyword arguments of the function, of types that JSON has. A function with a parameter ``device`` is
            given the benchmark's device besides.
    """

    name: str
    setup: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """What our contender shall reach.

    Attributes:
        quantity: ``SECONDS``, ``MEMORY`` or the name of a number that a unit returns.
        limit: the most that is allowed.
        other: of the same quantity of this contender; None: in the quantity's own unit.
    """

    quantity: str
    limit: float
    other: str | None = None


@dataclass(frozen=True)
class Case:
    """One piece of work, done by several contenders in turn.

    Attributes:
        name: unique.
        group: what ``--only`` may name instead.
        contenders: ours first; ratios are ours over another's.
        targets: see ``Target``.
        environment: variables of all contenders' processes.
        rounds: units of each contender that count.
        warm_ups: units of each before them.
        curve: the cases of one curve show how cost grows.
        position: where on that curve the case is.
        on_accelerators: too large for a CPU, where it is run only if it is named.
    """

    name: str
    group: str
    contenders: tuple[Contender, ...]
    targets: tuple[Target, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    rounds: int = 5
    warm_ups: int = 1
    curve: str | None = None
    position: float = 0.0
    on_accelerators: bool = False


@dataclass
class Outcome:
    """What one contender did.

    Attributes:
        samples: one dict a round, in order: ``SECONDS``, ``MEMORY`` and whatever the unit returned.
        error: one line, where it failed.
        threads: that PyTorch used.
    """

    samples: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None
    threads: int | None = None

    def values(self, quantity: str) -> list[float]:
        """One quantity of all rounds that have it."""
        return [sample[quantity] for sample in self.samples if quantity in sample]

    def median(self, quantity: str) -> float | None:
        """None where there is no sample."""
        values = self.values(quantity)
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Ratio:
    """Ours over another's.

    Attributes:
        value: of the medians.
        low: the smallest of the rounds' own ratios.
        high: the largest.
        of_minima: of the smallest values, which a busy machine disturbs least.
    """

    value: float
    low: float
    high: float
    of_minima: float


@dataclass(frozen=True)
class Verdict:
    """Whether a target is met: ``value`` is what was measured; both are None where it could not be."""

    target: Target
    value: float | None
    met: bool | None


@dataclass
class CaseResult:
    """A case, and what its contenders did.

    Attributes:
        case: see ``Case``.
        processor: with which instructions, of ``PROCESSORS``.
        outcomes: by the contenders' names, in the case's order.
    """

    case: Case
    processor: str
    outcomes: dict[str, Outcome]

    @property
    def ours(self) -> Outcome:
        """The outcome of the first contender."""
        return self.outcomes[self.case.contenders[0].name]

    def ratio(self, other: str, quantity: str = SECONDS) -> Ratio | None:
        """Ours over another's; None where either has no samples or the other's are 0."""
        return compare(self.ours.values(quantity), self.outcomes[other].values(quantity))

    def verdicts(self) -> list[Verdict]:
        """One for each target, in order."""
        return [self._judge(target) for target in self.case.targets]

    def _judge(self, target: Target) -> Verdict:
        if target.other is None:
            value = self.ours.median(target.quantity)
        else:
            ratio = self.ratio(target.other, target.quantity)
            value = None if ratio is None else ratio.value
        return Verdict(target, value, None if value is None else value <= target.limit)


def compare(ours: Sequence[float], others: Sequence[float]) -> Ratio | None:
    """The ratio of two contenders' samples of the same rounds; None where it has no value."""
    if not ours or not others or min(others) <= 0:
        return None
    of_rounds = [our / other for our, other in zip(ours, others)]
    of_medians = statistics.median(ours) / statistics.median(others)
    return Ratio(of_medians, min(of_rounds), max(of_rounds), min(ours) / min(others))


def check_cases(cases: Sequence[Case]) -> None:
    """Names are unique, and targets name contenders that are there: a mistake in the table shows at once."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases of one name"
    for case in cases:
        contenders: Mapping[str, Contender] = {contender.name: contender for contender in case.contenders}
        assert len(contenders) == len(case.contenders), f"{case.name}: two contenders of one name"
        for target in case.targets:
            assert target.other is None or target.other in contenders, f"{case.name}: no contender {target.other}"
