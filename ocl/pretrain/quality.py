"""How good a generator is: what a right caption is worth to its denoiser, and pictures to look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocl.decoders.diffusion.latents import LatentAutoencoder
from ocl.decoders.diffusion.pipeline import import_diffusers, load_part, load_text_encoder, load_tokenizer, quiet_diffusers
from ocl.decoders.diffusion.schedule import NoiseSchedule
from ocl.pretrain.recipe import Drawn, tokenize
from ocl.train.seeding import mix


@torch.no_grad()
def caption_gain(folder: Path, scenes: Drawn, *, draws: int = 4, device: str = "cpu") -> Mapping[str, float]:
    """Mean squared error of the denoiser with the right caption, with that of another scene, and with none; and the
    autoencoder's mean squared error of pixels in [0, 1]. The same noise for all three, so that differences are not its luck."""
    weights = str(folder)
    vae = LatentAutoencoder(weights).to(device)
    unet = load_part(weights, "unet", expected=("UNet2DConditionModel",)).to(device).eval()
    text, tokenizer = load_text_encoder(weights, "text_encoder").to(device), load_tokenizer(weights, "tokenizer")
    schedule = NoiseSchedule.of(weights).to(device)

    def words(captions: list[str]) -> Tensor:
        return text(tokenize(tokenizer, captions).to(device)).last_hidden_state

    found: dict[str, list[float]] = {}
    count = len(scenes.captions)
    for start in range(0, count, 32):
        numbers = range(start, min(start + 32, count))
        image = scenes.pick(numbers)[0].to(device)
        others = [scenes.captions[(number + count // 2) % count] for number in numbers]
        told = {
            "right caption": words([scenes.captions[number] for number in numbers]), "wrong caption": words(others),
            "no caption": words([""] * len(numbers)),
        }  # fmt: skip
        clean = vae.encode(image, torch.zeros(len(numbers), vae.channels, *vae.size((image.shape[2], image.shape[3]))).to(device))
        found.setdefault("pixels", []).extend((vae.decode(clean) - image).square().mean((1, 2, 3)).tolist())
        for draw in range(draws):
            generator = torch.Generator().manual_seed(mix(start, draw))
            noise = torch.randn(clean.shape, generator=generator).to(device)
            level = torch.randint(schedule.num_levels, (len(clean),), generator=generator).to(device)
            noisy, target = schedule.add_noise(clean, noise, level), schedule.target(clean, noise, level)
            for name, context in told.items():
                error = (unet(noisy, schedule.time[level], context).sample - target).square().mean((1, 2, 3))
                found.setdefault(name, []).extend(error.tolist())
    return {name: sum(values) / len(values) for name, values in found.items()}


@torch.no_grad()
def reconstructed(folder: Path, images: Tensor) -> Tensor:
    """Images [N, 3, S, S] in [0, 1] through the autoencoder, without noise."""
    vae = LatentAutoencoder(str(folder))
    return vae.decode(vae.encode(images, torch.zeros(len(images), vae.channels, *vae.size((images.shape[2], images.shape[3])))))


@torch.no_grad()
def draw_captions(folder: Path, captions: list[str], *, guidance: float = 3.0, steps: int = 50, seed: int = 0) -> Tensor:
    """Pictures [N, 3, S, S] in [0, 1] that diffusers' own StableDiffusionPipeline makes of the folder and the captions."""
    with quiet_diffusers():
        pipeline: Any = import_diffusers().StableDiffusionPipeline.from_pretrained(str(folder), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(captions))]
    made = pipeline(captions, guidance_scale=guidance, num_inference_steps=steps, generator=generators, output_type="np")
    return torch.from_numpy(made.images).permute(0, 3, 1, 2)
