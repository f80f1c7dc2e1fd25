"""What examples for training and inputs for evaluation have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Record = dict[str, Any]  # a dataset's entry for one image, or an example made of it


def image_example(record: Record, original_size: tuple[int, int], image: torch.Tensor) -> Record:
    """Start an example: the names of an image, its original size and the pixels that the network takes.

    Args:
        record: the dataset's entry, left as it is.
        original_size: (height, width), as read.
        image: (3,H,W) uint8, as augmented.

    Returns:
        ``file_name``, ``image_id`` and ``dataset_index`` if there is one, ``height``, ``width``, ``image`` (3,H,W).
    """
    example: Record = {key: record[key] for key in ("file_name", "image_id", "dataset_index") if key in record}
    example["height"], example["width"] = original_size
    example["image"] = image
    return example


def image_tensor(image: np.ndarray, size: tuple[int, int] | None = None, padding: int = 0) -> torch.Tensor:
    """Turn an image into the tensor that the network takes.

    Args:
        image: (height,width,3) uint8.
        size: (H, W), not less than the image's; None: the same.
        padding: the value of pixels below and right of the image.

    Returns:
        (3,H,W) uint8.
    """
    height, width = image.shape[:2]
    planes = np.full((3, *(size or (height, width))), padding, dtype=np.uint8)
    planes[:, :height, :width] = image.transpose(2, 0, 1)
    return torch.from_numpy(planes)


def owned_tensor(array: np.ndarray) -> torch.Tensor:
    """Copy an array: what Pillow returns is read-only, and a crop would carry its whole image out of the worker."""
    return torch.from_numpy(np.array(array, order="C"))
