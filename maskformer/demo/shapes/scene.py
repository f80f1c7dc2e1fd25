"""One scene: a landscape, things upon it that hide each other, light and noise, and the exact label of every pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from maskformer.data.datasets.shapes import CATEGORIES

from .landscape import Size, draw_landscape, mix, rgb, white_noise
from .sprites import SHADOW_MARGIN, Sprite, make_sprite, shade, shadow

MIN_VISIBLE_PIXELS = 64
MIN_VISIBLE_FRACTION = 0.5  # of each segment, so that one can still tell what it is
MIN_SIDE = 64
_TRIES = 8

Index = tuple[Any, ...]


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: (height, width, 3) uint8 RGB.
        segment_map: (height, width) uint8, an index into ``categories``; every pixel belongs to a segment.
        categories: the category index of each segment; a stuff category has one segment, things one each.
    """

    image: np.ndarray
    segment_map: np.ndarray
    categories: tuple[int, ...]


def overlap(top: int, left: int, shape: Size, size: Size) -> tuple[Index, Index]:
    """Find where a canvas lies in a scene, when it may stick out.

    Args:
        top: row of the scene where the canvas begins; may be negative.
        left: its column.
        shape: (h, w) of the canvas.
        size: (height, width) of the scene.

    Returns:
        The index of that part of the scene, and of the part of the canvas that is inside; of the last two dimensions.
    """
    scene, canvas = [], []
    for start, length, limit in zip((top, left), shape, size, strict=True):
        low, high = (min(max(edge, 0), limit) for edge in (start, start + length))
        scene.append(slice(low, high))
        canvas.append(slice(low - start, high - start))
    return (..., *scene), (..., *canvas)


def _place(sprite: Sprite, segment_map: np.ndarray, segment: int) -> np.ndarray:
    """Put a sprite on top of a segment map, as segment ``segment`` of a new map."""
    scene, canvas = overlap(sprite.top, sprite.left, sprite.coverage.shape, segment_map.shape)
    placed = segment_map.copy()
    placed[scene][sprite.coverage[canvas] >= 0.5] = segment
    return placed


def _needed(pixels: int) -> float:
    """Give the fewest pixels that must stay visible of a segment of so many."""
    return max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * pixels)


def _arrange(rng: np.random.Generator, segment_map: np.ndarray) -> tuple[list[Sprite], np.ndarray]:
    """Choose two to five things, the far ones first; none may hide too much of what is behind it."""
    height, width = segment_map.shape
    needed = [_needed(pixels) for pixels in np.bincount(segment_map.ravel()).tolist()]
    sprites: list[Sprite] = []
    for level in np.sort(rng.uniform(0.1, 0.92, rng.integers(2, 6))):
        for _ in range(_TRIES):
            center = (rng.uniform(0.06, 0.94) * width, (level + rng.uniform(-0.04, 0.04)) * height)
            sprite = make_sprite(rng, center, radius=rng.uniform(0.11, 0.21) * min(height, width))
            placed = _place(sprite, segment_map, len(needed))
            now_needed = [*needed, _needed(int(np.count_nonzero(sprite.coverage >= 0.5)))]
            visible = np.bincount(placed.ravel(), minlength=len(now_needed))
            if (visible >= now_needed).all():
                sprites.append(sprite)
                needed, segment_map = now_needed, placed
                break
    return sprites, segment_map


def _compose(rng: np.random.Generator, canvas: np.ndarray, sprites: list[Sprite]) -> None:
    """Draw the things and their shadows onto the landscape, in place."""
    size, azimuth = canvas.shape[1:], rng.uniform(0, 2 * np.pi)
    light = (0.6 * math.cos(azimuth), 0.6 * math.sin(azimuth), 0.8)
    for sprite in sprites:
        cast = shadow(sprite) * np.float32(0.45)
        drop_x, drop_y = (round(-part * min(0.35 * sprite.radius, SHADOW_MARGIN)) for part in light[:2])
        corner = sprite.top - SHADOW_MARGIN + drop_y, sprite.left - SHADOW_MARGIN + drop_x
        scene, part = overlap(*corner, cast.shape, size)
        canvas[scene] *= 1 - cast[part]
        scene, part = overlap(sprite.top, sprite.left, sprite.coverage.shape, size)
        canvas[scene] = mix(canvas[scene], shade(rng, sprite, light)[part], sprite.coverage[part])


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Apply uneven light, a slightly soft lens and sensor noise: (3, height, width) to (height, width, 3) uint8."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in canvas.shape[1:])
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.16)
    light = slope * (math.cos(angle) * x + math.sin(angle) * y[:, None]) + rng.uniform(0.88, 1.08)
    lit = canvas * (light * rgb(*rng.uniform(0.95, 1.05, 3)))
    photo = cv2.GaussianBlur(cv2.merge(list(lit)), (0, 0), rng.uniform(0.3, 0.7))
    photo += white_noise(rng, photo.shape) * np.float32(rng.uniform(1.5, 5))
    return np.clip(np.rint(photo, out=photo), 0, 255, out=photo).astype(np.uint8)


def draw_scene(rng: np.random.Generator, size: Size) -> Scene:
    """Draw one scene.

    Args:
        rng: the one source of randomness; the same state gives the same scene.
        size: (height, width) in pixels, each at least ``MIN_SIDE``.

    Returns:
        The picture and its segments, each with at least ``MIN_VISIBLE_PIXELS`` pixels.
    """
    canvas, category_map = draw_landscape(rng, size)
    stuff = np.flatnonzero(np.bincount(category_map.ravel(), minlength=len(CATEGORIES)))
    segment_of = np.zeros(len(CATEGORIES), np.uint8)
    segment_of[stuff] = np.arange(len(stuff))
    sprites, segment_map = _arrange(rng, segment_of[category_map])
    _compose(rng, canvas, sprites)
    categories = (*stuff.tolist(), *(sprite.category for sprite in sprites))
    return Scene(_photograph(rng, canvas), segment_map, categories)
