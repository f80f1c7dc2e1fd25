"""Backbones alone: ResNets of torchvision, timm and Detectron2, and Swin Transformers as released and of timm.

ResNets of torchvision and timm, which have the same names, expect RGB over ImageNet's mean and standard deviation and
the stride on the 3x3 convolution: INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53], MODEL.PIXEL_STD
[58.395, 57.12, 57.375] and MODEL.RESNETS.STRIDE_IN_1X1 False, as configs/base/common.yaml has them. timm's "c" variants
(three 3x3 convolutions first) fit ``build_resnet_deeplab_backbone`` with MODEL.RESNETS.STEM_TYPE deeplab,
STEM_OUT_CHANNELS 64 and RES5_MULTI_GRID [1, 1, 1].
"""

from __future__ import annotations

import re

from maskformer.structures import InputError

from .layout import Layout, NameMap, StateDict, drop

_RESNET_NAMES = NameMap(
    [
        ("conv1.0.", "backbone.stem.conv1."),
        ("conv1.1.", "backbone.stem.conv1.norm."),
        ("conv1.3.", "backbone.stem.conv2."),
        ("conv1.4.", "backbone.stem.conv2.norm."),
        ("conv1.6.", "backbone.stem.conv3."),
        ("conv1.7.", "backbone.stem.conv3.norm."),
        ("conv1.", "backbone.stem.conv1."),
        ("bn1.", "backbone.stem.conv1.norm."),
        ("layer{i}.{j}.conv{k}.", "backbone.res{1+i}.{j}.conv{k}."),
        ("layer{i}.{j}.bn{k}.", "backbone.res{1+i}.{j}.conv{k}.norm."),
        ("layer{i}.{j}.downsample.0.", "backbone.res{1+i}.{j}.shortcut."),
        ("layer{i}.{j}.downsample.1.", "backbone.res{1+i}.{j}.shortcut.norm."),
    ]
)
_SWIN_NAMES = NameMap([(name, f"backbone.{name}") for name in ("layers.", "patch_embed.", "absolute_pos_embed")])
# timm counts a patch merging to the stage after it.
_TIMM_SWIN_NAMES = NameMap([("layers.{1+i}.downsample.", "backbone.layers.{i}.downsample.")])


def convert_resnet(state: StateDict) -> StateDict:
    """Bring a ResNet's parameters to the names of Detectron2's backbone.

    Args:
        state: torchvision's, timm's or OpenMMLab's names, without a prefix.

    Raises:
        InputError: the network pools in its shortcuts (timm's "d" variants), which Detectron2's ResNet does not.
    """
    if any(re.match(r"layer\d\.\d+\.downsample\.2\.", name) for name in state):
        raise InputError(
            "These weights are of a ResNet that pools in its shortcuts (a 'd' variant, such as resnet50d), which "
            "Detectron2's ResNet does not; set MODEL.WEIGHTS to those of resnet50, resnet101 or a 'c' variant."
        )
    # OpenMMLab's name of the deep stem; and timm's last norm of it, which is outside of it.
    state = {re.sub(r"^stem\.(?=\d\.)", "conv1.", name): tensor for name, tensor in state.items()}
    if "conv1.6.weight" in state:
        state = {re.sub(r"^bn1\.", "conv1.7.", name): tensor for name, tensor in state.items()}
    return _RESNET_NAMES.rename(drop(state, r"\.num_batches_tracked$"))


def _convert_swin(state: StateDict) -> StateDict:
    """Swin's last norm and classifier keep their names: norms of the four outputs take their place, and start anew."""
    is_timm = any(name.startswith("layers.3.downsample.") for name in state)
    state = drop(state, r"\.attn_mask$")  # our blocks make it for the size of their input
    return _SWIN_NAMES.rename(_TIMM_SWIN_NAMES.rename(state) if is_timm else state)


def _convert_detectron2(state: StateDict) -> StateDict:
    is_part = re.compile(r"stem\.(?!fc)|res[2-5]\.").match  # stem.fc classifies ImageNet
    return {f"backbone.{name}" if is_part(name) else name: tensor for name, tensor in state.items()}


DETECTRON2_RESNET = Layout(
    name="Detectron2 ResNet",
    marks=(r"stem\.conv1\.weight$", r"res2\.0\."),
    convert=_convert_detectron2,
    backbone_only=True,
)
RESNET = Layout(
    name="torchvision or timm ResNet",
    marks=(r"conv1\.", r"layer1\.0\.conv1\.weight$", r"layer4\.0\."),
    convert=convert_resnet,
    backbone_only=True,
)
SWIN = Layout(
    name="Swin Transformer release or timm Swin",
    marks=(r"patch_embed\.proj\.weight$", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table$"),
    convert=_convert_swin,
    backbone_only=True,
    never_holds=r"backbone\.norm\d\.|\.relative_position_index$",
)
