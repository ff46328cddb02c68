"""Pixel statistics: what they do to an image, and that checkpoints do not carry them."""

import pytest
import torch

from ocl.nn.normalise import CLIP, IMAGENET, SIGNED, Normalise


@pytest.mark.parametrize("statistics", [CLIP, IMAGENET, SIGNED])
def test_an_image_of_the_mean_colour_becomes_zero_and_one_deviation_one(statistics):
    mean, std = (torch.tensor(values)[None, :, None, None].expand(2, 3, 4, 5) for values in statistics)
    normalise = Normalise(statistics, owner="test")
    torch.testing.assert_close(normalise(mean), torch.zeros(2, 3, 4, 5))
    torch.testing.assert_close(normalise(mean + std), torch.ones(2, 3, 4, 5))


def test_half_precision_images_are_widened():
    assert Normalise(SIGNED, owner="test")(torch.rand(1, 3, 2, 2, dtype=torch.float16)).dtype == torch.float32


def test_checkpoints_do_not_hold_statistics():
    assert Normalise(IMAGENET, owner="test").state_dict() == {}
