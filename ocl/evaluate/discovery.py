"""Object discovery: how well slot masks and decoder masks agree with ground truth, for a model and for baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ocl.data.loader import evaluation_batches
from ocl.data.sample import Dataset
from ocl.errors import ConfigError, DataError
from ocl.evaluate.baselines import BASELINES, Segmenter
from ocl.evaluate.inference import MaskSource, inference, masks_of, run
from ocl.evaluate.tally import Tally
from ocl.models.autoencoder import SlotAutoencoder
from ocl.types import Batch
from ocl.vis.masks import hard_labels
from ocl.vis.panels import Example, examples


@dataclass(frozen=True)
class Discovery:
    """What `evaluate` found.

    scores: whose masks ("slots", "decoder") -> name with protocol ("mBO_i[coda]") -> value; NaN where nothing was scored.
    images: how many. error: mean over images of the decoder's mean squared error. table: for each image its key and its own
    scores ("decoder mBO_i[coda]"), None where a protocol does not score it. examples: the first images, for `ocl.vis.panel`.
    """

    scores: Mapping[str, Mapping[str, float]]
    images: int
    error: float
    table: tuple[Mapping[str, str | float | None], ...]
    examples: tuple[Example, ...]


def evaluate(
    model: SlotAutoencoder,
    dataset: Dataset,
    *,
    protocols: Sequence[str] = ("coda",),
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    masks: Sequence[MaskSource] = ("slots", "decoder"),
    num_examples: int = 8,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Discovery:
    """Score a model on the first `limit` images of a dataset (default: all).

    Masks are upsampled bilinearly to the size of the ground truth before the argmax. Instances and classes are scored where
    the dataset has them. Slots start from noise that follows from `seed` and an image's key alone, so that neither the batch
    size nor the other images change a score. progress: called with the number of images done.
    Raises DataError where there is no image or no ground truth, ConfigError where no mask asked for exists.
    """
    tallies = {source: Tally(protocols) for source in masks}
    keys: list[str] = []
    shown: list[Example] = []
    error = 0.0
    model.to(device)
    with inference(model):
        for batch in _scored_batches(dataset, batch_size, limit, workers):
            names = [key or str(number) for number, key in enumerate(batch.keys or [""] * len(batch), start=len(keys))]
            output = run(model, batch, names=names, seed=seed, device=device)
            for source, tally in tallies.items():
                soft = masks_of(output, source)
                if soft is not None:
                    tally.update(hard_labels(soft, (batch.image.shape[2], batch.image.shape[3])).cpu(), batch)
            keys += names
            error += float(output.decoding.error().double().sum())
            shown += examples(batch, output, limit=num_examples - len(shown))
            if progress is not None:
                progress(len(keys))
    scores: dict[str, Mapping[str, float]] = {source: found for source, tally in tallies.items() if (found := tally.compute())}
    if not scores:
        raise ConfigError(f"this model has no {' or '.join(masks)} masks to score; score those of its slots.")
    return Discovery(scores, len(keys), error / len(keys), _table(keys, tallies), tuple(shown))


def score_baselines(
    dataset: Dataset,
    *,
    protocols: Sequence[str] = ("coda",),
    baselines: Mapping[str, Segmenter] = BASELINES,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Scores of segmenters that learn nothing, on the images that `evaluate` scores: baseline -> name with protocol -> value.

    progress: called with the number of images done.
    """
    done = 0
    tallies = {name: Tally(protocols) for name in baselines}
    generators = {name: torch.Generator().manual_seed(seed) for name in baselines}
    for batch in _scored_batches(dataset, batch_size, limit, workers):
        for name, segmenter in baselines.items():
            tallies[name].update(segmenter(batch.image, generators[name]), batch)
        done += len(batch)
        if progress is not None:
            progress(done)
    return {name: tally.compute() for name, tally in tallies.items()}


def _scored_batches(dataset: Dataset, batch_size: int, limit: int | None, workers: int) -> Iterator[Batch]:
    """The batches to score. Raises DataError where there is nothing to score, or only for some of the images."""
    name, levels = type(dataset).__name__, set[tuple[bool, bool]]()
    for batch in evaluation_batches(dataset, batch_size=batch_size, limit=limit, workers=workers):
        levels.add((batch.instances is None, batch.classes is None))
        if levels == {(True, True)}:
            raise DataError(f"{name} has no ground truth to score; use `ocl segment` to look at the masks.")
        if len(levels) > 1:
            raise DataError(f"{name} has ground truth for some images only; leave the others out of what is scored.")
        yield batch
    if not levels:
        raise DataError(f"{name} holds no image that can be read; check it with `ocl data check`.")


def _table(keys: Sequence[str], tallies: Mapping[MaskSource, Tally]) -> tuple[Mapping[str, str | float | None], ...]:
    columns = {f"{source} {name}": values for source, tally in tallies.items() for name, values in tally.per_image().items()}
    return tuple(
        {"key": key} | {name: None if math.isnan(values[row]) else values[row] for name, values in columns.items()}
        for row, key in enumerate(keys)
    )
