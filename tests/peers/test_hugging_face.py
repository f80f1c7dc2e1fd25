"""An independent implementation gives the same answer: Hugging Face's MaskFormer with the same random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image
from reference_cases import CONFIGS, read_json
from torch import Tensor

from maskformer.checkpoint import Checkpointer, convert_weights
from maskformer.checkpoint.layouts.hugging_face import to_hugging_face
from maskformer.config import load_config
from maskformer.exporting.hugging_face_config import describe_preprocessing
from maskformer.predictor import load
from maskformer.tools.convert import main as convert

pytest.importorskip("transformers", reason="a test-only dependency: pip install -e .[test]")

THIN = [
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "MODEL.MASK_FORMER.HIDDEN_DIM", "32"),
    *("MODEL.MASK_FORMER.NHEADS", "4", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "64"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8", "MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.DEVICE", "cpu"),
]


@pytest.fixture(scope="module")
def peer():
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig

    torch.manual_seed(7)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 64, 128], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    decoder = DetrConfig(
        d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, num_queries=8,
        use_timm_backbone=False, backbone_config=backbone,
    )  # fmt: skip
    config = MaskFormerConfig(
        fpn_feature_size=32, mask_feature_size=32, backbone_config=backbone, decoder_config=decoder, num_labels=5
    )
    model = MaskFormerForInstanceSegmentation(config).eval()
    with torch.no_grad():
        for value in model.state_dict().values():  # biases, norms and statistics start at 0 and 1: make each matter
            if value.is_floating_point() and value.dim() == 1:
                value.add_(0.2 * torch.rand_like(value))
    return model


CONFIG = str(CONFIGS / "ade20k-150" / "maskformer_R50_bs16_160k.yaml")


def build_ours() -> torch.nn.Module:
    from detectron2.modeling import build_model

    import maskformer.meta_arch  # noqa: F401

    return build_model(load_config(CONFIG, THIN)).eval()


@pytest.fixture(scope="module", params=["model.safetensors", "pytorch_model.bin", "folder"])
def ours(request: pytest.FixtureRequest, peer, tmp_path_factory: pytest.TempPathFactory):
    """Our model with the peer's weights, loaded as MODEL.WEIGHTS is from each kind of file."""
    folder = tmp_path_factory.mktemp("peer")
    if request.param == "pytorch_model.bin":
        torch.save(peer.state_dict(), folder / request.param)
    else:
        peer.save_pretrained(folder)
    model = build_ours()
    Checkpointer(model).load(str(folder if request.param == "folder" else folder / request.param))
    return model


@torch.no_grad()
def assert_same_answers(peer, ours, size: tuple[int, int]) -> None:
    pixels = torch.randn(2, 3, *size)
    theirs = peer(pixel_values=pixels, pixel_mask=torch.ones(2, *size, dtype=torch.int64))
    class_logits, mask_logits = ours.sem_seg_head(ours.backbone(pixels)).final
    torch.testing.assert_close(class_logits, theirs.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mask_logits, theirs.masks_queries_logits, rtol=1e-4, atol=1e-4)
    assert class_logits.std() > 0.05 and mask_logits.std() > 0.05  # the comparison is not of constants


@pytest.mark.parametrize("size", [(96, 128), (64, 64)])
def test_logits_and_masks_equal_hugging_faces(peer, ours, size: tuple[int, int]):
    assert_same_answers(peer, ours, size)


@pytest.mark.slow
def test_exported_model_gives_the_same_logits_and_masks(peer, tmp_path: Path, capsys: pytest.CaptureFixture):
    from transformers import MaskFormerForInstanceSegmentation, MaskFormerImageProcessor

    ours = build_ours()
    torch.save({"model": carry_weights(peer)}, tmp_path / "ours.pth")
    Checkpointer(ours).load(str(tmp_path / "ours.pth"))
    folder = tmp_path / "exported"
    words = [str(tmp_path / "ours.pth"), str(folder), "--to", "hugging-face", "--config-file", CONFIG, *THIN]
    assert convert(words) == 0
    assert "no place for: none" in capsys.readouterr().out
    model, loading = MaskFormerForInstanceSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert_same_answers(model.eval(), ours, (96, 128))
    processor = MaskFormerImageProcessor.from_pretrained(folder)
    assert processor.image_mean == pytest.approx([0.485, 0.456, 0.406], abs=1e-6)
    assert model.config.id2label[4] == "LABEL_4"


@pytest.mark.parametrize("divided", [False, True])
def test_a_folder_of_theirs_is_a_model_with_their_classes(peer, tmp_path: Path, divided: bool):
    from transformers import MaskFormerImageProcessor

    peer.config.id2label = {index: f"class <{index}>" for index in range(5)}
    peer.save_pretrained(tmp_path, max_shard_size="50KB" if divided else "5GB")
    MaskFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 200}).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or not divided
    predictor = load(tmp_path, device="cpu")
    assert predictor.classes.names == tuple(f"class <{index}>" for index in range(5))
    assert_same_answers(peer, predictor.model, (96, 128))
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert predictor(picture).task == "semantic"
    rewritten = tmp_path / "again"
    predictor.save_pretrained(rewritten, layout="hugging-face")
    assert_same_answers(peer, load(rewritten, device="cpu").model, (64, 64))


def carry_weights(peer) -> dict[str, Tensor]:
    return convert_weights(peer.state_dict(), "the peer").state


# Swin


def build_swin_peer(**sizes):
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig, SwinConfig

    backbone = SwinConfig(**sizes, drop_path_rate=0.3, out_features=["stage1", "stage2", "stage3", "stage4"])
    decoder = DetrConfig(use_timm_backbone=False, backbone_config=ResNetConfig(out_features=["stage4"]))
    return MaskFormerForInstanceSegmentation(
        MaskFormerConfig(backbone_config=backbone, decoder_config=decoder, num_labels=150)
    ).eval()


def test_swin_names_and_shapes_are_the_released_ones():
    with torch.device("meta"):
        peer = build_swin_peer(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
    shapes = {name: list(tensor.shape) for name, tensor in carry_weights(peer).items()}
    assert shapes == {name: shape for name, shape, *_ in read_json("parameters", "maskformer_swin_tiny_ade.json")}


def test_a_folder_with_their_swin_is_a_model(tmp_path: Path):
    peer = build_swin_peer(embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 6], window_size=7).eval()
    peer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["backbone_config"]["model_type"] == "maskformer-swin"
    assert_same_answers(peer, load(tmp_path, device="cpu").model, (64, 96))


@pytest.mark.slow
def test_swin_weights_there_and_back_are_the_same(tmp_path: Path):
    """Back through a file: its names are the same for every version of transformers, those in memory are not."""
    from safetensors.torch import save_file
    from transformers import MaskFormerForInstanceSegmentation

    peer = build_swin_peer(embed_dim=12, depths=[2, 2, 2, 2], num_heads=[1, 2, 3, 6], window_size=7)
    back, without_place = to_hugging_face(carry_weights(peer))
    assert not without_place
    peer.config.save_pretrained(tmp_path)
    save_file(
        {name: value.contiguous() for name, value in back.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    other, loading = MaskFormerForInstanceSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    state = peer.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


SIZES = [(64, 80), (101, 67), (333, 500), (480, 641), (99, 300), (75, 75), (200, 71)]


@pytest.mark.parametrize("size", SIZES)
def test_exported_image_processor_gives_the_models_pixels(size: tuple[int, int]):
    """Resized alike and never stretched to a multiple; a grey level is 1/57 of a deviation.

    Theirs cuts off the fraction of the longer side's length, ours rounds it: of other sizes it may be a pixel less.
    """
    from transformers import MaskFormerImageProcessor

    coarse = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR))
    words = ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "160", "MODEL.DEVICE", "cpu"]
    cfg = load_config(CONFIG, words)
    processor = MaskFormerImageProcessor.from_dict(describe_preprocessing(cfg))
    theirs = torch.as_tensor(processor(images=[image], return_tensors="pt")["pixel_values"][0])
    resized = T.ResizeShortestEdge(64, 160).get_transform(image).apply_image(image).transpose(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    ours = (torch.from_numpy(resized.copy()) - mean) / std
    assert theirs.shape == ours.shape
    torch.testing.assert_close(theirs.float(), ours, rtol=0, atol=1.01 / 57)
    assert (theirs - ours).abs().mean() < 0.002
