"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest

from maskformer.reports.console import ProgressLine


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_terminal_shows_a_bar_that_is_rewritten_in_place():
    stream = Terminal()
    with ProgressLine("Drawing", 4, unit="images", stream=stream) as line:
        line.advance(2, note="loss 2.5")
    text = stream.getvalue()
    assert all(fact in text for fact in ("\rDrawing:  50%|", "| 2/4 [", " images/s, loss 2.5]"))
    assert text.endswith("\n") and text.count("\n") == 1


def test_log_gets_plain_lines_now_and_then():
    stream = io.StringIO()
    line = ProgressLine("Training", 100, unit="iterations", start=40, stream=stream)
    for seconds in (1, 9.5, 0.1, 10.1):
        line.start_t -= seconds  # as if so much time had passed
        line.last_print_t -= seconds
        line.advance(note=f"loss {seconds}")
    line.close()
    lines = stream.getvalue().splitlines()
    assert [entry.split(" [")[0] for entry in lines] == [f"Training: {n}/100" for n in (40, 42, 44, 44)]
    assert "loss 9.5" in lines[1] and "\r" not in stream.getvalue() and stream.getvalue().endswith("\n")


def test_unknown_total_shows_the_count_alone():
    stream = io.StringIO()
    with ProgressLine("Reading", unit="frames", stream=stream) as line:
        line.advance(7)
    assert stream.getvalue().splitlines()[-1].startswith("Reading: 7/? [")


def test_error_inside_the_block_leaves_the_count_and_ends_the_line():
    stream = Terminal()
    with pytest.raises(KeyError), ProgressLine("Drawing", 4, stream=stream) as line:
        line.advance()
        raise KeyError
    assert "1/4" in stream.getvalue() and "4/4" not in stream.getvalue() and stream.getvalue().endswith("\n")


def test_items_are_counted_and_have_their_length():
    stream = io.StringIO()
    line = ProgressLine("Spelling", items=["a", "b", "c"], unit="letters", stream=stream)
    assert len(line) == 3 and list(line) == ["a", "b", "c"]
    assert stream.getvalue().splitlines()[-1].startswith("Spelling: 3/3 [")


def test_quiet_line_writes_nothing():
    stream = Terminal()
    with ProgressLine("Drawing", 2, quiet=True, stream=stream) as line:
        line.advance(note="a")
    assert stream.getvalue() == ""


def test_control_characters_of_names_are_shown_escaped():
    stream = io.StringIO()
    with ProgressLine("Drawing \x1b[2J", 2, stream=stream) as line:
        line.advance(note="a\nb")
    assert "\x1b" not in stream.getvalue() and "\\x1b[2J" in stream.getvalue() and "a\\nb" in stream.getvalue()
