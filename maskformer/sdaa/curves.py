"""Loss curves for ``compare_loss``: read from TCAPPDLL logs or Detectron2's ``metrics.json``, brought to one scale.

A TCAPPDLL log has the loss of every iteration; ``metrics.json`` has, every 20 iterations, the median of the last 20. To
compare one with the other, the finer curve is turned into the medians that the coarser one would have held.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from maskformer.structures import InputError

from .tcappdll import TcappdllRecord, parse_line

METRICS_SPAN = 20  # iterations under one median: Detectron2's JSONWriter, unless it is built with another window_size


@dataclass(frozen=True)
class LossCurve:
    """The losses of one run, as one log tells them.

    Attributes:
        path: the log.
        iterations: (N,) int64, in the log's order; gaps and duplicates are kept.
        losses: (N,) float64, NaN and infinity included.
        span: iterations that one loss is the median of; 1 means that losses are raw.
    """

    path: Path
    iterations: np.ndarray
    losses: np.ndarray
    span: int = 1

    @property
    def step(self) -> int:
        """The most frequent distance between iterations; 1 if there is one loss only."""
        distances, counts = np.unique(np.diff(np.unique(self.iterations)), return_counts=True)
        return int(distances[counts.argmax()]) if len(distances) else 1


@dataclass(frozen=True)
class LossPairs:
    """The losses of two runs at the iterations that both logs have.

    Attributes:
        iterations: (N,) int64, ascending.
        sdaa: (N,) float64.
        cuda: (N,) float64, the reference.
    """

    iterations: np.ndarray
    sdaa: np.ndarray
    cuda: np.ndarray

    def __len__(self) -> int:
        return len(self.iterations)

    def select(self, keep: np.ndarray) -> LossPairs:
        """Some of the pairs, by a (N,) boolean array."""
        return LossPairs(self.iterations[keep], self.sdaa[keep], self.cuda[keep])


def read_curve(path: Path, rank: int = 0) -> LossCurve:
    """The losses of a log, whose kind shows in its content.

    Args:
        path: a TCAPPDLL log (other lines are skipped) or a ``metrics.json``.
        rank: whose lines of a TCAPPDLL log count.

    Raises:
        InputError: the file cannot be read, holds no losses, or none of that rank.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InputError(f"Log {path} cannot be read: {error.strerror}. Expected a text file.") from error
    records = [record for record in map(parse_line, lines) if record is not None]
    if records:
        return _curve_of_records(path, records, rank)
    entries = list(_parse_metrics(lines))
    if not entries:
        raise InputError(
            f"{path} holds no losses; expected a log with whole TCAPPDLL lines, or Detectron2's metrics.json with "
            "iteration and total_loss."
        )
    iterations, losses = zip(*entries, strict=True)
    return LossCurve(path, np.array(iterations), np.array(losses, dtype=float), span=METRICS_SPAN)


def _curve_of_records(path: Path, records: list[TcappdllRecord], rank: int) -> LossCurve:
    of_rank = [record for record in records if record.rank == rank]
    if not of_rank:
        ranks = ", ".join(map(str, sorted({record.rank for record in records})))
        raise InputError(f"{path} holds no TCAPPDLL line of rank {rank}, only of rank {ranks}; change --rank.")
    epochs, iterations = (np.array([getattr(record, name) for record in of_rank]) for name in ("epoch", "iteration"))
    curve = LossCurve(path, iterations, np.array([record.loss for record in of_rank], dtype=float))
    names = np.unique(epochs)
    firsts = {int(iterations[epochs == epoch].min()) for epoch in names}
    if len(names) == 1 or len(firsts) > 1:
        return curve
    # The log begins anew with every epoch, whose first number is always the same: count through the run.
    epoch_length = iterations.max() - iterations.min() + curve.step
    return replace(curve, iterations=(epochs - names[0]) * epoch_length + iterations)


def _parse_metrics(lines: Iterable[str]) -> Iterator[tuple[int, float]]:
    """Yields (iteration, total loss); lines of evaluations have none, and a cut line is no line."""
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        match entry:
            case {"iteration": int(iteration), "total_loss": int(loss) | float(loss)}:
                yield iteration, float(loss)
            case {"iteration": int(iteration), "total_loss": None}:  # what is not finite
                yield iteration, math.nan


def align(sdaa: LossCurve, cuda: LossCurve) -> tuple[LossCurve, LossCurve]:
    """Both curves as medians over the same number of iterations, so that their losses can be compared."""
    return _take_medians(sdaa, cuda), _take_medians(cuda, sdaa)


def _take_medians(curve: LossCurve, coarse: LossCurve) -> LossCurve:
    """The curve at a coarser one's iterations: the median of the ``coarse.span`` iterations up to each of them."""
    if curve.span >= coarse.span:
        return curve
    iterations = np.unique(coarse.iterations[np.isin(coarse.iterations, curve.iterations)])
    order = np.argsort(curve.iterations, kind="stable")
    starts = np.searchsorted(curve.iterations, iterations - coarse.span, side="right", sorter=order)
    ends = np.searchsorted(curve.iterations, iterations, side="right", sorter=order)
    losses = [float(np.median(curve.losses[order[start:end]])) for start, end in zip(starts, ends)]
    return LossCurve(curve.path, iterations, np.array(losses), span=coarse.span)


def pair(sdaa: LossCurve, cuda: LossCurve) -> LossPairs:
    """The losses at the iterations that both have; of an iteration told twice, the last.

    Raises:
        InputError: they have no iteration in common.
    """
    of_sdaa, of_cuda = (dict(zip(c.iterations.tolist(), c.losses)) for c in (sdaa, cuda))
    common = sorted(of_sdaa.keys() & of_cuda.keys())
    if not common:
        raise InputError(
            f"{sdaa.path} and {cuda.path} have no iteration in common; expected two logs of the same training."
        )
    values = (np.array([losses[iteration] for iteration in common]) for losses in (of_sdaa, of_cuda))
    return LossPairs(np.array(common), *values)
