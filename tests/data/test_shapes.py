"""Silhouettes: signed distances that the drawing may trust, whatever the shape."""

import numpy as np
import pytest

from ocl.data.shapes import FAMILIAR, UNSEEN

OUTLINES = {**FAMILIAR, **UNSEEN}
WINDOW = 1.15  # radii: the drawing looks no farther for an object's pixels
every_shape = pytest.mark.parametrize("shape", OUTLINES)


def grid(steps=401, reach=1.6, dtype=np.float32):
    line = np.linspace(-reach, reach, steps, dtype=dtype)
    return np.broadcast_to(line[None, :], (steps, steps)), np.broadcast_to(line[:, None], (steps, steps))


@every_shape
def test_every_silhouette_lies_within_the_drawing_window(shape):
    x, y = grid()
    inside = OUTLINES[shape](x, y) < 0
    assert np.hypot(x, y)[inside].max() <= WINDOW


@every_shape
def test_silhouettes_are_about_one_unit_in_radius_and_have_a_body(shape):
    x, y = grid()
    distance = OUTLINES[shape](x, y)
    inside = distance < 0
    assert np.hypot(x, y)[inside].max() > 0.9
    assert 1.2 < inside.mean() * 3.2**2 < np.pi + 0.05  # area in units of radius squared
    assert distance.min() < -0.25, "thick enough to carry a bevel"


@every_shape
def test_rays_leave_the_silhouette_for_good(shape):
    for angle in np.linspace(0, 2 * np.pi, 90, endpoint=False):
        along = np.linspace(0, 3, 1500)
        distance = OUTLINES[shape](along * np.cos(angle), along * np.sin(angle))
        assert np.all(distance[along > 1.3] > 0)
        if shape not in ("ring", "crescent"):
            assert distance[0] < 0
            assert np.count_nonzero(np.diff(np.sign(distance))) == 1, f"star-shaped around its centre, at {angle:.2f}"


@every_shape
def test_distances_are_continuous_and_keep_the_dtype(shape):
    for dtype in (np.float32, np.float64):
        x, y = grid(dtype=dtype)
        distance = OUTLINES[shape](x, y)
        step = float(x[0, 1] - x[0, 0])
        assert distance.dtype == dtype and np.isfinite(distance).all()
        assert max(np.abs(np.diff(distance, axis=axis)).max() for axis in (0, 1)) < 1.35 * step


@every_shape
def test_near_the_outline_distances_are_true(shape):
    """Compared with the nearest pixel of the other side; bevels and soft edges rely on it."""
    x, y = grid(steps=321)
    distance = OUTLINES[shape](x, y)
    rim = np.argwhere((distance < 0) & (np.roll(distance, 1, 0) >= 0) | (distance < 0) & (np.roll(distance, 1, 1) >= 0))
    near = np.argwhere((distance > 0.02) & (distance < 0.12))[::37]
    gaps = np.sqrt(((near[:, None] - rim[None]) ** 2).sum(-1)).min(1) * (3.2 / 320)
    claimed = distance[near[:, 0], near[:, 1]]
    assert np.all(claimed < gaps + 0.03), "never farther than it is"
    assert np.median(gaps - claimed) < 0.03
