"""The one composition: encoder -> slots -> decoder. Every model of this package is one of these with other parts."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from ocl.errors import ConfigError, ShapeError
from ocl.interfaces import ContrastiveDecoder, Decoder, Encoder, SlotInit, SlotModule
from ocl.slots.mismatch import shared_noise, swapped
from ocl.types import Batch, Decoding, Features, Mismatch, Output, Randomness, Slots


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

    def forward(
        self, batch: Batch, *, generator: Randomness = None, noise: Tensor | None = None, mismatch: Mismatch | None = None
    ) -> Output:
        """One pass. Randomness comes from `generator`; `noise` [B, K, slot_dim] replaces what it gives to the slots.

        mismatch: partners start from one noise, and mixtures of their slots are decoded as well, into `decoding.contrast`.
        Raises ConfigError where the decoder cannot do that.
        """
        if mismatch is not None and noise is None:
            noise = shared_noise(self.init, len(batch), mismatch, generator, device=batch.image.device)
        features, slots = self.encode(batch.image, generator=generator, noise=noise)
        return Output(features=features, slots=slots, decoding=self._decode(slots, batch, features, generator, mismatch))

    def encode(self, image: Tensor, *, generator: Randomness = None, noise: Tensor | None = None) -> tuple[Features, Slots]:
        """Image [B, 3, H, W] in [0, 1] -> its features and slots, without decoding."""
        features = self.encoder(image)
        return features, self.slot_module(features, self.init(len(image), generator=generator, noise=noise))

    def _decode(self, slots: Slots, batch: Batch, features: Features, generator: Randomness, mismatch: Mismatch | None) -> Decoding:
        if mismatch is None or not mismatch.decode:
            return self.decoder(slots, batch, features, generator=generator)
        if not isinstance(self.decoder, ContrastiveDecoder):
            name = type(self.decoder).__name__
            raise ConfigError(f"{name} decodes no slots of other images; leave ContrastiveAlignment out of the losses.")
        contrast = swapped(slots, mismatch, generator)
        return self.decoder(slots, batch, features, generator=generator, contrast=contrast)


def _check_width(name: str, width: int, other_name: str, other: int) -> None:
    if width != other:
        raise ShapeError(f"SlotAutoencoder needs {name} = {other_name}, got {width} and {other}; build both with one width.")
