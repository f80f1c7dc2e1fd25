"""Layers over their own input: the values of the usual layers, and only what nobody else reads is overwritten."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from reference_cases import build_case
from torch import nn

from maskformer.modeling import BasePixelDecoder, fold_frozen_norms, in_place, sum_residuals_in_place
from maskformer.modeling.backbones.residual import InPlaceBottleneckBlock


@pytest.fixture
def small_bands(monkeypatch):
    """Bands of two rows or less, and every feature counts as large."""
    monkeypatch.setattr(in_place, "_BAND_VALUES", 2 * 2 * 8 * 9)
    monkeypatch.setattr(in_place, "_LARGE", 0)


def draw(*shape: int, channels_last: bool = True) -> torch.Tensor:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def build_resnet(norm: str = "FrozenBN") -> ResNet:
    """Two stages of three blocks; the first block of the first has no convolution in its shortcut."""
    torch.manual_seed(0)
    options = {"bottleneck_channels": 4, "norm": norm}
    res2 = [BottleneckBlock(8, 8, **options) for _ in range(3)]
    res3 = [BottleneckBlock(8, 16, stride=2, **options), *(BottleneckBlock(16, 16, **options) for _ in range(2))]
    resnet = ResNet(BasicStem(3, 8, norm), [res2, res3], out_features=["stem", "res2", "res3"])
    for name, buffer in resnet.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5 if name.endswith("var") else -0.5, 1.5)
    return resnet.double().eval()


def in_place_resnet() -> ResNet:
    return sum_residuals_in_place(fold_frozen_norms(build_resnet()))


# --- layers ---


def test_bands_cover_all_rows_once(monkeypatch):
    x = torch.zeros(2, 3, 7, 5)
    monkeypatch.setattr(in_place, "_BAND_VALUES", 3 * 30 + 29)
    assert list(in_place.row_bands(x)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    monkeypatch.setattr(in_place, "_BAND_VALUES", 1)  # a row has more
    assert len(list(in_place.row_bands(x))) == 7


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("kernel", "bias"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("rows", [1, 2, 5, 6])
@torch.no_grad()
def test_convolution_in_place_is_the_convolution(rows, kernel, bias, channels_last, small_bands):
    convolution = nn.Conv2d(8, 8, kernel, padding=kernel // 2, bias=bias).double()
    x = draw(2, 8, rows, 9, channels_last=channels_last)
    expected = convolution(x)
    assert in_place.convolve_in_place(x, convolution) is x
    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("groups", "channels"), [(32, 64), (4, 12), (9, 18), (1, 3)])
@torch.no_grad()
def test_group_norm_in_place_is_the_group_norm(groups, channels):
    norm = nn.GroupNorm(groups, channels, eps=0.1).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = draw(2, channels, 5, 4)
    expected = norm(x)
    assert in_place.normalise_in_place(x, norm) is x
    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)


def test_only_large_features_without_gradients_are_worth_it(monkeypatch):
    monkeypatch.setattr(in_place, "_LARGE", 4)
    large = torch.zeros(1, 5, 1, 1)
    assert not in_place.is_worth_in_place(large)
    with torch.no_grad():
        assert in_place.is_worth_in_place(large) and not in_place.is_worth_in_place(large[:, :4])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not in_place.is_worth_in_place(large)


# --- ResNet ---


@torch.no_grad()
def test_residual_sums_in_place_give_the_same_features_and_leave_them(small_bands):
    images = draw(2, 3, 40, 36)
    expected = build_resnet()(images)
    resnet = in_place_resnet()
    features = resnet(images)
    kinds = [type(block) is InPlaceBottleneckBlock for stage in resnet.stages for block in stage]
    assert kinds == [False, True, True, True, True, True]  # the first one's shortcut is the feature "stem"
    for name, feature in expected.items():
        torch.testing.assert_close(features[name], feature, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_sum_is_written_over_the_blocks_input(small_bands):
    block = in_place_resnet().res2[1]
    x = draw(1, 8, 6, 9)
    assert block(x) is x


def test_with_gradients_blocks_are_detectron2s(small_bands):
    resnet, usual = in_place_resnet(), build_resnet()
    results = []
    for network in (usual, resnet):
        x = draw(2, 8, 6, 9).requires_grad_()
        output = network.res2[1](x)
        assert output is not x
        output.square().sum().backward()
        results.append([output, x.grad, *(parameter.grad for parameter in network.res2[1].parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_norm_that_stays_keeps_the_blocks(small_bands):
    resnet = sum_residuals_in_place(fold_frozen_norms(build_resnet(norm="BN")))
    assert not any(isinstance(block, InPlaceBottleneckBlock) for stage in resnet.stages for block in stage)


def test_names_stay():
    assert list(in_place_resnet().state_dict()) == list(build_resnet().state_dict())


# --- pixel decoder and model ---


def build_decoder(norm: str) -> BasePixelDecoder:
    torch.manual_seed(0)
    shapes = {"res3": ShapeSpec(channels=6, stride=8), "res2": ShapeSpec(channels=32, stride=4)}
    return BasePixelDecoder(shapes, convs_dim=32, mask_dim=3, norm=norm).double()


def draw_features() -> dict[str, torch.Tensor]:
    return {"res2": draw(2, 32, 8, 10), "res3": draw(2, 6, 4, 5)}


@pytest.mark.parametrize("norm", ["GN", "BN", ""])
@pytest.mark.parametrize("overwrite", [True, False])
def test_pyramid_in_place_is_the_pyramid(norm, overwrite, small_bands):
    decoder = build_decoder(norm).eval()
    expected, _ = decoder.build_pyramid(draw_features(), overwrite=overwrite)
    with torch.no_grad():
        features = draw_features()
        pyramid, _ = decoder.build_pyramid(dict(features), overwrite=overwrite)
    torch.testing.assert_close(pyramid, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(features["res2"], draw_features()["res2"]) != overwrite
    if overwrite and norm != "BN":  # whose output is another tensor
        assert pyramid.data_ptr() == features["res2"].data_ptr()
    assert torch.equal(features["res3"], draw_features()["res3"])


def test_with_gradients_features_stay_and_get_theirs(small_bands):
    features = {name: feature.requires_grad_() for name, feature in draw_features().items()}
    pyramid, _ = build_decoder("GN").build_pyramid(dict(features), overwrite=True)
    pyramid.square().sum().backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features.values())
    assert torch.equal(features["res2"], draw_features()["res2"])


@pytest.mark.parametrize("case", ["base", "encoder_panoptic", "swin"])
@torch.no_grad()
def test_predictions_are_those_of_the_usual_layers(case, small_bands, monkeypatch):
    model = build_case(case, torch.float64).model.eval()
    batch = [{"image": 255 * torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(seed))} for seed in (0, 1)]
    actual = model.predict(batch)
    monkeypatch.setattr(in_place, "_LARGE", 2**40)
    with torch.enable_grad():  # Detectron2's blocks
        expected = model.predict(batch)
    for one, other in zip(actual, expected):
        torch.testing.assert_close(one[:2], other[:2], rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_heads_forward_leaves_the_features(small_bands):
    model = build_case("base", torch.float32).model.eval()
    features = model.backbone(torch.rand(1, 3, 64, 64))
    before = {name: feature.clone() for name, feature in features.items()}
    model.sem_seg_head(features)
    assert all(torch.equal(feature, before[name]) for name, feature in features.items())


@torch.no_grad()
def test_model_gives_its_features_away_after_queries_attended_to_them(monkeypatch):
    model = build_case("base", torch.float32).model.eval()
    assert any(isinstance(module, InPlaceBottleneckBlock) for module in model.modules())
    head, calls = model.sem_seg_head, []
    build_pyramid, predict_embeddings = head.pixel_decoder.build_pyramid, head.predictor.predict_embeddings

    def record_pyramid(features, *, overwrite):
        calls.append(("pyramid", overwrite))
        return build_pyramid(features, overwrite=overwrite)

    def record_embeddings(attended):
        calls.append("embeddings")
        return predict_embeddings(attended)

    monkeypatch.setattr(head.pixel_decoder, "build_pyramid", record_pyramid)
    monkeypatch.setattr(head.predictor, "predict_embeddings", record_embeddings)
    model.predict([{"image": torch.zeros(3, 64, 64)}])
    assert calls == ["embeddings", ("pyramid", True)]
