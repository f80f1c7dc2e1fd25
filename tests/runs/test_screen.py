from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskformer.runs.screen import show_on_screen
from maskformer.structures import SCREEN

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _shown() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("maskformer", "detectron2")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    for _ in range(2):  # however often it is asked for, a line is shown once
        show_on_screen(["maskformer", "detectron2"])
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


def test_the_screen_shows_its_own_lines_and_our_warnings_and_nothing_else(capsys: pytest.CaptureFixture):
    SCREEN.info("iteration %d", 1)
    logging.getLogger("maskformer.data").info("a detail")
    logging.getLogger("maskformer.data").warning("a bad image: %s", "a.jpg")
    logging.getLogger("maskformers").warning("another package")
    logging.getLogger("detectron2.engine").warning("a library")
    logging.getLogger("detectron2.engine").error("a library's error")
    assert capsys.readouterr().out == "iteration 1\nwarning: a bad image: a.jpg\n"


def test_names_that_the_terminal_cannot_write_are_escaped(monkeypatch: pytest.MonkeyPatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    SCREEN.info("Straße")
    assert terminal.buffer.getvalue() == b"Stra\\xdfe\n"  # type: ignore[attr-defined]


def test_a_closed_pipe_stops_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    terminal = io.StringIO()
    terminal.close()
    monkeypatch.setattr(sys, "stdout", terminal)
    SCREEN.info("nobody reads it")
    assert capsys.readouterr().err == ""


PROGRAM = """
import logging, sys, warnings
import maskformer
from maskformer.runs.screen import keep_warnings_off_screen
keep_warnings_off_screen()
warnings.warn("a library's", FutureWarning)
warnings.warn("a library's", UserWarning)
from maskformer.structures import ESCAPING
for handler in (ESCAPING, logging.FileHandler(sys.argv[1])):  # as a run has them
    logging.getLogger("py.warnings").addHandler(handler)
warnings.warn("for the log", UserWarning)
"""


@pytest.mark.slow  # a process that imports everything
def test_warnings_of_libraries_stay_off_the_screen_at_import_and_later(tmp_path: Path):
    words = [sys.executable, "-W", "always", "-c", PROGRAM, str(tmp_path / "log.txt")]
    process = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert process.stdout + process.stderr == ""
    assert "for the log" in (tmp_path / "log.txt").read_text()


def test_every_tool_keeps_warnings_of_libraries_off_the_screen():
    """Of Pillow, of the second tag of a photograph's EXIF, and the like."""
    tools = {path: path.read_text() for path in (REPOSITORY / "maskformer" / "tools").glob("*.py")}
    starts = {path.name: text for path, text in tools.items() if '__name__ == "__main__"' in text}
    del starts["benchmark.py"]  # which is the benchmarks' door
    assert len(starts) > 8
    assert not [name for name, text in starts.items() if "    keep_warnings_off_screen()\n    sys.exit(" not in text]
