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
    """A disc with a pointed tip."""
    cone = 0.80 * np.abs(x) - 0.60 * (y + 1)
    body = np.hypot(x, y - 0.30) - 0.70
    return np.minimum(body, np.maximum(cone, y - 0.30 + 0.42))


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
    return np.maximum(np.hypot(x, y) - 1, 0.78 - np.hypot(x - 0.52, y))


def heart(x: Array, y: Array) -> Array:
    lobes = np.hypot(np.abs(x) - 0.42, y + 0.28) - 0.52
    point = (np.abs(x) + y) * 0.7071 - 0.60
    return np.minimum(lobes, np.maximum(point, -0.30 - y))


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
