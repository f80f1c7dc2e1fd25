"""What every backbone, pixel decoder and query decoder promises: a new one inherits the class of its kind.

class TestMine(BackboneTests):
    build = staticmethod(lambda: Mine(...))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from maskformer.losses import HungarianMatcher, SetCriterion
from maskformer.modeling.pixel_decoders import DecodedFeatures, PixelDecoder
from maskformer.modeling.query_decoders import QueryDecoder
from maskformer.structures import MaskPredictions, Targets

SHAPES = {
    "res2": ShapeSpec(channels=4, stride=4),
    "res3": ShapeSpec(channels=6, stride=8),
    "res4": ShapeSpec(channels=8, stride=16),
}


def draw_features(batch: int = 2, size: tuple[int, int] = (30, 41)) -> dict[str, Tensor]:
    """Features of images of such a size, which no stride divides."""
    return {
        name: torch.randn(batch, shape.channels, *(-(-length // shape.stride) for length in size))
        for name, shape in SHAPES.items()
    }


def assert_every_parameter_learns(module: nn.Module, output: Tensor) -> None:
    """Each has a gradient of the output."""
    output.square().sum().backward()
    assert not [
        name for name, parameter in module.named_parameters() if parameter.requires_grad and not parameter.grad.any()
    ]


class BackboneTests:
    """Images -> features, as ``output_shape`` says."""

    build: ClassVar[Callable[[], nn.Module]]

    @pytest.mark.parametrize("size", [(64, 96), (70, 101)])
    @torch.no_grad()
    def test_features_have_the_announced_channels_and_strides(self, size):
        backbone = self.build().eval()
        features = backbone(torch.randn(2, 3, *size))
        shapes = backbone.output_shape()
        assert list(features) == list(shapes)
        for name, feature in features.items():
            rounded_up = [-(-length // shapes[name].stride) for length in size]
            assert list(feature.shape) == [2, shapes[name].channels, *rounded_up]

    @torch.no_grad()
    def test_an_image_does_not_see_the_others_of_its_batch(self):
        backbone = self.build().eval()
        images = torch.randn(2, 3, 64, 96)
        before = images.clone()
        together, alone = backbone(images), backbone(images[1:])
        assert torch.equal(images, before)
        for name in together:
            torch.testing.assert_close(together[name][1:], alone[name], rtol=1e-4, atol=1e-4)

    def test_every_trainable_parameter_gets_a_gradient(self):
        backbone = self.build().train()
        assert_every_parameter_learns(
            backbone, sum(f.square().mean() for f in backbone(torch.randn(2, 3, 64, 96)).values())
        )


class PixelDecoderTests:
    """Backbone features -> ``DecodedFeatures``; ``build`` takes the shapes of the features and C."""

    build: ClassVar[Callable[[dict[str, ShapeSpec], int], PixelDecoder]]

    def test_embeddings_are_on_the_grid_of_the_finest_feature(self):
        decoder, features = self.build(SHAPES, 5), draw_features()
        decoded = decoder(features)
        assert decoded.mask_features.shape == (2, 5, *features["res2"].shape[-2:])
        assert (decoded.encoded is None) == (decoder.encoded_channels is None)
        if decoded.encoded is not None:
            assert decoded.encoded.shape == (2, decoder.encoded_channels, *features["res4"].shape[-2:])
        if decoder.level_channels is not None:
            for level, name in zip(decoded.levels, ("res4", "res3", "res2"), strict=True):
                assert level.shape == (2, decoder.level_channels, *features[name].shape[-2:])

    @torch.no_grad()
    def test_forward_leaves_the_features_and_decode_takes_them_out(self):
        decoder, features = self.build(SHAPES, 5).eval(), draw_features()
        before = {name: feature.clone() for name, feature in features.items()}
        expected = decoder(features).mask_features
        assert all(torch.equal(features[name], before[name]) for name in SHAPES)
        assert torch.equal(decoder.decode(features).mask_features, expected) and not features

    @torch.no_grad()
    def test_an_image_does_not_see_the_others_of_its_batch(self):
        decoder, features = self.build(SHAPES, 5).eval(), draw_features()
        alone = decoder({name: feature[1:] for name, feature in features.items()})
        torch.testing.assert_close(decoder(features).mask_features[1:], alone.mask_features, rtol=1e-4, atol=1e-5)

    def test_every_parameter_gets_a_gradient(self):
        decoder = self.build(SHAPES, 5)
        assert_every_parameter_learns(decoder, decoder(draw_features()).mask_features)


class QueryDecoderTests:
    """Decoded features -> the class and the mask of each query; ``build`` gives one for 8 channels, K = 4 and C = 5."""

    build: ClassVar[Callable[[], QueryDecoder]]
    in_channels: ClassVar[int] = 8
    num_classes: ClassVar[int] = 4
    mask_dim: ClassVar[int] = 5

    def draw(self, batch: int = 2) -> tuple[Tensor, DecodedFeatures]:
        """What queries attend to, and the pixel decoder's."""
        projection = nn.Conv2d(6, self.mask_dim, kernel_size=1)
        finest = torch.randn(batch, 6, 8, 11)
        levels = [torch.randn(batch, self.in_channels, *size) for size in ((2, 3), (4, 6), (8, 11))]
        return torch.randn(batch, self.in_channels, 2, 3), DecodedFeatures(finest, projection, levels)

    def test_training_supervises_every_layer_and_evaluation_gives_the_last(self):
        decoder, inputs = self.build(), self.draw()
        class_logits, mask_embeddings = decoder.eval()(*inputs)
        num_queries = class_logits.shape[2]
        assert class_logits.shape == (1, 2, num_queries, self.num_classes + 1)
        assert mask_embeddings.shape == (1, 2, num_queries, self.mask_dim)
        of_layers = decoder.train()(*inputs)
        assert len(of_layers[0]) == len(of_layers[1]) > 1
        torch.testing.assert_close(class_logits[0], of_layers[0][-1])  # no dropout in these tests
        torch.testing.assert_close(mask_embeddings[0], of_layers[1][-1])

    @torch.no_grad()
    def test_an_image_does_not_see_the_others_of_its_batch(self):
        decoder, (feature, decoded) = self.build().eval(), self.draw()
        second = DecodedFeatures(decoded.finest[1:], decoded.projection, [level[1:] for level in decoded.levels])
        for together, alone in zip(decoder(feature, decoded), decoder(feature[1:], second), strict=True):
            torch.testing.assert_close(together[:, 1:], alone, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_a_loss_can_be_taken_in_training_and_in_evaluation(self, training):
        decoder, inputs = self.build().train(training), self.draw()
        targets = [Targets(torch.tensor([0, 3]), torch.rand(2, 32, 44) > 0.5)] * 2
        predictions = MaskPredictions.from_embeddings(*decoder(*inputs), inputs[1].mask_features)
        losses = SetCriterion(self.num_classes, matcher=HungarianMatcher())(predictions, targets)
        assert len(losses) == 3 * len(predictions.class_logits)
        sum(losses.values()).backward()
        assert not [name for name, parameter in decoder.named_parameters() if parameter.grad is None]
