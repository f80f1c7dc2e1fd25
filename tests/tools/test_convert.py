from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_cases import CONFIGS, draw_weights, reference_config

from maskformer.checkpoint import Checkpointer, read_weights
from maskformer.structures import Classes
from maskformer.tools.convert import main

pytest.importorskip("safetensors", reason="a test-only dependency: pip install -e .[test]")
R50 = str(CONFIGS / "ade20k-150" / "maskformer_R50_bs16_160k.yaml")
THIN = [
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "MODEL.MASK_FORMER.HIDDEN_DIM", "32"),
    *("MODEL.MASK_FORMER.NHEADS", "4", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "64"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8", "MODEL.MASK_FORMER.DEC_LAYERS", "3"),
]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    from detectron2.modeling import build_model

    model = build_model(reference_config("base"))
    draw_weights(model)
    return model


@pytest.fixture
def source(model: torch.nn.Module, tmp_path: Path) -> Path:
    """A checkpoint in the older layout, as a training leaves it."""
    state = {f"module.{name.replace('pixel_decoder.', '')}": value for name, value in model.state_dict().items()}
    torch.save({"model": state, "iteration": 3}, tmp_path / "source.pth")
    return tmp_path / "source.pth"


@pytest.mark.parametrize("name", ["out.safetensors", "folder/out.pth"])
def test_old_checkpoint_becomes_todays(
    model: torch.nn.Module, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
):
    assert main([str(source), str(tmp_path / name), "--config-file", R50, *THIN]) == 0
    loaded, missing, unexpected, written = capsys.readouterr().out.splitlines()
    state, converted = model.state_dict(), read_weights(str(tmp_path / name))["model"]
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], value) for key, value in state.items())
    decoder = sum("pixel_decoder" in key for key in state)
    assert f"{len(state)} tensors by our names, {decoder} of them renamed" in loaded
    assert missing.endswith("the file has not: none") and unexpected.endswith("the model has not: none")
    assert written == f"Written: {tmp_path / name}"
    assert not list(tmp_path.rglob(".*"))
    Checkpointer(model).load(str(tmp_path / name))


def test_backbone_is_converted_and_what_is_missing_and_unexpected_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    state = {
        "conv1.weight": np.ones((8, 3, 7, 7)),
        "layer1.0.conv1.weight": np.ones((4, 8, 1, 1)),
        "fc.bias": np.ones(3),
    }
    state["layer4.0.bn1.weight"] = np.ones(32)
    torch.save({name: torch.as_tensor(value) for name, value in state.items()}, tmp_path / "r.pth")
    assert main([str(tmp_path / "r.pth"), str(tmp_path / "r.safetensors"), "--config-file", R50, *THIN]) == 0
    loaded, missing, unexpected, _ = capsys.readouterr().out.splitlines()
    assert "torchvision or timm ResNet, 4 tensors by our names, 3 of them renamed" in loaded
    assert "sem_seg_head.predictor (" in missing and "backbone.res3 (" in missing
    assert unexpected.endswith("fc.bias (1)")
    assert "backbone.res2.0.conv1.weight" in read_weights(str(tmp_path / "r.safetensors"))["model"]


def test_hugging_face_folder_describes_the_model_and_its_preprocessing(source: Path, tmp_path: Path):
    out = tmp_path / "hf"
    assert main([str(source), str(out), "--to", "hugging-face", "--config-file", R50, *THIN]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["backbone_config"]["hidden_sizes"] == [16, 32, 64, 128]
    assert config["decoder_config"]["num_queries"] == 8 and config["decoder_config"]["decoder_layers"] == 3
    assert len(config["id2label"]) == 5
    processing = json.loads((out / "preprocessor_config.json").read_text())
    assert processing["image_mean"][0] == pytest.approx(0.485) and processing["size_divisor"] == 0
    assert "class_predictor.weight" in read_weights(str(out / "model.safetensors"))["model"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["OUT.bin"], "expected a name that ends in .safetensors or .pth"),
        (["source.pth"], "would overwrite SOURCE"),
        (["hf", "--to", "hugging-face"], "give its --config-file"),
        (["o.pth", "MODEL.DEVICE", "cpu"], "there is no --config-file"),
        (
            ["hf", "--to", "hugging-face", "--config-file", R50, *THIN, "MODEL.MASK_FORMER.ENC_LAYERS", "1"],
            "is no whole",
        ),
        (["o.pth", "--config-file", R50, *THIN, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"], "NUM_CLASSES"),
    ],
)
def test_mistakes_end_in_one_line(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: list[str], message: str
):
    monkeypatch.chdir(source.parent)
    assert main(["source.pth", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: ") and message in line
    assert [path.name for path in source.parent.iterdir()] == ["source.pth"]


def test_model_that_hugging_face_has_not_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    options = ["--config-file", R50, *THIN, "INPUT.FORMAT", "BGR"]
    assert main([str(source), str(tmp_path / "hf"), "--to", "hugging-face", *options]) == 2
    assert "INPUT.FORMAT is 'BGR', but Hugging Face's MaskFormer has only 'RGB'" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_names_out_of_the_file_are_said_without_control_characters(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    content = torch.load(source)
    content["model"]["module.x\x1b[31m"] = torch.ones(1)
    torch.save(content, source)
    assert main([str(source), str(tmp_path / "out.pth"), "--config-file", R50, *THIN]) == 0
    said = capsys.readouterr().out
    assert r"x\x1b[31m" in said and "\x1b" not in said


def test_missing_source_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main([str(tmp_path / "none.pth"), str(tmp_path / "o.pth")]) == 2
    assert "none.pth does not exist" in capsys.readouterr().err


def test_classes_go_along(source: Path, tmp_path: Path):
    """Those of the checkpoint, and to Hugging Face else those of a dataset, be it of instances alone."""
    content = torch.load(source, weights_only=True)
    classes = Classes("", ("a", "b", "b", "c", "d"), frozenset({1}))
    torch.save({**content, "classes": classes.to_plain()}, source)
    for name in ("out.pth", "out.safetensors"):
        assert main([str(source), str(tmp_path / name)]) == 0
        assert read_weights(str(tmp_path / name))["classes"] == classes.to_plain()
    assert names_at_hugging_face(source, tmp_path) == ["a", "b", "b (2)", "c", "d"]
    torch.save(content, source)
    things = ["DATASETS.TRAIN", "('shapes_instance_train',)", "DATASETS.TEST", "('shapes_instance_val',)"]
    assert names_at_hugging_face(source, tmp_path, *things) == ["ball", "box", "triangle", "star", "ring"]


def test_names_that_nobody_knows_are_said_to_be_made_up(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert names_at_hugging_face(source, tmp_path) == [f"LABEL_{index}" for index in range(5)]
    assert "Class names are not known" in capsys.readouterr().out


def names_at_hugging_face(source: Path, folder: Path, *options: str) -> list[str]:
    words = [str(source), str(folder / "hf"), "--to", "hugging-face", "--config-file", R50, *THIN, *options]
    assert main(words) == 0
    names = json.loads((folder / "hf" / "config.json").read_text())["id2label"]
    return [names[str(index)] for index in range(5)]
