"""`ocl export RUN FOLDER`: a trained model in the layout of the hub, with its card, or in that of published CODA checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ocl.cli.experiment import Experiment, read_run
from ocl.cli.options import command, no_overrides
from ocl.cli.trained import trained_model
from ocl.decoders import LatentDiffusion
from ocl.encoders import DINOv2
from ocl.errors import ConfigError
from ocl.models import ModelCard, SlotAutoencoder
from ocl.models.exporters import export_coda
from ocl.models.importers import BACKBONES

EPILOG = """
Frozen weights are left out, as in every checkpoint. Scores on the card are those that `ocl evaluate RUN` wrote into RUN/evaluation.
With --push nothing but the hub is written, by way of the token that `hf auth login` stored.
"""


def main(argv: Sequence[str]) -> int:
    options = command("export", "Write the model of a run for others: config.json, model.safetensors and a model card.")
    options.epilog = EPILOG
    options.add_argument("run", type=Path, help="run folder or checkpoint that `ocl train` wrote")
    options.add_argument("folder", type=Path, nargs="?", help="folder to write")
    options.add_argument("--push", metavar="OWNER/NAME", help="hub repository to write instead of a folder")
    options.add_argument("--private", action="store_true", help="--push: make the repository a private one")
    options.add_argument("--layout", choices=["hub", "coda"], default="hub", help="coda: that of the official implementation")
    options.add_argument("--name", help="of the model, on its card; default that of the run folder")
    options.add_argument("--license", help="of the weights, on the card; left to be filled in by default")
    options.add_argument("--no_ema", action="store_true", help="the weights themselves, not their moving average")
    known, words = options.parse_known_args(argv)
    no_overrides("ocl export", words)
    if (known.folder is None) == (known.push is None) or (known.push is not None and known.layout != "hub"):
        raise ConfigError("ocl export writes one thing: a FOLDER, or in the hub's layout a repository (--push OWNER/NAME).")
    experiment = read_run(known.run, prog="ocl export", packages=known.packages)
    model, found = trained_model(experiment, known.run, ema=not known.no_ema)
    if known.layout == "coda":
        write_coda(model, experiment, known.folder)
        print(f"{known.folder}: config.yaml, encoder/, unet/")
        return 0
    card = run_card(known.run, experiment, name=known.name or known.run.resolve().name, license=known.license, step=found.step)
    if known.push is not None:
        print(model.push_to_hub(known.push, card=card, private=known.private))
    else:
        print(f"{model.save_pretrained(known.folder, card=card)}: config.json, model.safetensors, README.md")
    return 0


def run_card(run: Path, experiment: Experiment, *, name: str, license: str | None, step: int) -> ModelCard:
    """What is known about a run: its training data and length, and the scores of its last evaluation, if there was one."""
    path = run / "evaluation" / "scores.json"
    content: Mapping[str, Any] = json.loads(path.read_text()) if path.is_file() else {"tables": [], "notes": {}}
    scores = {
        f"{row} {score}": value
        for table in content["tables"]
        for row in table["ours"]
        for score, value in table["rows"][row].items()
        if value is not None
    }
    training, notes = experiment.training, content["notes"]
    more = {"Training": f"{step} steps, batches of {training.batch_size * training.accumulate}, seed {training.seed}"}
    more |= {f"Evaluation, {key.lower()}": notes[key] for key in ("Command", "Versions") if key in notes}
    return ModelCard(
        name=name, scores=scores, scored_on=notes.get("Data", ""), trained_on=_data(experiment), license=license, notes=more
    )


def write_coda(model: SlotAutoencoder, experiment: Experiment, folder: Path) -> None:
    """In the layout of the official implementation. Raises CheckpointError or ConfigError for a model that has no place in it."""
    encoder, decoder = model.encoder, model.decoder
    made = getattr(encoder, "made_with", {})
    size, names = made.get("size", "base"), {ours: theirs for theirs, ours in BACKBONES.items()}
    plain = made.get("weights") is None and not made.get("registers") and not made.get("trainable") and made.get("layer") is None
    if not isinstance(encoder, DINOv2) or not isinstance(decoder, LatentDiffusion) or not plain or made.get("image_size") is None:
        raise ConfigError(
            "the layout of CODA checkpoints holds a frozen, published DINOv2(image_size=...) and a LatentDiffusion decoder, got "
            f"{type(encoder).__name__} and {type(decoder).__name__}; use --layout hub."
        )
    export_coda(
        model, folder, weights=decoder.made_with["weights"], grid=made["image_size"] // 14, backbone=names[size],
        settings=_contrast(experiment),
    )  # fmt: skip


def _contrast(experiment: Experiment) -> dict[str, Any]:
    """Settings of the contrastive term under their official names."""
    names = {"weight": "contrastive_weight", "rate": "contrastive_sampling_rate", "warmup_steps": "contrastive_warmup"}
    for loss in yaml.safe_load(experiment.text)["losses"]:
        if loss["class_path"].endswith(".ContrastiveAlignment"):
            return {names[key]: value for key, value in loss["init_args"].items() if key in names}
    return {"contrastive_weight": 0.0}


def _data(experiment: Experiment) -> str:
    """VOCInstances (split trainaug, image_size 512)."""
    data = yaml.safe_load(experiment.text)["data"]
    inner = data.get("init_args", {}).get("dataset")
    data = inner if isinstance(inner, Mapping) and "class_path" in inner else data
    kept = [f"{key} {value}" for key, value in data.get("init_args", {}).items() if key in ("level", "split", "image_size", "size")]
    return f"{data['class_path'].rpartition('.')[2]} ({', '.join(kept)})"
