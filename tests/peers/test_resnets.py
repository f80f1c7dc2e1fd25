"""torchvision's and timm's ResNets give the same features as ours with their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peer_models import shake
from torch import nn

from maskformer.checkpoint import Checkpointer


@torch.no_grad()
def assert_same_features(theirs: list[torch.Tensor], ours: dict[str, torch.Tensor]) -> None:
    for feature, level in zip(theirs, ("res2", "res3", "res4", "res5"), strict=True):
        scale = float(feature.abs().max())
        assert scale > 0.1
        torch.testing.assert_close(ours[level] / scale, feature / scale, rtol=1e-4, atol=1e-4)


def load_into_ours(state: dict[str, torch.Tensor], model: nn.Module, path: Path) -> nn.Module:
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    torch.save(state, path)
    Checkpointer(model).load(str(path))
    return model.eval()


@pytest.mark.parametrize(("name", "depth"), [("resnet18", 18), pytest.param("resnet50", 50, marks=pytest.mark.slow)])
@torch.no_grad()
def test_torchvision_features(name: str, depth: int, build_backbone: Callable[..., nn.Module], tmp_path: Path):
    import torchvision

    peer = shake(getattr(torchvision.models, name)(weights=None)).eval()
    options = ["MODEL.RESNETS.DEPTH", str(depth), *(["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"] if depth < 50 else [])]
    ours = load_into_ours(peer.state_dict(), build_backbone(*options), tmp_path / "peer.pth")
    pixels = torch.randn(1, 3, 64, 96)
    x = peer.maxpool(peer.relu(peer.bn1(peer.conv1(pixels))))
    features = [x := layer(x) for layer in (peer.layer1, peer.layer2, peer.layer3, peer.layer4)]
    assert_same_features(features, ours.backbone(pixels))


@pytest.mark.parametrize("deep_stem", [False, True])  # True: the "c" variants
@torch.no_grad()
def test_timm_features(deep_stem: bool, build_backbone: Callable[..., nn.Module], tmp_path: Path):
    timm_resnet = pytest.importorskip("timm.models.resnet", reason="a test-only dependency: pip install -e .[test]")
    stem = {"stem_width": 32, "stem_type": "deep"} if deep_stem else {}
    peer = timm_resnet.ResNet(timm_resnet.Bottleneck, (3, 4, 6, 3), channels=(16, 32, 64, 128), **stem)
    shake(peer).eval()
    options = ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.WIDTH_PER_GROUP", "16"]
    if deep_stem:
        options += ["MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", "MODEL.RESNETS.STEM_TYPE", "deeplab"]
        options += ["MODEL.RESNETS.RES5_MULTI_GRID", "[1, 1, 1]"]
    ours = load_into_ours(peer.state_dict(), build_backbone(*options), tmp_path / "peer.pth")
    pixels = torch.randn(1, 3, 64, 96)
    x = peer.maxpool(peer.act1(peer.bn1(peer.conv1(pixels))))
    features = [x := layer(x) for layer in (peer.layer1, peer.layer2, peer.layer3, peer.layer4)]
    assert_same_features(features, ours.backbone(pixels))
