"""The command; what the page shows is tested in tests/reports/test_report.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskformer.tools import report


def make_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"iteration": 19, "total_loss": 2.5}) + "\n")
    return folder


def test_page_goes_into_the_folder_and_the_command_says_where(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, other = make_run(tmp_path / "a run"), make_run(tmp_path / "other")
    assert report.main([str(run), "--against", str(other)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "a run against other" in page
    assert not (other / "report.html").exists()


def test_a_folder_that_is_no_run_is_one_sentence_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, nothing = make_run(tmp_path / "run"), tmp_path / "with\nline"
    for arguments in ([str(nothing)], [str(run), "--against", str(nothing)]):
        assert report.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert "metrics.json" in captured.err
        assert captured.out == ""
    assert not (run / "report.html").exists()


def test_a_page_that_cannot_be_written_is_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path / "run")
    (run / "report.html").mkdir()
    assert report.main([str(run)]) == 2
    captured = capsys.readouterr()
    assert "report.html" in captured.err
    assert captured.err.count("\n") == 1
