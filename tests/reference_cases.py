"""Loads the reference cases: a model with known weights, a batch, and the right answers.

Those of MaskFormer are the folders of tests/reference/small, those of Mask2Former and EoMT are in tests/reference2.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
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
from maskformer.meta_arch import EoMT, MaskClassifier
from maskformer.structures import Classes, MaskPredictions

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
EOMT_CASES = (
    "eomt/panoptic_64",
    "eomt/semantic_96",
    "eomt/panoptic_64_drop_half",
    "eomt/panoptic_64_unmasked",
    "eomt/more_targets_than_queries",
    "eomt/dinov3_panoptic_64",
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
    elif last in ("relative_position_bias_table", "absolute_pos_embed", "pos_embed", "cls_token", "reg_token"):
        value = 0.2 * z
    elif name.endswith("query_embed.weight"):
        value = 3 * z
    elif name.endswith(("query_feat.weight", "level_embed", "level_embed.weight", "network.q.weight")):
        value = z
    elif name.endswith("sampling_offsets.bias"):
        value = 2 * z
    elif name.endswith(("class_embed.weight", "class_head.weight")):
        value = 4 * z / np.sqrt(np.prod(shape[1:]))
    elif len(shape) >= 2:
        value = 1.2 * z / np.sqrt(np.prod(shape[1:]))
    elif last in ("weight", "gamma", "lambda1"):
        value = 1 + 0.1 * z
    else:
        value = 0.1 * z
    return torch.as_tensor(value.astype(np.float32))


# DINOv3's part of EoMT: what a tensor's name has in ours, and what it has in the released files.
_DINOV3 = {
    "backbone.cls_token": "backbone.patch_embed.cls_token",
    "backbone.reg_token": "backbone.patch_embed.register_tokens",
    "patch_embed.proj": "patch_embed.patch_embeddings",
    "attn.proj": "attention.o_proj",
    "attn.q_bias": "attention.q_proj.bias",
    "attn.v_bias": "attention.v_proj.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}


def by_released_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters, or what belongs to each, by the names in released files: ours, but for DINOv3's, which split more."""
    if not any(name.endswith("attn.q_bias") for name in tensors):
        return dict(tensors)
    released = {}
    for name, tensor in tensors.items():
        for ours, theirs in _DINOV3.items():
            name = name.replace(ours, theirs)
        if "attn.qkv" in name:
            parts = zip("qkv", tensor.chunk(3))
            released.update({name.replace("attn.qkv", f"attention.{part}_proj"): value for part, value in parts})
        else:
            released[name] = tensor
    return released


@torch.no_grad()
def draw_weights(model: torch.nn.Module) -> None:
    """Give a model the reference weights, in place."""
    constants = ("criterion.empty_weight", "relative_position_index", "attn_mask_probs")
    for name, value in by_released_names(model.state_dict()).items():
        if not name.endswith(constants):
            value.copy_(draw_weight(name, tuple(value.shape)))


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
    """One reference case; ``arrays`` are the right outputs, ``losses`` and ``grads`` the right numbers.

    The random numbers of a training step are ``network_draws``, of the network, then ``draws``, of the losses.
    """

    name: str
    model: torch.nn.Module
    batch: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    losses: dict[str, Any]
    grads: dict[str, Any]
    draws: list[np.ndarray] = field(default_factory=list)
    network_draws: list[np.ndarray] = field(default_factory=list)

    def predict(self) -> tuple[MaskPredictions, tuple[int, int]]:
        """What the network says in training, and the size of its padded input."""
        images = self.model._normalise(self.batch).tensor
        with handed_out(self.network_draws):
            return self.model.predict_layers(images), tuple(images.shape[-2:])

    def training_losses(self, draws: Sequence[np.ndarray] | None = None) -> dict[str, torch.Tensor]:
        """What the model gives in training, with the case's random points, or others."""
        with handed_out([*self.network_draws, *self.draws] if draws is None else draws):
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


def read_lists(name: str, model: str = "mask2former") -> dict[str, list[Any]]:
    """Of recipes of Mask2Former or EoMT, by file name: their "parameters" or "optimizer_groups"."""
    return json.loads(gzip.decompress((REFERENCE2 / model / f"{name}.json.gz").read_bytes()))


def recipe_config(recipe: str, *options: str) -> CfgNode:
    """The configuration of a released recipe, on the CPU."""
    return load_config(str(CONFIGS / recipe), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *options])


def reference_config(case: str) -> CfgNode:
    """The configuration of a case: its recipe's, with the case's overrides."""
    description = read_case_json(case, "config.json")
    recipe = str(Path(case).parent / description["config"])
    return recipe_config(recipe, *(str(w) for pair in description["overrides"].items() for w in pair))


def build_case(case: str, dtype: torch.dtype) -> Case:
    """Build a case's model in training mode, and its batch of two images."""
    config = read_case_json(case, "config.json")
    model = build_model(reference_config(case))
    if isinstance(model, MaskClassifier):
        names = tuple(f"class {index}" for index in range(model.criterion.num_classes))
        # An instance model of the original does not ask which classes are things; its datasets have no others.
        things = range(len(names)) if case == "mask2former/instance" else config["thing_classes_contiguous"]
        model.classes = Classes("the case", names, frozenset(things))
    draw_weights(model)
    _change_weights(model, config)
    model.to(dtype).train()
    if isinstance(model, EoMT):
        _prepare_eomt(model, config)
    arrays = read_arrays(case, config)
    return _with_draws(
        Case(
            name=case,
            model=model,
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
    for first in ("mask2former/semantic", "eomt/panoptic_64"):
        if names := config.get(f"as_in_{Path(first).name}"):
            shared = np.load(case_folder(first) / "io.npz")
            arrays.update({name: shared[name] for name in names})
    return arrays


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


@torch.no_grad()
def _prepare_eomt(model: EoMT, config: dict[str, Any]) -> None:
    """As the original was run: values of 0..1 normalised with numbers rounded to float32, no rotation rescaled."""
    for buffer, values in ((model.pixel_mean, (0.485, 0.456, 0.406)), (model.pixel_std, (0.229, 0.224, 0.225))):
        buffer.copy_(255 * torch.tensor(values, dtype=torch.float32).to(buffer.dtype)[:, None, None])
    model.network.backbone.rescale = 1.0
    model.network.set_masking(config.get("masking_probabilities", [1.0, 1.0]))


def _with_draws(case: Case) -> Case:
    """The case with the draws of its forward pass in ``draws``, if it draws points."""
    if "draw0" not in case.arrays:
        return case
    if "draw2" in case.arrays:
        draws = [case.arrays[f"draw{index}"] for index in range(sum(name.startswith("draw") for name in case.arrays))]
        of_network = len(case.config.get("masking_probabilities", ()))
        return replace(case, network_draws=draws[:of_network], draws=draws[of_network:])
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
