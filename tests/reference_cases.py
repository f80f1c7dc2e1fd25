"""Loads the reference cases of tests/reference/small: a model with known weights, a batch, and the right answers."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances

from maskformer.config import load_config
from maskformer.meta_arch import MaskFormer

REFERENCE = Path(__file__).parent / "reference"
CONFIGS = Path(__file__).parent.parent / "configs"
CASES = (
    "base",
    "base_no_deep_supervision",
    "base_sem_postprocess_before",
    "base_prenorm_enc1_proj",
    "encoder_panoptic",
    "encoder_panoptic_prenorm",
    "swin",
    "swin_ape",
)
PER_PIXEL_CASES = ("per_pixel", "per_pixel_plus")

_R50 = "ade20k-150/maskformer_R50_bs16_160k.yaml"
_SWIN = (
    *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "SOLVER.BASE_LR", "0.00006"),
    *("SOLVER.WEIGHT_DECAY", "0.01", "SOLVER.BACKBONE_MULTIPLIER", "1.0"),
)
_SWIN_SMALL = ("MODEL.SWIN.DEPTHS", "[2, 2, 18, 2]")
_SWIN_BASE = (
    *("MODEL.SWIN.EMBED_DIM", "128", "MODEL.SWIN.NUM_HEADS", "[4, 8, 16, 32]", "MODEL.SWIN.WINDOW_SIZE", "12"),
    *_SWIN_SMALL,
)
_SEGMENTOR = ("MODEL.META_ARCHITECTURE", "SemanticSegmentor")

# Recipes of the released models: a configuration file, and the keys of the model and its optimiser that differ from it.
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    _R50: (_R50, ()),
    "ade20k-150/maskformer_R101_bs16_160k.yaml": (_R50, ("MODEL.RESNETS.DEPTH", "101")),
    "ade20k-150/maskformer_R101c_bs16_160k.yaml": (
        _R50,
        (
            *("MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", "MODEL.RESNETS.DEPTH", "101"),
            *("MODEL.RESNETS.STEM_TYPE", "deeplab", "MODEL.RESNETS.STEM_OUT_CHANNELS", "128"),
            *("MODEL.RESNETS.RES5_MULTI_GRID", "[1, 1, 1]"),
        ),
    ),
    "ade20k-150/per_pixel_baseline_R50_bs16_160k.yaml": (
        _R50,
        (*_SEGMENTOR, "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead"),
    ),
    "ade20k-150/per_pixel_baseline_plus_R50_bs16_160k.yaml": (
        _R50,
        (*_SEGMENTOR, "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselinePlusHead"),
    ),
    "ade20k-150/swin/maskformer_swin_tiny_bs16_160k.yaml": (_R50, _SWIN),
    "ade20k-150/swin/maskformer_swin_small_bs16_160k.yaml": (_R50, (*_SWIN, *_SWIN_SMALL)),
    "ade20k-150/swin/maskformer_swin_base_IN21k_384_bs16_160k_res640.yaml": (_R50, (*_SWIN, *_SWIN_BASE)),
    "ade20k-150/swin/maskformer_swin_large_IN21k_384_bs16_160k_res640.yaml": (
        _R50,
        (*_SWIN, *_SWIN_BASE, "MODEL.SWIN.EMBED_DIM", "192", "MODEL.SWIN.NUM_HEADS", "[6, 12, 24, 48]"),
    ),
    "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml": (
        "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml",
        (),
    ),
    "coco-panoptic/swin/maskformer_panoptic_swin_tiny_bs64_554k.yaml": (
        "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml",
        (
            *_SWIN,
            *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder"),
            *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5", "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", "True"),
        ),
    ),
}


def draw_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of a parameter or buffer of every reference model: it depends on its full name and shape only."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    z = rng.standard_normal(shape)
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        value = 0.75 + 0.5 * rng.random(shape)
    elif last == "running_mean":
        value = 0.1 * z
    elif last in ("relative_position_bias_table", "absolute_pos_embed"):
        value = 0.2 * z
    elif name.endswith("query_embed.weight"):
        value = 3 * z
    elif name.endswith("class_embed.weight"):
        value = 4 * z / np.sqrt(np.prod(shape[1:]))
    elif len(shape) >= 2:
        value = 1.2 * z / np.sqrt(np.prod(shape[1:]))
    elif last == "weight":
        value = 1 + 0.1 * z
    else:
        value = 0.1 * z
    return torch.as_tensor(value.astype(np.float32))


def draw_weights(model: torch.nn.Module) -> None:
    """Give a model the reference weights, in place."""
    state = model.state_dict()
    constants = ("criterion.empty_weight", "relative_position_index")
    drawn = {
        name: draw_weight(name, tuple(value.shape)) for name, value in state.items() if not name.endswith(constants)
    }
    model.load_state_dict({**state, **drawn})


@dataclass
class Case:
    """One reference case; ``arrays`` are the right outputs, ``losses`` and ``grads`` the right numbers."""

    model: torch.nn.Module
    batch: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    losses: dict[str, Any]
    grads: dict[str, Any]


def read_json(*parts: str) -> Any:
    """A file of tests/reference."""
    return json.loads(REFERENCE.joinpath(*parts).read_text())


def recipe_config(recipe: str, *options: str) -> CfgNode:
    """The configuration of a released recipe, on the CPU."""
    file, differences = RECIPES[recipe]
    return load_config(str(CONFIGS / file), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *differences, *options])


def reference_config(case: str) -> CfgNode:
    """The configuration of a case: its recipe's, with the case's overrides."""
    description = read_json("small", case, "config.json")
    return recipe_config(description["config"], *(str(w) for pair in description["overrides"].items() for w in pair))


def build_case(case: str, dtype: torch.dtype) -> Case:
    """Build a case's model in training mode, and its batch of two images."""
    config = read_json("small", case, "config.json")
    model = build_model(reference_config(case))
    if isinstance(model, MaskFormer):
        things = frozenset(config["thing_classes_contiguous"])
        model.inference = replace(model.inference, thing_class_ids=things)
    draw_weights(model)
    arrays = dict(np.load(REFERENCE / "small" / "base" / "io.npz"))
    arrays.update(np.load(REFERENCE / "small" / case / "io.npz"))
    return Case(
        model=model.to(dtype).train(),
        batch=[_example(arrays, config, index) for index in range(2)],
        arrays=arrays,
        config=config,
        losses=read_json("small", case, "losses.json"),
        grads=read_json("small", case, "grads.json"),
    )


def _example(arrays: dict[str, np.ndarray], config: dict[str, Any], index: int) -> dict[str, Any]:
    height, width = config["output_sizes"][index]
    if f"sem_seg_gt{index}" in arrays:
        image, labels = (torch.as_tensor(arrays[f"{name}{index}"]) for name in ("image", "sem_seg_gt"))
        return {"image": image, "sem_seg": labels, "height": height, "width": width}
    masks = np.unpackbits(arrays[f"gt_masks{index}"], axis=-1)[..., : config[f"gt_masks{index}_shape"][2]].astype(bool)
    return make_example(arrays[f"image{index}"], masks, arrays[f"gt_classes{index}"], height=height, width=width)


def make_example(image: np.ndarray, masks: np.ndarray, classes: np.ndarray, **size: int) -> dict[str, Any]:
    """A training example from a (3,H,W) image, (G,H,W) masks and (G,) classes."""
    instances = Instances(image.shape[1:])
    instances.gt_classes = torch.as_tensor(classes)
    instances.gt_masks = torch.as_tensor(masks)
    return {"image": torch.as_tensor(image), "instances": instances, **size}
