"""What `ocl reconstruct`, `ocl compose` and `ocl edit` have in common: a run, a folder of images, options of the sampler."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ocl.cli.options import add_device, command, device, no_overrides, results
from ocl.cli.segment import trained_size
from ocl.cli.trained import source
from ocl.data import ImageFolder
from ocl.data.sample import collate
from ocl.decoders import LatentDiffusion
from ocl.errors import ConfigError
from ocl.evaluate.inference import inference, slot_noise
from ocl.evaluate.segment import output_names
from ocl.generate import named_generators, sample
from ocl.models import SlotAutoencoder
from ocl.train.compiling import compiled
from ocl.types import Slots
from ocl.vis.png import to_picture


@dataclass(frozen=True)
class Images:
    """A batch that was read and encoded: names, image [B, 3, H, W], its slots and the noise they started from."""

    names: tuple[str, ...]
    image: Tensor
    slots: Slots
    noise: Tensor


@dataclass(frozen=True)
class Drawing:
    """A trained model with a diffusion decoder, the images it is shown, and how it draws."""

    model: SlotAutoencoder
    decoder: LatentDiffusion
    images: ImageFolder
    out: Path
    options: argparse.Namespace
    place: torch.device

    def batches(self, size: int) -> Iterator[Images]:
        """The folder in order, `size` images at a time."""
        for start in range(0, len(self.images), size):
            yield self.read(range(start, min(start + size, len(self.images))))

    def read(self, numbers: Sequence[int]) -> Images:
        batch = collate([self.images[number] for number in numbers]).to(self.place)
        noise = slot_noise(self.model.init, batch.keys, seed=self.options.seed).to(self.place)
        return Images(batch.keys, batch.image, self.model.encode(batch.image, noise=noise)[1], noise)

    def outputs(self) -> dict[str, str]:
        """What to call the output of each image: its path without suffix, or a longer one where two share that."""
        return output_names(self._names())

    def number(self, name: str) -> int:
        """Position of the image of this name. Raises ConfigError where there is none."""
        names = self._names()
        if name not in names:
            raise ConfigError(f"{self.images.root} holds no image {name}; it holds {', '.join(names[:5])}, ....")
        return names.index(name)

    def draw(self, slots: Slots, names: Sequence[str]) -> list[np.ndarray]:
        """Pictures of slots; the noise of each follows from its name and --seed."""
        given = self.options
        size = (given.image_size, given.image_size)
        images = sample(self.decoder, slots, size, steps=given.steps, guidance=given.guidance, sampler=given.sampler,
                        generator=named_generators(names, seed=given.seed))  # fmt: skip
        return [to_picture(image) for image in images]

    def _names(self) -> list[str]:
        return [self.images.name(number) for number in range(len(self.images))]


def drawing_options(name: str, description: str) -> argparse.ArgumentParser:
    """The options that all three commands share."""
    options = command(name, description)
    options.add_argument("run", type=Path, help="run folder, checkpoint or folder in the hub's layout; with a diffusion decoder")
    options.add_argument("images", type=Path, help="folder of images, searched recursively; the centre square is used")
    options.add_argument("--out", type=Path, help=f"folder to write; default RUN/{name}/NAME of the image folder")
    options.add_argument("--image_size", type=int, help="side of the square that is read and drawn; default as trained")
    options.add_argument("--steps", type=int, default=50, help="steps of the sampler")
    options.add_argument("--guidance", type=float, default=2.0, help="1 for none; registers alone are the unconditional branch")
    options.add_argument("--sampler", choices=["ddim", "dpm++"], default="ddim")
    options.add_argument("--batch_size", type=int, default=8, help="images drawn at once; changes nothing but speed")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: by autocast")
    options.add_argument("--channels_last", action="store_true", help="memory layout of convolutions, for speed")
    options.add_argument("--compile", action="store_true", help="torch.compile the denoiser: pays from some hundred images on")
    add_device(options)
    return options


@contextmanager
def drawing(options: argparse.ArgumentParser, argv: Sequence[str]) -> Iterator[Drawing]:
    """The run's model in evaluation mode. Raises ConfigError where its decoder does not draw images from noise."""
    known, words = options.parse_known_args(argv)
    no_overrides(options.prog, words)
    if known.batch_size < 1:
        raise ConfigError(f"{options.prog}: --batch_size must be 1 or more, got {known.batch_size}.")
    origin = source(known.run, prog=options.prog, packages=known.packages)
    known.image_size = known.image_size or trained_size(origin.text)
    images = ImageFolder(known.images, known.image_size)
    model, _ = origin.load()
    if not isinstance(model.decoder, LatentDiffusion):
        raise ConfigError(f"{known.run} has a {type(model.decoder).__name__}; only latent-diffusion decoders draw from slots.")
    place = device(known.device)
    if known.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if known.compile:
        compiled(model, "denoiser")
    out = known.out or results(known.run, options.prog.removeprefix("ocl ")) / known.images.resolve().name
    with inference(model.to(place)), torch.autocast(place.type, torch.bfloat16, enabled=known.precision == "bf16"):
        yield Drawing(model, model.decoder, images, out, known, place)
