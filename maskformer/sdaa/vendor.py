"""The loss comparison that SDAA's vendor asks for, as it is: its two numbers, its rule and its lines.

It takes signed means over the pairs that both logs have, and drops pairs with a NaN. So a loss that collapses, noise
that alternates and lines that are missing all pass; ``loss_verdict`` is there for those.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .curves import LossPairs

RELATIVE_LIMIT = 0.05
ABSOLUTE_LIMIT = 0.0002


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
