"""Silhouettes as signed distance functions on the plane, inside negative, each about one unit in radius.

Formulas follow Inigo Quilez's collection of 2-D distance functions; some are bounds of the distance, exact at the outline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Array = np.ndarray
Distance = Callable[[Array, Array], Array]


def disc(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1


def square(x: Array, y: Array) -> Array:
    return _box(x, y, 0.70, 0.70) - 0.14


def capsule(x: Array, y: Array) -> Array:
    return np.hypot(np.maximum(np.abs(x) - 0.55, 0), y) - 0.45


def triangle(x: Array, y: Array) -> Array:
    return _polygon(x, y, 3, 0.42) - 0.14


def pentagon(x: Array, y: Array) -> Array:
    return _polygon(x, y, 5, 0.70) - 0.10


def hexagon(x: Array, y: Array) -> Array:
    return _polygon(x, y, 6, 0.78) - 0.08


def ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.70) - 0.30


def drop(x: Array, y: Array) -> Array:
    """A disc and the two tangents that meet in a tip above it."""
    radius, tip = 0.66, 1.24  # of the disc, and the tip's distance from its centre
    sine, cosine = radius / tip, (1 - (radius / tip) ** 2) ** 0.5
    across, up = np.abs(x), 0.28 - y
    along = up * cosine - across * sine  # how far beyond the point where the tangent leaves the disc
    return np.where(along < 0, np.hypot(across, up), across * cosine + up * sine) - radius


def star(x: Array, y: Array) -> Array:
    sector = np.float32(2 * np.pi / 5)
    folded = np.abs(np.mod(np.arctan2(x, -y) + sector / 2, sector) - sector / 2)  # 0 towards a tip
    radius = np.hypot(x, y)
    tip, notch = (1.0, 0.0), (0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5))
    across, along = notch[1] - tip[1], tip[0] - notch[0]
    length = np.hypot(across, along)
    return ((radius * np.cos(folded) - tip[0]) * np.float32(across / length)) + radius * np.sin(folded) * np.float32(along / length)


def cross(x: Array, y: Array) -> Array:
    return np.minimum(_box(x, y, 0.90, 0.26), _box(x, y, 0.26, 0.90)) - 0.08


def crescent(x: Array, y: Array) -> Array:
    """A disc without the disc of radius 0.78 to its right; beyond the two tips, the distance to the tip."""
    shift, bite = 0.52, 0.78
    tip_x = (1 - bite**2 + shift**2) / (2 * shift)
    tip_y = (1 - tip_x**2) ** 0.5
    up = np.abs(y)
    beyond = x * tip_y - up * tip_x > shift * np.maximum(tip_y - up, 0)
    return np.where(beyond, np.hypot(x - tip_x, up - tip_y), np.maximum(np.hypot(x, y) - 1, bite - np.hypot(x - shift, y)))


def heart(x: Array, y: Array) -> Array:
    """A square standing on its corner, with half a disc on each upper side."""
    scale = 1.6
    u, v = np.abs(x) / scale, 0.55 - y / scale
    foot = 0.5 * np.maximum(u + v, 0)
    corner = np.sqrt(np.minimum(u * u + (v - 1) ** 2, (u - foot) ** 2 + (v - foot) ** 2)) * np.sign(u - v)
    return np.where(u + v > 1, np.hypot(u - 0.25, v - 0.75) - 0.125**0.5, corner) * scale


def _box(x: Array, y: Array, width: float, height: float) -> Array:
    dx, dy = np.abs(x) - width, np.abs(y) - height
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _polygon(x: Array, y: Array, sides: int, inner: float) -> Array:
    """Largest distance to any side of a regular polygon with this inner radius."""
    distance = None
    for index in range(sides):
        angle = 2 * np.pi * index / sides + np.pi / 2
        side = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) - inner
        distance = side if distance is None else np.maximum(distance, side)
    assert distance is not None
    return distance


FAMILIAR: Mapping[str, Distance] = {
    "disc": disc, "square": square, "triangle": triangle, "capsule": capsule, "ring": ring, "hexagon": hexagon, "drop": drop,
    "pentagon": pentagon,
}  # fmt: skip
UNSEEN: Mapping[str, Distance] = {"star": star, "heart": heart, "cross": cross, "crescent": crescent}
