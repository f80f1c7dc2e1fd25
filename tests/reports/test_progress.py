"""The progress line, with a clock and a stream of the test's own."""

from __future__ import annotations

import io

import pytest

from maskformer.reports.progress import CLEAR_LINE, ProgressLine, format_duration, track


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration_reads_like_a_person_says_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_time_left_is_the_pace_since_the_first_update_times_what_is_left() -> None:
    clock = Clock()
    line = ProgressLine("Training", 100, stream=io.StringIO(), clock=clock)
    clock.now += 60  # start-up is not part of the pace
    line.update(1)
    assert line.remaining() is None
    clock.now += 20
    line.update(11)
    assert line.remaining() == pytest.approx(2 * 89)


def test_resumed_work_is_not_counted_into_the_pace() -> None:
    clock = Clock()
    line = ProgressLine("Training", 100, start=50, stream=io.StringIO(), clock=clock)
    line.update(51)
    clock.now += 9
    line.update(54)
    assert line.remaining() == pytest.approx(3 * 46)


def test_log_gets_a_line_every_ten_seconds_and_no_control_characters() -> None:
    clock, stream = Clock(), io.StringIO()
    line = ProgressLine("Training", 100, unit="iterations", stream=stream, clock=clock)
    for done in range(1, 26):
        clock.now += 1
        line.update(done, "loss 2.5")
    line.finish("loss 2.4")
    assert stream.getvalue().splitlines() == [
        "Training, 0/100 iterations",
        "Training, 10/100 iterations, loss 2.5, 1 min 30 s left",
        "Training, 20/100 iterations, loss 2.5, 1 min 20 s left",
        "Training, 25/100 iterations, loss 2.4, done in 25 s",
    ]


def test_terminal_line_is_rewritten_in_place_and_ends_with_one_newline() -> None:
    clock, stream = Clock(), Terminal()
    with ProgressLine("Drawing", 4, stream=stream, clock=clock) as line:
        clock.now += 1
        line.advance(2)
    assert stream.getvalue() == (
        f"{CLEAR_LINE}Drawing [................], 0/4{CLEAR_LINE}Drawing [########........], 2/4"
        f"{CLEAR_LINE}Drawing, 2/4, done in 1 s\n"
    )


def test_terminal_is_not_redrawn_more_than_ten_times_a_second() -> None:
    clock, stream = Clock(), Terminal()
    line = ProgressLine("Drawing", 1000, stream=stream, clock=clock)
    for _ in range(100):
        clock.now += 0.01
        line.advance()
    assert stream.getvalue().count(CLEAR_LINE) <= 11


def test_line_is_cut_to_the_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    ProgressLine("A title that is much longer than that", 10, stream=stream)
    assert stream.getvalue() == CLEAR_LINE + "A title that is muc"


def test_unknown_total_shows_the_count_alone() -> None:
    clock, stream = Clock(), io.StringIO()
    line = ProgressLine("Reading", unit="frames", stream=stream, clock=clock)
    clock.now += 10
    line.advance(7)
    assert stream.getvalue().splitlines() == ["Reading", "Reading, 7 frames"]
    assert line.remaining() is None


def test_error_inside_the_block_is_not_reported_as_done() -> None:
    stream = Terminal()
    with pytest.raises(KeyError), ProgressLine("Drawing", 4, stream=stream):
        raise KeyError
    assert "done" not in stream.getvalue()
    assert stream.getvalue().endswith("\n")


def test_track_counts_an_item_after_it_was_used() -> None:
    stream = io.StringIO()
    assert list(track("abc", "Spelling", 3, unit="letters", stream=stream)) == ["a", "b", "c"]
    assert stream.getvalue().splitlines() == ["Spelling, 0/3 letters", "Spelling, 3/3 letters, done in 0 s"]


def test_quiet_line_writes_nothing() -> None:
    stream = Terminal()
    with ProgressLine("Drawing", 2, quiet=True, stream=stream) as line:
        line.advance()
    assert stream.getvalue() == ""
