"""Per-pixel baselines: the loss by hand, labels beyond the grid, ignored pixels, names, sizes under the segmentor."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from reference_cases import build_case, reference_config
from torch import nn
from torch.nn import functional as F

from maskformer.config import load_config
from maskformer.modeling import (
    BasePixelDecoder,
    DecodedFeatures,
    MaskFormerPredictor,
    PerPixelBaselineHead,
    PerPixelBaselinePlusHead,
)
from maskformer.structures import InputError

SHAPES = {"res2": ShapeSpec(channels=4, stride=4), "res3": ShapeSpec(channels=6, stride=8)}


class GivenLogits(nn.Module):
    """Stands for the pixel decoder: the per-pixel embeddings are the feature itself."""

    def forward(self, features):
        return DecodedFeatures(features["res2"], nn.Identity())


def head_of_logits(**options) -> PerPixelBaselineHead:
    return PerPixelBaselineHead(pixel_decoder=GivenLogits(), predictor=nn.Identity(), **options)


def test_loss_is_the_cross_entropy_of_upsampled_logits_over_labelled_pixels():
    logits = torch.tensor([[[[0.0]], [[math.log(3.0)]]]])  # one cell: probabilities 1/4 and 3/4 everywhere
    targets = torch.tensor([[[0, 1], [1, 7]]])
    predictions, losses = head_of_logits(common_stride=2, ignore_value=7, loss_weight=5.0)({"res2": logits}, targets)
    assert predictions is None
    expected = 5 * (math.log(4) + 2 * math.log(4 / 3)) / 3
    assert list(losses) == ["loss_sem_seg"] and losses["loss_sem_seg"].item() == pytest.approx(expected)


def test_pixels_without_any_label_give_zero_loss_and_zero_gradients():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    losses = head_of_logits()({"res2": logits}, torch.full((2, 16, 16), 255))[1]
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"].item() == 0 and logits.grad.abs().max() == 0


def test_labels_of_an_input_that_is_no_multiple_of_the_stride_are_as_if_padded_with_the_ignore_value():
    logits, targets = torch.randn(1, 3, 3, 4), torch.randint(0, 3, (1, 10, 13))
    head = head_of_logits()
    padded = F.pad(targets, (0, 3, 0, 2), value=255)
    actual, expected = (head({"res2": logits}, labels)[1]["loss_sem_seg"] for labels in (targets, padded))
    torch.testing.assert_close(actual, expected)


def test_half_precision_logits_give_a_float32_loss():
    logits, targets = torch.randn(1, 3, 4, 4).bfloat16(), torch.randint(0, 3, (1, 16, 16), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_of_logits()({"res2": logits}, targets)[1]["loss_sem_seg"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head_of_logits()({"res2": logits.float()}, targets)[1]["loss_sem_seg"])


def test_inference_gives_logits_of_every_pixel_and_no_loss():
    logits = torch.randn(1, 3, 4, 5)
    predictions, losses = head_of_logits(common_stride=2).eval()({"res2": logits}, torch.zeros(1, 8, 10))
    assert losses == {}
    torch.testing.assert_close(predictions, F.interpolate(logits, size=(8, 10), mode="bilinear"))


def plus_head(layers: int) -> PerPixelBaselinePlusHead:
    predictor = MaskFormerPredictor(
        6, num_classes=None, num_queries=3, dim=8, mask_dim=5, num_encoder_layers=0, num_decoder_layers=layers,
        num_heads=2, dim_feedforward=16, dropout=0.0, pre_norm=False, enforce_input_proj=False, deep_supervision=True,
    )  # fmt: skip
    decoder = BasePixelDecoder(SHAPES, convs_dim=8, mask_dim=5)
    return PerPixelBaselinePlusHead(pixel_decoder=decoder, predictor=predictor, transformer_in_feature="res3")


def test_each_decoder_layer_has_its_loss_and_the_last_one_the_plain_name():
    head, features = plus_head(layers=3), {"res2": torch.randn(1, 4, 6, 8), "res3": torch.randn(1, 6, 3, 4)}
    targets = torch.randint(0, 3, (1, 24, 32))
    losses = head(features, targets)[1]
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_0", "loss_sem_seg_1"}
    logits, _ = head.eval()(features)
    assert losses["loss_sem_seg"].item() == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    head.train()
    sum(losses.values()).backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_queries_of_the_plus_head_are_the_classes_whatever_the_number_of_queries():
    cfg = load_config(
        "",
        [
            *(
                "MODEL.SEM_SEG_HEAD.NAME",
                "PerPixelBaselinePlusHead",
                "MODEL.SEM_SEG_HEAD.IN_FEATURES",
                "['res2','res3']",
            ),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "11", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "100"),
            *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res3", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "65535"),
            *("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", "0.5", "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", "8"),
        ],
    )
    with torch.device("meta"):
        head = PerPixelBaselinePlusHead(cfg, SHAPES)
    assert head.predictor.query_embed.num_embeddings == 11 and head.predictor.class_embed is None
    assert (head.ignore_value, head.loss_weight, head.common_stride) == (65535, 0.5, 8)
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res9"
    with torch.device("meta"), pytest.raises(InputError, match=r"TRANSFORMER_IN_FEATURE is 'res9'.*res2, res3"):
        PerPixelBaselinePlusHead(cfg, SHAPES)


@pytest.mark.parametrize("name", ["per_pixel", "per_pixel_plus"])
def test_images_of_any_size_train_and_infer_under_the_segmentor(name):
    model = build_case(name, torch.float32).model
    batch = [
        {"image": torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8), "sem_seg": torch.randint(0, 5, (70, 90))},
        {"image": torch.randint(0, 256, (3, 61, 33), dtype=torch.uint8), "sem_seg": torch.randint(0, 5, (61, 33))},
    ]
    assert all(torch.isfinite(loss) for loss in model(batch).values())
    with torch.no_grad():
        results = model.eval()(batch)
    assert [result["sem_seg"].shape for result in results] == [(5, 70, 90), (5, 61, 33)]


@pytest.mark.parametrize(
    ("sem_seg", "message"),
    [
        (torch.full((64, 96), 5), r"label 5; expected 0\.\.4 .*or 255"),
        (torch.full((64, 96), -1), "label -1"),
        (torch.zeros(64, 96), "torch.float32"),
        (torch.zeros(32, 96, dtype=torch.long), r"\(32, 96\) rows and columns with its padding, the images \(64, 96\)"),
        (torch.zeros(128, 96, dtype=torch.long), r"\(128, 96\)"),
        (None, "no 'sem_seg'"),
    ],
)
def test_labels_that_do_not_fit_are_named(sem_seg: torch.Tensor | None, message: str):
    model = build_case("per_pixel", torch.float32).model
    target = {} if sem_seg is None else {"sem_seg": sem_seg}
    with pytest.raises(InputError, match=message):
        model([{"image": torch.zeros(3, 64, 96, dtype=torch.uint8), **target}])


def test_swin_carries_the_per_pixel_baselines_too():
    cfg = reference_config("swin")
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME = "SemanticSegmentor", "PerPixelBaselinePlusHead"
    model = build_model(cfg)
    batch = [{"image": torch.zeros(3, 45, 71, dtype=torch.uint8), "sem_seg": torch.zeros(45, 71, dtype=torch.long)}]
    sum(model(batch).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
