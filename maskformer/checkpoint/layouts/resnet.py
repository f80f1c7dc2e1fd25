"""ResNets of torchvision and timm, which have the same names, as backbones.

They expect RGB over ImageNet's mean and standard deviation and the stride on the 3x3 convolution: INPUT.FORMAT RGB,
MODEL.PIXEL_MEAN [123.675, 116.28, 103.53], MODEL.PIXEL_STD [58.395, 57.12, 57.375] and MODEL.RESNETS.STRIDE_IN_1X1
False, as configs/base/common.yaml has them. timm's "c" variants (three 3x3 convolutions first) fit
``build_resnet_deeplab_backbone`` with MODEL.RESNETS.STEM_TYPE deeplab, STEM_OUT_CHANNELS 64 and RES5_MULTI_GRID
[1, 1, 1].
"""

from __future__ import annotations

import re

from maskformer.structures import InputError

from .layout import Layout, StateDict, drop
from .names import NameMap

_NAMES = NameMap(
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
    state = {
        re.sub(r"^stem\.(?=\d\.)", "conv1.", name): tensor for name, tensor in state.items()
    }  # OpenMMLab's deep stem
    if "conv1.6.weight" in state:  # the last norm of timm's deep stem is outside it
        state = {re.sub(r"^bn1\.", "conv1.7.", name): tensor for name, tensor in state.items()}
    state = drop(state, r"\.num_batches_tracked$")
    return {_NAMES.to_ours(name) or name: tensor for name, tensor in state.items()}


RESNET = Layout(
    name="torchvision or timm ResNet",
    marks=(r"conv1\.", r"layer1\.0\.conv1\.weight$", r"layer4\.0\."),
    convert=convert_resnet,
    backbone_only=True,
)
