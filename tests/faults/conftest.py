"""The ledger of the fault harness: what was done to real processes, and what it cost them.

`make faults` runs the tests of this folder and prints the table that docs/reliability.md shows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny_training import TinyTraining

from maskformer.demo.shapes import generate_shapes


@dataclass
class Row:
    """One kind of fault.

    Attributes:
        injected: how often it was caused.
        survived: after how many the run went on, or ended as it should, with its results.
        lost: finished steps, images or files that could not be had back; see the test for the unit.
        seconds: from each fault, or the restart after it, until the work went on.
    """

    injected: int = 0
    survived: int = 0
    lost: int = 0
    seconds: list[float] = field(default_factory=list)


_ROWS: dict[str, Row] = {}


@pytest.fixture(scope="session")
def ledger() -> Callable[..., None]:
    """Enter faults: ``ledger("SIGKILL in a step", injected=5, survived=5, lost=0, seconds=[...])``; sums by name."""

    def enter(fault: str, *, injected: int, survived: int, lost: int, seconds: list[float] | None = None) -> None:
        row = _ROWS.setdefault(fault, Row())
        row.injected += injected
        row.survived += survived
        row.lost += lost
        row.seconds += seconds or []

    return enter


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not _ROWS:
        return
    terminalreporter.write_line("\n| fault | injected | survived | lost | seconds to go on (median, largest) |")
    terminalreporter.write_line("|---|---|---|---|---|")
    for fault, row in _ROWS.items():
        times = f"{statistics.median(row.seconds):.1f}, {max(row.seconds):.1f}" if row.seconds else ""
        terminalreporter.write_line(f"| {fault} | {row.injected} | {row.survived} | {row.lost} | {times} |")
    total = [sum(getattr(row, name) for row in _ROWS.values()) for name in ("injected", "survived", "lost")]
    terminalreporter.write_line(f"| **all** | {total[0]} | {total[1]} | {total[2]} | |")


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in dataset, 6 training and 4 validation pictures of 64 x 80 pixels."""
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=6, num_val=4, image_size=(64, 80), seed=0)
    return root


@pytest.fixture
def training(shapes_root: Path) -> Iterator[TinyTraining]:
    """Starts `train_net.py` on the built-in dataset as a process of its own."""
    training = TinyTraining(shapes_root)
    yield training
    training.end()
