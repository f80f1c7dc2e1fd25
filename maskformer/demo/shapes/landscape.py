"""The ground of a scene: bands of sky, water, grass and sand with bent borders, and sometimes a pond or a patch.

Pictures are planes first while they are drawn, (3, height, width) float32 RGB 0..255: several times faster in NumPy.
"""

from __future__ import annotations

import cv2
import numpy as np

from maskformer.data.datasets.shapes import INDEX_OF

Size = tuple[int, int]

_GROUNDS = ("water", "grass", "sand")

_SKIES = (  # colour at the top, colour at the horizon, colour of the clouds
    ((92, 158, 226), (190, 221, 245), (255, 255, 255)),
    ((66, 120, 205), (160, 200, 240), (250, 250, 252)),
    ((120, 120, 190), (252, 196, 150), (255, 226, 205)),
    ((150, 165, 190), (214, 220, 228), (240, 241, 244)),
)
_WATERS = ((34, 98, 150), (28, 116, 140), (52, 84, 140), (40, 128, 128))
_GRASSES = ((84, 142, 60), (110, 152, 66), (66, 122, 62), (134, 150, 72))
_SANDS = ((222, 198, 150), (208, 178, 128), (228, 208, 172), (210, 182, 150))
_FLOWERS = ((255, 255, 250), (255, 222, 80), (250, 150, 190), (190, 150, 240))


def _smooth_noise(rng: np.random.Generator, size: Size, cell: tuple[float, float]) -> np.ndarray:
    """Make float32 noise in patches of about ``cell`` (height, width) pixels, of mean 0 and a deviation near 0.7."""
    grid = rng.standard_normal([int(np.ceil(s / c)) + 1 for s, c in zip(size, cell, strict=True)], dtype=np.float32)
    return cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC)


def white_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Make evenly distributed noise of mean 0 and deviation 1, float32; from single bytes, for speed."""
    noise = rng.integers(0, 256, shape, np.uint8).astype(np.float32)
    noise -= 127.5
    noise *= 1 / 73.9  # the deviation of a byte
    return noise


def rgb(*color: float) -> np.ndarray:
    """Make a colour a picture of one pixel, (3, 1, 1) float32."""
    return np.array(color, np.float32)[:, None, None]


def mix(first: np.ndarray, second: np.ndarray, amount: np.ndarray | float) -> np.ndarray:
    """Go from the first picture to the second as ``amount`` (height, width) goes from 0 to 1."""
    mixed = (second - first) * amount
    mixed += first
    return mixed


def _pick(rng: np.random.Generator, palette: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """Choose a colour of a palette and shift it a little."""
    return rgb(*palette[rng.integers(len(palette))] + rng.uniform(-8, 8, 3))


def _down(size: Size) -> np.ndarray:
    """(height, width) from 0 at the top to 1 at the bottom."""
    return np.broadcast_to(np.linspace(0, 1, size[0], dtype=np.float32)[:, None], size)


def _sky(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Paint a gradient with soft clouds."""
    top, horizon, cloud = (rgb(*color) for color in _SKIES[rng.integers(len(_SKIES))])
    clear = mix(top, horizon, _down(size))
    density = sum(_smooth_noise(rng, size, (10 * s, 22 * s)) * s for s in (1.0, 0.5, 0.25))
    return mix(clear, cloud, np.clip(density - rng.uniform(-0.1, 0.7), 0, 1) * np.float32(0.85))


def _water(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Paint flat waves with glints."""
    color = _pick(rng, _WATERS)
    waves = _smooth_noise(rng, size, (2.6, 15)) + 0.6 * _smooth_noise(rng, size, (1.7, 7))
    surface = mix(color * 1.2, color * 0.85, _down(size)) + 15 * waves
    return mix(surface, rgb(235, 245, 250), np.clip(waves - 1.1, 0, 0.7))


def _grass(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Paint upright blades, patches of light and dark, and now and then flowers."""
    color = _pick(rng, _GRASSES)
    patches = _smooth_noise(rng, size, (22, 30))
    blades = _smooth_noise(rng, size, (5.5, 1.4)) + 0.5 * _smooth_noise(rng, size, (9, 2.5))
    meadow = color * (1 + 0.1 * patches + 0.16 * blades)
    flowers = np.zeros(size, np.float32)
    for _ in range(int(size[0] * size[1] * rng.choice([0, 0.001, 0.002]))):
        cv2.circle(flowers, (int(rng.integers(size[1])), int(rng.integers(size[0]))), 1, 1.0, -1)
    return mix(meadow, rgb(*_FLOWERS[rng.integers(len(_FLOWERS))]), flowers)


def _sand(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Paint fine grains over bent ripples."""
    color = _pick(rng, _SANDS)
    y, x = np.ogrid[: size[0], : size[1]]
    phase = (y + rng.uniform(-0.5, 0.5) * x).astype(np.float32) / rng.uniform(5, 8) + _smooth_noise(rng, size, (20, 30))
    return color * (1 + 0.035 * np.sin(2 * np.pi * phase) + 0.04 * white_noise(rng, size))


_SURFACES = {"sky": _sky, "water": _water, "grass": _grass, "sand": _sand}


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
        surface = _SURFACES[name](rng, (len(rows), size[1]))
        canvas[:, part] = mix(canvas[:, part], surface, coverage[part])
        categories[coverage >= 0.5] = INDEX_OF[name]
    return canvas, categories
