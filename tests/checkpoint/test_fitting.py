"""Weights that are completed or resampled for the model that they go into."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from reference_cases import reference_config
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.checkpoint import Checkpointer
from maskformer.checkpoint.fitting import resample_patches
from maskformer.config import load_config
from maskformer.modeling.backbones.vit import resample_positions
from maskformer.structures import InputError
from maskformer.tools.convert import main as convert

VIT = "network.encoder.backbone."
THIN = {"EMBED_DIM": 24, "DEPTH": 2, "NUM_HEADS": 2, "NUM_BLOCKS": 1, "IMAGE_SIZE": 64}


def options(*others: Any, **keys: Any) -> list[Any]:
    thin = [part for key, value in {**THIN, **keys}.items() for part in (f"MODEL.EOMT.{key}", value)]
    return ["MODEL.META_ARCHITECTURE", "EoMT", "MODEL.DEVICE", "cpu", *thin, *others]


def build(*others: Any, **keys: Any) -> nn.Module:
    return build_model(load_config("", options("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, *others, **keys)))


def drawn(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random weights; factors of norms are positive."""
    torch.manual_seed(seed)
    return {
        name: 0.5 + torch.rand_like(value) if "norm" in name and name.endswith("weight") else torch.randn_like(value)
        for name, value in model.state_dict().items()
    }


def as_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names of the original with DINOv3."""
    names = (
        ("backbone.cls_token", "backbone.patch_embed.cls_token"),
        ("backbone.reg_token", "backbone.patch_embed.register_tokens"),
        *(("patch_embed.proj", "patch_embed.patch_embeddings"), ("attn.proj", "attention.o_proj")),
        *((f"attn.{part}_bias", f"attention.{part}_proj.bias") for part in "qv"),
        *((f"ls{i}.gamma", f"layer_scale{i}.lambda1") for i in (1, 2)),
        *(("mlp.fc1", "mlp.up_proj"), ("mlp.fc2", "mlp.down_proj")),
    )
    released = {"network.encoder.pixel_mean": torch.zeros(1, 3, 1, 1)}
    for name, tensor in state.items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        parts = dict(zip("qkv", tensor.chunk(3))) if ".attn.qkv." in name else {"": tensor}
        released |= {name.replace(".attn.qkv.", f".attention.{p}_proj."): part.clone() for p, part in parts.items()}
    return released


@pytest.fixture(scope="module")
def dinov3(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files: a backbone by timm's names, differences to it by the original's, and what both are together."""
    folder = tmp_path_factory.mktemp("dinov3")
    whole = drawn(build(ROTARY=True), seed=0)
    base = {name: tensor for name, tensor in drawn(build(ROTARY=True), seed=1).items() if name.startswith(VIT)}
    differences = {**whole, **{name: 0.1 * (whole[name] - tensor) for name, tensor in base.items()}}
    torch.save({"state_dict": as_released(differences)}, folder / "pytorch_model.bin")
    torch.save({name.removeprefix(VIT): tensor for name, tensor in base.items()}, folder / "vit.pth")
    return {
        "folder": folder,
        "base": str(folder / "vit.pth"),
        "sum": {name: base[name] + value if name in base else value for name, value in differences.items()},
    }


def assert_holds(model: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6, msg=name)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("maskformer"), "propagate", True)
    caplog.set_level(logging.INFO, "maskformer")
    return caplog


# Differences


def test_differences_are_added_to_the_backbone_that_is_named(dinov3: dict[str, Any]):
    model = build(ROTARY=True, DELTA_BASE=dinov3["base"])
    Checkpointer(model).load(str(dinov3["folder"] / "pytorch_model.bin"))
    assert_holds(model, dinov3["sum"])


def test_a_new_training_adds_them_once(dinov3: dict[str, Any], tmp_path: Path):
    """What it saves is whole, and is resumed, and started from, as it is, though the key is still set."""
    key = {"ROTARY": True, "DELTA_BASE": dinov3["base"]}
    classes = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5]
    model = build(*classes, **key)
    checkpointer = Checkpointer(model, str(tmp_path), fine_tuning=True)
    checkpointer.resume_or_load(str(dinov3["folder"] / "pytorch_model.bin"), resume=True)
    backbone = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    for name, value in backbone.items():
        torch.testing.assert_close(value, dinov3["sum"][f"network.encoder.{name}"], rtol=0, atol=1e-6)
    assert len(model.network.class_head.bias) == 6
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(-0.01)  # whatever it has become
    checkpointer.save("model_final")
    for again, load in (
        (build(*classes, **key), lambda other: Checkpointer(other, str(tmp_path)).resume_or_load("", resume=True)),
        (build(*classes, **key), lambda other: Checkpointer(other).load(str(tmp_path / "model_final.pth"))),
    ):
        load(again)
        assert_holds(again, model.state_dict())


@pytest.mark.parametrize("is_named", [False, True])
def test_whole_weights_by_the_originals_names_have_no_backbone_added(
    dinov3: dict[str, Any], tmp_path: Path, log: pytest.LogCaptureFixture, is_named: bool
):
    """What somebody trained with the original from that backbone."""
    base = torch.load(dinov3["base"])
    whole = {**dinov3["sum"], **{VIT + name: 0.7 * value + 0.1 for name, value in base.items()}}
    torch.save(as_released(whole), tmp_path / "whole.bin")
    model = build(ROTARY=True, DELTA_BASE=dinov3["base"] if is_named else "")
    Checkpointer(model).load(str(tmp_path / "whole.bin"))
    assert_holds(model, whole)
    said = [record.getMessage() for record in log.records if "DELTA_BASE" in record.getMessage()]
    assert len(said) == is_named and all("whole.bin" in message for message in said)


@pytest.mark.parametrize(
    ("weights", "base", "facts"),
    [
        ("pytorch_model.bin", "", ["pytorch_model.bin", "MODEL.EOMT.DELTA_BASE", "differences"]),
        ("pytorch_model.bin", "nowhere", ["MODEL.EOMT.DELTA_BASE is .*nowhere", "not exist"]),
        ("pytorch_model.bin", "dinov2.pth", ["MODEL.EOMT.DELTA_BASE is .*dinov2.pth", "no DINOv3"]),
        ("pytorch_model.bin", "wide.pth", ["wide.pth", r"48\)", r"24\)", "pytorch_model.bin"]),
        ("pytorch_model.bin", "shallow.pth", ["shallow.pth", "missing", "blocks.1"]),
        ("pytorch_model.bin", "pytorch_model.bin", ["DELTA_BASE is .*pytorch_model.bin", "differences"]),
    ],
)  # fmt: skip
def test_what_cannot_be_added_is_refused(dinov3: dict[str, Any], tmp_path: Path, weights: str, base: str, facts: list):
    for name, keys in (
        ("dinov2", {}),
        ("wide", {"ROTARY": True, "EMBED_DIM": 48}),
        ("shallow", {"ROTARY": True, "DEPTH": 1}),
    ):
        state = drawn(build(**keys), seed=1)
        torch.save(
            {key.removeprefix(VIT): value for key, value in state.items() if VIT in key}, tmp_path / f"{name}.pth"
        )
    places = {path.name: path for folder in (tmp_path, dinov3["folder"]) for path in folder.iterdir()}
    model = build(ROTARY=True, DELTA_BASE=str(places.get(base, tmp_path / base)) if base else "")
    with pytest.raises(InputError) as raised:
        Checkpointer(model).load(str(places[weights]))
    for fact in facts:
        assert re.search(fact, str(raised.value)), fact


def test_a_backbone_to_add_to_is_of_rotary_models_alone():
    with pytest.raises(InputError, match=r"MODEL\.EOMT\.DELTA_BASE is 'vit.pth'.*ROTARY"):
        build(DELTA_BASE="vit.pth")


def test_convert_writes_whole_weights_and_no_differences_alone(
    dinov3: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "ours.safetensors"
    words = [str(dinov3["folder"] / "pytorch_model.bin"), str(out)]
    assert convert(words) != 0
    assert "MODEL.EOMT.DELTA_BASE" in capsys.readouterr().err and not out.exists()
    keys = options("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, ROTARY=True, DELTA_BASE=dinov3["base"])
    (tmp_path / "model.yaml").write_text(load_config("", keys).dump())
    assert convert([*words, "--config-file", str(tmp_path / "model.yaml")]) == 0
    said = capsys.readouterr().out
    assert "Missing, which the model has and the file has not: none" in said and "the model has not: none" in said
    model = build(ROTARY=True)
    Checkpointer(model).load(str(out))
    assert_holds(model, dinov3["sum"])


# Other sizes


@pytest.mark.parametrize("size", [(16, 16), (20, 16)])
def test_resampled_kernels_give_of_resized_patches_what_they_gave_of_the_patches(size: tuple[int, int]):
    """Exactly, where the patch grows, for nothing of it is lost."""
    torch.manual_seed(0)
    patches, kernels = torch.randn(5, 3, 14, 14), torch.randn(4, 3, 14, 14)
    resampled = resample_patches(kernels, torch.empty(4, 3, *size))
    resized = F.interpolate(patches, size, mode="bicubic", antialias=True)
    torch.testing.assert_close(F.conv2d(resized, resampled), F.conv2d(patches, kernels), rtol=0, atol=1e-4)
    assert resampled.shape == (4, 3, *size)


def test_kernels_of_other_channels_are_not_resampled():
    assert resample_patches(torch.ones(4, 3, 14, 14), torch.ones(4, 1, 16, 16)) is None


def test_weights_of_another_size_are_resampled_and_that_is_said(tmp_path: Path, log: pytest.LogCaptureFixture):
    state = drawn(build(IMAGE_SIZE=112, PATCH_SIZE=16), seed=0)
    torch.save(state, tmp_path / "112.pth")
    model = build()
    Checkpointer(model).load(str(tmp_path / "112.pth"))
    expected = resample_positions(state[VIT + "pos_embed"], (7, 7), (4, 4))
    assert_holds(model, {**state, VIT + "pos_embed": expected})
    said = [record.getMessage() for record in log.records if "resampled" in record.getMessage()]
    assert len(said) == 1 and "(1, 49, 24)" in said[0] and "(1, 16, 24)" in said[0] and "112.pth" in said[0]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("pos_embed", shape) for shape in ((1, 15, 24), (1, 25, 12), (1, 0, 24), (24,))),
        *(("patch_embed.proj.weight", (24, *rest)) for rest in ((1, 14, 14), (3, 0, 14), (3, 100, 100), (3,))),
    ],
)
def test_what_is_no_other_size_is_another_shape(tmp_path: Path, name: str, shape: tuple[int, ...]):
    model = build()
    torch.save({**model.state_dict(), VIT + name: torch.zeros(shape)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=name):
        Checkpointer(model).load(str(tmp_path / "other.pth"))


# Other architectures, classes and registers


def test_mask_former_and_eomt_have_nothing_for_each_other(tmp_path: Path):
    eomt = build()
    mask_former = build_model(reference_config("base"))
    torch.save(eomt.state_dict(), tmp_path / "eomt.pth")
    torch.save(mask_former.state_dict(), tmp_path / "mask_former.pth")
    for model, other in ((eomt, "mask_former"), (mask_former, "eomt")):
        for fine_tuning in (False, True):
            with pytest.raises(InputError, match=rf"{other}\.pth"):
                Checkpointer(model, fine_tuning=fine_tuning).load(str(tmp_path / f"{other}.pth"))


@pytest.mark.parametrize("is_rotary", [True, False])
def test_blocks_of_the_other_dino_name_their_key(tmp_path: Path, is_rotary: bool):
    """Most names and shapes agree."""
    state = build(ROTARY=is_rotary).state_dict()
    backbone = {name.removeprefix(VIT): value for name, value in state.items() if name.startswith(VIT)}
    for weights in (state, backbone):
        torch.save(weights, tmp_path / "model.pth")
        with pytest.raises(InputError, match=rf"model\.pth.*MODEL\.EOMT\.ROTARY is {not is_rotary}"):
            Checkpointer(build(ROTARY=not is_rotary)).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.EOMT.NUM_REGISTERS", 2), ("MODEL.EOMT.NUM_BLOCKS", 2), ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 7),
     ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4)],
)  # fmt: skip
def test_other_numbers_name_their_key(tmp_path: Path, key: str, value: int):
    torch.save(build().state_dict(), tmp_path / "model.pth")
    with pytest.raises(InputError, match=key):
        Checkpointer(build(key, value)).load(str(tmp_path / "model.pth"))


def test_fine_tuning_renews_the_class_layer_alone(tmp_path: Path):
    state = drawn(build(), seed=0)
    torch.save(state, tmp_path / "model.pth")
    model = build("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Checkpointer(model, fine_tuning=True).load(str(tmp_path / "model.pth"))
    renewed = {"network.class_head.weight", "network.class_head.bias", "criterion.empty_weight"}
    assert_holds(model, {**state, **{name: before[name] for name in renewed}})
