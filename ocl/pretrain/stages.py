"""What is trained, as modules whose forward pass is a loss: an autoencoder, then a denoiser with its text encoder."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocl.decoders.diffusion.schedule import NoiseSchedule
from ocl.nn.draws import integers, normal, uniform
from ocl.types import Randomness


@final
class AutoencoderStage(nn.Module):
    """Images through a variational autoencoder; loss: mean absolute error + kl_weight * divergence per latent number."""

    def __init__(self, vae: Any, *, kl_weight: float) -> None:
        super().__init__()
        self.vae, self.kl_weight = vae, kl_weight

    def forward(self, image: Tensor, generator: Randomness) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> loss, a scalar."""
        posterior = self.vae.encode(2 * image - 1).latent_dist
        noise = normal(posterior.mean.shape, generator, device=image.device)
        found = self.vae.decode(posterior.mean + posterior.std * noise).sample
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return (found - (2 * image - 1)).abs().mean() + self.kl_weight * divergence


@final
class DenoiserStage(nn.Module):
    """Noisy latents and captions through text encoder and U-Net; loss: mean squared error of what is predicted."""

    empty: Tensor

    def __init__(self, unet: Any, text: Any, schedule: NoiseSchedule, *, empty: Tensor, drop_rate: float) -> None:
        super().__init__()
        self.unet, self.text, self.schedule, self.drop_rate = unet, text, schedule, drop_rate
        self.register_buffer("empty", empty, persistent=False)

    def forward(self, clean: Tensor, caption: Tensor, generator: Randomness) -> Tensor:
        """Scaled latents [B, C, h, w] and caption tokens [B, L] -> loss; captions are dropped at `drop_rate`."""
        level = integers(self.schedule.num_levels, len(clean), generator, device=clean.device)
        noise = normal(clean.shape, generator, device=clean.device)
        dropped = uniform([len(clean), 1], generator, device=clean.device) < self.drop_rate
        words = self.text(torch.where(dropped, self.empty, caption)).last_hidden_state
        noisy = self.schedule.add_noise(clean, noise, level)
        found = self.unet(noisy, self.schedule.time[level], words).sample
        return F.mse_loss(found.float(), self.schedule.target(clean, noise, level))
