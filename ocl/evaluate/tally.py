"""Segmentation scores at every level of ground truth that a dataset has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from ocl.metrics import Segmentation
from ocl.metrics.segmentation import Level
from ocl.types import Batch


@final
class Tally:
    """One `Segmentation` for instances and one for classes, each as soon as a batch has such ground truth."""

    def __init__(self, protocols: Sequence[str]) -> None:
        self._protocols = tuple(protocols)
        self._metrics: dict[Level, Segmentation] = {}

    def update(self, pred: Tensor, batch: Batch) -> None:
        """Count a batch; pred: integer labels [B, H, W] on the device of the ground truth."""
        levels: list[tuple[Level, Tensor | None]] = [("instances", batch.instances), ("classes", batch.classes)]
        for level, true in levels:
            if true is not None:
                self._metrics.setdefault(level, Segmentation(self._protocols, level)).update(pred, batch)

    def compute(self) -> dict[str, float]:
        """Name with level and protocol -> value over all images; empty before the first update."""
        return {name: value for metric in self._metrics.values() for name, value in metric.compute().items()}

    def per_image(self) -> dict[str, list[float]]:
        """Name with level and protocol -> the score of each image, in the order of the updates."""
        return {name: values for metric in self._metrics.values() for name, values in metric.per_image().items()}
