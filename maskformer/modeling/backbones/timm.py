"""TimmBackbone: any model of the package timm that gives features, by its name.

Features are named by their stride, whatever timm's order: res2 (1/4), res3 (1/8), res4 (1/16), res5 (1/32); of several
with one stride the last counts. Parameters have timm's names, behind ``network.``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.structures import InputError

from .timm_models import (
    build_for_any_size,
    channels_first,
    convert_weights,
    describe_features,
    import_timm,
    whole_model,
)

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class TimmBackbone(Backbone):
    """A model of timm as a backbone; takes images of any size, which it pads to its coarsest stride.

    Args:
        name: timm's, as ``timm.list_models`` has it.
        in_channels: of the image.
        out_features: which features to give; what comes after the last of them is not built.
        norm: "" leaves the model's norms as they are; "FrozenBN" keeps its batch norms as they come, statistics and
            parameters; "SyncBN" takes their statistics over all processes.
        stochastic_depth: probability that the last block is left out; it rises from 0 at the first one.
        freeze_at: how much is not trained, its batch norms frozen: 0 nothing, 1 what comes before the first stage, 2 to
            5 the stages up to those of res2 to res5 too.

    Raises:
        InputError: timm is missing or has no such model, or the model has no such feature, norm or option, or is made
            for images of one size.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        in_channels: int = 3,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "",
        stochastic_depth: float = 0.0,
        freeze_at: int = 0,
    ):
        super().__init__()
        self._name = name
        self._options: dict[str, Any] = {"in_chans": in_channels}
        if stochastic_depth:
            self._options["drop_path_rate"] = stochastic_depth
        info = describe_features(name, self._options)
        strides = info.reduction()
        places = _places_of(name, strides, out_features)
        self._stride = max(strides[place] for place in places.values())
        self._options["out_indices"] = tuple(info.out_indices[place] for place in places.values())
        self.network, self._off_grid = build_for_any_size(name, self._options, self._stride)
        modules = {feature: info.module_name()[place] for feature, place in places.items()}
        _cut_after(self.network, list(modules.values())[-1])
        self._set_norm(norm)
        self._freeze(freeze_at, modules)
        self._out_features = list(places)
        self._out_feature_channels = dict(zip(places, self.network.feature_info.channels()))
        self._out_feature_strides = {feature: strides[place] for feature, place in places.items()}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read ``MODEL.TIMM`` and ``MODEL.BACKBONE.FREEZE_AT``."""
        node = cfg.MODEL.TIMM
        return {
            "name": node.NAME,
            "in_channels": input_shape.channels,
            "out_features": node.OUT_FEATURES,
            "norm": node.NORM,
            "stochastic_depth": node.DROP_PATH_RATE,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride: padded to it, strides of the features are exact."""
        return self._stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features of images.

        Args:
            images: (B, in_channels, H, W), normalised.

        Returns:
            Name -> (B, channels, H/stride, W/stride), both rounded up.
        """
        height, width = images.shape[-2:]
        # As multiple * whole - length, which torch.export sees to be divisible.
        below, right = (self._stride * _cells(length, self._stride) - length for length in (height, width))
        outputs = channels_first(self.network, self.network(F.pad(images, (0, right, 0, below))))
        features = {}
        for name, output in zip(self._out_features, outputs, strict=True):
            stride = self._out_feature_strides[name]
            if self._off_grid:
                grid = [_cells(length, self._stride) * self._stride // stride for length in (height, width)]
                output = F.interpolate(output, grid, mode="bilinear", align_corners=False)
            features[name] = output[..., : _cells(height, stride), : _cells(width, stride)]
        return features

    def file_shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of the tensors in a file of timm's model of this name, in their order."""
        return {name: tensor.shape for name, tensor in whole_model(self._name).state_dict().items()}

    def convert_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring the tensors of a file of timm's model of this name to this backbone's names and channels.

        timm loads them itself, for it knows the older forms of its files, and how the first convolution becomes one for
        other channels: first into the whole model, where none may be missing but the classifier's, then into this one.

        Args:
            state: tensors by timm's names.

        Returns:
            Tensors by the names of this backbone's state dict.

        Raises:
            InputError: they are another model's, or not all.
        """
        own = self.network.state_dict().keys()
        converted = convert_weights(state, self._name, self._options, own)
        return {f"network.{key}": value for key, value in converted.items()}

    def _set_norm(self, norm: str) -> None:
        if not norm:
            return
        if not any(isinstance(module, _BATCH_NORMS) for module in self.network.modules()):
            raise InputError(
                f"MODEL.TIMM.NORM is {norm!r}, but MODEL.TIMM.NAME {self._name} has no batch norm: set it to ''."
            )
        layers = import_timm().layers
        change = layers.freeze_batch_norm_2d if norm == "FrozenBN" else layers.convert_sync_batchnorm
        self.network = change(self.network)

    def _freeze(self, freeze_at: int, modules: Mapping[str, str]) -> None:
        """``modules``: feature -> the one that gives it, by timm's name."""
        first_ones = list(self.network.modules())[: self._count_frozen(freeze_at, modules)]
        frozen = {parameter for module in first_ones for parameter in module.parameters(recurse=False)}
        for name, module in list(self.network.named_modules()):
            if isinstance(module, _BATCH_NORMS) and module.weight in frozen:
                parent, _, child = name.rpartition(".")
                frozen_norm = import_timm().layers.freeze_batch_norm_2d(module)
                self.network.get_submodule(parent).register_module(child, frozen_norm)
        for parameter in frozen:
            parameter.requires_grad_(False)

    def _count_frozen(self, freeze_at: int, modules: Mapping[str, str]) -> int:
        """How many modules, in the network's order, MODEL.BACKBONE.FREEZE_AT freezes."""
        if freeze_at < 1:
            return 0
        # Networks that give features join the first two parts of some names, or hold the model as a part of theirs.
        modules_in_order = [re.sub(r"^(model|body)\.", "", name) for name, _ in self.network.named_modules()]
        names = [f"{name.replace('_', '.')}." for name in modules_in_order]

        def within(module: str) -> list[int]:
            return [place for place, name in enumerate(names) if name.startswith(f"{module.replace('_', '.')}.")]

        ends = {int(feature.removeprefix("res")): max(within(modules[feature]), default=-1) + 1 for feature in modules}
        if freeze_at >= max(ends):
            return len(names)
        first = next(iter(modules.values()))
        stages = re.sub(r"\.\d+$", "", first)  # "blocks" of "blocks.1", where the stem has ended
        stem = min(within(stages), default=0)
        stem = stem if stem > 1 else min(within(first), default=0)  # the network itself comes first
        count = max([stem] if freeze_at < min(ends) else [end for index, end in ends.items() if index <= freeze_at])
        if not count:
            raise InputError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but where that ends in MODEL.TIMM.NAME {self._name} is not "
                f"known: set it to 0 or to {max(ends)}, all."
            )
        return count


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """What ``MODEL.BACKBONE.NAME`` calls a ``TimmBackbone``."""
    return TimmBackbone(cfg, input_shape)


def _cut_after(network: nn.Module, last: str) -> None:
    """Take away what comes after the last feature's module, where timm has left it in a sequence of stages."""
    container, _, place = last.rpartition(".")
    stages = dict(network.named_modules()).get(container)
    if place.isdigit() and isinstance(stages, nn.Sequential):
        del stages[int(place) + 1 :]


def _places_of(name: str, strides: Sequence[int], wanted: Sequence[str]) -> dict[str, int]:
    """Feature -> its place in timm's list, the finest first.

    Raises:
        InputError: the model has not all that is wanted.
    """
    places = {f"res{stride.bit_length() - 1}": i for i, stride in enumerate(strides) if stride.bit_count() == 1}
    if not wanted or set(wanted) - places.keys():
        found = ", ".join(f"{feature} (stride {strides[place]})" for feature, place in places.items())
        raise InputError(
            f"MODEL.TIMM.OUT_FEATURES is {list(wanted)}, but MODEL.TIMM.NAME {name} has "
            f"{found or f'strides {sorted(set(strides))}, none of them a power of 2'}: set it and "
            "MODEL.SEM_SEG_HEAD.IN_FEATURES to some of these, or choose another model."
        )
    return {feature: places[feature] for feature in places if feature in wanted}


def _cells(length: int, stride: int) -> int:
    return (length + stride - 1) // stride
