"""Pictures in rows."""

import numpy as np
import pytest

from ocl.errors import ShapeError
from ocl.vis.grid import GAP, picture_grid


def test_every_picture_stands_where_its_row_and_place_say():
    pictures = [np.full((5, 7, 3), value, dtype=np.uint8) for value in (10, 20, 30)]
    grid = picture_grid([pictures[:2], pictures[2:]])
    assert grid.shape == (2 * (5 + GAP) + GAP, 2 * (7 + GAP) + GAP, 3)
    assert (grid[GAP : GAP + 5, 7 + 2 * GAP : 14 + 2 * GAP] == 20).all()
    assert (grid[5 + 2 * GAP : 10 + 2 * GAP, GAP : GAP + 7] == 30).all()
    assert (grid[-1] == 255).all() and (grid[5 + 2 * GAP :, 7 + GAP :] == 255).all()


def test_pictures_of_two_sizes_and_no_pictures_are_refused():
    with pytest.raises(ShapeError, match="pictures of one size"):
        picture_grid([[np.zeros((5, 7, 3), dtype=np.uint8), np.zeros((7, 5, 3), dtype=np.uint8)]])
    with pytest.raises(ShapeError, match="got none"):
        picture_grid([[]])
