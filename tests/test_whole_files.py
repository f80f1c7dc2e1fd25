from __future__ import annotations

from pathlib import Path

import pytest

from maskformer.whole_files import unfinished


@pytest.mark.parametrize("flush", [False, True])
def test_file_is_replaced_when_all_went_well(tmp_path: Path, flush: bool):
    target = tmp_path / "scores.json"
    target.write_text("old")
    with unfinished(target, flush=flush) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert target.read_text() == "new"


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path):
    target = tmp_path / "scores.json"
    (tmp_path / ".scores.json.partial").write_text("half")
    with unfinished(target) as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_file_stays_as_it_was_when_writing_fails(tmp_path: Path):
    target = tmp_path / "scores.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), unfinished(target) as temporary:
        temporary.write_text("ne")
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert target.read_text() == "old"
