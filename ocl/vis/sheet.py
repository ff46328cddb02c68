"""A contact sheet of any dataset: images above their instance masks."""

from __future__ import annotations

import numpy as np

from ocl.data.sample import Dataset, Sample
from ocl.errors import ConfigError
from ocl.vis.colours import colour_labels

GAP = 4


def contact_sheet(dataset: Dataset, *, limit: int = 24, columns: int = 8) -> np.ndarray:
    """The first `limit` samples as uint8 [height, width, 3]; images of one size, `columns` in a row."""
    count = min(limit, len(dataset))
    if count < 1 or columns < 1:
        raise ConfigError(f"a contact sheet needs at least one sample and one column, got {count} and {columns}.")
    tiles = [_tile(dataset[index]) for index in range(count)]
    height, width = (max(tile.shape[side] for tile in tiles) + GAP for side in (0, 1))
    columns = min(columns, count)
    sheet = np.full((height * -(-count // columns) + GAP, width * columns + GAP, 3), 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = GAP + height * (index // columns), GAP + width * (index % columns)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def _tile(sample: Sample) -> np.ndarray:
    picture = sample.image.permute(1, 2, 0).numpy()
    if sample.instances is None:
        return picture
    return np.concatenate([picture, colour_labels(sample.instances.numpy())])
