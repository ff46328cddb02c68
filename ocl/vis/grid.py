"""Pictures in rows on white."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ocl.errors import ShapeError

GAP = 4


def picture_grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures uint8 [H, W, 3] of one size -> one picture; rows may differ in length. Raises ShapeError for other sizes."""
    sizes = {picture.shape for row in rows for picture in row}
    if len(sizes) != 1:
        raise ShapeError(f"a grid needs pictures of one size, got {sorted(sizes) or 'none'}.")
    height, width = (side + GAP for side in sizes.pop()[:2])
    grid = np.full((height * len(rows) + GAP, width * max(map(len, rows)) + GAP, 3), 255, dtype=np.uint8)
    for down, row in enumerate(rows):
        for right, picture in enumerate(row):
            top, left = GAP + height * down, GAP + width * right
            grid[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return grid
