"""What a benchmark found: a table and a page for people, JSON with every sample for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.structures import MEMORY, SECONDS, CaseResult, Ratio, Target, Verdict
from maskformer.reports.pages import write_page
from maskformer.structures import InputError

_HEADERS = ("case", "ours", "against", "its time", "ratio (rounds)", "minima", "memory", "ratio", "targets")
_NOTHING = "-"
# Images a second that eight H100 train at most, by the case that loads them: a step of 16 in BF16 took these seconds
# on an H200, which computes as fast (docs/performance.md).
NODE_NEEDS = {
    "data loading: ADE20K semantic": 8 * 16 / 0.097,
    "data loading: ADE20K panoptic, 79 segments": 8 * 16 / 0.191,
}


def format_table(results: Sequence[CaseResult]) -> str:
    """One row for each case and other contender."""
    rows = [row for result in results for row in _rows(result)]
    return tabulate(rows, headers=_HEADERS, tablefmt="simple", disable_numparse=True)


def _rows(result: CaseResult) -> list[list[str]]:
    title = result.case.name + (f" [{result.processor}]" if result.processor != "native" else "")
    others = list(result.outcomes)[1:]
    verdicts = result.verdicts()
    rows = [
        [
            title if index == 0 else "",
            format_seconds(result.ours.median(SECONDS)),
            *_compare(result, other),
            _format_verdicts(verdict for verdict in verdicts if _stands_in(verdict.target, other, index)),
        ]
        for index, other in enumerate(others or [None])
    ]
    return rows


def _stands_in(target: Target, other: str | None, row: int) -> bool:
    """A target stands beside the contender that it names; one without stands in the first row."""
    return target.other == other or (target.other is None and row == 0)


def _compare(result: CaseResult, other: str | None) -> list[str]:
    memory = format_bytes(result.ours.median(MEMORY))
    if other is None:
        return [_NOTHING, _NOTHING, _NOTHING, _NOTHING, memory, _NOTHING]
    outcome, ratio = result.outcomes[other], result.ratio(other)
    memory_ratio = result.ratio(other, MEMORY)
    return [
        other,
        format_seconds(outcome.median(SECONDS)),
        _NOTHING if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f}..{ratio.high:.2f})",
        _NOTHING if ratio is None else f"{ratio.of_minima:.2f}",
        f"{memory} / {format_bytes(outcome.median(MEMORY))}",
        _NOTHING if memory_ratio is None else f"{memory_ratio.value:.2f}",
    ]


def _format_verdicts(verdicts: Any) -> str:
    return "; ".join(format_verdict(verdict) for verdict in verdicts) or _NOTHING


def format_verdict(verdict: Verdict) -> str:
    """A target, what was measured where the row does not show it, and whether it is met."""
    target = verdict.target
    name = {SECONDS: "time", MEMORY: "memory"}.get(target.quantity, target.quantity)
    is_size = target.quantity == MEMORY and target.other is None
    limit = format_bytes(target.limit) if is_size else f"{target.limit:g}"
    shows = target.quantity in (SECONDS, MEMORY) or verdict.value is None
    value = "" if shows else f" is {verdict.value:.3g},"
    answer = {True: "met", False: "missed", None: "not measured"}[verdict.met]
    return f"{name}{value} <= {limit}: {answer}"


def format_seconds(seconds: float | None) -> str:
    """A time in a unit that suits it."""
    if seconds is None:
        return "failed"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def format_bytes(size: float | None) -> str:
    """A size in a unit that suits it; 1 GB is 10^9 bytes."""
    if size is None:
        return "failed"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def format_numbers(results: Sequence[CaseResult]) -> str:
    """The medians of whatever else the units returned, a line a case; "" where there is nothing."""
    lines = []
    for result in results:
        for name, outcome in result.outcomes.items():
            numbers = _other_numbers(outcome.samples)
            if numbers:
                medians = ", ".join(f"{key} {outcome.median(key):.3g}" for key in numbers)
                lines.append(f"{result.case.name}, {name}: {medians}")
    return "\n".join(lines)


def format_loading(results: Sequence[CaseResult]) -> str:
    """What a node of eight H100 needs beside what a core loads, a line for each case that loads its images."""
    lines = []
    for result in results:
        needed, seconds = NODE_NEEDS.get(result.case.name), result.ours.median(SECONDS)
        if needed is not None and seconds:
            lines.append(
                f"{result.case.name}: eight H100 train {needed:.0f} images a second, a core loads {1 / seconds:.0f}: "
                f"{math.ceil(needed * seconds)} cores"
            )
    return "\n".join(lines)


def _other_numbers(samples: Sequence[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for sample in samples for key in sample if key not in (SECONDS, MEMORY)))


def describe_results(
    results: Sequence[CaseResult], machine: dict[str, str], settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything, as what JSON has."""
    return {
        "settings": settings,
        "machine": machine,
        "cases": [_describe_case(result) for result in results],
    }


def _describe_case(result: CaseResult) -> dict[str, Any]:
    return {
        **asdict(result.case),
        "processor": result.processor,
        "outcomes": {name: asdict(outcome) for name, outcome in result.outcomes.items()},
        "ratios": {
            other: {quantity: _describe_ratio(result.ratio(other, quantity)) for quantity in (SECONDS, MEMORY)}
            for other in list(result.outcomes)[1:]
        },
        "verdicts": [asdict(verdict) for verdict in result.verdicts()],
    }


def _describe_ratio(ratio: Ratio | None) -> dict[str, float] | None:
    return None if ratio is None else asdict(ratio)


def write_json(report: dict[str, Any], path: Path) -> None:
    """Writes a report.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"Report {path} cannot be written: {error.strerror}; change --output-dir.") from error


def write_html(results: Sequence[CaseResult], machine: dict[str, str], pictures: Sequence[Path], path: Path) -> None:
    """Writes the table and the pictures, which lie beside it, as a page.

    Raises:
        InputError: it cannot be written.
    """
    drawn = [(picture.stem.replace("_", ", "), picture.name) for picture in pictures]
    content = {
        "title": "Benchmark",
        "summary": ", ".join(f"{name}: {value}" for name, value in machine.items()),
        "headings": _HEADERS,
        "rows": [row for result in results for row in _rows(result)],
        "sections": [{"heading": "Pictures", "columns": (), "is_wide": True, "pictures": drawn}] if drawn else [],
    }
    try:
        write_page(path, "gallery.html", content)
    except OSError as error:
        raise InputError(f"Page {path} cannot be written: {error.strerror}; change --output-dir.") from error
