from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from detectron2.utils.events import EventStorage

from maskformer.config import load_config
from maskformer.engine.run_report import RunReport, changed_keys, format_class_scores, show_scores
from maskformer.runs.record import RECORD_NAME, start_record


def write_evaluation(folder: Path, per_class: dict[str, Any]) -> Path:
    file = folder / "inference" / "garden_val" / "evaluation.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"version": 1, "per_class": per_class}))
    return file


def test_keys_that_differ_from_their_defaults_are_told_with_both_values():
    cfg = load_config("", ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "7", "INPUT.MIN_SIZE_TRAIN", "(3, 4)"])
    changed = changed_keys(cfg)
    assert changed["SOLVER.MAX_ITER"] == [40000, 7] and changed["INPUT.MIN_SIZE_TRAIN"] == [[800], [3, 4]]
    assert changed.keys() - {"MODEL.DEVICE", "SOLVER.MAX_ITER", "INPUT.MIN_SIZE_TRAIN"} == set()


def test_each_class_has_a_line_with_the_score_of_each_kind_of_result(tmp_path: Path):
    rows = {
        "sem_seg": [{"class": "grass", "IoU": 12.345, "ACC": 1.0}, {"class": "wall-e\x1b[31m", "IoU": None}],
        "panoptic_seg": [{"class": "grass", "PQ": 50.0, "SQ": 1.0}, {"class": "b" * 30, "PQ": 1.0}],
    }
    header, _, *lines = format_class_scores(write_evaluation(tmp_path, rows)).splitlines()
    assert header.split() == ["class", "IoU", "PQ"]
    expected = [["grass", "12.35", "50.00"], [r"wall-e\x1b[31m", "nan"], ["b" * 23 + "…", "1.00"]]  # of stuff, no AP
    assert [line.split() for line in lines] == expected


@pytest.mark.parametrize("names", [["1e3", "007"], ["tree", "tree"], ["0.5"]])
def test_names_of_classes_are_shown_as_they_are(tmp_path: Path, names: list[str]):
    rows = [{"class": name, "IoU": float(index)} for index, name in enumerate(names)]
    _, _, *lines = format_class_scores(write_evaluation(tmp_path, {"sem_seg": rows})).splitlines()
    assert [line.split() for line in lines] == [[name, f"{index}.00"] for index, name in enumerate(names)]


def test_scores_of_classes_of_another_name_are_not_shown(tmp_path: Path):
    """As an evaluator of others may give them."""
    file = write_evaluation(tmp_path, {"sem_seg": [{"class": "grass", "F1": 3.0}]})
    assert format_class_scores(file).split()[-2:] == ["grass", "nan"]


@pytest.mark.parametrize(("count", "height"), [(1, 1), (40, 40), (41, 40), (121, 41), (847, 283)])
def test_many_classes_stand_in_columns(tmp_path: Path, count: int, height: int):
    rows = [{"class": f"c{index}", "AP": float(index)} for index in range(count)]
    _, _, *lines = format_class_scores(write_evaluation(tmp_path, {"segm": rows})).splitlines()
    assert len(lines) == height and max(map(len, lines)) < 120
    cells = [cell for line in lines for cell in line.split() if cell.startswith("c")]
    assert sorted(cells) == sorted(row["class"] for row in rows)


def test_scores_are_shown_without_those_of_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    results = {"garden_val": {"sem_seg": {"mIoU": 44.456, "IoU-grass": 3.0, "pACC": math.nan}}}
    with caplog.at_level("INFO", logger="maskformer"):
        show_scores(results, str(tmp_path), classes=True)  # no evaluator of ours has written there
    assert [message.split() for message in caplog.messages] == [
        ["Scores", "on", "garden_val,", "in", "percent:"],
        ["sem_seg", "mIoU", "44.46", "pACC", "nan"],
    ]


@pytest.mark.parametrize(("done", "is_written"), [(4, False), (5, True)])
def test_a_run_that_is_killed_has_the_seconds_up_to_its_checkpoint(tmp_path: Path, done: int, is_written: bool):
    cfg = load_config("", ["MODEL.DEVICE", "cpu", "SOLVER.CHECKPOINT_PERIOD", "5", "OUTPUT_DIR", str(tmp_path)])
    start_record(str(tmp_path), {"kind": "training"}, resumes=False)
    report = RunReport(cfg)
    report.trainer = SimpleNamespace(iter=done - 1, max_iter=10, start_iter=0, storage=EventStorage())
    time.sleep(0.2)
    report.after_step()
    assert (json.loads((tmp_path / RECORD_NAME).read_text())["seconds"] >= 0.2) == is_written
