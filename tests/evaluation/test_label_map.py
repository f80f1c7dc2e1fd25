from __future__ import annotations

import numpy as np
import pytest
import torch

from maskformer.evaluation.label_map import most_likely_classes, read_labels
from maskformer.structures import InputError


def test_class_of_a_pixel_has_the_highest_score():
    scores = torch.tensor([[[0.1, 0.5]], [[0.7, 0.2]], [[0.2, 0.6]]])
    assert most_likely_classes(scores).tolist() == [[1, 2]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_classes", "small"), [(1, np.uint8), (256, np.uint8), (257, np.int16)])
def test_classes_are_those_of_argmax_in_the_smallest_type(num_classes: int, small: type, dtype: torch.dtype):
    scores = torch.randn(num_classes, 7, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    classes = most_likely_classes(scores)
    assert classes.dtype == small
    np.testing.assert_array_equal(classes, scores.argmax(dim=0))


def test_equal_scores_give_the_lower_class_in_every_band():
    scores = torch.randint(0, 4, (6, 300, 500), generator=torch.Generator().manual_seed(0)).float()  # three bands
    expected = (scores == scores.amax(0)).float().argmax(0)  # where the first 1 stands
    np.testing.assert_array_equal(most_likely_classes(scores), expected)


def test_strided_scores_that_require_a_gradient_are_read_too():
    scores = torch.randn(8, 9, 5, generator=torch.Generator().manual_seed(0), requires_grad=True).permute(2, 0, 1)
    np.testing.assert_array_equal(most_likely_classes(scores), scores.argmax(dim=0))


def test_values_that_are_not_finite_are_treated_as_pytorch_does():
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[nan, 1, -inf, 2, -inf], [1, nan, -inf, inf, 3], [nan, 9, -inf, inf, nan]])[:, None]
    np.testing.assert_array_equal(most_likely_classes(scores), scores.argmax(dim=0))


@pytest.mark.parametrize(("num_classes", "small"), [(256, np.uint8), (257, np.int16)])
def test_labels_are_taken_as_they_are_in_the_smallest_type(num_classes: int, small: type):
    labels = torch.tensor([[0, 3], [num_classes - 1, 2]], dtype=torch.int32)
    read = read_labels(labels, num_classes)
    assert read.dtype == small and read.tolist() == labels.tolist()
    scores = torch.nn.functional.one_hot(labels.long(), num_classes).permute(2, 0, 1).float()
    np.testing.assert_array_equal(read_labels(scores, num_classes), labels)


@pytest.mark.parametrize("semantic", [torch.zeros(4, 2, 2), torch.tensor([[0, 3]])], ids=["scores", "labels"])
def test_classes_that_the_dataset_has_not_are_refused(semantic: torch.Tensor):
    with pytest.raises(InputError, match=r"predicts 4 classes but the dataset has 3"):
        read_labels(semantic, 3)
