"""The one composition: encoder -> slots -> decoder. Every model of this package is one of these with other parts."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ocl.errors import ShapeError
from ocl.interfaces import Decoder, Encoder, SlotInit, SlotModule
from ocl.types import Batch, Features, Output, Slots


@final
class SlotAutoencoder(nn.Module):
    """An image is encoded, grouped into slots, and decoded from the slots alone.

    Args:
        encoder: image -> features.
        init: where slots start.
        slot_module: (features, initial slots) -> slots.
        decoder: slots -> what the image or its features looked like.
    """

    def __init__(self, encoder: Encoder, init: SlotInit, slot_module: SlotModule, decoder: Decoder) -> None:
        super().__init__()
        _check_width("slot_module.feature_dim", slot_module.feature_dim, "encoder.width", encoder.width)
        _check_width("init.slot_dim", init.slot_dim, "slot_module.slot_dim", slot_module.slot_dim)
        _check_width("decoder.slot_dim", decoder.slot_dim, "slot_module.out_dim", slot_module.out_dim)
        self.encoder, self.init, self.slot_module, self.decoder = encoder, init, slot_module, decoder

    def forward(self, batch: Batch, *, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Output:
        """One pass. Randomness comes from `generator` (on the model's device) or from `noise` [B, K, slot_dim]."""
        features, slots = self.encode(batch.image, generator=generator, noise=noise)
        return Output(features=features, slots=slots, decoding=self.decoder(slots, batch, features))

    def encode(
        self, image: Tensor, *, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> tuple[Features, Slots]:
        """Image [B, 3, H, W] in [0, 1] -> its features and slots, without decoding."""
        features = self.encoder(image)
        return features, self.slot_module(features, self.init(len(image), generator=generator, noise=noise))


def _check_width(name: str, width: int, other_name: str, other: int) -> None:
    if width != other:
        raise ShapeError(f"SlotAutoencoder needs {name} = {other_name}, got {width} and {other}; build both with one width.")
