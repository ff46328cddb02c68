"""Drawing: bounding boxes hide nothing, edges are blended where they lie, light comes from one side, places are true."""

import numpy as np
import pytest

from ocl.data import Scenes, drawing
from ocl.data.drawing import Light, Solid, blotches, paint
from ocl.data.scenes import SHAPES, TEXTURES

LIGHT = Light((-0.5, -0.5, 0.5**0.5), 0.4)
FROM_THE_LEFT = Light((-0.7, 0.0, 0.7), 0.4)


def solid(**changes):
    usual = {
        "shape": "disc", "x": 0.5, "y": 0.5, "radius": 0.2, "angle": 0.0, "colour": (0.8, 0.2, 0.2), "second": (1.0, 1.0, 1.0),
        "texture": "plain", "frequency": 8.0, "gloss": 0.5, "grain": np.zeros((12, 12), np.float32),
    }  # fmt: skip
    return Solid(**{**usual, **changes})


def test_bounding_boxes_change_no_visible_pixel(monkeypatch):
    def whole_frame(size, solid):
        x, y = drawing.centres(size)
        dx, dy = (x - solid.x) / solid.radius, (y - solid.y) / solid.radius
        cos, sin = np.float32(np.cos(solid.angle)), np.float32(np.sin(solid.angle))
        return slice(0, size), slice(0, size), dx * cos + dy * sin, dy * cos - dx * sin

    solids = [
        solid(shape=shape, x=0.1 + 0.27 * (i % 4), y=0.15 + 0.3 * (i // 4), radius=0.14, angle=0.4 * i, texture=TEXTURES[i % 5])
        for i, shape in enumerate(SHAPES)
    ]
    boxed, framed = (np.full((3, 96, 96), 0.5, np.float32) for _ in range(2))
    in_boxes = paint(boxed, solids, LIGHT)
    monkeypatch.setattr(drawing, "_window", whole_frame)
    in_frames = paint(framed, solids, LIGHT)
    np.testing.assert_array_equal(in_boxes[0], in_frames[0])
    assert in_boxes[1] == in_frames[1]
    np.testing.assert_allclose(boxed, framed, atol=1 / 255 / 8)  # the faintest end of a shadow may lie outside a box


def test_edges_are_blended_within_half_a_pixel_of_the_outline():
    canvas = np.zeros((3, 64, 64), np.float32)  # black ground stays black under a shadow
    labels, _ = paint(canvas, [solid(gloss=0.0, colour=(1, 1, 1))], Light((0, 0, 1), 1.0))  # lit to between 1 and 1.15
    line = np.arange(64) + 0.5
    beyond = np.hypot(line[None, :] - 32, line[:, None] - 32) - 0.2 * 64
    blended = (canvas[0] > 0) & (canvas[0] < 1)
    assert blended.sum() > 40 and np.abs(beyond[blended]).max() <= 0.5 + 1e-4
    assert (labels[canvas[0] > 0.58] == 1).all() and (canvas[0][labels == 1] >= 0.49).all()


def test_the_side_towards_the_light_is_brighter():
    canvas = np.full((3, 64, 64), 0.5, np.float32)
    labels, _ = paint(canvas, [solid(gloss=0.0)], FROM_THE_LEFT)
    ball = np.where(labels == 1, canvas[0], np.nan)
    assert np.nanmean(ball[:, :32]) > 1.3 * np.nanmean(ball[:, 32:])


def test_a_shadow_falls_away_from_the_light_and_only_darkens():
    canvas = np.full((3, 64, 64), 0.5, np.float32)
    labels, _ = paint(canvas, [solid()], FROM_THE_LEFT)
    ground = np.where(labels == 0, canvas[0], 0.5)
    beside = np.abs(np.arange(64) - 31.5) > 13.5  # columns clear of the blended edge of the ball
    assert ground[:, beside].max() <= 0.5
    assert ground[:, 46:].min() < 0.45 and ground[:, 46:].mean() < ground[:, :18].mean()


def test_gloss_adds_a_white_highlight_and_changes_no_mask():
    matte, glossy = (np.full((3, 64, 64), 0.5, np.float32) for _ in range(2))
    masks = [paint(canvas, [solid(gloss=gloss)], LIGHT)[0] for canvas, gloss in ((matte, 0.0), (glossy, 0.7))]
    np.testing.assert_array_equal(*masks)
    added = glossy - matte
    assert added.min() >= 0 and added.max() > 0.3
    np.testing.assert_allclose(added[0], added[2], atol=1e-5)


@pytest.mark.parametrize("texture", TEXTURES[1:])
def test_a_texture_mixes_two_colours_and_stays_inside_the_outline(texture):
    grain = np.random.default_rng(0).random((12, 12), dtype=np.float32)
    plain, textured = (np.full((3, 64, 64), 0.5, np.float32) for _ in range(2))
    labels, _ = paint(plain, [solid(gloss=0.0)], LIGHT)
    paint(textured, [solid(gloss=0.0, texture=texture, grain=grain)], LIGHT)
    changed = np.abs(plain - textured).max(0) > 0.05
    assert 0.1 < changed[labels == 1].mean() < 0.95
    assert not changed[labels == 0][plain.max(0)[labels == 0] == 0.5].any()


def test_a_disc_is_as_large_and_where_its_properties_say():
    found = 0
    for sample in (Scenes(image_size=128)[index] for index in range(40)):
        told = sample.properties
        for number, shape in enumerate(told["shape"]):
            rows, columns = np.nonzero(sample.instances.numpy() == number + 1)
            cut = told["visibility"][number] < 1 or 0 in (*rows, *columns) or 127 in (*rows, *columns)
            if cut or shape != "disc":
                continue
            found += 1
            assert ((columns + 0.5) / 128).mean() == pytest.approx(told["x"][number], abs=0.005)
            assert ((rows + 0.5) / 128).mean() == pytest.approx(told["y"][number], abs=0.005)
            assert (len(rows) / 128**2 / np.pi) ** 0.5 == pytest.approx(told["radius"][number], rel=0.03)
    assert found >= 5


@pytest.mark.parametrize(("cells", "size"), [(1, 64), (3, 64), (8, 100)])
def test_blotches_stay_between_their_cells_and_meet_each_cell_at_its_centre(cells, size):
    field = np.random.default_rng(0).random((cells, cells), dtype=np.float32)
    smooth = blotches(size * cells, field)
    assert smooth.shape == (size * cells,) * 2 and smooth.min() >= field.min() - 1e-6 and smooth.max() <= field.max() + 1e-6
    np.testing.assert_allclose(smooth[size // 2 :: size, size // 2 :: size], field, atol=0.01)
    np.testing.assert_allclose(blotches(size, np.full((cells, cells), 0.3, np.float32)), 0.3, atol=1e-6)
