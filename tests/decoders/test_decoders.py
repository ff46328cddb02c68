"""Decoders: what they draw, what they aim at, and what they refuse."""

import pytest
import torch

from ocl.decoders import FeatureMLP, PatchMLP, SpatialBroadcast
from ocl.errors import ConfigError, ShapeError
from ocl.types import Batch, Features, Slots


def slots(batch=2, k=3, dim=8, grid=(4, 4)):
    torch.manual_seed(0)
    return Slots(torch.randn(batch, k, dim), torch.full((batch, k, grid[0] * grid[1]), 1 / k), grid)


@pytest.mark.parametrize(("grid", "patch", "refine"), [(4, 1, 1), (8, 1, 0), (4, 4, 1), (16, 1, 2), (2, 2, 1)])
def test_broadcast_draws_the_image_size_it_was_built_for(grid, patch, refine):
    decoder = SpatialBroadcast(8, image_size=16, grid=grid, patch=patch, width=4, refine=refine)
    decoding = decoder(slots(), Batch(torch.rand(2, 3, 16, 16)), None)
    assert decoding.prediction.shape == (2, 3, 16, 16)
    torch.testing.assert_close(decoding.masks.sum(1), torch.ones(2, 16, 16))


def test_broadcast_aims_at_the_image_itself():
    image = torch.rand(2, 3, 16, 16)
    decoding = SpatialBroadcast(8, image_size=16, grid=4, width=4)(slots(), Batch(image), None)
    assert decoding.target is image
    torch.testing.assert_close(decoding.error(), (decoding.prediction - image).square().mean(dim=(1, 2, 3)))


def test_broadcast_refuses_sizes_it_cannot_reach():
    with pytest.raises(ConfigError, match="grid \\* patch"):
        SpatialBroadcast(8, image_size=48, grid=16, patch=2)
    with pytest.raises(ConfigError, match="grid \\* patch"):
        SpatialBroadcast(8, image_size=8, grid=16)


def test_broadcast_refuses_an_image_of_another_size():
    with pytest.raises(ShapeError, match="image_size=32"):
        SpatialBroadcast(8, image_size=16, grid=4)(slots(), Batch(torch.rand(2, 3, 32, 32)), None)


def test_feature_decoder_aims_at_detached_tokens():
    tokens = torch.randn(2, 16, 5, requires_grad=True)
    decoding = FeatureMLP(8, 5, grid=(4, 4), hidden_dim=16)(slots(), None, Features(tokens, (4, 4)))
    assert not decoding.target.requires_grad
    assert decoding.prediction.shape == (2, 16, 5)
    assert decoding.masks.shape == (2, 3, 4, 4)


def test_feature_decoder_reads_another_grid_by_interpolation():
    decoder = FeatureMLP(8, 5, grid=(4, 4), hidden_dim=16)
    decoding = decoder(slots(grid=(6, 3)), None, Features(torch.randn(2, 18, 5), (6, 3)))
    assert decoding.masks.shape == (2, 3, 6, 3)


def test_feature_decoder_refuses_other_widths():
    with pytest.raises(ShapeError, match="width 8 and features of width 5"):
        FeatureMLP(8, 5)(slots(), None, Features(torch.randn(2, 16, 6), (4, 4)))


def test_patch_decoder_puts_every_patch_where_it_belongs():
    decoder = PatchMLP(8, image_size=12, patch=4, hidden_dim=16)
    cells = torch.arange(3 * 3 * 2 * 4 * 4.0).reshape(9, 2, 16)  # places, channels, pixels of a patch
    picture = decoder._picture(cells)
    assert picture.shape == (2, 12, 12)
    for place in range(9):
        top, left = 4 * (place // 3), 4 * (place % 3)
        assert torch.equal(picture[:, top : top + 4, left : left + 4].flatten(1), cells[place])


def test_patch_decoder_aims_at_the_image_with_masks_that_sum_to_one():
    image = torch.rand(2, 3, 16, 16)
    decoding = PatchMLP(8, image_size=16, patch=4, hidden_dim=16)(slots(), Batch(image), None)
    assert decoding.target is image
    torch.testing.assert_close(decoding.masks.sum(1), torch.ones(2, 16, 16))


def test_patch_decoder_refuses_a_size_that_is_no_multiple_of_the_patch():
    with pytest.raises(ConfigError, match="divisible by patch"):
        PatchMLP(8, image_size=18, patch=4)
