"""What libraries print goes to the log, what the tool says to the console."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from maskformer.reports.console import console_to_log
from maskformer.structures import InputError


def test_prints_go_to_the_log_and_the_stream_to_the_console(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with console_to_log(tmp_path / "new" / "log.txt") as console:
        print("a library")
        print("a warning", file=sys.stderr)
        os.write(2, b"from C++\n")
        print("progress", file=console)
    print("after")
    captured = capfd.readouterr()
    assert captured.out == "before\nprogress\nafter\n"
    assert captured.err == ""
    assert sorted((tmp_path / "new" / "log.txt").read_text().splitlines()) == ["a library", "a warning", "from C++"]


def test_console_is_given_back_after_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), console_to_log(tmp_path / "log.txt"):
        raise KeyError
    print("visible", file=sys.stderr, flush=True)
    os.write(2, b"from C++ too\n")
    assert capfd.readouterr().err == "visible\nfrom C++ too\n"


def test_log_is_continued(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("earlier\n")
    with console_to_log(tmp_path / "log.txt"):
        os.write(1, b"later\n")
    assert (tmp_path / "log.txt").read_text() == "earlier\nlater\n"


def test_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"file/log\.txt cannot be written"),
        console_to_log(tmp_path / "file" / "log.txt"),
    ):
        pass
