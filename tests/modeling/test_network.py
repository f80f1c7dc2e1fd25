"""The network alone, tensors in and out; tests/export exports it."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.modeling import build_model

from maskformer.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
THIN_RESNET = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 4),
]


@torch.no_grad()
def test_network_is_what_the_model_segments_by():
    cfg = load_config(
        str(CONFIGS / "ade20k-150" / "maskformer_R50_bs16_160k.yaml"), [*map(str, THIN_RESNET), "MODEL.DEVICE", "cpu"]
    )
    model = build_model(cfg).eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    normalised = (image - model.pixel_mean) / model.pixel_std
    (class_logits, mask_logits, _), *_ = model.predict([{"image": image}])
    for actual, expected in zip((class_logits, mask_logits), model.network(normalised[None])):
        torch.testing.assert_close(actual, expected[0], rtol=1e-4, atol=1e-4)
    assert {name.partition(".")[0] for name in model.network.state_dict()} == {"backbone", "sem_seg_head"}
