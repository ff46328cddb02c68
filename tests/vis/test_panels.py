"""Panels of images, masks and slots."""

import numpy as np
import pytest
import torch

from ocl.errors import ShapeError
from ocl.types import Batch, Decoding, Features, Output, Slots
from ocl.vis.panels import Example, examples, panel, reconstruction


def _example(size=(64, 64), *, slots=3, decoder=True, truth=True, drawn=True):
    masks = torch.rand(slots, 8, 8).softmax(0)
    return Example(
        picture=np.full((*size, 3), 100, dtype=np.uint8),
        slots=masks,
        decoder=masks if decoder else None,
        truth=np.zeros(size, dtype=np.int32) if truth else None,
        reconstruction=np.full((*size, 3), 90, dtype=np.uint8) if drawn else None,
    )


def _output(batch, prediction, target, masks=None):
    features = Features(torch.zeros(len(batch), 4, 5), (2, 2))
    slots = Slots(torch.zeros(len(batch), 3, 5), torch.rand(len(batch), 3, 4).softmax(1), (2, 2))
    return Output(features, slots, Decoding(prediction, target, masks))


def test_a_row_is_added_per_image_and_a_column_per_slot():
    one, two = panel([_example()], tile=50), panel([_example(), _example()], tile=50)
    assert two.shape[0] - one.shape[0] == 54 and two.shape[1] == one.shape[1]
    assert panel([_example(slots=5)], tile=50).shape[1] - one.shape[1] == 2 * 54


def test_columns_that_no_row_fills_are_left_out():
    full, bare = panel([_example()], tile=50), panel([_example(decoder=False, truth=False, drawn=False)], tile=50)
    assert full.shape[1] - bare.shape[1] == 3 * 54
    assert panel([_example(), _example(truth=False)], tile=50).shape[1] == full.shape[1]


@pytest.mark.parametrize("sizes", [[(64, 64), (30, 90)], [(1, 40)], [(40, 1)], [(300, 200), (2, 2)]])
def test_images_of_any_size_share_a_panel(sizes):
    picture = panel([_example(size) for size in sizes])
    assert picture.dtype == np.uint8 and picture.ndim == 3


def test_the_panel_holds_the_image_itself():
    picture = panel([_example((50, 50))], tile=50)
    assert (picture[32:82, 12:62] == 100).all()


def test_no_rows_is_an_error():
    with pytest.raises(ShapeError, match="at least one"):
        panel([])


def test_only_a_target_in_pixels_counts_as_a_reconstruction():
    batch = Batch(torch.rand(2, 3, 4, 4))
    prediction = torch.rand(2, 3, 4, 4)
    assert torch.equal(reconstruction(batch, _output(batch, prediction, batch.image)), prediction)
    assert reconstruction(batch, _output(batch, prediction, torch.randn(2, 3, 4, 4))) is None
    assert reconstruction(batch, _output(batch, torch.rand(2, 4, 5), torch.rand(2, 4, 5))) is None


def test_examples_take_the_first_images_of_a_batch():
    image = torch.rand(3, 3, 4, 4)
    batch = Batch(image, classes=torch.ones(3, 4, 4, dtype=torch.int32), keys=("a", "b", "c"))
    found = examples(batch, _output(batch, image, image, torch.rand(3, 3, 4, 4)), limit=2)
    assert [example.name for example in found] == ["a", "b"]
    assert found[0].slots.shape == (3, 2, 2) and found[0].decoder.shape == (3, 4, 4)
    assert found[1].truth.shape == (4, 4) and found[1].reconstruction.shape == (4, 4, 3)
    assert len(examples(batch, _output(batch, image, image))) == 3
