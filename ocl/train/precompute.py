"""What frozen parts make of a whole dataset, computed once into a cache (`ocl.data.cache`) that training reads."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ocl.data import Dataset
from ocl.data.cache import CHECKSUM, FORMAT, INDEX, MEAN, STD, TOKENS, Layout, read_index, shard_path
from ocl.data.fingerprint import checksum, dataset_fingerprint
from ocl.data.loader import batches_of
from ocl.data.storage import Storage, pack
from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion.latents import LatentAutoencoder
from ocl.errors import ConfigError, DataError
from ocl.interfaces import Encoder
from ocl.models import SlotAutoencoder
from ocl.nn.fingerprint import differences, part_fingerprint, state_digest
from ocl.train.files import WRITE_ERRORS, replace_text, sync, write_tensors
from ocl.types import Batch

PARTS = ("features", "latents")
SHARD_BYTES = 256 * 2**20
STATE = "tensors in no file"


@dataclass(frozen=True)
class Recipe:
    """What is computed of each image, and how it is stored. Latents, which are small, are never stored in 8 bits."""

    encoder: Encoder | None
    autoencoder: LatentAutoencoder | None
    storage: Storage = "fp16"
    mirrored: bool = False

    @property
    def parts(self) -> dict[str, nn.Module]:
        found = {"features": self.encoder, "latents": self.autoencoder}
        return {name: part for name, part in found.items() if part is not None}

    @torch.no_grad()
    def compute(self, image: Tensor) -> tuple[dict[str, Tensor], tuple[int, int] | None]:
        """Images [B, 3, H, W] -> tensors [B, 1 or 2 orientations, ...] as they are stored, and the grid of the tokens."""
        views = [image, image.flip(-1)] if self.mirrored else [image]
        found = [self._compute_view(view) for view in views]
        return {name: torch.stack([each[name] for each, _ in found], dim=1) for name in found[0][0]}, found[0][1]

    def _compute_view(self, image: Tensor) -> tuple[dict[str, Tensor], tuple[int, int] | None]:
        found, grid = {}, None
        if self.encoder is not None:
            features = self.encoder(image)
            found, grid = pack(TOKENS, features.tokens, self.storage), features.grid
        if self.autoencoder is not None:
            moments = self.autoencoder.moments(image)
            storage: Storage = "fp16" if self.storage == "int8" else self.storage
            found |= pack(MEAN, moments.mean, storage)
            found |= {} if moments.std is None else pack(STD, moments.std, storage)
        return found, grid


def recipe_for(model: SlotAutoencoder, parts: tuple[str, ...] | None, storage: Storage, *, mirrored: bool) -> Recipe:
    """A recipe for the named parts, or for all that can be cached. Raises ConfigError, saying why, where one cannot."""
    reasons = {name: why_not(model, name) for name in PARTS}
    wanted = parts or tuple(name for name in PARTS if reasons[name] is None)
    refused = [f"{name} cannot be cached: {reasons[name]}" for name in wanted or PARTS if reasons[name] is not None]
    if refused:
        raise ConfigError("; ".join(refused) + ". Only what is never trained gives the same at every step.")
    autoencoder = model.decoder.autoencoder if "latents" in wanted and isinstance(model.decoder, LatentDiffusion) else None
    return Recipe(model.encoder if "features" in wanted else None, autoencoder, storage, mirrored)


def fingerprint(recipe: Recipe, dataset: Dataset, data_config: Mapping[str, Any]) -> dict[str, Any]:
    """Of data, settings and weights, as JSON values. The parts of the recipe may be on the meta device."""
    parts = {name: part_fingerprint(part) for name, part in recipe.parts.items()}
    return {"data": dataset_fingerprint(dataset, data_config), **parts}


def plan(recipe: Recipe, dataset: Dataset, *, batch_size: int, device: torch.device) -> tuple[Layout, float]:
    """How the cache will lie on disk, and the seconds it will take to compute, judged by the first images."""
    indices = range(min(batch_size, len(dataset)))
    started = time.perf_counter()
    image = next(iter(batches_of(dataset, [indices]))).image.to(device)
    reading = time.perf_counter() - started
    found, grid = recipe.compute(image[:1])  # the first call is slow: it reads weights and chooses kernels
    started = time.perf_counter()
    recipe.compute(image)
    seconds = (reading + time.perf_counter() - started) / len(indices)
    entry = sum(value.numel() * value.element_size() for value in found.values()) + 8
    shapes = {name: tuple(value.shape[2:]) for name, value in found.items()} | {CHECKSUM: ()}
    per_shard = max(1, min(SHARD_BYTES // entry, len(dataset)))
    layout = Layout(len(dataset), per_shard, 1 + recipe.mirrored, entry, recipe.storage, shapes, grid)
    return layout, seconds * len(dataset)


def prepare(folder: Path, layout: Layout, found: Mapping[str, Any], *, state: Mapping[str, str | None]) -> list[int]:
    """Begin a cache, or go on with one: writes its index, and returns which shards are missing.

    Raises DataError where the folder holds a cache of something else, or where the disk has too little room.
    """
    whole = {**found, STATE: dict(state)}
    if (folder / INDEX).is_file():
        old_layout, old = read_index(folder)
        changed = differences(old, whole) + differences(old_layout.to_json(), layout.to_json())
        if changed:
            reason = "; ".join(changed[:3])
            raise DataError(f"{folder} holds a cache of something else ({reason}); remove it, or pass another --out.")
    missing = [number for number in range(layout.num_shards) if not shard_path(folder, number).is_file()]
    _check_space(folder, layout, missing)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / INDEX).is_file():
        index = {"format": FORMAT, "layout": layout.to_json(), "fingerprint": whole}
        replace_text(folder / INDEX, json.dumps(index, indent=1) + "\n")
    return missing


def write(
    folder: Path, recipe: Recipe, dataset: Dataset, layout: Layout, shards: list[int], *,
    batch_size: int, device: torch.device, workers: int = 0, progress: Callable[[int], None] = lambda done: None,
) -> None:  # fmt: skip
    """Compute the given shards. Each is written beside its place, synced, and renamed: a shard that has its name is complete.

    progress: called with the number of images done. Raises DataError where the disk is full; complete shards stay.
    """
    chunks = {number: _chunks(layout.shard(number), batch_size) for number in shards}
    stream = batches_of(dataset, (chunk for number in shards for chunk in chunks[number]), workers=workers)
    done = 0
    for number in shards:
        rows: list[dict[str, Tensor]] = []
        for _ in chunks[number]:
            batch = next(stream)
            rows.append(_entries(recipe, layout, batch, device, number))
            done += len(batch)
            progress(done)
        _write_shard(folder, number, {name: torch.cat([row[name] for row in rows]) for name in rows[0]})
    for leftover in folder.glob(".writing-*"):
        if shards:
            leftover.unlink(missing_ok=True)


def state_of(recipe: Recipe) -> dict[str, str | None]:
    """Hashes of tensors that lie in no file, such as those of an encoder of your own; the parts must be real."""
    return {name: state_digest(part) for name, part in recipe.parts.items()}


def why_not(model: SlotAutoencoder, part: str) -> str | None:
    """Why a part of this model cannot be cached; None where it can."""
    if part == "latents":
        name = type(model.decoder).__name__
        return None if isinstance(model.decoder, LatentDiffusion) else f"the decoder {name} has no autoencoder"
    trained = any(parameter.requires_grad for parameter in model.encoder.parameters())
    return f"the encoder {type(model.encoder).__name__} is trained" if trained else None


def _chunks(indices: range, size: int) -> list[range]:
    return [indices[first : first + size] for first in range(0, len(indices), size)]


def _entries(recipe: Recipe, layout: Layout, batch: Batch, device: torch.device, number: int) -> dict[str, Tensor]:
    found, _ = recipe.compute(batch.image.to(device))
    for name, value in found.items():
        if tuple(value.shape[2:]) != layout.shapes[name]:
            raise DataError(
                f"shard {number}: {name} of {batch.keys[0]} have shape {list(value.shape[2:])}, those before "
                f"{list(layout.shapes[name])}; a cache needs images of one size, pass image_size=... to the dataset."
            )
    whole = (batch.image * 255).round().to(torch.uint8)
    return found | {CHECKSUM: torch.tensor([[checksum(image)] for image in whole])}


def _write_shard(folder: Path, number: int, tensors: Mapping[str, Tensor]) -> None:
    final = shard_path(folder, number)
    temporary = folder / f".writing-{final.name}"
    try:
        write_tensors(temporary, tensors)
        sync(temporary)
        os.replace(temporary, final)
        sync(folder)
    except WRITE_ERRORS as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{final} could not be written ({error}); complete shards are kept: free some space and run the same command again."
        ) from error


def _check_space(folder: Path, layout: Layout, missing: list[int]) -> None:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed = sum(len(layout.shard(number)) for number in missing) * layout.sample_bytes
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DataError(
            f"the cache needs {needed / 2**30:.1f} GiB and {place} has {free / 2**30:.1f} GiB free; pass --storage int8, "
            "--parts latents, or another --out."
        )

