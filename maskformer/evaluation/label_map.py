"""From the scores of classes to the class of each pixel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BAND = 65536  # pixels: what is kept of a band (0.5 MB) stays in a core's cache while all classes pass by


def most_likely_classes(scores: Tensor) -> np.ndarray:
    """The arg-max over classes; the lower class where two are equal.

    Args:
        scores: (K,height,width) of any floating type, on any device.

    Returns:
        (height,width) uint8 where K allows it, else int16.
    """
    num_classes, height, width = scores.shape
    small, small_tensor = (np.uint8, torch.uint8) if num_classes <= 256 else (np.int16, torch.int16)
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        # PyTorch's arg-max over the first dimension of a CPU tensor takes five times as long.
        pixels = scores.detach().flatten(1).numpy()
        bands = [_most_likely(pixels[:, start : start + _BAND], small) for start in range(0, height * width, _BAND)]
        return np.concatenate(bands).reshape(height, width)
    return scores.argmax(dim=0).to(small_tensor).cpu().numpy()


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
