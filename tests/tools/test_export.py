"""The command line of export: real files, run by real programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from brightest_file import write_brightest
from PIL import Image
from tiny_model import EOMT_CONFIG, REPOSITORY, TINY_EOMT

import maskformer
from maskformer.exporting import commands, program
from maskformer.predictor import load
from maskformer.tools.export import main

Run = Callable[..., int]
OPTIONS = [str(word) for pair in TINY_EOMT.items() for word in pair]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights of the tiny EoMT whose classes do not tie."""
    from detectron2.modeling import build_model

    from maskformer.config import load_config

    torch.manual_seed(0)
    model = build_model(load_config(EOMT_CONFIG, OPTIONS))
    with torch.no_grad():
        model.network.class_head.weight.mul_(3)
    path = tmp_path_factory.mktemp("weights") / "eomt.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


@pytest.fixture
def run(weights: str) -> Run:
    """Export the tiny model; the arguments come before the KEY VALUE pairs."""

    def run_export(output: str | Path, *arguments: object, options: Sequence[str] = ()) -> int:
        fixed = ["--config-file", EOMT_CONFIG, "--weights", weights, "--output", str(output)]
        return main([*fixed, *map(str, arguments), *OPTIONS, *options])

    return run_export


@pytest.fixture(scope="module")
def exported(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A panoptic file for any size."""
    output = tmp_path_factory.mktemp("exported") / "new" / "model.onnx"
    words = ["--config-file", EOMT_CONFIG, "--weights", weights, "--output", str(output), "--licence", "cc0-1.0"]
    assert main([*words, "--task", "panoptic", "--dynamic", *OPTIONS]) == 0
    return output


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    coarse.resize((121, 90), Image.Resampling.BILINEAR).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.slow
def test_the_file_the_json_beside_it_and_the_model_agree(exported: Path, weights: str):
    assert sorted(path.name for path in exported.parent.iterdir()) == ["model.json", "model.onnx"]
    session = onnxruntime.InferenceSession(exported)
    about = json.loads(session.get_modelmeta().custom_metadata_map["maskformer"])
    assert about == json.loads(exported.with_suffix(".json").read_text())
    assert (about["task"], about["licence_of_weights"], about["opset"]) == ("panoptic", "cc0-1.0", 20)
    assert [output.name for output in session.get_outputs()] == [each["name"] for each in about["outputs"]]
    picture = np.random.default_rng(1).integers(0, 256, (64, 70, 3), dtype=np.uint8)
    segment_map, classes, _ = session.run(None, {about["input"]["name"]: picture.transpose(2, 0, 1)[None]})
    predictor = load(EOMT_CONFIG, weights, **{key.replace(".", "__"): value for key, value in TINY_EOMT.items()})
    result = predictor(picture, task="panoptic")
    assert (np.append(-1, classes)[segment_map[0]] == result.label_map).mean() >= 0.999


@pytest.mark.slow
def test_the_file_holds_no_place_of_this_machine(exported: Path):
    content = exported.read_bytes()
    assert str(REPOSITORY).encode() not in content and b".py" not in content
    onnx.checker.check_model(onnx.load(exported))


RUN_EXAMPLE = """
import importlib.abc, runpy, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "detectron2", "maskformer", "cv2"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(model: Path, picture: Path, out: Path) -> str:
    script = REPOSITORY / "examples" / "run_onnx.py"
    words = [sys.executable, "-c", RUN_EXAMPLE, script, model, picture, out]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(words, check=True, capture_output=True, text=True, env=environment, cwd=out.parent).stdout


@pytest.mark.slow
def test_the_example_draws_without_pytorch(exported: Path, picture: Path, tmp_path: Path):
    printed = run_example(exported, picture, tmp_path / "drawn.png")
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert drawn.shape == (90, 121, 3)
    assert (drawn != np.asarray(Image.open(picture))).any()
    names = [each["name"] for each in json.loads(exported.with_suffix(".json").read_text())["classes"]]
    assert printed and all(line.startswith(tuple(names)) for line in printed.splitlines())


def test_the_example_reads_grey_of_sixteen_bits_as_the_model_does(tmp_path: Path):
    write_brightest(tmp_path / "brightest.onnx")
    about = {
        "task": "semantic",
        "input": {"name": "images", "size": [8, 8], "rounding_test": "up", "padding_colour": [0, 0, 0]},
        "outputs": [{"name": "labels"}],
        "classes": [{"name": name, "colour": [0, 0, 0]} for name in ("red", "green", "blue")],
    }
    model = onnx.load(tmp_path / "brightest.onnx")
    onnx.helper.set_model_props(model, {"maskformer": json.dumps(about)})
    onnx.save(model, tmp_path / "brightest.onnx")
    Image.fromarray(np.full((8, 8), 100 * 256, np.uint16)).save(tmp_path / "grey.png")
    run_example(tmp_path / "brightest.onnx", tmp_path / "grey.png", tmp_path / "drawn.png")
    assert (np.asarray(Image.open(tmp_path / "drawn.png")) == 40).all()  # 0.4 of the picture, and a black class


BAD = [
    (["model.pth"], "", ["model.pth", ".pt2 or .onnx"]),
    (["model"], "", ["model", ".pt2 or .onnx"]),
    (["folder.onnx"], "", ["folder.onnx", "folder"]),
    (["m.onnx", "--size=0x5"], "", ["0x5", "HEIGHTxWIDTH"]),
    (["m.onnx", "--size=512"], "", ["512", "HEIGHTxWIDTH"]),
    (["m.onnx", "--size=-5x5"], "", ["-5x5", "HEIGHTxWIDTH"]),
    (["m.onnx", "--size=5X5"], "", ["5X5", "HEIGHTxWIDTH"]),
    (["m.onnx", "--precision=int8"], "", ["int8", "calibration"]),
    (["m.pt2", "--precision=int8", "--calibration=empty"], "", ["int8", ".pt2", ".onnx"]),
    (["m.onnx", "--calibration=empty"], "", ["calibration", "float32"]),
    (["m.onnx"], "MODEL.SEM_SEG_HEAD.NUM_CLASSES", ["NUM_CLASSES", "KEY VALUE"]),
    (["m.onnx"], "MODEL.SEM_SEG_HEAD.NUM_CLASSES 5", ["NUM_CLASSES"]),
    (["m.onnx", "--precision=int8", "--calibration=nowhere"], "", ["nowhere"]),
    (["m.onnx", "--precision=int8", "--calibration=empty"], "", ["empty"]),
    (["m.onnx", "--precision=int8", "--calibration=broken"], "", ["a.png"]),
    (["m.onnx", "--precision=int8", "--calibration=thin"], "INPUT.MAX_SIZE_TEST 100", ["thin", "b.png", "0 x 100"]),
    (["m.onnx", "--picture=nowhere.png"], "", ["nowhere.png"]),
    (["m.onnx", "--picture=broken/a.png"], "", ["broken/a.png"]),
    (["foreign.onnx"], "", ["foreign.json", "another name"]),
    (["broken/a.png/m.onnx"], "", ["broken/a.png/m", "cannot be written"]),
]


@pytest.mark.parametrize(("arguments", "options", "facts"), BAD)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    options: str,
    facts: list[str],
):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder.onnx", "empty", "broken", "thin"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (900, 1)).save(tmp_path / "thin" / "b.png")
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    (tmp_path / "foreign.json").write_text('{"mine": 1}')
    assert run(*arguments, options=options.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(fact in line for fact in facts), line
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a.png",
        "b.png",
        "broken",
        "empty",
        "folder.onnx",
        "foreign.json",
        "thin",
    ]


def test_a_lack_of_memory_is_one_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def lack(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(commands, "views_of", lack)
    assert run(tmp_path / "m.pt2", "--size=99999x99999") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "memory" in line and "size" in line
    assert not list(tmp_path.iterdir())


def test_a_device_that_a_key_names_is_passed_over(weights: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(commands, "load", lambda *_, **keys: seen.append(keys))
    for key in ("MODEL__DEVICE", "MODEL.DEVICE"):
        commands.load_plainly(EOMT_CONFIG, weights, {key: "cuda"})
    assert seen[0] == seen[1] and seen[0]["MODEL.DEVICE"] == "cpu"


def test_what_is_not_installed_is_named_with_the_command(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as Python itself marks what cannot be imported
    assert run(tmp_path / "m.onnx") == 2
    assert "onnxscript: pip install 'maskformer[export]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_that_is_not_the_model_is_not_kept_and_the_earlier_one_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    earlier = {"m.pt2": "earlier", "m.json": '{"maskformer_version": "earlier"}'}
    for name, text in earlier.items():
        (tmp_path / name).write_text(text)
    write = program.write

    def write_another(traced: torch.export.ExportedProgram, *arguments: object) -> None:
        weight = traced.state_dict["network.class_head.weight"]
        with torch.no_grad():
            weight[3] *= 1.01
        write(traced, *arguments)
        with torch.no_grad():
            weight[3] /= 1.01  # the program shares it with the model

    monkeypatch.setattr(program, "write", write_another)
    assert run(tmp_path / "m.pt2", "--task=queries", "--size=32x40") == 2
    captured = capsys.readouterr()
    assert "PyTorch, a picture of 32 x 40" in captured.out and "PyTorch, a picture of 32 x 40" in captured.err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == earlier


def test_no_function_of_the_package_has_the_name_of_a_module():
    """Which would take its place as soon as somebody imports it."""
    assert maskformer.export is commands.export
    package = REPOSITORY / "maskformer"
    places = [file for name in maskformer.__all__ for file in (package / f"{name}.py", package / name / "__init__.py")]
    assert not [place for place in places if place.exists()]
