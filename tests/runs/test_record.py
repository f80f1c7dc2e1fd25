from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from maskformer.runs import record
from maskformer.runs.record import RECORD_NAME, add_to_record, start_record


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_STARTED", {})
    monkeypatch.setattr(sys, "argv", ["/somewhere/train_net.py", "--config-file", "a b.yaml"])


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECORD_NAME).read_text())


def test_a_run_is_written_as_it_begins_and_completed_at_its_end(tmp_path: Path):
    start_record(str(tmp_path), {"kind": "training", "config_file": "a b.yaml"}, resumes=False)
    begun = read(tmp_path)
    assert begun["version"] == 1 and begun["finished"] is None
    assert begun["command"] == ["train_net.py", "--config-file", "a b.yaml"]
    assert begun["started"].endswith("+00:00")
    assert add_to_record(str(tmp_path), data=[{"dataset": "garden", "images": 3}])
    assert read(tmp_path)["finished"] is None
    add_to_record(str(tmp_path), finished=True, peak_memory_mb=float("nan"))
    done = read(tmp_path)
    assert done["finished"] >= done["started"]
    assert done["data"] == [{"dataset": "garden", "images": 3}] and done["config_file"] == "a b.yaml"
    assert done["peak_memory_mb"] is None  # JSON has no NaN
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_NAME]


@pytest.mark.parametrize(("resumes", "least"), [(True, 100.0), (False, 0.0)])
def test_a_resumed_run_adds_its_seconds(tmp_path: Path, resumes: bool, least: float):
    (tmp_path / RECORD_NAME).write_text('{"kind": "training", "seconds": 100.0, "started": "long ago"}')
    start_record(str(tmp_path), {"kind": "training"}, resumes=resumes)
    assert least <= read(tmp_path)["seconds"] < least + 50
    assert (read(tmp_path)["started"] == "long ago") == resumes


@pytest.mark.parametrize("left", ["", "[]", "{", '{"kind": 3, "seconds": "long"}', "null", "\x00"])
def test_what_cannot_be_read_is_replaced(tmp_path: Path, left: str):
    (tmp_path / RECORD_NAME).write_text(left)
    start_record(str(tmp_path), {"kind": "evaluation"}, resumes=True)
    assert read(tmp_path)["kind"] == "evaluation"


def test_the_record_of_a_training_outlives_evaluations_in_its_folder(tmp_path: Path):
    (tmp_path / RECORD_NAME).write_text('{"kind": "training", "seconds": 100.0}')
    for iterations in (1, 2):
        start_record(str(tmp_path), {"kind": "evaluation", "iterations": iterations}, resumes=False)
        add_to_record(str(tmp_path), finished=True)
        content = read(tmp_path)
        assert content["kind"] == "training" and content["seconds"] == 100.0
        assert content["evaluation"]["iterations"] == iterations and content["evaluation"]["seconds"] < 50


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    start_record(str(tmp_path / "gone"), {"kind": "training"}, resumes=False)
    assert f"{tmp_path}/gone/{RECORD_NAME} cannot be written" in capsys.readouterr().err


def test_of_a_folder_where_no_run_was_started_nothing_is_written(tmp_path: Path):
    assert not add_to_record(str(tmp_path), finished=True)
    assert not list(tmp_path.iterdir())
