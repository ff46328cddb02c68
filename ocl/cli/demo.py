"""`ocl demo`: train on drawn scenes, score held-out ones against segmenters that learn nothing, and show the masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ocl.cli import experiment as experiments
from ocl.cli.experiment import Experiment
from ocl.cli.gallery import gallery
from ocl.cli.options import add_device, command, device, existing
from ocl.cli.scoring import MASKS, report
from ocl.cli.segment import trained_size
from ocl.cli.train import train
from ocl.data import Dataset
from ocl.data.decode import read_image
from ocl.data.folder import list_images
from ocl.decoders import LatentDiffusion
from ocl.errors import ConfigError
from ocl.evaluate.discovery import Discovery, evaluate
from ocl.evaluate.report import Picture
from ocl.evaluate.segment import segment
from ocl.models import SlotAutoencoder
from ocl.train import load_model
from ocl.train.checkpoint import fill

SUMMARY = "A slot model trained without labels, beside segmenters that learn nothing."
SCORES = ("FG-ARI[coda]", "mBO_i[coda]")


def main(argv: Sequence[str]) -> int:
    options = command("demo", "Train, evaluate and show a small model. Further options are those of the config.")
    options.add_argument("--run", type=Path, default=Path("runs/demo"))
    options.add_argument("--photos", type=Path, help="folder of photographs to segment as well")
    options.add_argument("--resume", action="store_true", help="go on with a demo that was stopped")
    add_device(options)
    known, words = options.parse_known_args(argv)
    experiment = experiments.read(words, prog="ocl demo", packages=known.packages)
    held_out = experiment.held_out()
    if held_out is None:
        raise ConfigError("ocl demo scores held-out images; give the config a `held_out` dataset.")
    if known.photos is not None:
        list_images(existing(known.photos, "a folder of photographs"))
    place, start = device(known.device), experiment.training.start_from
    earlier = shipped_scores(experiment, held_out, place)
    outcome = train(experiment, known.run, resume=known.resume, on=known.device)
    if outcome.stopped_by is not None:
        return 130
    model = experiment.model()
    load_model(known.run, model)
    photos: list[Picture] = []
    if known.photos is not None:
        size = trained_size(experiment.text)
        photos = segment_photos(model, known.photos, known.run / "photos", image_size=size, device=place)
    draws = isinstance(model.decoder, LatentDiffusion)
    drawn = [gallery(model, held_out, known.run, device=place)] if draws else []
    found, baselines = report(
        model, held_out, known.run,
        title="Object-centric learning in ten minutes",
        summary=SUMMARY + (f" It started from {start}, trained on such scenes before." if start is not None else ""),
        protocols=["coda"], device=place, earlier=earlier, log=known.run / "log.jsonl", configuration=experiment.text, more=photos,
        sections=drawn,
    )
    print(verdict(found, baselines))
    print(f"open {known.run / 'report.html'}")
    return 0


def shipped_scores(experiment: Experiment, held_out: Dataset, place: torch.device) -> dict[str, Mapping[str, float]]:
    """Scores of the weights that training starts from, where it starts from any."""
    weights = experiment.training.start_from
    if weights is None:
        return {}
    model = experiment.model()
    fill(model, weights, experiment.training.start_parts)
    found = evaluate(model, held_out, device=place, num_examples=0)
    return {f"{MASKS[masks]}, before this training": scores for masks, scores in found.scores.items()}


def segment_photos(model: SlotAutoencoder, photos: Path, out: Path, *, image_size: int, device: torch.device) -> list[Picture]:
    """Segment a folder of photographs into `out`; returns the overlays, for the report."""
    result = segment(model, photos, out, image_size=image_size, device=str(device), skip_broken=True, overwrite=True)
    for name, reason in result.skipped.items():
        print(f"skipped {name}: {reason}")
    return [
        Picture(read_image(out / image.overlay).permute(1, 2, 0).numpy(), f"{image.file}: a photograph, split by the same model.")
        for image in result.images
    ]


def verdict(found: Discovery, baselines: Mapping[str, Mapping[str, float]]) -> str:
    """For each score: the model's best masks against the best baseline."""
    lines = []
    for score in SCORES:
        masks, ours = max(((name, scores[score]) for name, scores in found.scores.items()), key=lambda pair: pair[1])
        other, theirs = max(((name, scores[score]) for name, scores in baselines.items()), key=lambda pair: pair[1])
        lines.append(f"{score}: {ours:.3f} ({masks} masks), best baseline {theirs:.3f} ({other})")
    return "\n".join(lines)
