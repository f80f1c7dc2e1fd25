"""Loads the reference cases of tests/reference/small: a model with known weights, a batch, and the right answers."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances

from maskformer.config import load_config
from maskformer.meta_arch import MaskFormer
from maskformer.structures import Classes

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
    return load_config(str(CONFIGS / recipe), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *options])


def reference_config(case: str) -> CfgNode:
    """The configuration of a case: its recipe's, with the case's overrides."""
    description = read_json("small", case, "config.json")
    return recipe_config(description["config"], *(str(w) for pair in description["overrides"].items() for w in pair))


def build_case(case: str, dtype: torch.dtype) -> Case:
    """Build a case's model in training mode, and its batch of two images."""
    config = read_json("small", case, "config.json")
    model = build_model(reference_config(case))
    if isinstance(model, MaskFormer):
        names = tuple(f"class {index}" for index in range(model.criterion.num_classes))
        model.classes = Classes("the case", names, frozenset(config["thing_classes_contiguous"]))
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
