"""Tables are the same whatever the ids; relabel numbers objects image by image."""

import numpy as np
import torch

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
