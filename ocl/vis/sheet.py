"""A contact sheet of any dataset: images above their instance masks.

    ocl data preview --data Scenes --data.level textured --data.image_size 128 --out preview.png

`docs/images/scenes.py` puts the sheets of all levels of Scenes into one picture.
"""

from __future__ import annotations

import numpy as np

from ocl.data.sample import Dataset, Sample
from ocl.data.transforms import fit
from ocl.errors import ConfigError
from ocl.vis.colours import colour_labels

GAP = 4


def contact_sheet(dataset: Dataset, *, limit: int = 24, columns: int = 8, largest: int = 256) -> np.ndarray:
    """The first `limit` samples as uint8 [height, width, 3], `columns` in a row, on white.

    Images with a side above `largest` pixels are shrunk to it and padded to a square (black, void masks); others keep their
    size. Raises ConfigError where there is nothing to show.
    """
    count = min(limit, len(dataset))
    if count < 1 or columns < 1 or largest < 1:
        raise ConfigError(
            f"a contact sheet needs at least one sample, column and pixel, got {count}, columns={columns}, largest={largest}."
        )
    tiles = [_tile(dataset[index], largest) for index in range(count)]
    height, width = (max(tile.shape[side] for tile in tiles) + GAP for side in (0, 1))
    columns = min(columns, count)
    sheet = np.full((height * -(-count // columns) + GAP, width * columns + GAP, 3), 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = GAP + height * (index // columns), GAP + width * (index % columns)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def _tile(sample: Sample, largest: int) -> np.ndarray:
    if max(sample.image.shape[1:]) > largest:
        sample = fit(sample, image_size=largest, resize="pad")
    picture = sample.image.permute(1, 2, 0).numpy()
    if sample.instances is None:
        return picture
    return np.concatenate([picture, colour_labels(sample.instances.numpy())])
