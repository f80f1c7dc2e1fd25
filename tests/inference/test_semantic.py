"""Semantic inference: by hand, and the order of resizing and summing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE, read_json
from torch.nn.functional import interpolate

from benchmarks import definitions
from maskformer.inference import Geometry, resize, semantic, semantic_inference, semantic_labels


def scores_at_their_size(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    size = tuple(mask_logits.shape[-2:])
    return semantic_inference(class_logits, mask_logits, Geometry(size, size, size), restore_masks_first=False)


def test_scores_of_two_queries_and_one_pixel_are_worked_by_hand():
    class_probs = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])  # the last is "no object"
    mask_logits = torch.tensor([[[0.0]], [[100.0]]])  # mask probabilities 1/2 and 1
    scores = scores_at_their_size(class_probs.log(), mask_logits)
    torch.testing.assert_close(scores[:, 0, 0], torch.tensor([0.5 * 0.5 + 0.2, 0.25 * 0.5 + 0.2]))


@pytest.mark.parametrize("name", [case["name"] for case in read_json("panoptic", "cases.json")])
def test_scores_are_the_reference(name):
    arrays = np.load(REFERENCE / "panoptic" / "cases.npz")
    scores = scores_at_their_size(*(torch.as_tensor(arrays[f"{name}_{part}"]) for part in ("mask_cls", "mask_pred")))
    torch.testing.assert_close(scores, torch.as_tensor(arrays[f"{name}_semantic"]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("restore_masks_first", [False, True])
def test_padding_is_cropped_and_the_size_restored(restore_masks_first):
    class_logits, mask_logits = torch.randn(4, 3), torch.randn(4, 8, 8)
    geometry = Geometry(padded_size=(32, 32), image_size=(20, 30), output_size=(40, 45))
    actual = semantic_inference(class_logits, mask_logits, geometry, restore_masks_first=restore_masks_first)

    def resized(x, size):
        return interpolate(x[None], size, mode="bilinear", align_corners=False)[0]

    masks = resized(mask_logits, (32, 32))
    if restore_masks_first:
        expected = definitions.semantic_scores(class_logits, resized(masks[:, :20, :30], (40, 45)))
    else:
        expected = resized(definitions.semantic_scores(class_logits, masks)[:, :20, :30], (40, 45))
    torch.testing.assert_close(actual, expected)
    assert actual.shape == (2, 40, 45)


def test_permuting_queries_changes_nothing():
    class_logits, mask_logits = torch.randn(5, 4), torch.randn(5, 3, 3)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(
        scores_at_their_size(class_logits[order], mask_logits[order]), scores_at_their_size(class_logits, mask_logits)
    )


WAYS = {"float64": (torch.float64, 1e-9), "compiled": (torch.float32, 1e-5), "operators": (torch.float32, 1e-5)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("restore_masks_first", [False, True])
@pytest.mark.parametrize("padded_size", [(32, 40), (32, 39)])  # of the second, the stride is no integer
@pytest.mark.parametrize("output_size", [(30, 37), (21, 50), (75, 37)])
def test_labels_and_scores_in_bands_are_those_of_the_definition(
    way, restore_masks_first, padded_size, output_size, monkeypatch
):
    dtype, tolerance = WAYS[way]
    if way == "operators":
        for module in (resize, semantic):
            monkeypatch.setattr(module, "find_kernels", lambda *tensors: None)
    monkeypatch.setattr(semantic, "_BAND_BYTES", 4096)  # several bands, several blocks
    monkeypatch.setattr(semantic, "_BLOCK_BYTES", 1024)
    torch.manual_seed(0)
    class_logits = torch.randn(6, 9, dtype=dtype) * 3
    mask_logits = (torch.randn(8, 10, 6, dtype=dtype) * 4).movedim(2, 0)  # side by side, as the network may give them
    sizes = {"padded_size": padded_size, "image_size": (30, 37), "output_size": output_size}
    expected = definitions.semantic_inference(
        class_logits, mask_logits, *sizes.values(), restore_masks_first=restore_masks_first
    )
    arguments = (class_logits, mask_logits, Geometry(**sizes))
    scores = semantic_inference(*arguments, restore_masks_first=restore_masks_first)
    labels = semantic_labels(*arguments, restore_masks_first=restore_masks_first)
    torch.testing.assert_close(scores, expected, rtol=tolerance, atol=tolerance)
    assert labels.dtype == torch.int32 and torch.equal(labels, expected.argmax(0).int())
    assert len(labels.unique()) > 3


@pytest.mark.parametrize("output_size", [(8, 8), (9, 12)])
def test_label_of_equal_scores_is_the_first(output_size):
    geometry = Geometry(padded_size=(8, 8), image_size=(8, 8), output_size=output_size)
    labels = semantic_labels(torch.zeros(2, 5), torch.zeros(2, 2, 2), geometry, restore_masks_first=False)
    assert labels.shape == output_size and not labels.any()
