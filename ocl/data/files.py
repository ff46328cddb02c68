"""Datasets made of files. A broken file is an error that names it, or, on request, a counted and reported skip."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Literal

from torch.utils.data import get_worker_info

from ocl.data.sample import Dataset, Sample
from ocl.data.transforms import Resize, fit, reindex
from ocl.errors import ConfigError, DataError

OnError = Literal["raise", "skip"]
SKIPPED = "skipped"  # the property of a sample that stands in for broken files: {name: reason}


class FileDataset(Dataset, ABC):
    """Samples read from files, resized to a square, with instance ids made contiguous after that (as published code does).

    image_size None keeps every image as it is. `properties["instance_ids"]` holds the ids as they were in the files: object k
    of the map is its entry k - 1. With on_error="skip" a broken sample is replaced by the next good one; `skipped` tells the
    name and the reason of each file met so far, and so does `properties["skipped"]` of the sample that took its place, which is
    how the loader learns of it from a worker process.
    """

    skipped: dict[str, str]

    def __init__(self, *, image_size: int | None, resize: Resize, on_error: OnError) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError(f'on_error must be "raise" or "skip", got {on_error!r}.')
        self.image_size = image_size
        self.resize: Resize = resize
        self.on_error: OnError = on_error
        self.skipped = {}

    @abstractmethod
    def name(self, index: int) -> str:
        """The stable name (key) of a sample, known without reading it."""

    @abstractmethod
    def read(self, index: int) -> Sample:
        """The sample as it lies on disk; DataError if it cannot be read."""

    def __getitem__(self, index: int) -> Sample:
        total = len(self)
        if not -total <= index < total:
            raise IndexError(f"{type(self).__name__} holds {total} samples, got index {index}.")
        index %= total
        return self._load(index) if self.on_error == "raise" else self._next_good(index)

    def _next_good(self, index: int) -> Sample:
        broken: dict[str, str] = {}
        for candidate in chain(range(index, len(self)), range(index)):
            try:
                sample = self._load(candidate)
            except DataError as error:
                broken[self.name(candidate)] = str(error)
                continue
            report_skipped(self.skipped, broken)
            return replace(sample, properties={**sample.properties, SKIPPED: broken}) if broken else sample
        reason = next(iter(broken.values()))
        raise DataError(f"none of the {len(self)} samples can be read, so none can be skipped; the first: {reason}")

    def _load(self, index: int) -> Sample:
        sample = self.read(index)
        if self.image_size is not None:
            sample = fit(sample, image_size=self.image_size, resize=self.resize)
        if sample.instances is None:
            return sample
        instances, ids = reindex(sample.instances)
        return replace(sample, instances=instances, properties={**sample.properties, "instance_ids": ids})


def report_skipped(record: dict[str, str], broken: Mapping[str, str]) -> None:
    """Add `broken` to `record`, with one warning for each new name. Worker processes are silent: the main process reports."""
    for name, reason in broken.items():
        if name not in record:
            record[name] = reason
            if get_worker_info() is None:
                warnings.warn(f"skipped {name} ({len(record)} so far): {reason}", stacklevel=2)
