"""Hugging Face's two EoMTs with the same random weights: logits, masks and seeded losses, and their folders."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from peer_models import shake
from safetensors import safe_open
from tiny_model import EOMT_CONFIG
from torch import Tensor, nn

from maskformer.checkpoint import convert_weights
from maskformer.config import load_config
from maskformer.exporting.folder import find_model, write_weights
from maskformer.exporting.hugging_face_config import describe_model, describe_preprocessing
from maskformer.predictor import load
from maskformer.structures import InputError, Targets
from maskformer.tools.convert import main as convert

pytest.importorskip("transformers", reason="a test-only dependency: pip install -e .[test]")

KINDS = ("eomt", "eomt_dinov3")
THIN: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 96, "num_blocks": 2,
    "num_queries": 8, "num_labels": 5, "train_num_points": 100, "class_weight": 1.5, "mask_weight": 4.0,
    "dice_weight": 6.0, "no_object_weight": 0.2, "oversample_ratio": 2.0, "importance_sample_ratio": 0.5,
}  # fmt: skip


def build_peer(kind: str, **sizes: Any) -> nn.Module:
    import transformers

    if kind == "eomt":
        return transformers.EomtForUniversalSegmentation(transformers.EomtConfig(**{**THIN, **sizes})).eval()
    width = 4 * sizes.get("hidden_size", THIN["hidden_size"])
    config = transformers.EomtDinov3Config(**{**THIN, "intermediate_size": width, "layer_norm_eps": 1e-5, **sizes})
    return transformers.EomtDinov3ForUniversalSegmentation(config).eval()


def draw(peer: nn.Module, masking: Sequence[float] | None = None) -> nn.Module:
    """Random weights, of which each matters: tokens start at 0."""
    shake(peer)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.0 if name.startswith(("query", "embeddings")) else 0.15)
        peer.attn_mask_probs.copy_(torch.tensor(masking or [0.0] * len(peer.attn_mask_probs)))
    return peer


@pytest.fixture(scope="module", params=KINDS)
def peer(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    peer = draw(build_peer(request.param))
    peer.config.id2label = {index: f"class <{index}>" for index in range(5)}
    return peer


@pytest.fixture(scope="module")
def folder(peer: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    peer.save_pretrained(folder)
    return folder


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


# The same answers


@torch.no_grad()
def assert_same_answers(peer: nn.Module, ours: nn.Module, side: int = 96) -> None:
    pixels = torch.randn(2, 3, side, side)
    theirs = peer(pixel_values=pixels)
    class_logits, mask_logits = ours.network(pixels)
    torch.testing.assert_close(class_logits, theirs.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mask_logits, theirs.masks_queries_logits, rtol=1e-4, atol=1e-4)
    assert class_logits.std() > 0.05 and mask_logits.std() > 0.05  # the comparison is not of constants


def test_their_folder_is_a_model_with_their_answers_and_classes(peer: nn.Module, folder: Path, tmp_path: Path):
    predictor = load(folder, device="cpu")
    assert predictor.classes.names == tuple(f"class <{index}>" for index in range(5))
    assert_same_answers(peer, predictor.model)
    picture = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    assert predictor(picture).task == "semantic"
    predictor.save_pretrained(tmp_path / "again", layout="hugging-face")
    assert names_in(tmp_path / "again") == names_in(folder)
    assert_same_answers(peer, load(tmp_path / "again", device="cpu").model)
    described = [json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "again")]
    for name in described[1].keys() - {"label2id"}:
        assert described[1][name] == described[0][name], name


def test_their_program_reads_what_was_converted(peer: nn.Module, folder: Path, tmp_path: Path):
    from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

    (tmp_path / "model.yaml").write_text(find_model(folder).dump())
    ours, back = str(tmp_path / "ours.safetensors"), str(tmp_path / "back")
    assert convert([str(folder), ours, "--config-file", str(tmp_path / "model.yaml")]) == 0
    # Trained here, its queries were masked: in inference they are not, there neither.
    predictor = load(tmp_path / "model.yaml", ours, device="cpu")
    predictor.model.network.set_masking([0.75, 1.0])
    torch.save(predictor.model.state_dict(), tmp_path / "ours.pth")
    words = [str(tmp_path / "ours.pth"), back, "--to", "hugging-face", "--config-file", str(tmp_path / "model.yaml")]
    assert convert(words) == 0
    other, loading = AutoModelForUniversalSegmentation.from_pretrained(back, output_loading_info=True)
    assert type(other) is type(peer) and not loading["missing_keys"] and not loading["unexpected_keys"]
    state = peer.state_dict()
    assert not [name for name, value in other.state_dict().items() if not torch.equal(value, state[name])]
    assert_same_answers(other.eval(), predictor.model)
    assert type(AutoImageProcessor.from_pretrained(back)).__name__.startswith("EomtImageProcessor")
    card = (tmp_path / "back" / "README.md").read_text()
    assert "# EoMT" in card and "2503.19108" in card


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("eomt", {"use_swiglu_ffn": True, "num_register_tokens": 0}),
        ("eomt", {"image_size": 64, "patch_size": 8, "num_upscale_blocks": 1, "num_labels": 2}),
        ("eomt_dinov3", {"num_register_tokens": 2, "num_attention_heads": 4, "num_blocks": 4}),
    ],
)
def test_variants_have_the_same_answers_and_go_back(kind: str, sizes: dict[str, Any], tmp_path: Path):
    from transformers import AutoModelForUniversalSegmentation

    torch.manual_seed(1)
    peer = draw(build_peer(kind, **sizes))
    peer.save_pretrained(tmp_path / "theirs")
    side = 64 if "image_size" in sizes else 96
    predictor = load(tmp_path / "theirs", device="cpu")
    assert_same_answers(peer, predictor.model, side)
    predictor.save_pretrained(tmp_path / "back", layout="hugging-face")
    other = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "back")
    assert_same_answers(other.eval(), predictor.model, side)


def record_predictions(peer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """A list that will hold what it predicts, mask logits first, at each of the blocks."""
    recorded: list[tuple[Tensor, Tensor]] = []
    predict = peer.predict
    monkeypatch.setattr(peer, "predict", lambda *args: recorded.append(predict(*args)) or recorded[-1], raising=False)
    return recorded


@pytest.mark.parametrize("masking", [[1.0, 1.0], [0.0, 0.5]])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_attention_gives_their_predictions_at_every_block(
    kind: str, masking: list[float], monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(2)
    extras = {"pos_embed_rescale": None} if kind == "eomt_dinov3" else {}  # random, in another way
    peer = draw(build_peer(kind, **extras), masking).train()
    ours = build_ours(peer, kind).train()
    ours.network.backbone.rescale = 1.0  # likewise
    ours.network.set_masking(masking)
    recorded = record_predictions(peer, monkeypatch)
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.manual_seed(3)
        peer(pixel_values=pixels)
        torch.manual_seed(3)
        predictions = ours.network.predict_layers(pixels)
    assert len(recorded) == len(predictions.class_logits) == 3
    unmasked = ours.network.eval()(pixels)[0]
    for index, (mask_logits, class_logits) in enumerate(recorded):
        torch.testing.assert_close(predictions.class_logits[index], class_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(predictions.mask_logits[index], mask_logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(unmasked, recorded[-1][1], atol=1e-2)


def build_ours(peer: nn.Module, kind: str) -> nn.Module:
    from maskformer.config import load_config
    from maskformer.exporting.hugging_face_eomt import read_eomt

    keys = read_eomt({**peer.config.to_dict(), "model_type": kind}, "memory")
    keys |= {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": peer.config.num_labels, "MODEL.DEVICE": "cpu"}
    ours = build_model(load_config("", [part for pair in keys.items() for part in pair]))
    ours.load_state_dict(convert_weights(peer.state_dict(), "theirs").state)
    return ours.eval()


@pytest.mark.parametrize(
    ("kind", "numbers"), [(kind, numbers) for kind in KINDS for numbers in ((3, 1), (0, 2))] + [("eomt", (9, 4))]
)
def test_losses_and_gradients_of_a_seeded_step_are_theirs(kind: str, numbers: tuple[int, int]):
    torch.manual_seed(4)
    extras = {"pos_embed_rescale": None} if kind == "eomt_dinov3" else {}
    peer = draw(build_peer(kind, **extras), [1.0, 0.5]).train()
    ours = build_ours(peer, kind).train()
    ours.network.backbone.rescale = 1.0
    ours.network.set_masking([1.0, 0.5])
    pixels = torch.randn(2, 3, 96, 96)
    targets = [Targets(torch.randint(0, 5, (n,)), torch.rand(n, 96, 96) > 0.6) for n in numbers]
    torch.manual_seed(5)
    expected = peer(
        pixel_values=pixels,
        mask_labels=[target.masks.float() for target in targets],
        class_labels=[target.labels for target in targets],
    ).loss
    torch.manual_seed(5)
    losses = ours.criterion(ours.network.predict_layers(pixels), targets)
    assert len(losses) == 9
    # More targets than queries: they divide by the targets, we by the matched pairs, as the original does.
    share = sum(min(number, 8) for number in numbers) / sum(numbers)
    total = sum(loss * (1 if name.startswith("loss_ce") else share) for name, loss in losses.items())
    torch.testing.assert_close(total, expected.squeeze(), rtol=1e-5, atol=0)
    expected.backward()
    total.backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters() if parameter.grad is not None}
    ours_of = {name: parameter.grad for name, parameter in ours.named_parameters()}
    gradients = convert_weights(theirs, "gradients").state
    assert gradients.keys() == ours_of.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max()) + 1e-2
        torch.testing.assert_close(ours_of[name] / scale, gradient / scale, rtol=0, atol=1e-4, msg=name)


# Pictures


@pytest.mark.parametrize(
    ("processor", "keys"),
    [
        (
            {"do_split_image": True, "size": {"shortest_edge": 96, "longest_edge": None}},
            {
                "MIN_SIZE_TEST": 96,
                "MAX_SIZE_TEST": 1_000_000,
                "SLIDING_WINDOW": (96, 96),
                "SLIDING_WINDOW_OVERLAP": 0.0,
            },
        ),
        (
            {"do_pad": True, "size": {"shortest_edge": 96, "longest_edge": 96}},
            {"MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 96, "SLIDING_WINDOW": (), "SIZE_DIVISIBILITY": 96},
        ),
        ({}, {"MIN_SIZE_TEST": 640, "MAX_SIZE_TEST": 640, "SLIDING_WINDOW": (), "SIZE_DIVISIBILITY": 640}),
    ],
)
def test_windows_and_padding_are_read_and_written(tmp_path: Path, processor: dict[str, Any], keys: dict[str, Any]):
    from transformers import EomtConfig, EomtImageProcessor

    EomtConfig(**THIN).save_pretrained(tmp_path)
    write_weights(tmp_path / "model.safetensors", {"x": torch.zeros(1)})
    written = EomtImageProcessor(**processor)
    written.save_pretrained(tmp_path)
    cfg = find_model(tmp_path)
    seen = {**cfg.INPUT, **cfg.MODEL.MASK_FORMER, **cfg.MODEL.MASK_FORMER.TEST}
    expected = {**keys, "ROUNDING_TEST": "even", "OBJECT_MASK_THRESHOLD": 0.8}  # as the recipes have it
    assert {key: seen[key] for key in expected} == expected
    described = EomtImageProcessor(**describe_preprocessing(cfg))
    assert (described.do_split_image, described.do_pad) == (written.do_split_image, not written.do_split_image)
    assert described.size == written.size
    np.testing.assert_allclose(described.image_std, written.image_std)


def test_pictures_that_fit_no_square_are_written_as_the_models_square(caplog):
    options = ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "1333", "MODEL.EOMT.IMAGE_SIZE", "96"]
    described = describe_preprocessing(load_config(EOMT_CONFIG, options))
    assert described["size"] == {"shortest_edge": 96, "longest_edge": 96} and described["do_pad"]
    assert "1333" in caplog.text and "MODEL.EOMT.IMAGE_SIZE" in caplog.text


# What has no counterpart


@pytest.mark.parametrize(
    ("kind", "content", "fact"),
    [
        ("eomt", {"hidden_act": "relu"}, "hidden_act 'relu'"),
        ("eomt", {"layer_norm_eps": 1e-3}, "layer_norm_eps 0.001"),
        ("eomt", {"patch_size": [16, 16]}, "missing or wrong"),
        ("eomt", {"id2label": ["a", "b"]}, "missing or wrong"),
        ("eomt", {"hidden_size": 50}, "MODEL.EOMT.EMBED_DIM"),
        ("eomt_dinov3", {"hidden_dropout_prob": 0.1}, "hidden_dropout_prob 0.1"),
        ("eomt_dinov3", {"num_channels": 4}, "num_channels 4"),
        ("eomt_dinov3", {"num_upscale_blocks": 3}, "num_upscale_blocks 3"),
        ("eomt_dinov3", {"intermediate_size": 100}, "intermediate_size 100"),
        ("eomt_dinov3", {"key_bias": True}, "key_bias True"),
        ("eomt_dinov3", {"use_gated_mlp": True}, "use_gated_mlp True"),
        ("eomt_dinov3", {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}, "rope_parameters"),
    ],
)
def test_description_of_what_is_not_here_is_refused(kind: str, tmp_path: Path, content: dict, fact: str):
    described = {**build_peer(kind).config.to_dict(), "model_type": kind, **content}
    (tmp_path / "config.json").write_text(json.dumps(described))
    write_weights(tmp_path / "model.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(InputError, match=fact):
        find_model(tmp_path)


def test_dinov3_of_their_default_epsilon_is_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Their configuration's default is not what DINOv3 was trained with."""
    monkeypatch.setattr(logging.getLogger("maskformer"), "propagate", True)
    for epsilon in (1e-5, 1e-6):
        build_peer("eomt_dinov3", layer_norm_eps=epsilon).save_pretrained(tmp_path / str(epsilon))
        find_model(tmp_path / str(epsilon))
        assert ("layer_norm_eps" in caplog.text) == (epsilon != 1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [("INPUT.FORMAT", "BGR"), ("MODEL.EOMT.SWIGLU", True)],
)
def test_model_that_they_have_not_is_refused(tmp_path: Path, key: str, value: Any):
    build_peer("eomt_dinov3").save_pretrained(tmp_path)
    cfg = find_model(tmp_path, [key, value])
    with pytest.raises(InputError, match=rf"{key} is {value!r}.*Hugging Face's EoMT"):
        describe_model(cfg, None)


def test_differences_in_their_layout_are_told_and_added(tmp_path: Path):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(6)
    whole = draw(build_peer("eomt_dinov3"))
    same = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 192}
    base = shake(DINOv3ViTModel(DINOv3ViTConfig(**same, num_register_tokens=4)))
    base.save_pretrained(tmp_path / "dinov3")
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    for name, value in base.state_dict().items():
        name = re.sub(r"^norm", "layernorm", re.sub(r"^model\.layer\.", "layers.", name))
        if "mask_token" not in name:
            state[name] -= value
    whole.save_pretrained(tmp_path / "differences", state_dict=state)
    with pytest.raises(InputError, match=r"MODEL\.EOMT\.DELTA_BASE"):
        load(tmp_path / "differences", device="cpu")
    predictor = load(tmp_path / "differences", device="cpu", MODEL__EOMT__DELTA_BASE=str(tmp_path / "dinov3"))
    assert_same_answers(whole, predictor.model)
    predictor.save_pretrained(tmp_path / "ours")  # whole: it needs no backbone beside it
    assert find_model(tmp_path / "ours").MODEL.EOMT.DELTA_BASE == ""
    assert_same_answers(whole, load(tmp_path / "ours", device="cpu").model)
