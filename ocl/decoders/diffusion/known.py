"""Shapes of published pipelines, so that a model can be built on the meta device without network or weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SD_BLOCKS = {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
}
_UNET_1 = {"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_UNET_2 = {"_class_name": "UNet2DConditionModel", "sample_size": 96, "cross_attention_dim": 1024, "use_linear_projection": True,
           "attention_head_dim": [5, 10, 20, 20]}  # fmt: skip
_UNET_XL = {
    "_class_name": "UNet2DConditionModel", "sample_size": 128, "cross_attention_dim": 2048, "use_linear_projection": True,
    "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_VAE = {
    "_class_name": "AutoencoderKL", "sample_size": 512, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "latent_channels": 4,
}  # fmt: skip
_SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
              "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "steps_offset": 1,
              "clip_sample": False}  # fmt: skip


def _text(width: int, name: str = "CLIPTextModel") -> Mapping[str, Any]:
    return {"_class_name": name, "hidden_size": width, "max_position_embeddings": 77}


# hub id: part -> its config
KNOWN: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        "unet": {**_SD_BLOCKS, **_UNET_1}, "vae": _VAE, "scheduler": _SCHEDULER, "text_encoder": _text(768),
    },
    "stabilityai/stable-diffusion-2-1": {
        "unet": {**_SD_BLOCKS, **_UNET_2}, "vae": {**_VAE, "sample_size": 768},
        "scheduler": {**_SCHEDULER, "prediction_type": "v_prediction"}, "text_encoder": _text(1024),
    },
    "stabilityai/stable-diffusion-2-1-base": {
        "unet": {**_SD_BLOCKS, **_UNET_2, "sample_size": 64}, "vae": _VAE, "scheduler": _SCHEDULER, "text_encoder": _text(1024),
    },
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "unet": _UNET_XL, "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025}, "scheduler": _SCHEDULER,
        "text_encoder": _text(768), "text_encoder_2": _text(1280, "CLIPTextModelWithProjection"),
    },
}  # fmt: skip


# Denoisers with joint attention, which slots cannot reach yet, by their published configs: name -> (class, config). `ocl plan
# --denoiser` counts what they would cost.
JOINT: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sd3-medium": (
        "SD3Transformer2DModel",
        {"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24, "attention_head_dim": 64,
         "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
         "pos_embed_max_size": 192},
    ),
}  # fmt: skip
