from __future__ import annotations

import json

from maskformer.tools.make_shapes import main


def test_command_writes_the_dataset_and_says_where(tmp_path, capsys):
    arguments = ["--root", str(tmp_path), "--train", "2", "--val", "1", "--size", "64", "80", "--seed", "3"]
    assert main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "shapes" / "train").iterdir()) == ["000000.jpg", "000001.jpg"]
    manifest = json.loads((tmp_path / "shapes" / "shapes.json").read_text())
    assert (manifest["image_size"], manifest["seed"]) == ([64, 80], 3)
    output = capsys.readouterr().out
    assert "drawing shapes: 3/3 [" in output
    assert output.endswith(f"the shapes dataset is in {tmp_path / 'shapes'}\n")


def test_root_is_the_datasets_variable_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main(["--train", "1", "--val", "1", "--size", "64", "64"]) == 0
    assert (tmp_path / "shapes" / "shapes.json").is_file()


def test_mistake_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["--root", str(tmp_path), "--train", "0"]) == 2
    assert capsys.readouterr().err == "shapes: num_train is 0, expected 1 or more; change num_train.\n"
