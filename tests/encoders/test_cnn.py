"""Encoders trained from scratch: grids, what a token sees, and sizes of the published networks."""

import pytest
import torch

from ocl.encoders import CNN, ResNet
from ocl.errors import ConfigError, RangeError, ShapeError


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(16, 16), (24, 8), (13, 9)])
def test_cnn_gives_one_token_per_stride(stride, size):
    features = CNN(width=8, stride=stride)(torch.rand(2, 3, *size))
    assert features.grid == (-(-size[0] // stride), -(-size[1] // stride))
    assert features.width == 8


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_resnet_gives_one_token_per_stride(depth, stride):
    with torch.device("meta"):
        encoder = ResNet(depth, base_width=8, stride=stride)
        features = encoder(torch.rand(1, 3, 50, 64))
    assert features.grid == (-(-50 // stride), 64 // stride)
    assert features.width == encoder.width == (256 if depth == 50 else 64)


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.2), (34, 21.3), (50, 23.5)])
def test_resnet_is_as_large_as_published(depth, millions):
    """He et al. 2016, without the classifier; normalisation has as many weights as batch normalisation."""
    with torch.device("meta"):
        encoder = ResNet(depth, position=False)
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_cnn_is_the_published_one():
    """Four 5 x 5 convolutions of 64 channels and a linear map of four coordinates."""
    sizes = {name: tuple(weight.shape) for name, weight in CNN().named_parameters() if name.endswith("weight")}
    assert list(sizes.values()) == [(64, 3, 5, 5), (64, 64, 5, 5), (64, 64, 5, 5), (64, 64, 5, 5), (64, 4)]


def test_cnn_sees_colours_from_minus_one_to_one():
    """Mid-grey is zero inside, so without biases the network is silent on it, and black is the negative of white."""
    encoder = CNN(width=4, depth=1, position=False)
    torch.nn.init.zeros_(encoder.layers[0].bias)
    assert encoder(torch.full((1, 3, 4, 4), 0.5)).tokens.abs().max() == 0
    black, white = (encoder.layers[0](encoder.normalise(torch.full((1, 3, 4, 4), value))) for value in (0.0, 1.0))
    torch.testing.assert_close(black, -white)


@pytest.mark.parametrize("make", [lambda p: CNN(width=8, position=p), lambda p: ResNet(18, base_width=8, stride=4, position=p)])
def test_position_is_added_after_all_else(make):
    with_code, without = make(True), make(False)
    without.load_state_dict(with_code.state_dict(), strict=False)
    image = torch.rand(1, 3, 16, 16)
    features = with_code(image)
    torch.testing.assert_close(features.tokens, without(image).tokens + with_code.position(features.grid))


def test_a_cnn_token_sees_only_its_neighbourhood():
    encoder = CNN(width=4, depth=2, kernel=3)
    image = torch.rand(1, 3, 9, 9)
    changed = image.clone()
    changed[..., 4, 4] = 1 - changed[..., 4, 4]
    moved = (encoder(image).tokens - encoder(changed).tokens).abs().amax(-1)[0].unflatten(0, (9, 9)) > 0
    assert not moved[:2].any() and not moved[7:].any() and not moved[:, :2].any() and not moved[:, 7:].any()
    assert moved[4, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CNN(stride=3), "stride of 1, 2, 4 or 8"),
        (lambda: CNN(stride=16, depth=8), "stride of 1, 2, 4 or 8"),
        (lambda: CNN(stride=8, depth=2), "a layer per halving"),
        (lambda: CNN(kernel=4), "use 5"),
        (lambda: ResNet(101), "depth of 18, 34 or 50"),
        (lambda: ResNet(stride=2), "stride of 4, 8 or 16"),
        (lambda: ResNet(base_width=80), "power of 2"),
    ],
)
def test_sizes_that_do_not_exist_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("encoder", [CNN(width=4), ResNet(18, base_width=4)], ids=["CNN", "ResNet"])
def test_images_that_are_none_are_refused(encoder):
    with pytest.raises(ShapeError, match=type(encoder).__name__):
        encoder(torch.rand(3, 16, 16))
    with pytest.raises(ShapeError, match=type(encoder).__name__):
        encoder(torch.rand(1, 1, 16, 16))
    with pytest.raises(RangeError, match="use image / 255"):
        encoder(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
