"""One image with its ground truth, datasets of them, and how samples become a `Batch`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ocl.errors import ShapeError
from ocl.types import Batch


@dataclass(frozen=True)
class Sample:
    """One image as it lies in memory or on disk.

    image: uint8 [3, H, W]. instances, classes: int32 [H, W] or None (0 background, -1 ignore). key: a stable name.
    properties: what the dataset knows beyond masks (per-object shape, colour, ...), never needed for training.
    """

    image: Tensor
    instances: Tensor | None = None
    classes: Tensor | None = None
    key: str = ""
    caption: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)


class Dataset(torch.utils.data.Dataset[Sample], ABC):
    """Samples by number: the same number always gives the same sample, in any process."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size -> Batch; ground truth is kept where every sample has it."""
    sizes = {tuple(sample.image.shape) for sample in samples}
    if len(sizes) != 1:
        raise ShapeError(f"a batch needs images of one size, got {sorted(sizes)}; pass image_size=... to the dataset.")

    def stack(labels: list[Tensor | None]) -> Tensor | None:
        present = [value for value in labels if value is not None]
        return torch.stack(present) if len(present) == len(samples) else None

    return Batch(
        image=torch.stack([sample.image for sample in samples]).float() / 255,
        instances=stack([sample.instances for sample in samples]),
        classes=stack([sample.classes for sample in samples]),
        keys=tuple(sample.key for sample in samples),
    )
