"""The TCAPPDLL line, byte for byte."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime

import pytest

from maskformer.sdaa.tcappdll import TcappdllRecord, format_record, parse_line

SAMPLE_LINE = (
    "TCAPPDLL 2025-07-16 04:50:44.989637 - Epoch: 0 Iteration: 76  rank : 0  train.loss : 21.287315368652344  "
    "train.ips : 0.5203398240215197 imgs/s train.total_time : 3.843641996383667 "
)
SAMPLE = TcappdllRecord(
    epoch=0,
    iteration=76,
    rank=0,
    loss=21.287315368652344,
    images_per_second=0.5203398240215197,
    total_time=3.843641996383667,
    time=datetime(2025, 7, 16, 4, 50, 44, 989637),
)


def test_sample_line_is_written_byte_for_byte() -> None:
    assert format_record(SAMPLE) == SAMPLE_LINE


def test_sample_line_is_read_to_the_last_digit() -> None:
    assert parse_line(SAMPLE_LINE) == SAMPLE


def test_time_of_a_whole_second_keeps_its_six_digits() -> None:
    record = replace(SAMPLE, time=datetime(2025, 7, 16, 4, 50, 44))
    line = format_record(record)
    assert " 04:50:44.000000 - Epoch" in line
    assert parse_line(line) == record


def test_record_is_found_behind_the_prefix_of_a_logger() -> None:
    line = f"\x1b[32m[07/16 04:50:44 maskformer]: \x1b[0m{SAMPLE_LINE.rstrip()}\n"
    assert parse_line(line) == SAMPLE


@pytest.mark.parametrize("loss", [math.inf, -math.inf, 1e-07, 12345678.0])
def test_extreme_losses_survive_the_round_trip(loss: float) -> None:
    record = replace(SAMPLE, loss=loss)
    assert parse_line(format_record(record)) == record


@pytest.mark.parametrize("written", ["nan", "NaN", "-nan"])
def test_nan_loss_is_read_as_nan(written: str) -> None:
    record = parse_line(SAMPLE_LINE.replace("21.287315368652344", written))
    assert record is not None
    assert math.isnan(record.loss)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[07/16 04:50:44 d2.utils.events]: iter: 76  total_loss: 21.29",
        SAMPLE_LINE[: SAMPLE_LINE.index("  train.ips")],
        SAMPLE_LINE.replace("21.287315368652344", "none"),
        SAMPLE_LINE.replace("2025-07-16", "2025-13-16"),
    ],
    ids=["empty", "other", "cut", "no_number", "no_date"],
)
def test_line_without_a_whole_record_gives_none(line: str) -> None:
    assert parse_line(line) is None
