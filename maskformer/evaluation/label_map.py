"""From what a model says of classes to the class of each pixel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskformer.structures import InputError

_BAND = 65536  # pixels: what is kept of a band (0.5 MB) stays in a core's cache while all classes pass by


def read_labels(semantic: Tensor, num_classes: int) -> np.ndarray:
    """The class of each pixel in a model's "sem_seg".

    Args:
        semantic: (K,height,width) scores, or (height,width) labels (``MODEL.MASK_FORMER.TEST.SEM_SEG_LABELS``).
        num_classes: K of the dataset.

    Returns:
        (height,width) uint8 where K allows it, else int16.

    Raises:
        InputError: the model has another K.
    """
    predicted = len(semantic) if semantic.dim() == 3 else max(int(semantic.max()) + 1, num_classes)
    check_num_classes(predicted, num_classes)
    if semantic.dim() == 3:
        return most_likely_classes(semantic)
    return semantic.to(_small_type(num_classes)).cpu().numpy()


def check_num_classes(predicted: int, num_classes: int) -> None:
    """Compare K of a model with the dataset's.

    Raises:
        InputError: they differ.
    """
    if predicted != num_classes:
        raise InputError(
            f"The model predicts {predicted} classes but the dataset has {num_classes}: set "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES to {num_classes}, with weights to match, or change DATASETS.TEST."
        )


def most_likely_classes(scores: Tensor) -> np.ndarray:
    """The arg-max over classes; the lower class where two are equal.

    Args:
        scores: (K,height,width) of any floating type, on any device.

    Returns:
        (height,width) uint8 where K allows it, else int16.
    """
    num_classes, height, width = scores.shape
    small = np.uint8 if num_classes <= 256 else np.int16
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        # PyTorch's arg-max over the first dimension of a CPU tensor takes five times as long.
        pixels = scores.detach().flatten(1).numpy()
        bands = [_most_likely(pixels[:, start : start + _BAND], small) for start in range(0, height * width, _BAND)]
        return np.concatenate(bands).reshape(height, width)
    return scores.argmax(dim=0).to(_small_type(num_classes)).cpu().numpy()


def _small_type(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes <= 256 else torch.int16


def _most_likely(scores: np.ndarray, dtype: type[np.integer]) -> np.ndarray:
    """(P,) classes of ``dtype`` from (K,P) scores, class by class."""
    best = scores[0].copy()
    classes = np.zeros(len(best), dtype=dtype)
    better, candidates = np.empty(len(best), dtype=bool), np.empty_like(classes)
    for index in range(1, len(scores)):
        np.greater(scores[index], best, out=better)  # strictly: the lower class stays where two are equal
        np.maximum(scores[index], best, out=best)
        np.multiply(better.view(np.uint8), dtype(index), out=candidates)
        np.maximum(candidates, classes, out=classes)  # classes come in rising order: the latest is the highest
    if np.isnan(best).any():
        return scores.argmax(axis=0).astype(dtype)  # not a number counts as the highest, as in PyTorch
    return classes
