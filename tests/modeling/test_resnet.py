"""Folded frozen norms: the function, the gradients and the names of what was folded."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from interfaces import BackboneTests
from torch import nn
from torch.nn import functional as F

from maskformer.config import load_config
from maskformer.modeling import build_backbone_by_name, fold_frozen_norms
from maskformer.modeling.backbones.resnet import FrozenNormConv2d
from maskformer.structures import InputError


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        Conv2d(3, 8, 3, stride=2, padding=1, bias=False, norm=FrozenBatchNorm2d(8), activation=F.relu),
        Conv2d(8, 6, 1, norm=FrozenBatchNorm2d(6), groups=2),
        Conv2d(6, 6, 1, norm=nn.BatchNorm2d(6)),
    ]
    for layer in layers[:2]:
        layer.norm.weight.uniform_(-1, 2)
        layer.norm.bias.normal_()
        layer.norm.running_mean.normal_()
        layer.norm.running_var.uniform_(0.3, 2)
    return nn.Sequential(*layers).double()


def test_outputs_and_gradients_are_those_of_conv_and_norm(network):
    folded = fold_frozen_norms(copy.deepcopy(network))
    assert [type(layer) for layer in folded] == [FrozenNormConv2d, FrozenNormConv2d, Conv2d]
    results = []
    for model in (network, folded):
        images = torch.randn(2, 3, 9, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        images.requires_grad_()
        output = model(images)
        output.square().sum().backward()
        results.append([output, images.grad, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_names_stay_and_weights_loaded_later_are_used(network):
    folded = fold_frozen_norms(copy.deepcopy(network))
    assert list(folded.state_dict()) == list(network.state_dict())
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    folded(images)
    changed = {name: value * 2 for name, value in network.state_dict().items()}
    network.load_state_dict(changed)
    folded.load_state_dict(changed)
    torch.testing.assert_close(folded.eval()(images), network.eval()(images), rtol=1e-9, atol=1e-9)


def test_folded_network_is_saved_and_copied(network):
    folded = fold_frozen_norms(network).eval()
    file = io.BytesIO()
    torch.save(folded, file)
    file.seek(0)
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(folded)):
        assert torch.equal(other(images), folded(images))


def test_autocast_computes_in_the_type_that_it_names(network):
    folded = fold_frozen_norms(copy.deepcopy(network).float())[0]
    images = torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = folded(images)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), network[0].float()(images), rtol=0.05, atol=0.05)


def test_what_is_folded_follows_the_statistics(network):
    folded = fold_frozen_norms(copy.deepcopy(network))
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    with torch.inference_mode():
        folded(images)
    for change in (
        lambda norm: norm.running_var.mul_(3),
        lambda norm: setattr(norm, "running_mean", norm.running_mean + 1),
        lambda norm: norm.weight.copy_(norm.weight * 2),
    ):
        for model in (network, folded):
            change(model[0].norm)
        torch.testing.assert_close(folded(images), network(images), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded.float()(images.float()).double(), network(images), rtol=1e-4, atol=1e-4)


THIN = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3"],
    "MODEL.BACKBONE.FREEZE_AT": 0,
}


def build_resnet() -> nn.Module:
    return build_backbone_by_name(load_config("", [str(word) for pair in THIN.items() for word in pair]))


class TestResNet(BackboneTests):
    build = staticmethod(build_resnet)


def test_an_unknown_backbone_is_refused_with_those_there_are():
    cfg = load_config("")
    cfg.MODEL.BACKBONE.NAME = "Mine"
    with pytest.raises(InputError, match=r"MODEL.BACKBONE.NAME.*'Mine'.*D2SwinTransformer"):
        build_backbone_by_name(cfg)
