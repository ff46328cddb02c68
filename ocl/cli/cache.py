"""`ocl cache`: compute once, for a whole dataset, what the frozen encoder and autoencoder make of it; `ocl train` reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.progress import Progress

from ocl.cli import experiment as experiments
from ocl.cli.experiment import Experiment
from ocl.cli.options import add_device, command, device
from ocl.data import Dataset
from ocl.data.cache import Cache, Layout
from ocl.errors import ConfigError
from ocl.train import precompute, staleness
from ocl.train.setup import refuse_several


def main(argv: Sequence[str]) -> int:
    options = command("cache", "Compute features and latents of the training data once. Further options are those of the config.")
    options.add_argument("--out", type=Path, help="folder to write into; the same command goes on with one that was interrupted")
    options.add_argument("--storage", choices=["fp32", "fp16", "bf16", "int8"], default="fp16",
                         help="int8 keeps one scale per token, and latents in fp16")  # fmt: skip
    options.add_argument("--parts", nargs="+", choices=precompute.PARTS, help="default: all that is never trained")
    options.add_argument("--batch_size", type=int, default=16, help="images at once")
    options.add_argument("--workers", type=int, help="processes that read images; default training.workers")
    options.add_argument("--estimate", action="store_true", help="say how large and how long, and write nothing")
    add_device(options)
    words = ["--config", *argv] if argv and not argv[0].startswith("-") else list(argv)
    known, rest = options.parse_known_args(words)
    experiment = experiments.read(rest, prog="ocl cache", packages=known.packages)
    if known.out is None or known.batch_size < 1:
        raise ConfigError("ocl cache needs --out FOLDER and a --batch_size of at least 1.")
    refuse_several("ocl cache")
    place, data, training = device(known.device), experiment.data(), experiment.training

    parts = tuple(known.parts) if known.parts else None
    recipe = precompute.recipe_for(experiment.model(), parts, known.storage, mirrored=training.flip > 0)
    for part in recipe.parts.values():
        part.to(place).eval()
    fingerprint = precompute.fingerprint(_on_meta(experiment, tuple(recipe.parts)), data, data_config(experiment))
    layout, seconds = precompute.plan(recipe, data, batch_size=known.batch_size, device=place)
    print(_estimate(layout, seconds, place))
    if known.estimate:
        return 0
    missing = precompute.prepare(known.out, layout, fingerprint, state=precompute.state_of(recipe))
    total = sum(len(layout.shard(number)) for number in missing)
    with Progress(transient=True) as bar:
        task = bar.add_task("computing", total=total)
        precompute.write(
            known.out, recipe, data, layout, missing, batch_size=known.batch_size, device=place,
            workers=training.workers if known.workers is None else known.workers,
            progress=lambda done: bar.update(task, completed=done),
        )  # fmt: skip
    print(f"{known.out}: {', '.join(recipe.parts)} of {layout.samples} images; train with --training.cache {known.out}")
    return 0


def open_cache(experiment: Experiment, data: Dataset) -> Cache | None:
    """The cache that training.cache names, after a look at everything that files can tell; no weight is loaded.

    Raises DataError where it is missing, incomplete or stale.
    """
    training = experiment.training
    if training.cache is None:
        return None
    cache = Cache(training.cache)
    staleness.check(cache, experiment.model(device="meta"), data, data_config(experiment), flip=training.flip)
    return cache


def data_config(experiment: Experiment) -> dict[str, Any]:
    """Class and arguments of the training data as the resolved config spells them."""
    return dict(yaml.safe_load(experiment.text)["data"])


def _on_meta(experiment: Experiment, parts: tuple[str, ...]) -> precompute.Recipe:
    """The same parts without weights: a fingerprint must not depend on whether they were loaded."""
    return precompute.recipe_for(experiment.model(device="meta"), parts, "fp32", mirrored=False)


def _estimate(layout: Layout, seconds: float, place: torch.device) -> str:
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in layout.shapes.items() if shape)
    both = ", each also mirrored" if layout.orientations == 2 else ""
    return (
        f"{layout.samples} images{both}: {shapes}, {layout.storage}, {layout.sample_bytes / 2**20:.3g} MiB an image, "
        f"{layout.total_bytes / 2**30:.3g} GiB in {layout.num_shards} shards; about {_duration(seconds)} on {place.type}"
    )


def _duration(seconds: float) -> str:
    minutes, hours = math.ceil(seconds / 60), seconds / 3600
    return f"{math.ceil(seconds)} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{hours:.1f} h"
