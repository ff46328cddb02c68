"""Decoded samples kept in memory, for datasets that are small or slow to read."""

from __future__ import annotations

from typing import final

from torch.utils.data import get_worker_info

from ocl.data.order import ENDLESS
from ocl.data.sample import Dataset, Sample
from ocl.errors import ConfigError


@final
class InMemory(Dataset):
    """Any finite dataset; each sample is read once and kept as it was given (images uint8, labels int32).

    Meant for workers=0: a worker process would fill a memory of its own, so there nothing new is kept.
    The samples are shared, not copied: do not change them in place.

    Args:
        dataset: the samples to keep.
    """

    def __init__(self, dataset: Dataset) -> None:
        if len(dataset) >= ENDLESS:
            raise ConfigError(f"InMemory cannot hold {type(dataset).__name__}, which is endless; give it a length.")
        self.dataset = dataset
        self.skipped: dict[str, str] = getattr(dataset, "skipped", {})
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        index = index + len(self) if index < 0 else index
        if index in self._kept:
            return self._kept[index]
        sample = self.dataset[index]
        if get_worker_info() is None:
            self._kept[index] = sample
        return sample

    @property
    def kept_bytes(self) -> int:
        """Bytes of the tensors kept so far."""
        return sum(_bytes(sample) for sample in self._kept.values())

    def estimated_bytes(self) -> int:
        """Bytes once every sample is kept, judged by those kept so far (reads the first if there is none)."""
        if not self._kept:
            self[0]
        return self.kept_bytes * len(self) // len(self._kept)


def _bytes(sample: Sample) -> int:
    tensors = (sample.image, sample.instances, sample.classes)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
