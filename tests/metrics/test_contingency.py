"""Tables are the same whatever the ids; relabel numbers objects image by image."""

import numpy as np
import pytest
import torch

from ocl.errors import RangeError
from ocl.metrics import relabel, tabulate
from ocl.metrics.contingency import COMPACT_ABOVE


def test_relabel_numbers_the_objects_of_each_image_and_keeps_background_and_ignore():
    labels = torch.tensor([[[0, 7, 7], [900_000_000_000, -1, 3]], [[5, 5, 5], [5, 5, 5]]])
    assert relabel(labels).tolist() == [[[0, 2, 2], [3, -1, 1]], [[1, 1, 1], [1, 1, 1]]]
    assert labels[0, 0, 1] == 7


def test_relabel_changes_nothing_that_is_numbered_already():
    labels = torch.tensor([[0, 1, 2, 1], [0, 0, 1, 2]], dtype=torch.uint8)
    assert torch.equal(relabel(labels), labels.long())


def test_scattered_ids_keep_their_background_column_their_gaps_and_their_void():
    pred = torch.tensor([[0, 1, 1, 2]])
    ignore = torch.tensor([[False, False, False, True]])
    small, large = torch.tensor([[3, 3, 5, 0]]), torch.tensor([[COMPACT_ABOVE, COMPACT_ABOVE, 2 * COMPACT_ABOVE, -1]])
    of_small, of_large = tabulate(pred, small, ignore), tabulate(pred, large, ignore)
    assert np.array_equal(of_small.counts[:, :, [0, 3, 5]], of_large.counts)
    assert np.array_equal(of_small.void, of_large.void)
    assert of_small.regions.tolist() == [6]
    assert of_large.regions.tolist() == [2 * COMPACT_ABOVE + 1]
    assert of_small.segments.tolist() == of_large.segments.tolist() == [3]
    assert of_large.without_gaps().regions.tolist() == [3]


@pytest.mark.parametrize("largest", [3, 40, 10**12])
def test_ignored_pixels_are_all_counted_whatever_their_segment(largest):
    pred, true = torch.tensor([[0, 1, largest, largest]]), torch.tensor([[0, 1, -1, -1]])
    table = tabulate(pred, true, true < 0)
    assert table.void.sum().item() == 2
    assert table.counts.sum().item() == 2
    assert table.segments.tolist() == [largest + 1]


def test_a_pixel_without_segment_is_an_error_even_where_it_is_ignored():
    with pytest.raises(RangeError, match="labels pred >= 0, got -1; give every pixel a segment"):
        tabulate(torch.tensor([[0, -1]]), torch.tensor([[1, 0]]), torch.tensor([[False, True]]))


@pytest.mark.parametrize("count", [31, 32, 33, 300])
def test_many_labels_are_counted_as_few_are(count):
    labels = torch.arange(count).repeat(2, 3)
    table = tabulate(labels, labels.flip(0))
    assert np.array_equal(table.counts, np.broadcast_to(3 * np.eye(count, dtype=np.int64), (2, count, count)))
    assert table.regions.tolist() == [count, count]
