"""Models and inputs that several workloads share: ours from a real configuration, Hugging Face's of the same sizes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from maskformer.config import load_config
from maskformer.engine.network import run_as_configured
from maskformer.exporting.hugging_face_config import describe_model
from maskformer.structures import InputError, SegmentMasks

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PIXEL_VALUES = 256
# A network that a test can afford.
TINY = [
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    *("MODEL.SEM_SEG_HEAD.MASK_DIM", "16", "MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.NHEADS", "2"),
    *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32", "MODEL.MASK_FORMER.DEC_LAYERS", "2"),
]
TINY_EOMT = [
    *("MODEL.EOMT.IMAGE_SIZE", "64", "MODEL.EOMT.EMBED_DIM", "24", "MODEL.EOMT.NUM_HEADS", "2"),
    *("MODEL.EOMT.DEPTH", "4", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", "64"),
]
TINY_POINTS = ["MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64"]
TINY_RESNET = [
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
]
TINY_SWIN = [
    *("MODEL.SWIN.EMBED_DIM", "12", "MODEL.SWIN.DEPTHS", "[1, 1, 1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2, 2, 4]"),
]


def load_recipe(recipe: str, device: str, *, tiny: bool = False, options: Sequence[str] = ()) -> CfgNode:
    """The configuration of a recipe without pretrained weights.

    Args:
        recipe: a file under ``configs/``.
        device: MODEL.DEVICE.
        tiny: make the network small.
        options: KEY VALUE KEY VALUE ...

    Raises:
        InputError: the recipes are not beside the package, because this is no clone of the repository.
    """
    if not CONFIGS.is_dir():
        raise InputError(f"The benchmark reads the recipes in {CONFIGS}, which is not there: run it from a clone.")
    words = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, *(_small(recipe) if tiny else ()), *options]
    return load_config(str(CONFIGS / recipe), words)


def _small(recipe: str) -> list[str]:
    if recipe.startswith("eomt/"):
        return [*TINY_EOMT, *TINY_POINTS]
    points = TINY_POINTS if recipe.startswith("mask2former/") else []
    return [*TINY, *points, *(TINY_SWIN if "swin" in recipe else TINY_RESNET)]


def build_ours(cfg: CfgNode) -> nn.Module:
    """The model of a configuration, with random weights, without the log that building it writes.

    Its network runs as ``MODEL.COMPILE`` and ``MODEL.PRECISION`` say.
    """
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    model = build_model(cfg)
    run_as_configured(cfg, model)
    return model


def import_transformers() -> ModuleType:
    """Hugging Face's library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError("The peer needs transformers, a dependency of tests: pip install -e .[test]") from error
    transformers.logging.set_verbosity_error()
    return transformers


def build_hugging_face(cfg: CfgNode, *, every_layer: bool = False) -> nn.Module:
    """Hugging Face's model of the same sizes, on ``cfg.MODEL.DEVICE``.

    Args:
        cfg: of our model.
        every_layer: predict from every decoder layer, to train; its forward then wants ``output_hidden_states=True``.
    """
    transformers = import_transformers()
    description = {**describe_model(cfg, None), "return_dict": True}
    is_later = description["model_type"] != "maskformer"  # which predicts from every layer in any case
    description["use_auxiliary_loss"] = every_layer or is_later
    architecture = getattr(transformers, description["architectures"][0])
    model = architecture(architecture.config_class.from_dict(description)).to(cfg.MODEL.DEVICE)
    if every_layer and not is_later:
        _drop_decoder_input(model, cfg.MODEL.MASK_FORMER.DEC_LAYERS)
    return model


def _drop_decoder_input(model: Any, num_layers: int) -> None:
    """Keep the predictions of the L layers: some versions count the decoder's input, all zeros, as one more."""
    get_logits = model.get_logits

    def get_logits_of_layers(outputs: Any) -> Any:
        outputs.transformer_decoder_hidden_states = outputs.transformer_decoder_hidden_states[-num_layers:]
        return get_logits(outputs)

    model.get_logits = get_logits_of_layers


def draw_segment_map(num_segments: int, size: tuple[int, int], seed: int) -> Tensor:
    """(H,W) integers 1..G: each pixel belongs to the nearest of G random points."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(num_segments, 2, generator=generator) * torch.tensor(size, dtype=torch.float32)
    nearest = torch.full(size, torch.inf)
    segment_map = torch.zeros(size, dtype=torch.uint8 if num_segments < 256 else torch.int16)
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None, :]
    for index, (row, column) in enumerate(points.tolist()):
        distance = (rows - row) ** 2 + (columns - column) ** 2
        segment_map[distance < nearest] = index + 1
        nearest = torch.minimum(nearest, distance)
    return segment_map


def draw_image(size: tuple[int, int], seed: int) -> Tensor:
    """(3,H,W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(PIXEL_VALUES, (3, *size), dtype=torch.uint8, generator=generator)


def draw_labels(num_segments: int, num_classes: int, seed: int) -> Tensor:
    """(G,) classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_classes, (num_segments,), generator=generator)


def draw_batch(batch: int, size: tuple[int, int], num_masks: int, num_classes: int) -> list[dict[str, Any]]:
    """Training examples as a mapper gives them: an image and G segments each."""
    examples = []
    for seed in range(batch):
        instances = Instances(size)
        instances.gt_classes = draw_labels(num_masks, num_classes, seed)
        instances.gt_masks = SegmentMasks(draw_segment_map(num_masks, size, seed), num_masks)
        examples.append({"image": draw_image(size, seed), "instances": instances})
    return examples


def normalise(images: Sequence[Tensor], cfg: CfgNode) -> Tensor:
    """(B,3,H,W) float: what Hugging Face's processor makes of images of one size."""
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1)
    std = torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1)
    return torch.stack([(image - mean) / std for image in images]).to(cfg.MODEL.DEVICE)
