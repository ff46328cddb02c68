"""Features and latents of a dataset, computed once (`ocl cache`) and read instead of computed again.

    index.json                   what was cached, of which data and weights, and how it lies in the shards
    shard-00000.safetensors ...  the same number of samples each, in the order of the dataset; the last one may hold fewer

A shard carries its name only when it is complete, and tensors are read from it entry by entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ocl.data.fingerprint import checksum
from ocl.data.storage import SCALE, Storage, unpack
from ocl.errors import DataError
from ocl.types import Features, Moments

INDEX = "index.json"
FORMAT = 1
TOKENS, MEAN, STD, CHECKSUM = "tokens", "mean", "std", "checksum"


@dataclass(frozen=True)
class Layout:
    """How entries lie in the shards. An entry is one sample in one orientation; `shapes` are those of one entry.

    orientations: 1 as the dataset gives the image, 2 its mirror image as well. grid: (h, w) of the tokens, where there are any.
    sample_bytes: what a sample takes in all its orientations.
    """

    samples: int
    per_shard: int
    orientations: int
    sample_bytes: int
    storage: Storage
    shapes: Mapping[str, tuple[int, ...]]
    grid: tuple[int, int] | None

    @property
    def total_bytes(self) -> int:
        return self.samples * self.sample_bytes

    @property
    def num_shards(self) -> int:
        return -(-self.samples // self.per_shard)

    def shard(self, number: int) -> range:
        """Indices of the samples in one shard."""
        return range(number * self.per_shard, min((number + 1) * self.per_shard, self.samples))

    def to_json(self) -> dict[str, Any]:
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {**vars(self), "shapes": shapes, "grid": None if self.grid is None else list(self.grid)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        shapes = {str(name): tuple(map(int, shape)) for name, shape in values["shapes"].items()}
        grid = values["grid"] and (int(values["grid"][0]), int(values["grid"][1]))
        numbers = {name: int(values[name]) for name in ("samples", "per_shard", "orientations", "sample_bytes")}
        return cls(**numbers, storage=values["storage"], shapes=shapes, grid=grid)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def read_index(folder: Path) -> tuple[Layout, dict[str, Any]]:
    """Layout and fingerprint of a cache, complete or not. Raises DataError where there is none."""
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{folder} holds no cache ({INDEX} is missing); write one with `ocl cache --config CONFIG --out {folder}`.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise DataError(f"{path} has format {found['format']}, this version reads {FORMAT}; write the cache again.")
        return Layout.from_json(found["layout"]), dict(found["fingerprint"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is damaged ({reason}); remove the folder and write the cache again.") from error


@final
class Cache:
    """A complete cache, open for reading, here and in worker processes. Raises DataError where shards are missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layout, self.fingerprint = read_index(folder)
        missing = [n for n in range(self.layout.num_shards) if not shard_path(folder, n).is_file()]
        if missing:
            raise DataError(
                f"the cache {folder} is not complete: {len(missing)} of {self.layout.num_shards} shards are missing "
                f"({shard_path(folder, missing[0]).name}, ...); run the same `ocl cache` again, it goes on where it stopped."
            )
        self._open: dict[int, Any] = {}

    @property
    def has_features(self) -> bool:
        return TOKENS in self.layout.shapes

    @property
    def has_moments(self) -> bool:
        return MEAN in self.layout.shapes

    def check(self, index: int, image: Tensor) -> None:
        """Raises DataError where the image of a sample, not mirrored, is another one than when the cache was written."""
        kept = int(self._read(index, 0, [CHECKSUM])[CHECKSUM])
        if kept != checksum(image):
            raise DataError(
                f"sample {index} is another image than the one in the cache {self.folder}; the cache is stale: write it again."
            )

    def features(self, entries: Sequence[tuple[int, bool]]) -> Features | None:
        """Of (index, mirrored) entries, float32 on the CPU; None where the cache holds none."""
        if not self.has_features or self.layout.grid is None:
            return None
        return Features(torch.stack([self._entry(TOKENS, *entry) for entry in entries]), self.layout.grid)

    def moments(self, entries: Sequence[tuple[int, bool]]) -> Moments | None:
        """The same of the latents."""
        if not self.has_moments:
            return None
        mean = torch.stack([self._entry(MEAN, *entry) for entry in entries])
        return Moments(mean, torch.stack([self._entry(STD, *entry) for entry in entries]) if STD in self.layout.shapes else None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}  # each process opens the files for itself

    def _entry(self, name: str, index: int, mirrored: bool) -> Tensor:
        if mirrored and self.layout.orientations < 2:
            raise DataError(f"the cache {self.folder} holds no mirrored images; write it with training.flip above 0.")
        stored = [name, name + SCALE] if f"{name}{SCALE}" in self.layout.shapes else [name]
        return unpack(name, self._read(index, int(mirrored), stored))

    def _read(self, index: int, orientation: int, names: Sequence[str]) -> dict[str, Tensor]:
        number, place = divmod(index, self.layout.per_shard)
        path = shard_path(self.folder, number)
        try:
            if number not in self._open:
                self._open[number] = safe_open(path, "pt")
            # A slice of one, not a number: safetensors then copies one entry and not the shard.
            found = {name: self._open[number].get_slice(name)[place : place + 1, orientation : orientation + 1] for name in names}
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read ({error}); remove it and run the same `ocl cache` again.") from error
        return {name: value[0, 0] for name, value in found.items()}
