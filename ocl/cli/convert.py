"""`ocl convert PUBLISHED FOLDER --weights PIPELINE`: a published CODA checkpoint as a folder that the other commands read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from ocl.cli import experiment as experiments
from ocl.cli.options import command
from ocl.interfaces import Encoder
from ocl.models import ModelCard
from ocl.models.importers import coda_model
from ocl.models.names import instantiate

EPILOG = """
--encoder CLASS --encoder.option VALUE replaces the published DINOv2 that the checkpoint names, for instance by a local copy:
--encoder DINOv2 --encoder.weights FOLDER --encoder.image_size 448.
"""


def main(argv: Sequence[str]) -> int:
    options = command("convert", "Write a published CODA checkpoint in the hub's layout, which the commands take like a run.")
    options.epilog = EPILOG
    options.add_argument("published", type=Path, help="folder that holds config.yaml, encoder/ and unet/")
    options.add_argument("folder", type=Path, help="folder to write")
    options.add_argument("--weights", help="pipeline that it was trained on, a folder or hub id; default the one its config names")
    known, words = options.parse_known_args(argv)
    encoder = read_encoder(words, prog="ocl convert", packages=known.packages)
    model = coda_model(known.published, weights=known.weights, encoder=encoder)
    card = ModelCard(name=known.published.resolve().name, notes={"Origin": "a published CODA checkpoint (sony/coda)"})
    print(f"{model.save_pretrained(known.folder, card=card)}: config.json, model.safetensors, README.md")
    return 0


def read_encoder(words: Sequence[str], *, prog: str, packages: Sequence[str] = ()) -> Encoder | None:
    """The encoder that `--encoder CLASS --encoder.option value ...` names, or None without any."""
    parser = ArgumentParser(prog=prog, exit_on_error=False)
    parser.add_argument("--encoder", type=Encoder | None, default=None)
    config = experiments.parse(parser, words, packages=packages)
    encoder: Encoder | None = instantiate(parser, config).encoder
    return encoder
