"""MaskFormerHead at inference: the masks that are wanted, by filters composed beforehand."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import Conv2d
from reference_cases import build_case

from maskformer.modeling.heads.mask_former import compose_masks


@pytest.mark.parametrize("num_queries", [0, 1, 5, 40])  # of 40, composing would be more arithmetic
def test_composed_masks_are_the_product_of_the_embeddings(num_queries):
    torch.manual_seed(0)
    convolution = Conv2d(2, 8, kernel_size=3, padding=1).double()
    pyramid = torch.randn(1, 2, 5, 7, dtype=torch.float64)
    embeddings = torch.randn(num_queries, 8, dtype=torch.float64)
    expected = torch.einsum("qc,chw->qhw", embeddings, convolution(pyramid)[0])
    actual = compose_masks(pyramid, convolution, embeddings)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["base", "encoder_panoptic"])
@torch.no_grad()
def test_selected_queries_are_those_of_all(case):
    model = build_case(case, torch.float64).model.eval()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    head, features = model.sem_seg_head, model.backbone(images)
    class_logits, mask_logits = head(features).final
    chosen = iter([torch.tensor([2, 0]), torch.tensor([], dtype=torch.int64)])
    first, second = head.compose(head.encode(dict(features)), lambda logits: next(chosen))
    torch.testing.assert_close(first[0], class_logits[0, [2, 0]], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(first[1], mask_logits[0, [2, 0]], rtol=1e-9, atol=1e-9)
    assert second[0].shape == (0, class_logits.shape[-1]) and second[1].shape == (0, *mask_logits.shape[-2:])


@torch.no_grad()
def test_encode_takes_features_out_and_forward_leaves_them():
    model = build_case("base", torch.float32).model.eval()
    features = model.backbone(torch.randn(1, 3, 64, 64))
    names = set(features)
    model.sem_seg_head(features)
    assert set(features) == names
    model.sem_seg_head.encode(features)
    assert not features
