"""One scene: a landscape, things upon it that hide each other, light and noise, and the exact label of every pixel."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from maskformer.data.datasets.shapes import CATEGORIES, THINGS

from .landscape import Size, draw_landscape, mix, rgb, white_noise

MIN_VISIBLE_PIXELS = 64
MIN_VISIBLE_FRACTION = 0.5  # of each segment, so that one can still tell what it is
MIN_SIDE = 64
_TRIES = 8
_SUPERSAMPLE = 3
_HUE_SPREAD = 0.045  # standard deviation, in turns of the colour wheel; neighbours are 0.2 apart
_SHADOW_MARGIN = 8  # pixels by which a soft shadow exceeds its thing

Contours = list[np.ndarray]
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


@dataclass(frozen=True)
class Sprite:
    """A thing on a small canvas of its own, before it is put into a scene.

    Attributes:
        category: index of a thing category.
        top, left: where the canvas lies in the scene; it may stick out.
        coverage: (h, w) float32, how much of each pixel it covers, 0..1.
        depth: (h, w) float32, distance in pixels to its edge.
        local: (2, h, w) float32, coordinates that turn and grow with it; its radius is about 1.
        radius: in pixels.
    """

    category: int
    top: int
    left: int
    coverage: np.ndarray
    depth: np.ndarray
    local: np.ndarray
    radius: float


def _circle(radius: float, points: int = 48) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _outline(rng: np.random.Generator, name: str) -> Contours:
    """Give the closed contours (points,2) of a thing: x, y around the origin, about 1 in radius, filled even-odd.

    They are drawn with a pen about a sixth of a unit wide: corners become round.
    """
    if name == "ball":
        return [_circle(rng.uniform(0.84, 0.9))]
    if name == "box":
        stretch = np.exp(rng.uniform(-0.22, 0.22))
        return [0.78 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (stretch, 1 / stretch)]
    if name == "triangle":
        half_base, height = rng.uniform(0.9, 1.05), rng.uniform(1.5, 1.85)
        return [np.array([[0, -0.6 * height], [half_base, 0.4 * height], [-half_base, 0.4 * height]])]
    if name == "star":
        radii = np.tile([1.18, 1.18 * rng.uniform(0.43, 0.51)], 5)
        return [_circle(1.0, 10) * radii[:, None]]
    assert name == "ring"
    return [_circle(0.95), _circle(rng.uniform(0.54, 0.62))]


def _rasterize(contours: Contours, size: tuple[int, int], rounding: float) -> tuple[np.ndarray, np.ndarray]:
    """Fill contours, grown by ``rounding`` pixels so that their corners are round: coverage and depth, (h, w)."""
    fine = np.zeros([_SUPERSAMPLE * s for s in size], np.uint8)
    points = [np.rint(contour * _SUPERSAMPLE * 16).astype(np.int32) for contour in contours]
    cv2.fillPoly(fine, points, 255, shift=4)
    cv2.polylines(fine, points, True, 255, thickness=round(2 * _SUPERSAMPLE * rounding), shift=4)
    distance = cv2.distanceTransform(fine, cv2.DIST_L2, 5)
    coverage, depth = (cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA) for plane in (fine, distance))
    return coverage * np.float32(1 / 255), depth * np.float32(1 / _SUPERSAMPLE)


def make_sprite(rng: np.random.Generator, center: tuple[float, float], radius: float) -> Sprite:
    """Make a thing of any category, turned by any angle.

    Args:
        rng: the source of randomness.
        center: x, y in pixels of the scene.
        radius: about half its extent, in pixels.
    """
    category, angle = int(rng.integers(len(THINGS))), rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    contours = [radius * points @ turn + center for points in _outline(rng, THINGS[category].name)]
    rounding = 0.08 * radius
    low = np.floor(contours[0].min(axis=0) - rounding).astype(int) - 1
    width, height = np.ceil(contours[0].max(axis=0) + rounding).astype(int) + 1 - low
    coverage, depth = _rasterize([points - low for points in contours], (height, width), rounding)
    x = (np.arange(width, dtype=np.float32) + 0.5 + low[0] - center[0]) / radius
    y = (np.arange(height, dtype=np.float32) + 0.5 + low[1] - center[1]) / radius
    local = np.stack([u * x + v * y[:, None] for u, v in turn.astype(np.float32)])
    return Sprite(category, int(low[1]), int(low[0]), coverage, depth, local, radius)


def _color(rng: np.random.Generator, category: int) -> np.ndarray:
    """Choose a clear colour: each category has a range of hues, which touch, so that in minutes much can be learnt."""
    hue = (category / len(THINGS) + rng.normal(0, _HUE_SPREAD)) % 1
    return 255 * rgb(*colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 0.95), rng.uniform(0.65, 1)))


_PATTERNS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (  # the second colour shows where above 0
    lambda xy: np.full_like(xy[0], -1),  # plain, twice as often
    lambda xy: np.full_like(xy[0], -1),
    lambda xy: np.sin(xy[0]),
    lambda xy: np.cos(xy[0]) * np.cos(xy[1]) - 0.45,
    lambda xy: xy[0],
)


def _pattern(rng: np.random.Generator, local: np.ndarray) -> np.ndarray:
    """Choose where the second colour shows, (h, w) 0..1: nowhere, in stripes, in dots or on one half."""
    frequency = rng.uniform(4.5, 8)
    wave = _PATTERNS[rng.integers(len(_PATTERNS))](np.float32(frequency) * local)
    return np.clip(4 * wave + 0.5, 0, 1)


def _normals(sprite: Sprite) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give x, y, z, (h, w) each, of unit normals: balls and rings are all round, the others have round edges."""
    name = THINGS[sprite.category].name
    bevel = sprite.depth.max() if name in ("ball", "ring") else 0.3 * sprite.radius
    inside = 1 - np.minimum(sprite.depth / bevel, 1)
    height = bevel * np.sqrt(1 - inside**2)
    slope_x, slope_y = (cv2.Sobel(height, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    return -slope_x / length, -slope_y / length, 1 / length


def _shade(rng: np.random.Generator, sprite: Sprite, light: tuple[float, float, float]) -> np.ndarray:
    """Colour a sprite's body, (3, h, w), by light from a unit vector x, y, z, which points out of the picture."""
    base = _color(rng, sprite.category)
    second = mix(base, rgb(250, 248, 240), 0.8) if rng.random() < 0.5 else base * 0.55
    body = mix(base, second, _pattern(rng, sprite.local))
    towards = np.maximum(sum(part * normal for part, normal in zip(light, _normals(sprite), strict=True)), 0)
    return body * (0.42 + 0.68 * towards) + rng.uniform(30, 90) * cv2.pow(towards, 24)


def _shadow(sprite: Sprite) -> np.ndarray:
    """Make the sprite's soft shadow, 0..1: (h, w) with ``_SHADOW_MARGIN`` more on each side."""
    return cv2.GaussianBlur(np.pad(sprite.coverage, _SHADOW_MARGIN), (0, 0), 2.2)


def _overlap(top: int, left: int, shape: Size, size: Size) -> tuple[Index, Index]:
    """Index the part of a scene that a canvas covers, and the canvas's part that is inside; it may stick out."""
    starts = np.array([top, left])
    lows, highs = np.maximum(starts, 0), np.minimum(starts + shape, size)
    scene, canvas = (tuple(map(slice, lows - shift, highs - shift)) for shift in (0, starts))
    return (..., *scene), (..., *canvas)


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
            scene, canvas = _overlap(sprite.top, sprite.left, sprite.coverage.shape, segment_map.shape)
            body, placed = sprite.coverage >= 0.5, segment_map.copy()
            placed[scene][body[canvas]] = len(needed)
            now_needed = [*needed, _needed(int(np.count_nonzero(body)))]
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
        cast = _shadow(sprite) * np.float32(0.45)
        drop_x, drop_y = (round(-part * min(0.35 * sprite.radius, _SHADOW_MARGIN)) for part in light[:2])
        corner = sprite.top - _SHADOW_MARGIN + drop_y, sprite.left - _SHADOW_MARGIN + drop_x
        scene, part = _overlap(*corner, cast.shape, size)
        canvas[scene] *= 1 - cast[part]
        scene, part = _overlap(sprite.top, sprite.left, sprite.coverage.shape, size)
        canvas[scene] = mix(canvas[scene], _shade(rng, sprite, light)[part], sprite.coverage[part])


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
