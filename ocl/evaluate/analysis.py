"""Looking into a latent-diffusion decoder: where its attention goes, what its slots draw alone, what they tell about the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ocl.data.loader import evaluation_batches
from ocl.data.sample import Dataset
from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion.decoder import drop_slots
from ocl.errors import ConfigError, DataError
from ocl.evaluate.entanglement import living_slots, mixing, recognised, spill
from ocl.evaluate.inference import inference, slot_noise
from ocl.evaluate.information import denoising_errors, nats, spread_levels
from ocl.generate import drop, keep_only, named_generators, sample
from ocl.models.autoencoder import SlotAutoencoder
from ocl.nn.draws import generators, normal
from ocl.types import Slots
from ocl.vis.png import to_picture

BASELINES = ("swapped", "dropped")
SHOWN = 8  # images whose drawings are kept to be looked at


@dataclass(frozen=True)
class Analysis:
    """What `analyse` found for I images at T noise levels, from most to least noise.

    keys: the images. time, log_snr: what the denoiser is told, and log(signal^2 / noise^2), of each level.
    attention: layer -> mass on each slot, mean over queries and heads, [T, I, K]; 1 - sum over K went to the registers.
    num_registers: how many; 0 where slots are all there is to attend to.
    gaps: baseline -> |eps - eps_hat|^2 under it minus that under the image's own slots, [T, I]; "swapped" are all slots of the
        next image, "dropped" no slots (registers alone). nats: its integral, [I].
    shares: what the picture drawn from each slot alone shows of each slot, [I, K, K]; living: slots that own pixels, [I, K].
    mixing [I] and spill [I, K]: entanglement of single-slot pictures, and of pictures without one slot; NaN where undefined.
    drawings: for the first images: the image, drawn from all slots, and from each alone, as uint8 [H, W, 3].
    """

    keys: tuple[str, ...]
    time: tuple[float, ...]
    log_snr: tuple[float, ...]
    attention: Mapping[str, Tensor]
    num_registers: int
    gaps: Mapping[str, Tensor]
    nats: Mapping[str, Tensor]
    shares: Tensor
    living: Tensor
    mixing: Tensor
    spill: Tensor
    drawings: tuple[tuple[np.ndarray, ...], ...]


@dataclass(frozen=True)
class _Seen:
    """Some of the images with everything that was read from them: images, slots, the noise these started from, clean latents."""

    keys: tuple[str, ...]
    image: Tensor
    slots: Slots
    noise: Tensor
    clean: Tensor
    draws: Sequence[torch.Generator]


def analyse(
    model: SlotAutoencoder,
    dataset: Dataset,
    *,
    images: int = 8,
    timesteps: int = 8,
    steps: int = 20,
    guidance: float = 2.0,
    batch_size: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Analysis:
    """Look at the first `images` of a dataset, at `timesteps` noise levels at equal distances of log-SNR.

    steps, guidance: of the sampler (DPM-Solver++) that draws. All noise of an image follows from `seed` and its key, so that the
    result does not depend on batch_size. progress: called with the number of images done.
    Raises ConfigError for another decoder than LatentDiffusion, for fewer than two images (slots are swapped between them), or
    for one slot; DataError where the dataset holds fewer than two.
    """
    decoder = model.decoder
    if not isinstance(decoder, LatentDiffusion):
        raise ConfigError(f"the model has a {type(decoder).__name__}; an analysis looks into latent-diffusion decoders only.")
    if images < 2 or model.init.num_slots < 2:
        raise ConfigError(f"an analysis compares images and slots: it needs two of each, got {images} and {model.init.num_slots}.")
    model.to(device)
    levels = spread_levels(decoder.schedule, timesteps)
    with inference(model):
        seen = list(_read(model, decoder, dataset, images, batch_size, seed, device))
        keys = tuple(key for part in seen for key in part.keys)
        if len(keys) < 2:
            raise DataError(f"{type(dataset).__name__} holds {len(keys)} images that can be read; an analysis needs two or more.")
        done, denoised, drawn = 0, [], []
        for part, other in zip(seen, _next_image(seen), strict=True):
            none = drop_slots(part.slots, torch.zeros(len(part.keys), dtype=torch.bool, device=part.clean.device))
            given = {"own": part.slots, "swapped": other, "dropped": none}
            denoised.append(denoising_errors(decoder, part.clean, given, levels, part.draws, record="own"))
            drawn.append(_draw(model, decoder, part, steps=steps, guidance=guidance, seed=seed, show=max(SHOWN - done, 0)))
            done += len(part.keys)
            if progress is not None:
                progress(done)
    log_snr = decoder.schedule.log_snr()[levels].cpu()
    gaps = {name: torch.cat([errors[name] - errors["own"] for errors, _ in denoised], dim=1) for name in BASELINES}
    shares, living, spills, drawings = zip(*drawn, strict=True)
    registers = getattr(decoder.conditioner, "registers", None)
    return Analysis(
        keys=keys,
        time=tuple(decoder.schedule.time[levels].tolist()),
        log_snr=tuple(log_snr.tolist()),
        attention={name: torch.cat([mass[name] for _, mass in denoised], dim=1) for name in denoised[0][1]},
        num_registers=0 if registers is None else len(registers()),
        gaps=gaps,
        nats={name: nats(gap.mT, log_snr) for name, gap in gaps.items()},
        shares=torch.cat(shares),
        living=torch.cat(living),
        mixing=mixing(torch.cat(shares), torch.cat(living)),
        spill=torch.cat(spills),
        drawings=tuple(row for rows in drawings for row in rows),
    )


def _read(
    model: SlotAutoencoder, decoder: LatentDiffusion, dataset: Dataset, images: int, batch_size: int, seed: int,
    device: torch.device | str,
) -> Iterator[_Seen]:  # fmt: skip
    count = 0
    for batch in evaluation_batches(dataset, batch_size=batch_size, limit=images):
        keys = tuple(key or str(number) for number, key in enumerate(batch.keys or [""] * len(batch), start=count))
        count += len(keys)
        image, noise = batch.image.to(device), slot_noise(model.init, keys, seed=seed).to(device)
        draws = generators(keys, seed=seed, purpose="analysis")
        shape = (len(keys), decoder.autoencoder.channels, *decoder.autoencoder.size((image.shape[2], image.shape[3])))
        clean = decoder.autoencoder.encode(image, normal(shape, draws, device=image.device))
        yield _Seen(keys, image, model.encode(image, noise=noise)[1], noise, clean, draws)


def _next_image(seen: Sequence[_Seen]) -> Iterator[Slots]:
    """For each part, the slots of the image after each of its images; after the last comes the first."""
    vectors = torch.cat([part.slots.vectors for part in seen]).roll(-1, dims=0)
    for part, own in zip(seen, vectors.split([len(part.keys) for part in seen]), strict=True):
        yield replace(part.slots, vectors=own)


def _draw(
    model: SlotAutoencoder, decoder: LatentDiffusion, seen: _Seen, *, steps: int, guidance: float, seed: int, show: int
) -> tuple[Tensor, Tensor, Tensor, list[tuple[np.ndarray, ...]]]:
    """(shares [B, K, K], living [B, K], spill [B, K], rows of pictures) of some images."""
    size = (seen.image.shape[2], seen.image.shape[3])
    labels, living = living_slots(seen.slots.maps(), size)

    def drawn(slots: Slots) -> Tensor:
        draws = named_generators(seen.keys, seed=seed)
        return sample(decoder, slots, size, steps=steps, guidance=guidance, sampler="dpm++", generator=draws)

    def shown(picture: Tensor) -> Tensor:
        found = model.encode(picture, noise=seen.noise)[1]
        return recognised(seen.slots.vectors, found.vectors, living_slots(found.maps(), size)[0], living)

    numbers = range(seen.slots.vectors.shape[1])
    whole, alone = drawn(seen.slots), [drawn(keep_only(seen.slots, number)) for number in numbers]
    without = torch.stack([drawn(drop(seen.slots, number)) for number in numbers], dim=1)
    shares = torch.stack([shown(picture) for picture in alone], dim=1)
    rows = [
        tuple(to_picture(picture[index]) for picture in (seen.image, whole, *alone)) for index in range(min(show, len(seen.keys)))
    ]
    return shares.cpu(), living.cpu(), spill(whole, without, labels).cpu(), rows
