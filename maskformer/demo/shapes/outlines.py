"""The outlines of the things, as closed contours around the origin; a hole is a second contour.

They are drawn with a pen about a sixth of a unit wide, so the things are a little larger and their corners round.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from maskformer.data.datasets.shapes import THINGS

Contours = list[np.ndarray]


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


_OUTLINES: dict[str, Callable[[np.random.Generator], Contours]] = {
    "ball": ball,
    "box": box,
    "triangle": triangle,
    "star": star,
    "ring": ring,
}
assert list(_OUTLINES) == [category.name for category in THINGS]


def outline(name: str, rng: np.random.Generator) -> Contours:
    """Give the contours of one thing, about one unit in radius.

    Args:
        name: a thing category.
        rng: for the proportions that vary.

    Returns:
        Arrays (points, 2) of x, y; filled by the even-odd rule.
    """
    return _OUTLINES[name](rng)
