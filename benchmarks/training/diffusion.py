"""Latent-diffusion models of three sizes with random weights, and the published way to train and sample CODA, written plainly.

Published (sony/coda, commit 883a932): slots and the null prompt are concatenated for every image and go through the U-Net's own
cross-attention layers; a mask becomes an additive -10000; the contrastive error is a pass of its own, around which `requires_grad`
of the trained projections is switched off; encoder and autoencoder run at every step.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import LatentUNet, NullPrompt, SlotTokens
from ocl.decoders.diffusion.checkpointing import Checkpointing
from ocl.decoders.diffusion.known import KNOWN
from ocl.encoders import DINOv2
from ocl.models import SlotAutoencoder, coda
from ocl.slots import SlotAttention

REGISTERS, WEIGHT, RATE, DROP = 77, 0.05, 0.5, 0.1
SD15 = KNOWN["stable-diffusion-v1-5/stable-diffusion-v1-5"]


@dataclass(frozen=True)
class Size:
    """image: side in pixels. unet, vae, vit: configs of diffusers and transformers. vit_image: side the encoder sees."""

    image: int
    unet: dict[str, Any]
    vae: dict[str, Any]
    vit: dict[str, Any]
    vit_image: int
    slot_dim: int
    num_slots: int = 6


def _unet(side: int, channels: tuple[int, ...], layers: int, context: int) -> dict[str, Any]:
    cross = len(channels) - 1
    return {
        "sample_size": side, "block_out_channels": channels, "layers_per_block": layers, "cross_attention_dim": context,
        "attention_head_dim": 2, "norm_num_groups": 16,
        "down_block_types": ("CrossAttnDownBlock2D",) * cross + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * cross,
    }  # fmt: skip


def _vae(side: int, channels: tuple[int, ...], layers: int) -> dict[str, Any]:
    return {
        "sample_size": side, "block_out_channels": channels, "layers_per_block": layers, "latent_channels": 4, "norm_num_groups": 8,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels), "up_block_types": ("UpDecoderBlock2D",) * len(channels),
    }  # fmt: skip


def _vit(width: int, layers: int, heads: int, side: int) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": 14, "image_size": side}


# Autoencoder and encoder have about the same share of a step's operations as in Stable Diffusion 1.5 with DINOv2 base (28 %), and
# two heads (diffusers calls their number attention_head_dim) are about as wide as its eight.
SIZES = {
    "tiny": Size(64, _unet(16, (32, 64), 1, 64), _vae(64, (24, 48, 48), 1), _vit(96, 3, 4, 112), 112, 64),
    "mid": Size(256, _unet(32, (64, 128, 256), 2, 256), _vae(256, (32, 64, 128, 128), 1), _vit(192, 6, 4, 224), 224, 192),
    "full": Size(512, {**SD15["unet"]}, {**SD15["vae"]}, _vit(768, 12, 12, 518), 448, 768),
}


def write(folder: Path, size: Size) -> None:
    """A pipeline without text encoder, and a vision transformer, with random weights."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**{key: value for key, value in size.unet.items() if not key.startswith("_")})
    vae = diffusers.AutoencoderKL(**{key: value for key, value in size.vae.items() if not key.startswith("_")})
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
    parts = {"unet": unet, "vae": vae, "scheduler": diffusers.DDPMScheduler(**config)}
    index: dict[str, Any] = {"_class_name": "Pipeline", "_diffusers_version": diffusers.__version__}
    for name, part in parts.items():
        part.save_pretrained(folder / "pipeline" / name)
        index[name] = ["diffusers", type(part).__name__]
    (folder / "pipeline" / "model_index.json").write_text(json.dumps(index))
    transformers.Dinov2Model(transformers.Dinov2Config(**size.vit)).save_pretrained(folder / "vit")


def ours(folder: Path, size: Size, device: str, *, checkpointing: Checkpointing = False) -> SlotAutoencoder:
    """CODA over these weights; the same at every call."""
    torch.manual_seed(1)
    weights = str(folder / "pipeline")
    registers = NullPrompt.stored(torch.randn(REGISTERS, size.unet["cross_attention_dim"]))
    denoiser = LatentUNet(weights, checkpointing=checkpointing)
    decoder = LatentDiffusion(weights, denoiser=denoiser, conditioner=SlotTokens(registers), drop_rate=DROP)
    model = coda(num_slots=size.num_slots, slot_dim=size.slot_dim, decoder=decoder,
                 encoder=DINOv2(weights=str(folder / "vit"), image_size=size.vit_image))  # fmt: skip
    return model.to(device).train()


@dataclass(frozen=True)
class StepDraws:
    """Every random number of a training step."""

    slots: Tensor
    level: Tensor
    posterior: Tensor
    noise: Tensor
    kept: Tensor
    swap: Tensor

    @classmethod
    def make(cls, size: Size, batch: int, latent: int, device: str) -> StepDraws:
        generator = torch.Generator().manual_seed(2)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        kept = torch.rand(batch, generator=generator) >= DROP
        kept[0] = False  # the mask must matter
        return cls(
            slots=normal(batch // 2, size.num_slots, size.slot_dim).repeat(2, 1, 1),
            level=torch.randint(1000, (batch,), generator=generator).to(device),
            posterior=normal(batch, 4, latent, latent), noise=normal(batch, 4, latent, latent), kept=kept.to(device),
            swap=torch.rand(batch, size.num_slots, generator=generator).to(device),
        )  # fmt: skip


class Published:
    """The published formulation, with the weights of one of our models."""

    def __init__(self, model: SlotAutoencoder, folder: Path, size: Size, device: str) -> None:
        decoder: Any = model.decoder
        self.encoder, self.init, self.registers = model.encoder, model.init, decoder.conditioner.registers()
        self.vae, self.schedule = decoder.autoencoder.model.module, decoder.schedule
        self.slots = SlotAttention(model.encoder.width, size.slot_dim, out_dim=decoder.slot_dim, eps=1e-6, position=True,
                                   input_mlp=True, form="plain").to(device)  # fmt: skip
        self.slots.load_state_dict(model.slot_module.state_dict())
        self.unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "pipeline", subfolder="unet").to(device).eval()
        self.unet.requires_grad_(False)
        names = (".attn2.to_k.", ".attn2.to_v.", ".attn2.to_out.")
        self.trained = {name: value for name, value in self.unet.named_parameters() if any(part in name for part in names)}
        self._toggle(True)

    def loss(self, image: Tensor, draws: StepDraws) -> Tensor:
        with torch.no_grad():
            posterior = self.vae.encode(2 * image - 1).latent_dist
            clean = (posterior.mean + posterior.std * draws.posterior) * self.vae.config["scaling_factor"]
            features = self.encoder(image)
        slots = self.slots(features, self.init(len(image), noise=draws.slots)).vectors
        noisy, time = self.schedule.add_noise(clean, draws.noise, draws.level), self.schedule.time[draws.level]

        others = slots.roll(len(slots) // 2, 0)
        mixed = torch.where((draws.swap > RATE)[..., None], slots, others)
        self._toggle(False)
        wrong = self._predict(noisy, time, self._concatenated(mixed), None)
        self._toggle(True)
        context, mask = self._with_dropped(slots, draws.kept)
        right = self._predict(noisy, time, context, mask)
        errors = [(found.float() - draws.noise).square().mean(dim=(1, 2, 3)) for found in (right, wrong)]
        return errors[0].mean() - WEIGHT * errors[1].mean()

    def gradients(self) -> dict[str, Tensor]:
        """By the names of our model."""
        found = {f"decoder.denoiser.backbone.module.{name}": value.grad for name, value in self.trained.items()}
        found |= {f"slot_module.{name}": value.grad for name, value in self.slots.named_parameters()}
        found |= {f"init.{name}": value.grad for name, value in self.init.named_parameters()}
        return {name: value for name, value in found.items() if value is not None}

    def zero(self) -> None:
        for value in [*self.trained.values(), *self.slots.parameters(), *self.init.parameters()]:
            value.grad = None

    def guided(self, slots: Tensor, noise: Tensor, *, steps: int, guidance: float) -> Tensor:
        """DDIM with guidance: latents drawn from slots."""
        sampler = diffusers.DDIMScheduler.from_config(self.schedule.config)
        sampler.set_timesteps(steps, device=slots.device)
        nothing = torch.zeros(len(slots), dtype=torch.bool, device=slots.device)
        unconditional, mask = self._with_dropped(slots, nothing)
        context = torch.cat([unconditional, self._concatenated(slots)])
        mask = torch.cat([mask, torch.ones_like(mask)])
        latents = noise * sampler.init_noise_sigma
        for time in sampler.timesteps:
            twice = sampler.scale_model_input(torch.cat([latents, latents]), time)
            without, conditional = self._predict(twice, time.expand(len(twice)), context, mask).float().chunk(2)
            latents = sampler.step(without + guidance * (conditional - without), time, latents, return_dict=False)[0]
        return latents

    def _predict(self, noisy: Tensor, time: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        found: Tensor = self.unet(noisy, time, encoder_hidden_states=context, encoder_attention_mask=mask, return_dict=False)[0]
        return found

    def _concatenated(self, slots: Tensor) -> Tensor:
        return torch.cat([slots, self.registers.expand(len(slots), -1, -1).to(slots)], dim=1)

    def _with_dropped(self, slots: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Dropped images have the registers first, then zeros, which the mask hides."""
        registers = self.registers.expand(len(slots), -1, -1).to(slots)
        dropped = torch.cat([registers, torch.zeros_like(slots)], dim=1)
        context = torch.where(kept[:, None, None], self._concatenated(slots), dropped)
        shown = torch.arange(context.shape[1], device=slots.device) < REGISTERS
        return context, kept[:, None] | shown

    def _toggle(self, trained: bool) -> None:
        for value in self.trained.values():
            value.requires_grad_(trained)


def sizes_for(words: list[str] | None, *, device: str, quick: bool) -> list[str]:
    """Which sizes a run measures: the named ones, or tiny and mid, and full on a GPU."""
    if words:
        return words
    return ["tiny"] if quick else ["tiny", "mid"] if device == "cpu" else ["tiny", "mid", "full"]


def refuse(what: str, error: float) -> None:
    sys.exit(f"{what} differs by {error:.1e} of its size from the published formulation; no speed is reported for a wrong result")


def options(description: str | None, *, quick: str) -> argparse.ArgumentParser:
    """What benchmarks of these models have in common. quick: what is measured with --quick."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--quick", action="store_true", help=quick)
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--device", default="cpu")
    found.add_argument("--sizes", nargs="+", choices=list(SIZES))
    found.add_argument("--batches", nargs="+", type=int)
    found.add_argument("--precision", choices=["fp32", "bf16"], help="default fp32 on a CPU, bf16 on a GPU")
    found.add_argument("--out", type=Path)
    return found


def read(found: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, its precision decided; torch's threads are set."""
    known = found.parse_args()
    torch.set_num_threads(known.threads)
    known.precision = known.precision or ("fp32" if known.device == "cpu" else "bf16")
    return known


def keep(benchmark: str, known: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write --out, if asked for."""
    if known.out:
        said = {"threads": known.threads, "device": known.device, "precision": known.precision}
        known.out.write_text(json.dumps({"benchmark": benchmark, **said, "rows": rows}, indent=1) + "\n")
