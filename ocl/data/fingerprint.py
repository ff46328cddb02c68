"""What a dataset's images are, as a few values that change when the images do: its arguments, its names, some pixels."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ocl.data.files import FileDataset
from ocl.data.memory import InMemory
from ocl.data.order import ENDLESS
from ocl.data.sample import Dataset
from ocl.errors import ConfigError

PROBES = 8
_PLACES = ("root",)  # where a dataset lies may change; what lies there may not


def dataset_fingerprint(dataset: Dataset, config: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values that are equal where both the recipe and the images are.

    config: class_path and init_args of the dataset. Its `root` is left out: a copy elsewhere is the same data. The names of
    all samples and the pixels of a few, as the dataset gives them after its transforms, are compared in its place; every
    other image is compared when it is used (`checksum`). Raises ConfigError for an endless dataset.
    """
    if len(dataset) >= ENDLESS:
        raise ConfigError(f"{type(dataset).__name__} is endless and cannot be cached; give it a size, such as --data.size 20000.")
    indices = sorted({round(place * (len(dataset) - 1) / (PROBES - 1)) for place in range(PROBES)})
    return {
        "samples": len(dataset),
        "config": _without_places(config),
        "names": _names(dataset),
        "images": {str(index): image_digest(dataset[index].image) for index in indices},
    }


def checksum(image: Tensor) -> int:
    """CRC-32 of the bytes of a uint8 image."""
    return zlib.crc32(image.contiguous().numpy().tobytes())


def image_digest(image: Tensor) -> str:
    """Size and checksum of an image."""
    assert image.dtype == torch.uint8
    return f"{'x'.join(map(str, image.shape))} {checksum(image):08x}"


def _names(dataset: Dataset) -> str | None:
    """A hash of all names in order, for datasets that know them without reading."""
    while isinstance(dataset, InMemory):
        dataset = dataset.dataset
    if not isinstance(dataset, FileDataset):
        return None
    found = hashlib.sha256()
    for index in range(len(dataset)):
        found.update(dataset.name(index).encode("utf-8", "surrogateescape") + b"\0")
    return found.hexdigest()


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_places(item) for key, item in value.items() if key not in _PLACES}
    return [_without_places(item) for item in value] if isinstance(value, list) else value
