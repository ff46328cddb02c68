"""The one composition: encoder -> slots -> decoder. Every model of this package is one of these with other parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from torch import Tensor, nn

from ocl.errors import ConfigError, ShapeError
from ocl.interfaces import ContrastiveDecoder, Decoder, Encoder, SlotInit, SlotModule
from ocl.models.card import ModelCard
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
        """One pass, without what the batch brings computed (features, moments). Randomness comes from `generator`; `noise`
        [B, K, slot_dim] replaces what it gives to the slots.

        mismatch: partners start from one noise, and mixtures of their slots are decoded as well, into `decoding.contrast`.
        Raises ConfigError where the decoder cannot do that.
        """
        if mismatch is not None and noise is None:
            noise = shared_noise(self.init, len(batch), mismatch, generator, device=batch.image.device)
        features = self.encoder(batch.image) if batch.features is None else batch.features
        slots = self._group(features, generator, noise)
        return Output(features=features, slots=slots, decoding=self._decode(slots, batch, features, generator, mismatch))

    def encode(self, image: Tensor, *, generator: Randomness = None, noise: Tensor | None = None) -> tuple[Features, Slots]:
        """Image [B, 3, H, W] in [0, 1] -> its features and slots, without decoding."""
        features = self.encoder(image)
        return features, self._group(features, generator, noise)

    def _group(self, features: Features, generator: Randomness, noise: Tensor | None) -> Slots:
        slots: Slots = self.slot_module(features, self.init(len(features.tokens), generator=generator, noise=noise))
        return slots

    def save_pretrained(self, folder: Path | str, *, card: ModelCard | None = None) -> Path:
        """Write config.json, model.safetensors (what is trained, and registers) and README.md, the model card."""
        from ocl.models import hub

        return hub.save_pretrained(self, folder, card=card)

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        packages: Sequence[str] = (),
        replace: Mapping[str, str] | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        cache_dir: Path | str | None = None,
    ) -> SlotAutoencoder:
        """The model of such a folder, or of a hub repository; see `ocl.models.hub.from_pretrained` for options and errors."""
        from ocl.models import hub

        return hub.from_pretrained(
            source, packages=packages, replace=replace, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir
        )

    def push_to_hub(
        self, repo: str, *, card: ModelCard | None = None, private: bool = False, token: str | None = None,
        message: str = "Upload model",
    ) -> str:  # fmt: skip
        """Write the same files into a hub repository (owner/name); returns the address of the commit."""
        from ocl.models import hub

        return hub.push_to_hub(self, repo, card=card, private=private, token=token, message=message)

    def _decode(self, slots: Slots, batch: Batch, features: Features, generator: Randomness, mismatch: Mismatch | None) -> Decoding:
        if mismatch is None or not mismatch.decode:
            return self.decoder(slots, batch, features, generator=generator)
        if not isinstance(self.decoder, ContrastiveDecoder):
            name = type(self.decoder).__name__
            raise ConfigError(f"{name} decodes no slots of other images; leave ContrastiveAlignment out of the losses.")
        contrast = swapped(slots, mismatch, generator)
        stop = mismatch.stop_gradient
        return self.decoder(slots, batch, features, generator=generator, contrast=contrast, stop_gradient=stop)


def refuse_beside_decoder(builder: str, decoder: Decoder | None, **options: object) -> None:
    """Raises ConfigError where a builder is given a decoder and, beside it, options that only its own decoder would follow."""
    given = [name for name, value in options.items() if value is not None]
    if decoder is not None and given:
        raise ConfigError(
            f"{builder}: {' and '.join(given)} would not reach the decoder that is given ({type(decoder).__name__}); "
            f"say it in that decoder and leave out {' and '.join(given)}, or leave out decoder."
        )


def _check_width(name: str, width: int, other_name: str, other: int) -> None:
    if width != other:
        raise ShapeError(f"SlotAutoencoder needs {name} = {other_name}, got {width} and {other}; build both with one width.")
