"""The things of a scene: from an outline to a shaded, patterned body with soft edges and a shadow."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from maskformer.data.datasets.shapes import THINGS

from .landscape import mix, rgb

Contours = list[np.ndarray]

_SUPERSAMPLE = 3
_HUE_SPREAD = 0.045  # standard deviation, in turns of the colour wheel; neighbours are 0.2 apart
SHADOW_MARGIN = 8  # pixels by which a soft shadow exceeds its thing


def _circle(radius: float, points: int = 48) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ball(rng: np.random.Generator) -> Contours:
    """Give a disc."""
    return [_circle(rng.uniform(0.84, 0.9))]


def box(rng: np.random.Generator) -> Contours:
    """Give a rectangle that is not far from a square."""
    stretch = np.exp(rng.uniform(-0.22, 0.22))
    return [0.78 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (stretch, 1 / stretch)]


def triangle(rng: np.random.Generator) -> Contours:
    """Give an isosceles triangle, near to an equilateral one."""
    half_base, height = rng.uniform(0.9, 1.05), rng.uniform(1.5, 1.85)
    return [np.array([[0, -0.6 * height], [half_base, 0.4 * height], [-half_base, 0.4 * height]])]


def star(rng: np.random.Generator) -> Contours:
    """Give a star of five points."""
    inner = rng.uniform(0.43, 0.51)
    radii = np.tile([1.18, 1.18 * inner], 5)
    return [_circle(1.0, 10) * radii[:, None]]


def ring(rng: np.random.Generator) -> Contours:
    """Give a disc with a round hole, through which one sees what lies behind."""
    return [_circle(0.95), _circle(rng.uniform(0.54, 0.62))]


# The outlines of the things, as closed contours (points,2) of x, y around the origin, about one unit in radius, which
# are filled by the even-odd rule. They are drawn with a pen about a sixth of a unit wide: corners become round.
_OUTLINES: dict[str, Callable[[np.random.Generator], Contours]] = {
    "ball": ball,
    "box": box,
    "triangle": triangle,
    "star": star,
    "ring": ring,
}
assert list(_OUTLINES) == [category.name for category in THINGS]


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

    Returns:
        The sprite, without colours.
    """
    category, angle = int(rng.integers(len(THINGS))), rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    contours = [radius * points @ turn + center for points in _OUTLINES[THINGS[category].name](rng)]
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


def shade(rng: np.random.Generator, sprite: Sprite, light: tuple[float, float, float]) -> np.ndarray:
    """Colour a sprite's body in the light of the scene.

    Args:
        rng: for colours and pattern.
        sprite: the thing.
        light: unit vector x, y, z towards the light; z points out of the picture.

    Returns:
        (3, h, w) float32 RGB.
    """
    base = _color(rng, sprite.category)
    second = mix(base, rgb(250, 248, 240), 0.8) if rng.random() < 0.5 else base * 0.55
    body = mix(base, second, _pattern(rng, sprite.local))
    towards = np.maximum(sum(part * normal for part, normal in zip(light, _normals(sprite), strict=True)), 0)
    return body * (0.42 + 0.68 * towards) + rng.uniform(30, 90) * cv2.pow(towards, 24)


def shadow(sprite: Sprite) -> np.ndarray:
    """Make the sprite's soft shadow, 0..1: (h, w) with ``SHADOW_MARGIN`` more on each side."""
    margin = SHADOW_MARGIN
    padded = cv2.copyMakeBorder(sprite.coverage, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    return cv2.GaussianBlur(padded, (0, 0), 2.2)
