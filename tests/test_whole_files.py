from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskformer.files import json_text, unfinished


@pytest.mark.parametrize("flush", [False, True])
def test_file_is_replaced_when_all_went_well(tmp_path: Path, flush: bool):
    target = tmp_path / "scores.json"
    target.write_text("old")
    with unfinished(target, flush=flush) as temporary:
        temporary.write_text("new")
        assert temporary.parent.parent == tmp_path and target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert target.read_text() == "new"


def test_nothing_that_was_planted_is_followed(tmp_path: Path):
    """Neither a link under a name that a writer might use, nor one that lies where the file shall be."""
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    folder = tmp_path / "scores"
    folder.mkdir()
    for name in (".scores.json.partial", "scores.json.partial", "scores.json"):
        (folder / name).symlink_to(outside)
    with unfinished(folder / "scores.json") as temporary:
        assert temporary.parent.stat().st_mode & 0o777 == 0o700
        temporary.write_text("new")
    assert outside.read_text() == "theirs"
    assert (folder / "scores.json").read_text() == "new" and not (folder / "scores.json").is_symlink()


def test_the_longest_name_fits_and_the_file_has_the_usual_rights(tmp_path: Path):
    target, usual = tmp_path / ("ä" * 125 + ".json"), tmp_path / "usual"
    usual.touch()
    with unfinished(target) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("new")
    assert len(target.name.encode()) == 255 and target.read_text() == "new"
    assert target.stat().st_mode == usual.stat().st_mode


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path):
    target = tmp_path / "scores.json"
    with unfinished(target) as one, unfinished(target) as other:
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one"  # the last to finish
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_file_stays_as_it_was_when_writing_fails(tmp_path: Path):
    target = tmp_path / "scores.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), unfinished(target) as temporary:
        temporary.write_text("ne")
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert target.read_text() == "old"


def test_json_has_null_for_what_is_not_finite_and_plain_numbers_for_numpys():
    content = {"a": [float("nan"), (np.float32("inf"), 1.5)], "b": np.int64(3), "c": None, "d": "NaN", "e": True}
    assert json.loads(json_text(content)) == {"a": [None, [None, 1.5]], "b": 3, "c": None, "d": "NaN", "e": True}
    assert json_text({"a": 1}, indent=1) == '{\n "a": 1\n}'
