"""A text-to-image generator of drawn scenes from nothing: an autoencoder, then a latent denoiser that listens to captions.

The result is a folder in the layout of diffusers, so whatever takes Stable Diffusion takes it: `coda(weights=folder)`, or
`diffusers.StableDiffusionPipeline.from_pretrained(folder)`. Latent diffusion: Rombach et al. 2022.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ocl.data.scenes import Level, Scenes
from ocl.decoders.diffusion.pipeline import import_diffusers
from ocl.decoders.diffusion.schedule import NoiseSchedule
from ocl.errors import CheckpointError, ConfigError
from ocl.pretrain import parts
from ocl.pretrain.loop import fit_stage
from ocl.pretrain.parts import Sizes
from ocl.pretrain.stages import AutoencoderStage, DenoiserStage
from ocl.pretrain.vocabulary import scene_tokenizer
from ocl.train.files import replace_text, sync
from ocl.train.options import Training

PIPELINE = "pipeline"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `ocl pretrain scenes` makes.

    Args:
        levels: levels of difficulty of the scenes, in equal shares.
        scenes: how many scenes of the train split to learn from; they are drawn first and kept in memory.
        sizes: how large the parts are.
        autoencoder: training of the autoencoder.
        denoiser: training of U-Net and text encoder.
        kl_weight: weight of the divergence in the autoencoder's loss.
        drop_rate: how likely a caption is dropped, for classifier-free guidance.
        half: keep the weights of the folder in float16, half as many bytes; they are computed with in float32.
    """

    levels: tuple[Level, ...] = ("plain",)
    scenes: int = 20_000
    sizes: Sizes = field(default_factory=Sizes)
    autoencoder: Training = field(default_factory=Training)
    denoiser: Training = field(default_factory=Training)
    kl_weight: float = 1e-6
    drop_rate: float = 0.1
    half: bool = True

    def __post_init__(self) -> None:
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise ConfigError(f"levels must name each level once, got {list(self.levels)}.")
        if self.scenes < len(self.levels):
            raise ConfigError(f"scenes must be at least the number of levels, got {self.scenes}.")
        if self.kl_weight < 0 or not 0 <= self.drop_rate < 1:
            raise ConfigError(f"kl_weight must be 0 or more and drop_rate in [0, 1), got {self.kl_weight} and {self.drop_rate}.")


@dataclass(frozen=True)
class Drawn:
    """Scenes in memory: uint8 images [N, 3, S, S] and their captions."""

    images: Tensor
    captions: tuple[str, ...]

    def pick(self, indices: Sequence[int]) -> tuple[Tensor]:
        """Images [B, 3, S, S] in [0, 1]."""
        return (self.images[torch.tensor(indices)].float() / 255,)


def draw(levels: Sequence[Level], count: int, *, image_size: int, split: str = "train") -> Drawn:
    """The first scenes of each level, `count` in all."""
    images = torch.empty(count, 3, image_size, image_size, dtype=torch.uint8)
    captions = []
    datasets = [Scenes(level, split, image_size) for level in levels]  # type: ignore[arg-type]
    for number in range(count):
        sample = datasets[number % len(datasets)][number // len(datasets)]
        images[number] = sample.image
        captions.append(sample.caption)
    return Drawn(images, tuple(captions))


def pretrain(recipe: Recipe, run: Path, *, device: str = "cpu") -> Path | str:
    """Train both stages into `run` and write `run/pipeline`. Killed and called again, it goes on where it stopped.

    Returns the folder, or the name of the signal that stopped training early. Raises CheckpointError where the folder is
    there already.
    """
    folder = run / PIPELINE
    if folder.exists():
        raise CheckpointError(f"{folder} exists already and is not overwritten; choose another run folder.")
    torch.manual_seed(recipe.denoiser.seed)
    sizes, tokenizer = recipe.sizes, scene_tokenizer(recipe.sizes.text_length)
    made: dict[str, Any] = {
        "vae": parts.autoencoder(sizes), "text_encoder": parts.text_encoder(sizes, tokenizer), "unet": parts.denoiser(sizes),
        "scheduler": parts.scheduler(sizes), "tokenizer": tokenizer,
    }  # fmt: skip
    drawn = draw(recipe.levels, recipe.scenes, image_size=sizes.image_size)

    first = AutoencoderStage(made["vae"], kl_weight=recipe.kl_weight)
    if stopped := fit_stage(first, drawn.pick, recipe.scenes, recipe.autoencoder, run=run / "autoencoder", device=device):
        return stopped
    mean, std = encode(made["vae"], drawn)
    scale = 1 / float((mean.var() + std.square().mean()).sqrt())
    made["vae"].register_to_config(scaling_factor=scale)

    tokens = tokenize(tokenizer, drawn.captions)
    schedule = NoiseSchedule(made["scheduler"].config)
    empty = tokenize(tokenizer, [""])[0]
    second = DenoiserStage(made["unet"], made["text_encoder"], schedule, empty=empty, drop_rate=recipe.drop_rate)

    def pick(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(indices)
        return (mean[chosen] + std[chosen] * torch.randn_like(mean[chosen])) * scale, tokens[chosen]

    if stopped := fit_stage(second, pick, recipe.scenes, recipe.denoiser, run=run / "denoiser", device=device):
        return stopped
    write(made, folder, half=recipe.half)
    return folder


@torch.no_grad()
def encode(vae: Any, drawn: Drawn, *, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every image's posterior, float32 [N, C, h, w]."""
    weights = next(vae.parameters())
    vae.eval()
    found = []
    for first in range(0, len(drawn.images), batch_size):
        (images,) = drawn.pick(range(first, min(first + batch_size, len(drawn.images))))
        posterior = vae.encode(2 * images.to(weights) - 1).latent_dist
        found.append((posterior.mean.cpu(), posterior.std.cpu()))
    mean, std = zip(*found, strict=True)
    return torch.cat(mean), torch.cat(std)


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token numbers [N, L], padded and cut to the tokenizer's length."""
    words = tokenizer(list(captions), padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    return torch.tensor(words.input_ids)


def write(made: Mapping[str, Any], folder: Path, *, half: bool) -> None:
    """The parts as a pipeline folder of diffusers: whole, or not at all."""
    diffusers = import_diffusers()
    temporary = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__}
    for name, part in sorted(made.items()):
        if isinstance(part, nn.Module):
            part = part.cpu().to(torch.float16 if half else torch.float32).eval()
        part.save_pretrained(temporary / name)
        library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
        index[name] = [library, type(part).__name__]
    index |= {name: [None, None] for name in ("safety_checker", "feature_extractor")}
    index["requires_safety_checker"] = False
    replace_text(temporary / "model_index.json", json.dumps(index, indent=2) + "\n")
    sync(temporary)
    temporary.rename(folder)
