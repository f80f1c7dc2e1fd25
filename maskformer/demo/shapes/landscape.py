"""The ground of a scene: bands of sky, water, grass and sand with bent borders, and sometimes a pond or a patch."""

from __future__ import annotations

import cv2
import numpy as np

from maskformer.data.datasets.shapes import INDEX_OF

from .surfaces import SURFACES, Size, mix

_GROUNDS = ("water", "grass", "sand")


def _waves(rng: np.random.Generator, phase: np.ndarray) -> np.ndarray:
    """Make a smooth random curve over ``phase``, where 1 is one turn, of values about -1 to 1."""
    waves = [rng.uniform(0.2, 0.8) / k * np.sin(2 * np.pi * (k * phase + rng.random())) for k in (1, 2, 3)]
    return np.sum(waves, axis=0)


def _band(rng: np.random.Generator, size: Size, level: float) -> np.ndarray:
    """Cover, (height, width) 0..1, all that is below a wavy, slightly tilted line at ``level`` of the height."""
    height, width = size
    x = np.linspace(0, 1, width, dtype=np.float32)
    border = height * (level + 0.02 * _waves(rng, rng.uniform(0.6, 1.2) * x) + rng.uniform(-0.04, 0.04) * (x - 0.5))
    return np.clip(np.arange(1, height + 1, dtype=np.float32)[:, None] - border, 0, 1)


def _blob(rng: np.random.Generator, size: Size, top: float) -> np.ndarray:
    """Cover, (height, width) 0..1, a flat and uneven ellipse below ``top`` of the height."""
    height, width = size
    radius_y, radius_x = rng.uniform(0.1, 0.16) * height, rng.uniform(0.18, 0.32) * width
    highest, lowest = top * height + radius_y, 0.95 * height - radius_y
    center = rng.uniform(0.15, 0.85) * width, rng.uniform(highest, max(lowest, highest + 1))
    turn = np.linspace(0, 1, 64, endpoint=False, dtype=np.float32)
    reach = 1 + 0.14 * _waves(rng, turn)
    points = np.stack([radius_x * np.cos(2 * np.pi * turn), radius_y * np.sin(2 * np.pi * turn)], axis=1)
    coverage = np.zeros(size, np.uint8)
    outline = np.rint((points * reach[:, None] + center) * 16).astype(np.int32)
    return cv2.fillPoly(coverage, [outline], 255, cv2.LINE_AA, shift=4) * np.float32(1 / 255)


def _layers(rng: np.random.Generator, size: Size) -> list[tuple[str, np.ndarray]]:
    """Choose names and coverages, from the back to the front; the first covers everything."""
    grounds = rng.permutation(_GROUNDS)[: 1 + rng.binomial(2, 0.5)].tolist()
    has_sky = rng.random() < 0.85
    top = rng.uniform(0.22, 0.42) if has_sky else 0.0
    names = ["sky", *grounds] if has_sky else grounds
    levels = top + (1 - top) * np.linspace(0, 1, len(grounds), endpoint=False)
    levels[1:] += rng.uniform(-0.05, 0.05, len(grounds) - 1)
    bands = [_band(rng, size, level) for level in levels[len(grounds) - len(names) + 1 :]]
    layers = list(zip(names, [np.ones(size, np.float32), *bands], strict=True))
    absent = [name for name in _GROUNDS if name not in grounds]
    if absent and (len(names) == 1 or rng.random() < 0.5):
        layers.append((absent[0], _blob(rng, size, levels[-1] + 0.06)))
    return layers


def draw_landscape(rng: np.random.Generator, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Paint the ground of a scene.

    Args:
        rng: the source of randomness.
        size: (height, width) in pixels.

    Returns:
        The picture, (3, height, width) float32 RGB 0..255, and its categories, (height, width) uint8. A category is
        where at least half of a pixel shows it.
    """
    canvas = np.zeros((3, *size), np.float32)
    categories = np.zeros(size, np.uint8)
    for name, coverage in _layers(rng, size):
        rows = np.flatnonzero(coverage.any(axis=1))
        part = slice(rows[0], rows[-1] + 1)  # paint no more than shows
        surface = SURFACES[name](rng, (len(rows), size[1]))
        canvas[:, part] = mix(canvas[:, part], surface, coverage[part])
        categories[coverage >= 0.5] = INDEX_OF[name]
    return canvas, categories
