"""The network alone: exported once for every size of images and of batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from maskformer.config import load_config
from maskformer.modeling import MaskFormerNetwork

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
THIN_RESNET = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 4),
]
NETWORKS = {
    "R50, base": ("ade20k-150/maskformer_R50_bs16_160k.yaml", THIN_RESNET),
    "R50, transformer encoder": ("coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml", THIN_RESNET),
    "Swin-T, base": (
        "ade20k-150/swin/maskformer_swin_tiny_bs16_160k.yaml",
        ["MODEL.SWIN.EMBED_DIM", 12, "MODEL.SWIN.NUM_HEADS", "(1, 2, 3, 6)"],
    ),
    "R18, Mask2Former": ("shapes/mask2former_panoptic.yaml", ["MODEL.MASK_FORMER.DEC_LAYERS", 4]),
}  # fmt: skip


def build_network(name: str) -> MaskFormerNetwork:
    recipe, options = NETWORKS[name]
    torch.manual_seed(0)
    cfg = load_config(
        str(CONFIGS / recipe),
        [str(word) for word in ["MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.DEC_LAYERS", 2, *options]],
    )
    return build_model(cfg).eval().network


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_network_gives_the_same_at_sizes_that_it_was_not_exported_with(name):
    spec = pytest.importorskip("torch.fx.experimental.dynamic_spec", reason="PyTorch before 2.14 has no ShapesSpec")
    network = build_network(name)
    sizes = [spec.ShapeVar(letter, min=1 if letter == "batch" else 32) for letter in ("batch", "height", "width")]
    images = spec.TensorSpec([sizes[0], 3, *sizes[1:]])
    exported = torch.export.export(
        network,
        (torch.randn(2, 3, 96, 128),),
        dynamic_shapes=spec.ShapesSpec(params=spec.ParamsSpec({"images": images})),
    ).module()
    for size in [(1, 3, 32, 64), (3, 3, 160, 96), (1, 3, 224, 352), (2, 3, 70, 101)]:
        images = torch.randn(size)
        with torch.no_grad():
            for actual, expected in zip(exported(images), network(images)):
                torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_network_is_what_the_model_segments_by():
    cfg = load_config(str(CONFIGS / NETWORKS["R50, base"][0]), [*map(str, THIN_RESNET), "MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    normalised = (image - model.pixel_mean) / model.pixel_std
    (class_logits, mask_logits, _), *_ = model.predict([{"image": image}])
    for actual, expected in zip((class_logits, mask_logits), model.network(normalised[None])):
        torch.testing.assert_close(actual, expected[0], rtol=1e-4, atol=1e-4)
    assert {name.partition(".")[0] for name in model.network.state_dict()} == {"backbone", "sem_seg_head"}
