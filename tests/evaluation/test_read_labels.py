from __future__ import annotations

import numpy as np
import pytest
import torch

from maskformer.evaluation.semantic import read_labels
from maskformer.structures import InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_classes", "small"), [(256, np.uint8), (257, np.int16)])
def test_class_of_a_pixel_has_the_highest_score(num_classes: int, small: type, dtype: torch.dtype):
    scores = torch.randn(num_classes, 7, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = read_labels(scores, num_classes)
    assert labels.dtype == small
    np.testing.assert_array_equal(labels, scores.argmax(dim=0))


def test_equal_scores_give_the_lower_class():
    scores = torch.randint(0, 4, (6, 300, 500), generator=torch.Generator().manual_seed(0)).float()
    np.testing.assert_array_equal(read_labels(scores, 6), (scores == scores.amax(0)).float().argmax(0))


@pytest.mark.parametrize(("num_classes", "small"), [(256, np.uint8), (257, np.int16)])
def test_labels_are_taken_as_they_are_in_the_smallest_type(num_classes: int, small: type):
    labels = torch.tensor([[0, 3], [num_classes - 1, 2]], dtype=torch.int32)
    read = read_labels(labels, num_classes)
    assert read.dtype == small and read.tolist() == labels.tolist()


@pytest.mark.parametrize("semantic", [torch.zeros(4, 2, 2), torch.tensor([[0, 3]])], ids=["scores", "labels"])
def test_classes_that_the_dataset_has_not_are_refused(semantic: torch.Tensor):
    with pytest.raises(InputError, match=r"predicts 4 classes but the dataset has 3"):
        read_labels(semantic, 3)
