"""Images to latents and back through a pipeline's frozen autoencoder (Rombach et al. 2022)."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from ocl.decoders.diffusion.pipeline import load_part
from ocl.errors import RangeError, ShapeError
from ocl.nn.freezing import Frozen, is_postponing
from ocl.nn.hub import builds_on_meta, weight_files
from ocl.ops.dtypes import without_autocast
from ocl.types import Moments

_WAY_OUT = "run the autoencoder in float32 (no .half()), and check its weights"
_KINDS = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny")


@final
class LatentAutoencoder(nn.Module):
    """Frozen; runs without gradient and, under autocast, in the precision of its weights: half precision overflows in some.

    Args:
        weights: pipeline folder or hub id; its `vae` is used.
        local_files_only: never download; None decides by OCL_OFFLINE and HF_HUB_OFFLINE.
    """

    def __init__(self, weights: str, *, local_files_only: bool | None = None) -> None:
        super().__init__()
        read = partial(load_part, weights, "vae", expected=_KINDS, local_files_only=local_files_only)
        later = is_postponing() and not builds_on_meta()
        with torch.device("meta") if later else nullcontext():
            model = read()
        self.model = Frozen(read if later else model, files=partial(weight_files, weights, "vae"))
        self.scale = float(model.config.get("scaling_factor") or 1.0)
        self.shift = float(model.config.get("shift_factor") or 0.0)
        self.channels = int(model.config["latent_channels"])
        self.factor = _factor(model)

    def size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Latent size (h, w) of images of this size. Raises ShapeError where it is not a whole number of cells."""
        height, width = image_size
        if height % self.factor or width % self.factor:
            raise ShapeError(f"latents need image sides divisible by {self.factor}, got {height} x {width}; resize the data.")
        return height // self.factor, width // self.factor

    @torch.no_grad()
    def encode(self, image: Tensor, noise: Tensor) -> Tensor:
        """Image [B, 3, H, W] in [0, 1] and standard normal noise [B, C, h, w] -> a draw from the posterior, scaled."""
        return self.draw(self.moments(image), noise)

    @torch.no_grad()
    def moments(self, image: Tensor) -> Moments:
        """Image [B, 3, H, W] in [0, 1] -> mean and spread of its latents, as the autoencoder gives them."""
        with without_autocast(image.device):
            encoded = self._published.encode(2 * image.to(self._dtype) - 1)
        posterior = getattr(encoded, "latent_dist", None)
        if posterior is not None:
            return Moments(posterior.mean, posterior.std)
        return Moments(encoded.latent if hasattr(encoded, "latent") else encoded.latents)

    def draw(self, moments: Moments, noise: Tensor) -> Tensor:
        """Moments and standard normal noise [B, C, h, w] -> latents as the denoiser knows them: shifted and scaled."""
        spread = 0.0 if moments.std is None else moments.std * noise.to(moments.mean)
        latents = (moments.mean + spread - self.shift) * self.scale
        if _looks_free(latents):
            require_finite(latents, "latents of the images", _WAY_OUT)
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> image [B, 3, H, W], clamped to [0, 1]. Raises RangeError where it is not finite before that."""
        with without_autocast(latents.device):
            image = self._published.decode(latents.to(self._dtype) / self.scale + self.shift).sample
        require_finite(image, "decoded images", _WAY_OUT)
        return (image / 2 + 0.5).clamp(0, 1)

    @property
    def _published(self) -> Any:
        return self.model.module

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


def _factor(model: Any) -> int:
    config = model.config
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    return int(2 ** (len(blocks) - 1))


def require_finite(values: Tensor, what: str, way_out: str) -> None:
    """Raises RangeError where values are NaN or infinite; on a GPU that waits for them."""
    if not bool(values.isfinite().all()):
        raise RangeError(f"the {what} hold NaN or infinite values; {way_out}.")


def _looks_free(values: Tensor) -> bool:
    """Whether looking waits for no device; where it does, the training loop finds a loss that is not finite."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and type(values) is Tensor
