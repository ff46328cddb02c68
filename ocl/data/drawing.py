"""Drawing objects and backgrounds in numpy: bevelled solids under one light, with soft shadows, painted back to front.

An object is drawn in its bounding box only. Its outline is a distance function (`shapes`), its relief a rounded bevel of
that distance, so that a disc comes out as a ball. Positions are in units of the image side, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ocl.data.shapes import FAMILIAR, UNSEEN

Array = np.ndarray
SHAPES = {**FAMILIAR, **UNSEEN}
SHADOW_REACH = 0.35  # how far a shadow falls, in radii
_SHADOW_DEPTH = 0.45


@dataclass(frozen=True)
class Solid:
    """One object: a shape of SHAPES at (x, y) with a radius, turned by `angle`; colours are RGB in [0, 1].

    texture: plain, stripes, dots, checks or speckles between `colour` and `second`. gloss: strength of the highlight.
    """

    shape: str
    x: float
    y: float
    radius: float
    angle: float
    colour: tuple[float, float, float]
    second: tuple[float, float, float]
    texture: str
    frequency: float
    gloss: float
    grain: Array  # small random field of `speckles`


@dataclass(frozen=True)
class Light:
    """A direction towards the light (x, y, z) and how bright the unlit side is."""

    direction: tuple[float, float, float]
    ambient: float


def paint(canvas: Array, solids: Sequence[Solid], light: Light) -> tuple[Array, list[float]]:
    """Paint solids, the first one farthest back, onto canvas, float32 [3, H, H], in place.

    Returns labels int32 [H, H] (0 where none, else 1 + index of the front-most solid at the pixel's centre) and for each
    solid the fraction of its own pixels that is visible (0 where it has none).
    """
    size = canvas.shape[-1]
    labels = np.zeros((size, size), dtype=np.int32)
    areas = []
    for number, solid in enumerate(solids, start=1):
        rows, columns, x, y = _window(size, solid)
        distance = _distance(solid, x, y)
        patch = canvas[:, rows, columns]
        _cast_shadow(patch, distance, solid.radius, light, size)
        lit = _shade(solid, distance, x, y, light)
        lit -= patch
        lit *= _unit(0.5 - distance * (solid.radius * size))
        patch += lit
        inside = distance < 0
        labels[rows, columns][inside] = number
        areas.append(int(np.count_nonzero(inside)))
    visible = np.bincount(labels.ravel(), minlength=len(solids) + 1)[1:]
    return labels, [float(count / area) if area else 0.0 for count, area in zip(visible, areas, strict=True)]


def blotches(size: int, field: Array) -> Array:
    """A small random field [n, n], smoothly enlarged to [size, size]."""
    return _enlarge(np.ascontiguousarray(_enlarge(field.T, size).T), size)


@lru_cache(maxsize=16)
def centres(size: int) -> tuple[Array, Array]:
    """Pixel centres x [1, size], y [size, 1] in (0, 1), float32."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    return line[None, :], line[:, None]


def _unit(values: Array) -> Array:
    """Clip a temporary to [0, 1] in place."""
    np.maximum(values, 0, out=values)
    return np.minimum(values, 1, out=values)


def _window(size: int, solid: Solid) -> tuple[slice, slice, Array, Array]:
    """The box of pixels an object and its shadow can touch, and their places in the object's own frame, in radii."""
    reach = solid.radius * (1.15 + SHADOW_REACH)
    columns, rows = (
        slice(max(0, int((place - reach) * size)), min(size, int((place + reach) * size) + 2)) for place in (solid.x, solid.y)
    )
    across, down = centres(size)
    dx, dy = (across[:, columns] - solid.x) / solid.radius, (down[rows] - solid.y) / solid.radius
    cos, sin = np.float32(np.cos(solid.angle)), np.float32(np.sin(solid.angle))
    return rows, columns, dx * cos + dy * sin, dy * cos - dx * sin


def _distance(solid: Solid, x: Array, y: Array) -> Array:
    return SHAPES[solid.shape](x, y).astype(np.float32, copy=False)


def _cast_shadow(patch: Array, distance: Array, radius: float, light: Light, size: int) -> None:
    """Darken the ground away from the light: the outline, shifted and blurred over its distance."""
    right, down = (-round(SHADOW_REACH * 0.7 * radius * size * part) for part in light.direction[:2])
    shade = _unit(0.62 - distance / SHADOW_REACH)
    shade *= shade * _SHADOW_DEPTH
    (to_rows, from_rows), (to_columns, from_columns) = (
        _shifted(length, step) for length, step in zip(distance.shape, (down, right), strict=True)
    )
    patch[:, to_rows, to_columns] *= 1 - shade[from_rows, from_columns]


def _shifted(length: int, step: int) -> tuple[slice, slice]:
    """Where a line of pixels moves by `step`: the part it lands on, and the part of it that lands there."""
    return slice(max(step, 0), length + min(step, 0)), slice(max(-step, 0), length - max(step, 0))


def _shade(solid: Solid, distance: Array, x: Array, y: Array, light: Light) -> Array:
    """The solid's lit surface, [3, rows, columns]."""
    depth = _unit(1 + distance)  # 0 one radius inside, 1 at the outline
    height = np.sqrt(np.maximum(1 - depth * depth, 0))
    per_pixel = np.float32(1 / np.hypot(x[0, 1] - x[0, 0], y[0, 1] - y[0, 0]))  # a window is never a single column
    slope_y, slope_x = _slope(height, per_pixel), _slope(height.T, per_pixel).T
    length = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    lx, ly, lz = (np.float32(part) for part in light.direction)
    facing = (lz - slope_x * lx - slope_y * ly) * length
    np.maximum(facing, 0, out=facing)
    lit = _albedo(solid, x, y) * (light.ambient + (1.15 - light.ambient) * facing)
    if solid.gloss:
        eighth = np.square(np.square(np.square(facing)))
        lit += solid.gloss * (eighth * eighth * eighth)
    return lit


def _slope(height: Array, per_pixel: np.float32) -> Array:
    """Central differences down the rows, one-sided at the border, at most 4 so that rims stay lit."""
    slope = np.empty_like(height)
    np.subtract(height[2:], height[:-2], out=slope[1:-1])
    slope[1:-1] *= 0.5
    np.subtract(height[1], height[0], out=slope[0])
    np.subtract(height[-1], height[-2], out=slope[-1])
    slope *= per_pixel
    np.maximum(slope, -4, out=slope)
    return np.minimum(slope, 4, out=slope)


def _albedo(solid: Solid, x: Array, y: Array) -> Array:
    """The solid's own colour, [3, rows, columns] or [3, 1, 1]."""
    first, second = np.array([solid.colour, solid.second], dtype=np.float32)[..., None, None]
    if solid.texture == "plain":
        return first
    if solid.texture == "stripes":
        share = 0.5 + 0.5 * np.tanh(3 * np.sin(solid.frequency * x))
    elif solid.texture == "checks":
        share = 0.5 + 0.5 * np.tanh(4 * np.sin(solid.frequency * x) * np.sin(solid.frequency * y))
    elif solid.texture == "dots":
        share = 0.5 + 0.5 * np.tanh(4 * (np.sin(solid.frequency * x) * np.sin(solid.frequency * y) - 0.35))
    else:
        share = _sample(solid.grain, x, y)
    return first + share * (second - first)


def _sample(field: Array, x: Array, y: Array) -> Array:
    """The nearest cell of a small field, which spans the object's frame [-1.2, 1.2]."""
    cells = field.shape[0]
    column, row = ((_unit((place + 1.2) / 2.4) * (cells - 0.01)).astype(np.intp) for place in (x, y))
    return field.ravel().take(row * cells + column)


def _enlarge(rows: Array, size: int) -> Array:
    """Rows [n, ...] -> [size, ...]. No matrix product: BLAS would wake all its threads for one."""
    low, high, part = _neighbours(len(rows), size)
    first = rows[low]
    return first + part * (rows[high] - first)


@lru_cache(maxsize=64)
def _neighbours(cells: int, size: int) -> tuple[Array, Array, Array]:
    """The two cells around each pixel, and the smoothstep part of the second, float32 [size, 1]."""
    place = np.clip((np.arange(size) + 0.5) / size * cells - 0.5, 0, cells - 1)
    low = place.astype(np.intp)
    part = place - low
    return low, np.minimum(low + 1, cells - 1), (part * part * (3 - 2 * part)).astype(np.float32)[:, None]
