"""Pictures that a latent-diffusion decoder draws from slots of held-out images: what `ocl demo` shows of it."""

from __future__ import annotations

from pathlib import Path

import torch

from ocl.data import Dataset
from ocl.data.sample import collate
from ocl.decoders import LatentDiffusion
from ocl.errors import ConfigError
from ocl.evaluate.inference import inference, slot_noise
from ocl.evaluate.report import Picture, Section
from ocl.generate import compose, drop, keep_only, named_generators, sample
from ocl.generate.sample import Sampler
from ocl.models import SlotAutoencoder
from ocl.types import Slots
from ocl.vis.grid import picture_grid
from ocl.vis.masks import hard_labels, overlay, paint
from ocl.vis.png import to_picture, write_png

TITLE = "Drawn from slots"


def gallery(
    model: SlotAutoencoder, data: Dataset, folder: Path, *, device: torch.device, images: int = 6, seed: int = 0,
    guidance: float = 2.0, steps: int = 20, sampler: Sampler = "dpm++",
) -> Section:  # fmt: skip
    """Writes reconstructions.png, compositions.png and edits.png into `folder`; returns them as a part of a report.

    The edit removes an object (`largest_object`). Raises ConfigError where the decoder does not draw from noise.
    """
    decoder = model.decoder
    if not isinstance(decoder, LatentDiffusion):
        raise ConfigError(f"a {type(decoder).__name__} does not draw from slots; only latent-diffusion decoders do.")
    batch = collate([data[number] for number in range(min(images, len(data)))]).to(device)
    size = (batch.image.shape[2], batch.image.shape[3])

    def draw(slots: Slots, names: list[str]) -> list[torch.Tensor]:
        noise = named_generators(names, seed=seed)
        return list(sample(decoder, slots, size, steps=steps, guidance=guidance, sampler=sampler, generator=noise).cpu())

    names = list(batch.keys)
    with inference(model.to(device)):
        slots = model.encode(batch.image, noise=slot_noise(model.init, batch.keys, seed=seed).to(device))[1]
        whole = draw(slots, names)
        alone = [draw(keep_only(slots, slot), names) for slot in range(slots.vectors.shape[1])]
        mixed = draw(compose(slots, "columns"), [f"composition {name}" for name in names])
        edited, removed = [], [largest_object(slots.part(slice(n, n + 1))) for n in range(len(names))]
        for number, name in enumerate(names):
            edited += draw(drop(slots.part(slice(number, number + 1)), removed[number]), [name])
    pictures, again = ([to_picture(image) for image in part] for part in (batch.image, whole))
    masks = [paint(labels.numpy()) for labels in hard_labels(slots.maps().cpu(), size)]
    places = [overlay(picture, mask) for picture, mask in zip(pictures, masks, strict=True)]
    each = [[to_picture(one[number]) for one in alone] for number in range(len(names))]
    rows = [[a, b, c, *more] for a, b, c, more in zip(pictures, places, again, each, strict=True)]
    gone = ", ".join(map(str, removed))
    grids = {
        "reconstructions": (rows, "Each row: an image, its slots, drawn from all of them, and from each slot alone."),
        "compositions": ([pictures, [to_picture(image) for image in mixed]],
                         "Above: images. Below: scenes that take slot k from the image k places further on."),
        "edits": ([pictures, again, [to_picture(image) for image in edited]],
                  f"Images; drawn from all their slots; drawn again without one of them (slots {gone})."),
    }  # fmt: skip
    shown = []
    for name, (lines, caption) in grids.items():
        grid = picture_grid(lines)
        write_png(folder / f"{name}.png", grid)
        shown.append(Picture(grid, caption))
    text = f"{sampler}, {steps} steps, guidance {guidance:g}; the noise of a picture follows from its name."
    return Section(TITLE, [text], pictures=shown)


def largest_object(slots: Slots, *, least: float = 0.01, most: float = 0.2) -> int:
    """The slot of one image [1, K, ...] that holds the most cells, among those with at least and at most such shares of them.

    More is taken for ground, less for nothing; where all hold more, the smallest of them.
    """
    num_slots = slots.attn.shape[1]
    share = slots.attn[0].argmax(dim=0).bincount(minlength=num_slots) / slots.attn.shape[2]
    preferred = torch.where(share <= most, share, -share)
    return int(torch.where(share >= least, preferred, -torch.inf).argmax())
