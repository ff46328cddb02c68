"""Contact sheets: every sample at its place, its mask below it."""

from typing import final

import numpy as np
import pytest
import torch

from ocl.data import Scenes
from ocl.data.sample import Dataset, Sample
from ocl.errors import ConfigError
from ocl.vis.colours import colour_labels
from ocl.vis.sheet import GAP, contact_sheet


@final
class Tints(Dataset):
    """Image i is of brightness 10 * i; its size and whether it has labels are given."""

    def __init__(self, sizes, *, labelled=True):
        self.sizes = sizes
        self.labelled = labelled

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        image = torch.full((3, *self.sizes[index]), 10 * index, dtype=torch.uint8)
        return Sample(image, torch.full(self.sizes[index], index % 3, dtype=torch.int32) if self.labelled else None)


def cell(sheet, row, column, size):
    """The tile of given (height, width) in a sheet of tiles that are all as large."""
    top, left = GAP + row * (size[0] + GAP), GAP + column * (size[1] + GAP)
    return sheet[top : top + size[0], left : left + size[1]]


def test_images_stand_row_by_row_above_their_masks():
    sheet = contact_sheet(Tints([(6, 5)] * 7), columns=3)
    assert sheet.dtype == np.uint8 and sheet.shape == (3 * (12 + GAP) + GAP, 3 * (5 + GAP) + GAP, 3)
    for index in range(7):
        tile = cell(sheet, index // 3, index % 3, (12, 5))
        assert (tile[:6] == 10 * index).all()
        np.testing.assert_array_equal(tile[6:], colour_labels(np.full((6, 5), index % 3)))
    assert (cell(sheet, 2, 1, (12, 5)) == 255).all(), "no eighth image"


def test_scenes_appear_as_they_are():
    scenes = Scenes("cluttered", image_size=64)
    sheet = contact_sheet(scenes, limit=4, columns=2)
    for index in range(4):
        tile, sample = cell(sheet, index // 2, index % 2, (128, 64)), scenes[index]
        np.testing.assert_array_equal(tile[:64], sample.image.permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(tile[64:], colour_labels(sample.instances.numpy()))


def test_images_without_labels_have_no_mask_below():
    sheet = contact_sheet(Tints([(6, 5)] * 2, labelled=False))
    assert sheet.shape == (6 + 2 * GAP, 2 * 5 + 3 * GAP, 3)


@pytest.mark.parametrize(("limit", "columns", "shape"), [(2, 8, (1, 2)), (5, 2, (3, 2)), (99, 4, (2, 4)), (1, 1, (1, 1))])
def test_limit_and_columns_shape_the_sheet(limit, columns, shape):
    sheet = contact_sheet(Tints([(4, 4)] * 6), limit=limit, columns=columns)
    assert sheet.shape == (shape[0] * (8 + GAP) + GAP, shape[1] * (4 + GAP) + GAP, 3)


def test_images_of_several_sizes_share_one_raster():
    sheet = contact_sheet(Tints([(4, 9), (7, 3)]))
    assert sheet.shape == (14 + 2 * GAP, 2 * 9 + 3 * GAP, 3)
    second = cell(sheet, 0, 1, (14, 9))
    assert (second[:7, :3] == 10).all() and (second[:, 3:] == 255).all()


def test_large_photographs_are_shrunk_and_padded():
    sheet = contact_sheet(Tints([(40, 80), (20, 20)]), largest=20)
    assert sheet.shape == (40 + 2 * GAP, 2 * 20 + 3 * GAP, 3)
    mask = cell(sheet, 0, 0, (40, 20))[20:]
    np.testing.assert_array_equal(mask[5:15], colour_labels(np.zeros((10, 20), dtype=int)))
    assert (mask[:5] == 255).all() and (mask[15:] == 255).all(), "ignored pixels are white"


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"columns": 0}, {"largest": 0}])
def test_a_sheet_of_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match="at least one sample, column and pixel"):
        contact_sheet(Tints([(4, 4)]), **wrong)


def test_an_empty_dataset_is_refused():
    with pytest.raises(ConfigError, match="got 0"):
        contact_sheet(Tints([]))
