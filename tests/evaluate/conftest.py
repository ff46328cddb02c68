"""Small models for evaluation: an untrained one of real parts, and one whose masks can be predicted by eye."""

import os
from pathlib import Path
from typing import final

import pytest
import torch
import torch.nn.functional as F

from ocl.decoders import SpatialBroadcast
from ocl.interfaces import Decoder, Encoder
from ocl.models.autoencoder import SlotAutoencoder
from ocl.slots import GaussianInit, SlotAttention
from ocl.types import Decoding, Features

SIZE = 16


@final
class Blocks(Encoder):
    """The mean colour of each 2 x 2 block of pixels."""

    width = 3

    def forward(self, image):
        tokens = F.avg_pool2d(image, 2)
        return Features(tokens.flatten(2).transpose(1, 2), (tokens.shape[2], tokens.shape[3]))


@final
class ByColour(Decoder):
    """Three masks: how red, green and blue the image is."""

    def __init__(self, slot_dim):
        super().__init__()
        self.slot_dim = slot_dim

    def forward(self, slots, batch, features, *, generator=None):
        return Decoding(batch.image, batch.image, batch.image / (batch.image.sum(1, keepdim=True) + 1e-6))


def _model(decoder):
    torch.manual_seed(0)
    return SlotAutoencoder(Blocks(), GaussianInit(3, 8), SlotAttention(3, 8, position=True), decoder)


@pytest.fixture
def untrained():
    return _model(SpatialBroadcast(8, image_size=SIZE, width=8))


@pytest.fixture
def by_colour():
    return _model(ByColour(8))


@pytest.fixture
def shared_data():
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("OCL_DATA", default))
    if not folder.is_dir():
        pytest.skip("needs real photographs: set OCL_DATA to the folder that holds voc_photos")
    return folder
