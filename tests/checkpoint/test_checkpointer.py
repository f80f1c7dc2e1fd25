from __future__ import annotations

import json
import logging
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maskformer.checkpoint import Checkpointer, read_weights, rename_old_layout
from maskformer.structures import InputError

REFERENCE = Path(__file__).parent.parent / "reference"


class Toy(nn.Module):
    """A model with a name of each kind that matters here."""

    def __init__(self, num_classes: int = 2):
        super().__init__()
        self.backbone = nn.ModuleDict({"stem": nn.Linear(2, 3)})
        predictor = nn.ModuleDict({"class_embed": nn.Linear(2, num_classes + 1), "query_embed": nn.Embedding(4, 2)})
        decoder = nn.ModuleDict({"layer_1": nn.Linear(2, 2, bias=False)})
        self.sem_seg_head = nn.ModuleDict({"pixel_decoder": decoder, "predictor": predictor})


def state_of(model: nn.Module, value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in model.state_dict().items()}


def assert_all_are(model: nn.Module, value: float) -> None:
    assert all((tensor == value).all() for tensor in model.state_dict().values())


def write_pickle(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("maskformer"), "propagate", True)
    caplog.set_level(logging.INFO, "maskformer")
    return caplog


def messages(log: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        record.getMessage()
        for record in log.records
        if record.name.startswith("maskformer") and record.levelno == level
    ]


# Layouts


def test_old_pixel_decoder_names_are_moved():
    names = [
        "sem_seg_head.adapter_1.weight",
        "sem_seg_head.layer_4.norm.bias",
        "sem_seg_head.mask_features.weight",
        "sem_seg_head.input_proj.weight",
        "sem_seg_head.transformer.encoder.layers.0.norm1.weight",
        "module.sem_seg_head.layer_1.weight",
    ]
    renamed = [name.replace("sem_seg_head.", "sem_seg_head.pixel_decoder.") for name in names]
    assert list(rename_old_layout(dict.fromkeys(names))) == renamed


@pytest.mark.parametrize("family", ["maskformer_R50_ade", "maskformer_panoptic_R50_coco"])
def test_todays_names_are_left_alone(family: str):
    entries = json.loads((REFERENCE / "parameters" / f"{family}.json").read_text())
    names = [name for name, *_ in entries]
    assert list(rename_old_layout(dict.fromkeys(names))) == names
    old = [name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.") for name in names]
    assert old != names
    assert list(rename_old_layout(dict.fromkeys(old))) == names


def test_old_checkpoint_without_metadata_loads_every_tensor(tmp_path: Path):
    state = {name.replace("pixel_decoder.", ""): tensor for name, tensor in state_of(Toy(), 3.0).items()}
    torch.save({"model": state}, tmp_path / "old.pth")
    model = Toy()
    Checkpointer(model).load(str(tmp_path / "old.pth"))
    assert_all_are(model, 3.0)


# File formats


@pytest.mark.parametrize("nested", [True, False])
def test_torch_file_is_read(tmp_path: Path, nested: bool):
    state = state_of(Toy(), 2.0)
    torch.save({"model": state} if nested else state, tmp_path / "model.pth")
    model = Toy()
    Checkpointer(model).load(str(tmp_path / "model.pth"))
    assert_all_are(model, 2.0)


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickle_of_arrays_is_read(tmp_path: Path, protocol: int):
    state = {name: tensor.numpy() for name, tensor in state_of(Toy(), 2.0).items()}
    content = {"model": OrderedDict(state), "__author__": "somebody", "scale": np.float64(1.0)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
    model = Toy()
    Checkpointer(model).load(str(tmp_path / "model.pkl"))
    assert_all_are(model, 2.0)


def test_safetensors_file_is_read(tmp_path: Path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state_of(Toy(), 2.0), tmp_path / "model.safetensors")
    model = Toy()
    Checkpointer(model).load(str(tmp_path / "model.safetensors"))
    assert_all_are(model, 2.0)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("name", ["bomb.pkl", "bomb.pth"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    content = {"model": {"weight": np.zeros(1)}, "extra": Bomb()}
    if name.endswith(".pkl"):
        write_pickle(path, content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=rf"Weights file .*{name} cannot be read: .*(touch|GLOBAL|global)"):
        read_weights(str(path))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["cut.pkl", "cut.pth", "cut.safetensors", "empty.pth"])
def test_truncated_file_is_one_sentence(tmp_path: Path, name: str):
    state = {"weight": torch.zeros(1000)}
    torch.save(state, tmp_path / "whole.pth")
    whole = {
        "cut.pkl": pickle.dumps({"model": {"weight": np.zeros(1000)}, "__author__": ""}),
        "cut.safetensors": b"\xff" * 64,
        "cut.pth": (tmp_path / "whole.pth").read_bytes(),
    }
    (tmp_path / name).write_bytes(whole.get(name, b"")[: len(whole.get(name, b"")) // 2])
    with pytest.raises(InputError, match=rf"Weights file .*{name} cannot be read") as caught:
        read_weights(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [1, 2]])
def test_file_without_parameters_is_refused(tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth holds no parameters"):
        read_weights(str(tmp_path / "other.pth"))


# Files that are not there


def test_missing_file_says_how_to_go_on(tmp_path: Path):
    with pytest.raises(InputError, match=r'none\.pth does not exist; set MODEL\.WEIGHTS .* "" to train from scratch'):
        Checkpointer(Toy()).load(str(tmp_path / "none.pth"))


def test_unfetchable_weights_say_where_they_are(monkeypatch: pytest.MonkeyPatch):
    checkpointer = Checkpointer(Toy())

    def offline(path: str) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", offline)
    address = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl"
    with pytest.raises(InputError, match=f"Name or service not known.*download {address} and set MODEL.WEIGHTS"):
        checkpointer.load("detectron2://ImageNetPretrained/torchvision/R-50.pkl")


def test_no_weights_leave_the_model_as_it_is():
    model = Toy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Checkpointer(model).load("")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# Files that do not fit


def test_other_number_of_classes_names_parameter_shapes_file_and_key(tmp_path: Path):
    torch.save(state_of(Toy(num_classes=150), 0.0), tmp_path / "ade.pth")
    message = (
        r"class_embed\.weight \(and 1 more\) has shape \(151, 2\) in .*ade\.pth but \(3, 2\) in this model: "
        r"change MODEL\.SEM_SEG_HEAD\.NUM_CLASSES"
    )
    with pytest.raises(InputError, match=message):
        Checkpointer(Toy()).load(str(tmp_path / "ade.pth"))


def test_other_number_of_queries_names_its_key(tmp_path: Path):
    state = {**state_of(Toy(), 0.0), "sem_seg_head.predictor.query_embed.weight": torch.zeros(100, 2)}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"change MODEL\.MASK_FORMER\.NUM_OBJECT_QUERIES"):
        Checkpointer(Toy()).load(str(tmp_path / "model.pth"))


def test_backbone_weights_of_another_shape_are_not_skipped_in_silence(tmp_path: Path):
    content = {
        "model": {"stem.weight": np.zeros((5, 2)), "stem.bias": np.zeros(3)},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    path = write_pickle(tmp_path / "R-50.pkl", content)
    with pytest.raises(InputError, match=r"backbone\.stem\.weight has shape \(5, 2\) in .*R-50\.pkl but \(3, 2\)"):
        Checkpointer(Toy()).load(str(path))


def test_weights_of_another_model_are_refused(tmp_path: Path):
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"None of the 1 parameters in .*other\.pth belongs to this model"):
        Checkpointer(Toy()).load(str(tmp_path / "other.pth"))


def test_missing_and_unexpected_parameters_are_one_line_each(tmp_path: Path, log: pytest.LogCaptureFixture):
    state = state_of(Toy(), 0.0)
    del state["sem_seg_head.predictor.class_embed.weight"], state["sem_seg_head.predictor.class_embed.bias"]
    torch.save({**state, "extra.a.weight": torch.zeros(1), "extra.a.bias": torch.zeros(1)}, tmp_path / "model.pth")
    path = str(tmp_path / "model.pth")
    Checkpointer(Toy()).load(path)
    assert messages(log, logging.WARNING) == [
        f"Not in {path}, so left as initialised: sem_seg_head.predictor (2)",
        f"In {path} but not in this model, so unused: extra.a (2)",
    ]


def backbone_file(tmp_path: Path, *names: str) -> Path:
    shapes = {"stem.weight": (3, 2), "stem.bias": (3,), "stem.fc.bias": (7,)}
    state = {name: np.ones(shapes[name], dtype=np.float32) for name in names}
    return write_pickle(
        tmp_path / "R-50.pkl", {"model": state, "__author__": "torchvision", "matching_heuristics": True}
    )


def test_backbone_weights_are_matched_by_name_endings_without_a_warning(tmp_path: Path, log: pytest.LogCaptureFixture):
    model = Toy()
    Checkpointer(model).load(str(backbone_file(tmp_path, "stem.weight", "stem.bias", "stem.fc.bias")))
    assert_all_are(model.backbone, 1.0)
    assert messages(log, logging.WARNING) == []
    assert len(messages(log, logging.INFO)) == 2


def test_incomplete_backbone_weights_are_a_warning(tmp_path: Path, log: pytest.LogCaptureFixture):
    Checkpointer(Toy()).load(str(backbone_file(tmp_path, "stem.weight")))
    (warning,) = messages(log, logging.WARNING)
    assert "backbone.stem (1)" in warning


def test_query_in_the_path_asks_for_matching_by_name_endings(tmp_path: Path):
    torch.save({"stem.weight": torch.ones(3, 2), "stem.bias": torch.ones(3)}, tmp_path / "backbone.pth")
    model = Toy()
    Checkpointer(model).load(f"{tmp_path / 'backbone.pth'}?matching_heuristics=True")
    assert_all_are(model.backbone, 1.0)


def test_saved_checkpoint_restores_model_and_optimiser(tmp_path: Path):
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    Checkpointer(model, str(tmp_path), optimizer=optimizer).save("model", iteration=7)
    other = Toy()
    other_optimizer = torch.optim.AdamW(other.parameters())
    rest = Checkpointer(other, str(tmp_path), optimizer=other_optimizer).resume_or_load("", resume=True)
    assert rest["iteration"] == 7
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert other_optimizer.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
