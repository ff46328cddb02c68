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
    """Paint solids, the first one farthest back, onto canvas, float32 [H, H, 3], in place.

    Returns labels int32 [H, H] (0 where none, else 1 + index of the front-most solid at the pixel's centre) and for each
    solid the fraction of its own pixels that is visible (0 where it has none).
    """
    size = canvas.shape[0]
    labels = np.zeros((size, size), dtype=np.int32)
    areas = []
    for number, solid in enumerate(solids, start=1):
        rows, columns, x, y = _window(size, solid)
        distance = _distance(solid, x, y)
        _cast_shadow(canvas[rows, columns], distance, solid.radius, light, size)
        lit = _shade(solid, distance, x, y, light)
        cover = np.clip(0.5 - distance * (solid.radius * size), 0, 1)[..., None]
        patch = canvas[rows, columns]
        patch += cover * (lit - patch)
        inside = distance < 0
        labels[rows, columns][inside] = number
        areas.append(int(np.count_nonzero(inside)))
    visible = np.bincount(labels.ravel(), minlength=len(solids) + 1)[1:]
    return labels, [float(count / area) if area else 0.0 for count, area in zip(visible, areas, strict=True)]


def blotches(size: int, field: Array) -> Array:
    """A small random field [n, n] or [n, n, C], smoothly enlarged to [size, size(, C)]."""
    weights = _enlarging(field.shape[0], size)
    return np.ascontiguousarray(np.einsum("ai,ij...->aj...", weights, np.einsum("bj,ij...->ib...", weights, field)))


@lru_cache(maxsize=16)
def centres(size: int) -> tuple[Array, Array]:
    """Pixel centres x [1, size], y [size, 1] in (0, 1), float32."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    return line[None, :], line[:, None]


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
    shade = np.clip(0.62 - distance / SHADOW_REACH, 0, 1)
    shade *= shade * _SHADOW_DEPTH
    to, source = zip(*(_shifted(length, step) for length, step in zip(distance.shape, (down, right), strict=True)), strict=True)
    patch[to] *= 1 - shade[source][..., None]


def _shifted(length: int, step: int) -> tuple[slice, slice]:
    return slice(max(step, 0), length + min(step, 0)), slice(max(-step, 0), length - max(step, 0))


def _shade(solid: Solid, distance: Array, x: Array, y: Array, light: Light) -> Array:
    depth = np.clip(1 + distance, 0, 1)  # 0 one radius inside, 1 at the outline
    height = np.sqrt(np.maximum(1 - depth * depth, 0))
    slope_y, slope_x = np.gradient(height)
    per_pixel = np.float32(1 / np.hypot(x[0, 1] - x[0, 0], y[0, 1] - y[0, 0]))  # a window is never a single column
    slope_x, slope_y = np.clip(slope_x * per_pixel, -4, 4), np.clip(slope_y * per_pixel, -4, 4)
    length = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    lx, ly, lz = (np.float32(part) for part in light.direction)
    facing = np.maximum((lz - slope_x * lx - slope_y * ly) * length, 0)
    albedo = _albedo(solid, x, y)
    lit = albedo * (light.ambient + (1.15 - light.ambient) * facing)[..., None]
    if solid.gloss:
        lit += (solid.gloss * np.maximum(facing, 0) ** 24)[..., None]
    return lit


def _albedo(solid: Solid, x: Array, y: Array) -> Array:
    first, second = np.float32(solid.colour), np.float32(solid.second)
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
    return first + share.astype(np.float32, copy=False)[..., None] * (second - first)


def _sample(field: Array, x: Array, y: Array) -> Array:
    """The nearest cell of a small field, which spans the object's frame [-1.2, 1.2]."""
    cells = field.shape[0]
    column = np.clip(((x + 1.2) * (cells / 2.4)).astype(np.int32), 0, cells - 1)
    row = np.clip(((y + 1.2) * (cells / 2.4)).astype(np.int32), 0, cells - 1)
    return field[row, column]


@lru_cache(maxsize=64)
def _enlarging(cells: int, size: int) -> Array:
    """Smoothstep interpolation from cells to pixels: float32 [size, cells]."""
    place = np.clip((np.arange(size) + 0.5) / size * cells - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(int), max(cells - 2, 0))
    part = place - low
    part = part * part * (3 - 2 * part)
    weights = np.zeros((size, cells), dtype=np.float32)
    weights[np.arange(size), low] = 1 - part
    weights[np.arange(size), np.minimum(low + 1, cells - 1)] += part
    return weights
