"""The parts of a small text-to-image pipeline in the classes of diffusers and transformers, before any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ocl.decoders.diffusion.pipeline import import_diffusers
from ocl.errors import ConfigError
from ocl.nn.hub import import_transformers


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the parts are.

    Args:
        image_size: side of the square images.
        autoencoder_channels: width of the autoencoder at each resolution; all but the first halve the side.
        latent_channels: channels of the latents.
        denoiser_channels: width of the U-Net at each resolution, each with cross-attention; multiples of 16.
        layers_per_block: residual blocks per resolution, in the autoencoder and in the U-Net.
        heads: attention heads, of the U-Net and of the text encoder.
        text_dim: width of the text encoder, and so of what the U-Net is conditioned on.
        text_layers: layers of the text encoder.
        text_length: tokens of a caption; longer ones are cut.
        prediction: what the U-Net predicts; v (Salimans & Ho 2022) counts on the caption at high noise from the start.
    """

    image_size: int = 64
    autoencoder_channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4
    denoiser_channels: tuple[int, ...] = (32, 64, 128)
    layers_per_block: int = 1
    heads: int = 4
    text_dim: int = 96
    text_layers: int = 2
    text_length: int = 64
    prediction: str = "v_prediction"

    def __post_init__(self) -> None:
        factor = 2 ** (len(self.autoencoder_channels) + len(self.denoiser_channels) - 2)
        if self.image_size % factor:
            raise ConfigError(f"sizes.image_size must be divisible by {factor} with so many resolutions, got {self.image_size}.")
        for name, values, step in (("autoencoder", self.autoencoder_channels, 8), ("denoiser", self.denoiser_channels, 16)):
            if not values or any(value < step or value % step for value in values):
                raise ConfigError(f"sizes.{name}_channels must be multiples of {step}, got {list(values)}.")
        if self.text_dim % self.heads:
            raise ConfigError(f"sizes.text_dim must be divisible by heads, got {self.text_dim} and {self.heads}.")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ConfigError(f"sizes.prediction must be epsilon or v_prediction, got {self.prediction!r}.")


def autoencoder(sizes: Sizes) -> Any:
    """An AutoencoderKL (Rombach et al. 2022)."""
    levels = len(sizes.autoencoder_channels)
    return import_diffusers().AutoencoderKL(
        sample_size=sizes.image_size, latent_channels=sizes.latent_channels, block_out_channels=sizes.autoencoder_channels,
        layers_per_block=sizes.layers_per_block, norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
    )  # fmt: skip


def text_encoder(sizes: Sizes, tokenizer: Any) -> Any:
    """A CLIPTextModel, trained with the U-Net from the captions alone."""
    transformers = import_transformers()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=sizes.text_dim, intermediate_size=4 * sizes.text_dim,
        num_hidden_layers=sizes.text_layers, num_attention_heads=sizes.heads, max_position_embeddings=sizes.text_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return transformers.CLIPTextModel(config)


def denoiser(sizes: Sizes) -> Any:
    """A UNet2DConditionModel, as of Stable Diffusion, with cross-attention at every resolution."""
    levels = len(sizes.denoiser_channels)
    side = sizes.image_size // 2 ** (len(sizes.autoencoder_channels) - 1)
    return import_diffusers().UNet2DConditionModel(
        sample_size=side, in_channels=sizes.latent_channels, out_channels=sizes.latent_channels, norm_num_groups=16,
        block_out_channels=sizes.denoiser_channels, layers_per_block=sizes.layers_per_block,
        cross_attention_dim=sizes.text_dim, attention_head_dim=sizes.heads,
        down_block_types=("CrossAttnDownBlock2D",) * levels, up_block_types=("CrossAttnUpBlock2D",) * levels,
    )  # fmt: skip


def scheduler(sizes: Sizes) -> Any:
    """The noise schedule of Stable Diffusion."""
    return import_diffusers().DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=sizes.prediction,
    )  # fmt: skip
