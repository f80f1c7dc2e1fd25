"""What examples for training and inputs for evaluation have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Record = dict[str, Any]  # a dataset's entry for one image, or an example made of it


def image_example(record: Record, original: np.ndarray, image: np.ndarray) -> Record:
    """Start an example: the names of an image, its original size and the pixels that the network takes.

    Args:
        record: the dataset's entry, left as it is.
        original: (height, width, 3), as read.
        image: (H,W,3) uint8, as augmented.

    Returns:
        ``file_name``, ``image_id`` if there is one, ``height``, ``width`` and ``image`` (3,H,W).
    """
    example: Record = {key: record[key] for key in ("file_name", "image_id") if key in record}
    example["height"], example["width"] = original.shape[:2]
    example["image"] = owned_tensor(image.transpose(2, 0, 1))
    return example


def owned_tensor(array: np.ndarray) -> torch.Tensor:
    """Copy an array: what Pillow returns is read-only, and a crop would carry its whole image out of the worker."""
    return torch.from_numpy(np.array(array, order="C"))
