"""Slots decoded by a latent-diffusion model: they must tell it what noise was added to the image's latents (Jiang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from ocl.decoders.diffusion.conditioners import SlotTokens
from ocl.decoders.diffusion.denoisers import latent_denoiser
from ocl.decoders.diffusion.latents import LatentAutoencoder
from ocl.decoders.diffusion.schedule import NoiseSchedule
from ocl.errors import ConfigError, ShapeError
from ocl.interfaces import Conditioner, ContrastiveDecoder, Denoiser
from ocl.nn.draws import integers, normal, uniform
from ocl.types import Batch, Decoding, Features, Randomness, Slots


@dataclass(frozen=True)
class Draws:
    """Every random number of one pass: noise level [B], posterior and diffusion noise [B, C, h, w], images that keep slots [B]."""

    level: Tensor
    posterior: Tensor
    noise: Tensor
    kept: Tensor | None = None


@final
class LatentDiffusion(ContrastiveDecoder):
    """Predicts the noise (or velocity) in the image's latents from its slots; the target is what the pipeline was trained on.

    While training, all slots of an image are dropped now and then, so that registers alone describe any image: that is the
    unconditional branch of classifier-free guidance (Ho & Salimans 2022). Slots of other images (`contrast`) are never dropped.

    Args:
        weights: pipeline folder or hub id: its autoencoder, its scheduler, and its denoiser unless one is passed.
        denoiser: None is that of the pipeline, its cross-attention's key, value and output projections trained.
        conditioner: None is the slots alone.
        drop_rate: how likely an image's slots are dropped in training.
        local_files_only: never download; None decides by OCL_OFFLINE and HF_HUB_OFFLINE.
    """

    def __init__(
        self,
        weights: str,
        *,
        denoiser: Denoiser | None = None,
        conditioner: Conditioner | None = None,
        drop_rate: float = 0.0,
        local_files_only: bool | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop_rate < 1:
            raise ConfigError(f"LatentDiffusion.drop_rate must lie in [0, 1), got {drop_rate}.")
        self.drop_rate = drop_rate
        self.autoencoder = LatentAutoencoder(weights, local_files_only=local_files_only)
        self.schedule = NoiseSchedule.of(weights, local_files_only=local_files_only)
        self.denoiser = denoiser or latent_denoiser(weights, local_files_only=local_files_only)
        self.conditioner = conditioner or SlotTokens()
        self.slot_dim = self.denoiser.context_dim
        if self.denoiser.latent_channels != self.autoencoder.channels:
            raise ConfigError(
                f"the denoiser takes latents of {self.denoiser.latent_channels} channels, the autoencoder of {weights} makes "
                f"{self.autoencoder.channels}; take both from one pipeline."
            )
        registers = getattr(self.conditioner, "registers", None)
        if registers is not None and registers.width != self.slot_dim:
            raise ConfigError(
                f"registers of width {registers.width} do not fit a denoiser of conditioning width {self.slot_dim}; "
                "take both from one pipeline."
            )

    def forward(
        self,
        slots: Slots,
        batch: Batch,
        features: Features,
        *,
        generator: Randomness = None,
        contrast: Slots | None = None,
        stop_gradient: bool = True,
        draws: Draws | None = None,
    ) -> Decoding:
        """Slots of width slot_dim and images whose sides the autoencoder divides -> prediction and target [B, C, h, w].

        stop_gradient: false decodes `contrast` in a plain pass of its own, whose gradient reaches the denoiser as well.
        draws: the random numbers to use in place of drawing them from `generator`.
        """
        if slots.vectors.shape[-1] != self.slot_dim:
            raise ShapeError(
                f"LatentDiffusion expects slots of width {self.slot_dim}, got {list(slots.vectors.shape)}; "
                f"pass SlotAttention(out_dim={self.slot_dim})."
            )
        draws = draws or self.draw(batch, generator)
        moments = self.autoencoder.moments(batch.image) if batch.moments is None else batch.moments
        clean = self.autoencoder.draw(moments, draws.posterior)
        noise = draws.noise.to(clean)
        conditioning = self.conditioner(slots if draws.kept is None else drop_slots(slots, draws.kept))
        wrong = None if contrast is None else self.conditioner(contrast)
        noisy, time = self.schedule.add_noise(clean, noise, draws.level), self.schedule.time[draws.level]
        target = self.schedule.target(clean, noise, draws.level)
        if wrong is not None and not stop_gradient:
            found, other = (self.denoiser(noisy, time, each) for each in (conditioning, wrong))
            return Decoding(found.prediction, target, found.maps, other.prediction)
        found = self.denoiser(noisy, time, conditioning, wrong)
        return Decoding(found.prediction, target, found.maps, found.contrast)

    def draw(self, batch: Batch, generator: Randomness) -> Draws:
        """The random numbers of one pass. Slots are dropped only while training."""
        device, size = batch.image.device, self.autoencoder.size((batch.image.shape[2], batch.image.shape[3]))
        shape = (len(batch), self.autoencoder.channels, *size)
        level = integers(self.schedule.num_levels, len(batch), generator, device=device)
        posterior, noise = (normal(shape, generator, device=device) for _ in range(2))
        drops = self.training and self.drop_rate > 0
        kept = uniform([len(batch)], generator, device=device) >= self.drop_rate if drops else None
        return Draws(level, posterior, noise, kept)


def drop_slots(slots: Slots, kept: Tensor) -> Slots:
    """Without any active slot in the images where `kept` [B] is false."""
    active = kept[:, None].expand(slots.vectors.shape[:2])
    return replace(slots, active=active if slots.active is None else slots.active & active)
