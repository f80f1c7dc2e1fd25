"""Loads the reference cases: a model with known weights, a batch, and the right answers.

Those of MaskFormer are the folders of tests/reference/small, those of Mask2Former tests/reference2/mask2former.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances

from maskformer.config import load_config
from maskformer.meta_arch import MaskFormer
from maskformer.structures import Classes

REFERENCE = Path(__file__).parent / "reference"
REFERENCE2 = Path(__file__).parent / "reference2"
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
CASES2 = (
    "mask2former/semantic",
    "mask2former/panoptic_instance",
    "mask2former/instance",
    "mask2former/swin",
    "mask2former/prenorm_proj",
    "mask2former/one_empty_image",
    "mask2former/all_empty",
    "mask2former/more_targets_than_queries",
    "mask2former/all_forbidden",
    "mask2former/all_zero_logits",
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
    elif name.endswith(("query_feat.weight", "level_embed", "level_embed.weight")):
        value = z
    elif name.endswith("sampling_offsets.bias"):
        value = 2 * z
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


@contextmanager
def handed_out(draws: Sequence[np.ndarray]) -> Iterator[None]:
    """In the ``with`` block ``torch.rand`` gives these, one after another; each must be asked for, by its shape."""
    waiting = iter(draws)

    def rand(*shape: int, device: torch.device | str | None = None) -> torch.Tensor:
        draw = torch.as_tensor(next(waiting), device=device)
        assert shape == draw.shape
        return draw

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", rand)
        yield
    assert next(waiting, None) is None, "fewer draws than the released model's"


@dataclass
class Case:
    """One reference case; ``arrays`` are the right outputs, ``losses`` and ``grads`` the right numbers."""

    model: torch.nn.Module
    batch: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    losses: dict[str, Any]
    grads: dict[str, Any]
    draws: list[np.ndarray] = field(default_factory=list)

    def training_losses(self, draws: Sequence[np.ndarray] | None = None) -> dict[str, torch.Tensor]:
        """What the model gives in training, with the case's random points, or others."""
        with handed_out(self.draws if draws is None else draws):
            return self.model(self.batch)


def case_folder(case: str) -> Path:
    """Where a case's files are."""
    return REFERENCE2 / case if "/" in case else REFERENCE / "small" / case


def read_json(*parts: str) -> Any:
    """A file of tests/reference."""
    return json.loads(REFERENCE.joinpath(*parts).read_text())


def read_case_json(case: str, name: str) -> Any:
    """A file of a case."""
    return json.loads((case_folder(case) / name).read_text())


def read_lists(name: str) -> dict[str, list[Any]]:
    """Of recipes of Mask2Former, by file name: their "parameters" or "optimizer_groups"."""
    return json.loads(gzip.decompress((REFERENCE2 / "mask2former" / f"{name}.json.gz").read_bytes()))


def recipe_config(recipe: str, *options: str) -> CfgNode:
    """The configuration of a released recipe, on the CPU."""
    return load_config(str(CONFIGS / recipe), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *options])


def reference_config(case: str) -> CfgNode:
    """The configuration of a case: its recipe's, with the case's overrides."""
    description = read_case_json(case, "config.json")
    recipe = f"mask2former/{description['config']}" if "/" in case else description["config"]
    return recipe_config(recipe, *(str(w) for pair in description["overrides"].items() for w in pair))


def build_case(case: str, dtype: torch.dtype) -> Case:
    """Build a case's model in training mode, and its batch of two images."""
    config = read_case_json(case, "config.json")
    model = build_model(reference_config(case))
    if isinstance(model, MaskFormer):
        names = tuple(f"class {index}" for index in range(model.criterion.num_classes))
        # An instance model of the original does not ask which classes are things; its datasets have no others.
        things = range(len(names)) if case == "mask2former/instance" else config["thing_classes_contiguous"]
        model.classes = Classes("the case", names, frozenset(things))
    draw_weights(model)
    _change_weights(model, config)
    arrays = read_arrays(case, config)
    return _with_draws(
        Case(
            model=model.to(dtype).train(),
            batch=[_example(arrays, config, index) for index in range(2)],
            arrays=arrays,
            config=config,
            losses=read_case_json(case, "losses.json"),
            grads=read_case_json(case, "grads.json"),
        )
    )


def read_arrays(case: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a case: its own, and those that are equal to the first case's."""
    arrays = dict(np.load(case_folder(case) / "io.npz"))
    if "/" not in case:
        return {**np.load(case_folder("base") / "io.npz"), **arrays}
    shared = np.load(case_folder("mask2former/semantic") / "io.npz")
    return {**arrays, **{name: shared[name] for name in config.get("as_in_semantic", ())}}


def unpacked(case: Case, name: str) -> np.ndarray:
    """A boolean array of a case."""
    return _unpack(case.arrays[name], case.config[f"{name}_shape"])


def _unpack(bits: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return np.unpackbits(bits, axis=-1)[..., : shape[-1]].astype(bool)


@torch.no_grad()
def _change_weights(model: torch.nn.Module, config: dict[str, Any]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in config.get("filled", {}).items():
        parameters[name].fill_(value)
    for name, factor in config.get("multiplied", {}).items():
        parameters[name].mul_(factor)


def _with_draws(case: Case) -> Case:
    """The case with the draws of its forward pass in ``draws``, if it draws points."""
    if "draw0" not in case.arrays:
        return case
    if "draw2" in case.arrays:
        draws = [case.arrays[f"draw{index}"] for index in range(sum(name.startswith("draw") for name in case.arrays))]
        return replace(case, draws=draws)
    # All candidates are equally uncertain, so which are chosen is open: those that were are the only candidates.
    masks = case.model.criterion.masks
    case.model.criterion.masks = replace(masks, oversample_ratio=masks.importance_ratio)
    num_uncertain = int(masks.importance_ratio * masks.num_points)
    draws = []
    for call, name in enumerate(case.losses["matching_order"]):
        points = case.arrays[f"points_{name}"]
        draws += [case.arrays[f"draw{4 * call + image}"] for image in range(2)]
        draws += [points[:, :num_uncertain], points[:, num_uncertain:]]
    return replace(case, draws=draws)


def _example(arrays: dict[str, np.ndarray], config: dict[str, Any], index: int) -> dict[str, Any]:
    height, width = config["output_sizes"][index]
    if f"sem_seg_gt{index}" in arrays:
        image, labels = (torch.as_tensor(arrays[f"{name}{index}"]) for name in ("image", "sem_seg_gt"))
        return {"image": image, "sem_seg": labels, "height": height, "width": width}
    masks = _unpack(arrays[f"gt_masks{index}"], config[f"gt_masks{index}_shape"])
    return make_example(arrays[f"image{index}"], masks, arrays[f"gt_classes{index}"], height=height, width=width)


def make_example(image: np.ndarray, masks: np.ndarray, classes: np.ndarray, **size: int) -> dict[str, Any]:
    """A training example from a (3,H,W) image, (G,H,W) masks and (G,) classes."""
    instances = Instances(image.shape[1:])
    instances.gt_classes = torch.as_tensor(classes)
    instances.gt_masks = torch.as_tensor(masks)
    return {"image": torch.as_tensor(image), "instances": instances, **size}
