"""A walk through a dataset that reads every sample and tells what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ocl.data.files import SKIPPED
from ocl.data.order import ENDLESS
from ocl.data.sample import Dataset, Sample
from ocl.errors import ConfigError, OCLError


@dataclass(frozen=True)
class CheckReport:
    """What a dataset holds. `str(report)` is text to print.

    images: samples that could be read. objects: instances in them, all together. empty: images with ground truth and no object.
    sizes: (height, width) -> number of images. problems: one line each; empty for a sound dataset.
    """

    images: int
    objects: int
    empty: int
    sizes: Mapping[tuple[int, int], int]
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        common = sorted(self.sizes.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{height} x {width} ({number})" for (height, width), number in common[:5])
        lines = [
            f"images   {self.images}",
            f"objects  {self.objects} ({self.empty} images without any)",
            f"sizes    {shown or 'none'}{f' and {len(common) - 5} more' if len(common) > 5 else ''}  (height x width)",
            f"problems {len(self.problems) or 'none'}",
        ]
        return "\n".join([*lines, *(f"  {problem}" for problem in self.problems)])


def check_dataset(dataset: Dataset, *, limit: int | None = None) -> CheckReport:
    """Read the first `limit` samples (default: all) and judge them; never raises for a broken sample."""
    if limit is None and len(dataset) >= ENDLESS:
        raise ConfigError(f"{type(dataset).__name__} is endless; pass limit=... to check a part of it.")
    images = objects = empty = 0
    sizes: Counter[tuple[int, int]] = Counter()
    keys: dict[str, int] = {}
    problems: dict[str, None] = {}  # in order, each once
    for index in range(len(dataset) if limit is None else min(limit, len(dataset))):
        try:
            sample = dataset[index]
        except OCLError as error:
            problems[str(error)] = None
            continue
        if SKIPPED in sample.properties:
            problems.update(dict.fromkeys(sample.properties[SKIPPED].values()))
            continue
        images += 1
        sizes[(sample.image.shape[-2], sample.image.shape[-1])] += 1
        problems.update(dict.fromkeys(f"sample {index} ({sample.key or 'no key'}): {flaw}" for flaw in _flaws(sample)))
        if sample.key and keys.setdefault(sample.key, index) != index:
            problems[f"sample {index} has the key {sample.key} of sample {keys[sample.key]}; keys must be unique"] = None
        if sample.instances is not None:
            found = int((torch.unique(sample.instances) > 0).sum())
            objects += found
            empty += found == 0
    return CheckReport(images, objects, empty, dict(sizes), tuple(problems))


def _flaws(sample: Sample) -> list[str]:
    image = sample.image
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        return [f"the image must be uint8 [3, H, W], got {image.dtype} {list(image.shape)}"]
    flaws, size = [], list(image.shape[1:])
    for name, labels in (("instances", sample.instances), ("classes", sample.classes)):
        if labels is None:
            continue
        if labels.dtype != torch.int32 or list(labels.shape) != size:
            flaws.append(f"{name} must be int32 {size} like the image, got {labels.dtype} {list(labels.shape)}")
        elif labels.numel() and labels.min() < -1:
            flaws.append(f"{name} must be -1 (ignored), 0 (background) or more, got {int(labels.min())}")
    if not flaws and sample.instances is not None and sample.classes is not None:
        classless = int(((sample.instances > 0) & (sample.classes == 0)).sum())
        if classless:
            flaws.append(f"{classless} pixels belong to an object (instances > 0) but to no class (classes == 0)")
    return flaws
