"""A dataset's JSON is parsed once while it stays as it is, and what readers do with it stays theirs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from maskformer.data.files import json_files
from maskformer.data.files.json_files import read_instance_json, read_panoptic_json

PANOPTIC = {"images": [], "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": []}]}


def test_file_is_parsed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    monkeypatch.setattr(json_files.json, "loads", lambda text: parsed.append(text) or json.JSONDecoder().decode(text))
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(PANOPTIC))
    for _ in range(3):
        content = read_panoptic_json(path, with_images=False)
        assert content["annotations"][0]["file_name"] == "a.png"
        content["annotations"][0]["file_name"] = "changed by its reader"
    assert len(parsed) == 1
    path.write_text(json.dumps({**PANOPTIC, "annotations": []}))
    os.utime(path, ns=(1, 1))
    assert read_panoptic_json(path, with_images=False)["annotations"] == []
    assert len(parsed) == 2


def test_one_path_is_read_as_each_format(tmp_path: Path) -> None:
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert read_panoptic_json(path)["annotations"] == read_instance_json(path)["annotations"] == []
