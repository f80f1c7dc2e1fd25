from __future__ import annotations

import json
import logging
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from maskformer.checkpoint import Checkpointer, CheckpointWriteError, rename_old_layout
from maskformer.checkpoint.layouts.detection import name_by_order
from maskformer.files import save_checkpoint
from maskformer.structures import Classes, InputError

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


# Files that are not there


def test_missing_file_says_how_to_go_on(tmp_path: Path):
    with pytest.raises(InputError, match=r'none\.pth does not exist; set MODEL\.WEIGHTS .* "" to train from scratch'):
        Checkpointer(Toy()).load(str(tmp_path / "none.pth"))


@pytest.mark.parametrize("scheme", ["detectron2://", "https://dl.fbaipublicfiles.com/detectron2/"])
def test_unfetchable_weights_say_where_they_are(scheme: str, monkeypatch: pytest.MonkeyPatch):
    checkpointer = Checkpointer(Toy())

    def offline(path: str) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", offline)
    address = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl"
    with pytest.raises(InputError, match=f"Name or service not known.*download {address} and set MODEL.WEIGHTS"):
        checkpointer.load(f"{scheme}ImageNetPretrained/torchvision/R-50.pkl")


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


@pytest.mark.parametrize("queries", ["query_embed", "query_feat"])
def test_other_number_of_queries_names_its_key(tmp_path: Path, queries: str):
    model = Toy()
    model.sem_seg_head["predictor"]["query_feat"] = nn.Embedding(4, 2)
    state = {**state_of(model, 0.0), f"sem_seg_head.predictor.{queries}.weight": torch.zeros(100, 2)}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"change MODEL\.MASK_FORMER\.NUM_OBJECT_QUERIES"):
        Checkpointer(model).load(str(tmp_path / "model.pth"))


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


def test_names_that_end_alike_or_fit_no_caffe2_model_are_one_sentence(tmp_path: Path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    path = write_pickle(tmp_path / "R-50.pkl", {"weight": np.ones((2, 2), np.float32)})
    with pytest.raises(InputError, match=r"R-50\.pkl.*one checkpoint key to multiple"):
        Checkpointer(Two()).load(str(path))


def test_query_in_the_path_asks_for_matching_by_name_endings(tmp_path: Path):
    torch.save({"stem.weight": torch.ones(3, 2), "stem.bias": torch.ones(3)}, tmp_path / "backbone.pth")
    model = Toy()
    Checkpointer(model).load(f"{tmp_path / 'backbone.pth'}?matching_heuristics=True")
    assert_all_are(model.backbone, 1.0)


def test_query_in_the_path_asks_for_matching_by_order(tmp_path: Path):
    content = {"a": torch.full((3, 2), 1.0), "b": torch.full((3,), 2.0)}
    torch.save(content, tmp_path / "backbone.pth")
    model = Toy()
    Checkpointer(model).load(f"{tmp_path / 'backbone.pth'}?matching_order=True")
    stem = model.backbone["stem"]
    assert (stem.weight == 1).all() and (stem.bias == 2).all()


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"a": (3,), "b": (3, 2)}, r"a \(3,\) stands where .* backbone\.stem\.weight \(3, 2\)"),
        ({"a": (3, 2)}, "holds 1 tensors, but .* 2"),
        ({"a": (3, 2), "b": (3,), "c": ()}, "holds 3 tensors, but .* 2"),
    ],
)
def test_tensors_in_another_order_or_number_are_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]], said: str):
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "backbone.pth")
    model = Toy()
    before = state_of(model, 0.0) | model.state_dict()
    with pytest.raises(InputError, match=rf"backbone\.pth.*{said}"):
        Checkpointer(model).load(f"{tmp_path / 'backbone.pth'}?matching_order=True")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_file_that_sorts_its_tensors_has_no_order(tmp_path: Path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"a": torch.ones(3, 2), "b": torch.ones(3)}, tmp_path / "misnamed.bin")  # it would fit
    with pytest.raises(InputError, match=r"misnamed\.bin.*order"):
        Checkpointer(Toy()).load(f"{tmp_path / 'misnamed.bin'}?matching_order=True")


def test_older_files_have_no_counters_of_batch_norms():
    backbone = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3))
    values = [value for name, value in backbone.state_dict().items() if "num_batches" not in name]
    found = name_by_order({str(place): value for place, value in enumerate(values)}, backbone, "old.pth")
    assert list(found) == [f"backbone.{name}" for name in backbone.state_dict() if "num_batches" not in name]


def test_backbone_with_files_of_its_own_converts_all_but_whole_models(tmp_path: Path):
    class Converting(nn.ModuleDict):
        def convert_weights(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {f"stem.{name}": value for name, value in state.items()}

    model = Toy()
    model.backbone = Converting({"stem": nn.Linear(2, 3)})
    torch.save({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path / "theirs.pth")
    Checkpointer(model).load(str(tmp_path / "theirs.pth"))
    assert_all_are(model.backbone, 1.0)
    torch.save(state_of(model, 2.0), tmp_path / "whole.pth")
    Checkpointer(model).load(str(tmp_path / "whole.pth"))
    assert_all_are(model, 2.0)


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


# Layouts told by their names


def test_weights_in_a_wrapper_are_unwrapped(tmp_path: Path):
    torch.save({f"module.{name}": value for name, value in state_of(Toy(), 2.0).items()}, tmp_path / "ddp.pth")
    model = Toy()
    Checkpointer(model).load(str(tmp_path / "ddp.pth"))
    assert_all_are(model, 2.0)


def test_unknown_layout_names_some_parameters_and_the_layouts_known(tmp_path: Path):
    torch.save({"encoder.weight": torch.zeros(2), "encoder.bias": torch.zeros(2)}, tmp_path / "other.pth")
    message = r"encoder\.weight, encoder\.bias are in no layout that fits; known are: .*Hugging Face MaskFormer; .*Swin"
    with pytest.raises(InputError, match=message):
        Checkpointer(Toy()).load(str(tmp_path / "other.pth"))


def test_unused_last_norm_of_a_swin_release_is_no_mismatch(tmp_path: Path, log: pytest.LogCaptureFixture):
    """Its name, norm.weight, is the end of many of ours."""
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.patch_embed = nn.ModuleDict({"proj": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    model.backbone.norm3 = nn.LayerNorm(2)
    state = {
        "patch_embed.proj.weight": np.ones((2, 2)),
        "patch_embed.proj.bias": np.ones(2),
        "patch_embed.norm.weight": np.ones(2),
        "patch_embed.norm.bias": np.ones(2),
        "layers.0.blocks.0.attn.relative_position_bias_table": np.ones((169, 3)),
        "norm.weight": np.ones(7),
        "head.weight": np.ones((5, 7)),
    }
    content = {"model": state, "__author__": "third_party", "matching_heuristics": True}
    Checkpointer(model).load(str(write_pickle(tmp_path / "swin.pkl", content)))
    assert_all_are(model.backbone.patch_embed, 1.0)
    assert messages(log, logging.WARNING) == []


# Fine-tuning on other classes


def test_fine_tuning_leaves_the_class_layer_alone_and_says_so_in_one_line(
    tmp_path: Path, log: pytest.LogCaptureFixture
):
    torch.save(state_of(Toy(num_classes=150), 0.5), tmp_path / "ade.pth")
    model = Toy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Checkpointer(model, fine_tuning=True).load(str(tmp_path / "ade.pth"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) if "class_embed" in name else (value == 0.5).all()
    names = "sem_seg_head.predictor.class_embed.weight, sem_seg_head.predictor.class_embed.bias"
    assert messages(log, logging.WARNING) == [
        f"Weights {tmp_path / 'ade.pth'} are of other classes (sem_seg_head.predictor.class_embed.weight is (151, 2) "
        f"there and (3, 2) here), so these are trained anew: {names}"
    ]


def test_fine_tuning_refuses_any_other_mismatch(tmp_path: Path):
    state = {**state_of(Toy(150), 0.0), "sem_seg_head.predictor.query_embed.weight": torch.zeros(100, 2)}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"query_embed\.weight has shape \(100, 2\) .*change .*NUM_OBJECT_QUERIES"):
        Checkpointer(Toy(), fine_tuning=True).load(str(tmp_path / "model.pth"))


def test_fine_tuning_refuses_a_class_layer_of_another_width(tmp_path: Path):
    state = {**state_of(Toy(), 0.0), "sem_seg_head.predictor.class_embed.weight": torch.zeros(3, 7)}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"class_embed\.weight has shape \(3, 7\)"):
        Checkpointer(Toy(), fine_tuning=True).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize("part", ["weight", "query_embed.weight"])
def test_per_pixel_heads_have_their_own_class_layers(tmp_path: Path, part: str):
    def build(num_classes: int) -> nn.Module:
        model = nn.Module()
        model.sem_seg_head = nn.Module()
        head = nn.Linear(2, num_classes) if part == "weight" else nn.Module()
        if part != "weight":
            head.query_embed = nn.Embedding(num_classes, 2)
            head.norm = nn.LayerNorm(2)
        model.sem_seg_head.predictor = head
        model.backbone = nn.Linear(2, 2)
        return model

    torch.save(state_of(build(150), 0.5), tmp_path / "model.pth")
    model = build(3)
    before = model.get_parameter(f"sem_seg_head.predictor.{part}").clone()
    Checkpointer(model, fine_tuning=True).load(str(tmp_path / "model.pth"))
    assert torch.equal(model.get_parameter(f"sem_seg_head.predictor.{part}"), before)
    assert_all_are(model.backbone, 0.5)


def test_resuming_refuses_other_classes_even_in_fine_tuning(tmp_path: Path):
    Checkpointer(Toy(num_classes=150), str(tmp_path)).save("model")
    with pytest.raises(InputError, match=r"class_embed\.weight .* has shape \(151, 2\)"):
        Checkpointer(Toy(), str(tmp_path), fine_tuning=True).resume_or_load("", resume=True)
    same_file = str(tmp_path / "model.pth")
    Checkpointer(Toy(), str(tmp_path), fine_tuning=True).resume_or_load(same_file, resume=False)


# Weights of the other generation


class Generation(nn.Module):
    """A model of names that MaskFormer and Mask2Former share, and of one in each part of the head that marks which."""

    def __init__(self, *, is_second: bool, num_classes: int = 2):
        super().__init__()
        self.classes = Classes("dataset toy_train", tuple("abcdefg"[:num_classes]))
        self.backbone = nn.ModuleDict({"stem": nn.Linear(2, 3)})
        self.criterion = nn.Module()
        self.criterion.register_buffer("empty_weight", torch.ones(num_classes + 1))
        decoder = nn.ModuleDict({"adapter_1": nn.Linear(2, 2), "layer_1": nn.Linear(2, 2), "transformer": nn.Module()})
        predictor = nn.ModuleDict({"class_embed": nn.Linear(2, num_classes + 1), "query_embed": nn.Embedding(4, 2)})
        if is_second:
            decoder["transformer"].level_embed = nn.Parameter(torch.ones(3, 2))
            predictor.update({"decoder_norm": nn.LayerNorm(2), "query_feat": nn.Embedding(4, 2)})
        else:
            decoder["layer_4"], predictor["transformer"] = nn.Linear(2, 2), nn.LayerNorm(2)
        self.sem_seg_head = nn.ModuleDict({"pixel_decoder": decoder, "predictor": predictor})


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("is_second", [True, False])
def test_training_takes_the_backbone_alone_from_the_other_generation_and_says_so(
    tmp_path: Path, log: pytest.LogCaptureFixture, is_second: bool, num_classes: int
):
    source = Generation(is_second=not is_second, num_classes=num_classes)
    classes = Classes("", tuple("vwxyz"[:num_classes])).to_plain()
    torch.save({"model": state_of(source, 0.5), "classes": classes}, tmp_path / "model.pth")
    model = Generation(is_second=is_second)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert len(before.keys() & source.state_dict().keys()) > 8  # names that coincide
    Checkpointer(model, fine_tuning=True).load(str(tmp_path / "model.pth"))
    assert_all_are(model.backbone, 0.5)
    state = model.state_dict().items()
    assert all(torch.equal(value, before[name]) for name, value in state if not name.startswith("backbone."))
    assert model.classes.names == ("a", "b")
    why, missing = messages(log, logging.WARNING)
    layout = "MaskFormer (this package" if is_second else "Mask2Former (this package"
    assert f"model.pth ({layout}" in why
    assert "sem_seg_head.pixel_decoder and sem_seg_head.predictor" in why
    assert (
        f"sem_seg_head.pixel_decoder ({5 if is_second else 6})" in missing and "criterion.empty_weight (1)" in missing
    )


@pytest.mark.parametrize("is_second", [True, False])
def test_evaluation_and_resuming_refuse_the_other_generation(tmp_path: Path, is_second: bool):
    Checkpointer(Generation(is_second=not is_second), str(tmp_path)).save("model")
    for resume in (False, True):
        checkpointer = Checkpointer(Generation(is_second=is_second), str(tmp_path), fine_tuning=resume)
        with pytest.raises(InputError, match=r"model\.pth .*pixel_decoder and .*predictor.*TRANSFORMER_DECODER_NAME"):
            checkpointer.resume_or_load(str(tmp_path / "model.pth"), resume=resume)


def test_one_part_of_the_other_generation_leaves_the_rest_of_the_head(tmp_path: Path, log: pytest.LogCaptureFixture):
    """A model with Mask2Former's pixel decoder and MaskFormer's queries, from a MaskFormer."""
    torch.save(state_of(Generation(is_second=False), 0.5), tmp_path / "model.pth")
    model = Generation(is_second=False)
    model.sem_seg_head["pixel_decoder"] = Generation(is_second=True).sem_seg_head["pixel_decoder"]
    before = model.sem_seg_head["pixel_decoder"]["adapter_1"].weight.clone()
    Checkpointer(model, fine_tuning=True).load(str(tmp_path / "model.pth"))
    assert torch.equal(model.sem_seg_head["pixel_decoder"]["adapter_1"].weight, before)
    for part in (model.backbone, model.criterion, model.sem_seg_head["predictor"]):
        assert_all_are(part, 0.5)


def test_mask2formers_without_their_queries_are_still_mask2formers(tmp_path: Path):
    """Deleting what is to start anew is what the message of another number of queries proposes."""
    state = state_of(Generation(is_second=True), 0.5)
    del state["sem_seg_head.predictor.query_feat.weight"], state["sem_seg_head.predictor.query_embed.weight"]
    torch.save(state, tmp_path / "model.pth")
    model = Generation(is_second=True)
    Checkpointer(model, fine_tuning=True).load(str(tmp_path / "model.pth"))
    assert_all_are(model.sem_seg_head["pixel_decoder"], 0.5)
    assert_all_are(model.sem_seg_head["predictor"]["class_embed"], 0.5)


# Resuming from what is whole


def save_steps(folder: Path, *steps: int, **options: Any) -> Checkpointer:
    """Checkpoints of a model whose parameters all are the number of the step."""
    checkpointer = Checkpointer(Toy(), str(folder), **options)
    for step in steps:
        checkpointer.model.load_state_dict(state_of(checkpointer.model, step))
        checkpointer.save(f"model_{step:07d}")
    return checkpointer


def resume(folder: Path) -> Toy:
    model = Toy()
    Checkpointer(model, str(folder)).resume_or_load("", resume=True)
    return model


@pytest.mark.parametrize("harm", ["changed", "short", "empty", "gone"])
def test_damaged_checkpoint_is_named_and_the_last_good_one_resumed(
    harm: str, tmp_path: Path, log: pytest.LogCaptureFixture
):
    save_steps(tmp_path, 1, 2, 3)
    last = tmp_path / "model_0000003.pth"
    content = last.read_bytes()
    harmed = {"changed": b"X" + content[1:], "short": content[:-9], "empty": b""}
    last.write_bytes(harmed[harm]) if harm in harmed else last.unlink()
    assert_all_are(resume(tmp_path), 2)
    first, second = messages(log, logging.WARNING)
    reason = "does not exist" if harm == "gone" else "is not what was written: its SHA-256 is not the one in"
    assert first.startswith(f"Checkpoint {last} {reason}")
    assert second == "Resuming from model_0000002.pth instead, the last checkpoint that is whole."


def test_checkpoint_that_was_renamed_before_the_tag_was_written_is_found(tmp_path: Path):
    save_steps(tmp_path, 1)
    (tmp_path / "last_checkpoint").unlink()
    assert_all_are(resume(tmp_path), 1)


def set_times(folder: Path, *names: str) -> None:
    """Make the files as old as if they were written in this order."""
    for seconds, name in enumerate(names):
        os.utime(folder / name, (seconds, seconds))


@pytest.mark.parametrize("tag", [None, b"", b"\xff\xfe", b"model\0.pth", b"\n"])
def test_highest_iteration_is_resumed_where_the_tag_is_lost(tag: bytes | None, tmp_path: Path):
    save_steps(tmp_path, 2, 10, 9)
    set_times(tmp_path, "model_0000010.pth", "model_0000002.pth", "model_0000009.pth")
    (tmp_path / "last_checkpoint").unlink() if tag is None else (tmp_path / "last_checkpoint").write_bytes(tag)
    assert_all_are(resume(tmp_path), 10)


class Progress:
    """What a trainer saves of itself."""

    def __init__(self, iteration: int = -1):
        self.iteration = iteration

    def state_dict(self) -> dict[str, int]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.iteration = state["iteration"]


def test_iteration_of_a_named_checkpoint_is_in_it(tmp_path: Path):
    for name, iteration in (("model_final", 4), ("model_0000008", 8), ("model_best", 9), ("model_0000002", 2)):
        Checkpointer(Toy(), str(tmp_path), trainer=Progress(iteration)).save(name)
    save_checkpoint({"model": Toy().state_dict()}, str(tmp_path / "model_ema.pth"))
    (tmp_path / "last_checkpoint").unlink()
    for name, iteration in (("model_best", 9), ("model_0000008", 8), ("model_final", 4), ("model_0000002", 2)):
        progress = Progress()
        Checkpointer(Toy(), str(tmp_path), trainer=progress).resume_or_load("", resume=True)
        assert progress.iteration == iteration
        (tmp_path / f"{name}.pth").unlink()
    with pytest.raises(InputError, match=r"model_ema\.pth hold weights without a training's state.*MODEL\.WEIGHTS"):
        Checkpointer(Toy(), str(tmp_path), trainer=Progress()).resume_or_load("", resume=True)


def test_weights_alone_are_not_resumed(tmp_path: Path):
    save_checkpoint({"model": Toy().state_dict()}, str(tmp_path / "model_ema.pth"))
    (tmp_path / "last_checkpoint").write_text("model_ema.pth")
    with pytest.raises(InputError, match=r"model_ema\.pth holds weights but no training's state"):
        Checkpointer(Toy(), str(tmp_path), trainer=Progress()).resume_or_load("", resume=True)
    Checkpointer(Toy(), str(tmp_path)).resume_or_load("", resume=True)  # evaluation needs no more


@pytest.mark.parametrize("tag", [None, b"\xff"])
def test_checkpoints_without_checksums_and_tag_are_not_passed_over(tag: bytes | None, tmp_path: Path):
    save_steps(tmp_path, 1, 2)
    for path in tmp_path.glob("*.sha256"):
        path.unlink()
    (tmp_path / "last_checkpoint").unlink() if tag is None else (tmp_path / "last_checkpoint").write_bytes(tag)
    with pytest.raises(InputError, match=r"model_0000001\.pth, model_0000002\.pth but no last_checkpoint.*write"):
        resume(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert_all_are(resume(tmp_path), 1)


def test_renamed_checkpoint_is_not_passed_over(tmp_path: Path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "model_0000002.pth").rename(tmp_path / "backup.pth")
    with pytest.raises(InputError, match=r"model_0000002\.pth does not exist; backup\.pth came without a checksum"):
        resume(tmp_path)


def test_weights_to_start_from_may_lie_in_the_folder(tmp_path: Path):
    given = tmp_path / "given.pth"
    torch.save({"model": state_of(Toy(), 5.0)}, given)
    checkpointer = Checkpointer(Toy(), str(tmp_path))
    checkpointer.resume_or_load(str(given), resume=True)
    assert_all_are(checkpointer.model, 5.0)
    assert not checkpointer.has_checkpoint()


def test_damaged_checkpoint_without_a_checksum_is_passed_over(tmp_path: Path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "model_0000002.pth.sha256").unlink()
    (tmp_path / "model_0000002.pth").write_bytes((tmp_path / "model_0000002.pth").read_bytes()[:-100])
    assert_all_are(resume(tmp_path), 1)


def test_no_whole_checkpoint_is_an_error_that_names_them(tmp_path: Path):
    save_steps(tmp_path, 1, 2)
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"None of the checkpoints in .* model_0000002\.pth is not .*model_0000001"):
        resume(tmp_path)


def test_changed_weights_file_is_refused(tmp_path: Path):
    save_steps(tmp_path, 1)
    path = tmp_path / "model_0000001.pth"
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(InputError, match=r"is not what was written.*delete .*\.sha256 if you changed it"):
        Checkpointer(Toy()).load(str(path))


def numbered(folder: Path) -> list[str]:
    assert sorted(path.name.removesuffix(".sha256") for path in folder.glob("*.sha256")) == sorted(
        path.name for path in folder.glob("*.pth")
    )
    return sorted(path.stem for path in folder.glob("*.pth"))


def test_the_last_numbered_checkpoints_stay_and_the_named_ones(tmp_path: Path):
    checkpointer = save_steps(tmp_path, 1, 2, keep_last=2)
    checkpointer.save("model_best")
    for step in (3, 4):
        checkpointer.save(f"model_{step:07d}")
    checkpointer.save("model_final")
    assert numbered(tmp_path) == ["model_0000003", "model_0000004", "model_best", "model_final"]


def test_resumed_run_goes_on_removing_what_is_older(tmp_path: Path):
    save_steps(tmp_path, 1, 2, 3)
    checkpointer = Checkpointer(Toy(), str(tmp_path), keep_last=2)
    checkpointer.resume_or_load("", resume=True)
    checkpointer.save("model_0000004")
    assert numbered(tmp_path) == ["model_0000003", "model_0000004"]


def test_new_run_leaves_an_earlier_one_alone(tmp_path: Path):
    save_steps(tmp_path, 8, 9)
    save_steps(tmp_path, 1, 2, 3, keep_last=1)
    assert numbered(tmp_path) == ["model_0000003", "model_0000008", "model_0000009"]


def test_negative_number_of_checkpoints_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"SOLVER\.KEEP_LAST is -1, expected 0"):
        Checkpointer(Toy(), str(tmp_path), keep_last=-1)


def test_failed_save_leaves_the_last_checkpoint_as_it_was(tmp_path: Path):
    checkpointer = save_steps(tmp_path, 1, keep_last=1)
    (tmp_path / "model_0000002.pth").mkdir()  # where the file would be
    with pytest.raises(CheckpointWriteError, match="cannot be written"):
        checkpointer.save("model_0000002")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert_all_are(resume(tmp_path), 1)


# Classes


def with_classes(names: str | None, source: str = "dataset toy_train", things: tuple[int, ...] | None = None) -> Toy:
    model = Toy()
    model.classes = (
        None if names is None else Classes(source, tuple(names), None if things is None else frozenset(things))
    )
    return model


def test_classes_travel_with_the_checkpoint(tmp_path: Path):
    Checkpointer(with_classes("ab", things=(1,)), str(tmp_path)).save("model")
    assert torch.load(tmp_path / "model.pth", weights_only=True)["classes"]["names"] == ["a", "b"]
    model = with_classes(None)
    Checkpointer(model).load(str(tmp_path / "model.pth"))
    assert model.classes == Classes(str(tmp_path / "model.pth"), ("a", "b"), frozenset({1}))
    DetectionCheckpointer(Toy()).load(str(tmp_path / "model.pth"))  # as the original MaskFormer loads


def test_checkpoint_tells_what_datasets_do_not(tmp_path: Path):
    Checkpointer(with_classes("ab", things=(1,)), str(tmp_path)).save("model")
    model = with_classes("ab", "dataset toy_val")
    Checkpointer(model).load(str(tmp_path / "model.pth"))
    assert model.classes == Classes("dataset toy_val", ("a", "b"), frozenset({1}))


def test_in_evaluation_the_weights_know_their_classes_better_than_the_training_set(tmp_path: Path):
    Checkpointer(with_classes("ab"), str(tmp_path)).save("model")
    model = with_classes("ba", "dataset other")
    Checkpointer(model).load(str(tmp_path / "model.pth"))
    assert model.classes.names == ("a", "b")


def test_fine_tuning_on_other_classes_says_so_and_resuming_is_refused(tmp_path: Path, log: pytest.LogCaptureFixture):
    Checkpointer(with_classes("ab"), str(tmp_path)).save("model")
    model = with_classes("ba", "dataset other")
    Checkpointer(model, fine_tuning=True).load(str(tmp_path / "model.pth"))
    assert model.classes.names == ("b", "a")
    assert any("'b' of dataset other" in message and "'a' of" in message for message in messages(log, logging.WARNING))
    with pytest.raises(InputError, match=r"class 0 is 'b' of dataset other but 'a' of .*model.pth.*DATASETS.TRAIN"):
        Checkpointer(model, str(tmp_path), fine_tuning=True).resume_or_load("", resume=True)


@pytest.mark.parametrize("classes", [None, ["water"]])
def test_checkpoint_without_classes_leaves_those_of_the_datasets(classes: list | None, tmp_path: Path):
    content = {"model": Toy().state_dict(), **({} if classes is None else {"classes": classes})}
    torch.save(content, tmp_path / "old.pth")
    model = with_classes("ab")
    Checkpointer(model).load(str(tmp_path / "old.pth"))
    assert model.classes.names == ("a", "b")
