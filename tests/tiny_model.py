"""A model small enough to run in a fraction of a second, and its random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.modeling import build_model

from maskformer.config import load_config

REPOSITORY = Path(__file__).resolve().parents[1]
SHAPES_CONFIG = str(REPOSITORY / "configs" / "shapes" / "maskformer_panoptic.yaml")
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 2,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 1,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
    "INPUT.MIN_SIZE_TEST": 64,
    "TEST.DETECTIONS_PER_IMAGE": 10,
}
TINY_OPTIONS = [str(word) for pair in TINY.items() for word in pair]
MASK2FORMER_CONFIG = str(REPOSITORY / "configs" / "shapes" / "mask2former_panoptic.yaml")
TINY_MASK2FORMER = {**TINY, "MODEL.MASK_FORMER.DEC_LAYERS": 4, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 50}
EOMT_CONFIG = str(REPOSITORY / "configs" / "shapes" / "eomt_panoptic.yaml")
TINY_EOMT = {
    **{key: value for key, value in TINY.items() if "TEST" in key or "QUERIES" in key or "DEVICE" in key},
    "MODEL.EOMT.IMAGE_SIZE": 64,
    "MODEL.EOMT.EMBED_DIM": 24,
    "MODEL.EOMT.NUM_HEADS": 2,
    "MODEL.EOMT.DEPTH": 4,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 50,
}


def write_tiny_weights(path: Path) -> None:
    """Random weights of the tiny model, made large enough that queries differ and find several segments."""
    torch.manual_seed(0)
    model = build_model(load_config(SHAPES_CONFIG, TINY_OPTIONS))
    head = model.sem_seg_head
    with torch.no_grad():
        for name, parameter in head.predictor.transformer.named_parameters():
            if "attn" in name and name.endswith("weight"):
                parameter.mul_(10)
        head.predictor.class_embed.weight.mul_(20)
        head.predictor.class_embed.bias[-1] = -30  # never "no object"
        for layer in head.predictor.mask_embed.layers:
            layer.weight.mul_(4)
        pixel_embedding = head.pixel_decoder.mask_features
        pixel_embedding.bias.zero_()
        pixel_embedding.weight.sub_(pixel_embedding.weight.mean(dim=1, keepdim=True))
    torch.save({"model": model.state_dict()}, path)
