"""`ocl pretrain scenes`: a recipe -> a folder with a small text-to-image pipeline, which models take as `weights`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from ocl.cli.experiment import CONFIG, parse
from ocl.cli.options import add_device, command, device
from ocl.errors import CheckpointError, ConfigError
from ocl.pretrain import Recipe, pretrain
from ocl.pretrain.quality import caption_gain, draw_captions, reconstructed
from ocl.pretrain.recipe import draw
from ocl.train.files import replace_text
from ocl.vis.grid import picture_grid
from ocl.vis.png import to_picture, write_png


def main(argv: Sequence[str]) -> int:
    options = command("pretrain", "Make a small text-to-image pipeline. Further options are those of the recipe.")
    options.add_argument("what", choices=["scenes"], help="what it draws")
    options.add_argument("--run", type=Path, help="folder to write into; an interrupted run in it goes on")
    add_device(options)
    known, words = options.parse_known_args(argv)
    recipe, text = read_recipe(words)
    if known.run is None:
        raise ConfigError("ocl pretrain needs --run FOLDER, the folder to write checkpoints, logs and the pipeline into.")
    claim(known.run, text)
    made = pretrain(recipe, known.run, device=str(device(known.device)))
    if isinstance(made, str):
        return 130
    show(recipe, made, known.run)
    print(f"{made}: pass it as weights, for example --model coda --model.weights {made}")
    return 0


def read_recipe(words: Sequence[str]) -> tuple[Recipe, str]:
    """Command line -> recipe, and the same resolved as YAML. Raises ConfigError at an unknown or ill-typed key."""
    parser = ArgumentParser(prog="ocl pretrain", exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file, such as configs/pretrain/scenes_cpu.yaml")
    parser.add_class_arguments(Recipe, as_group=False)
    config = parse(parser, words)
    found = vars(parser.instantiate(config.clone()))
    return Recipe(**{key: value for key, value in found.items() if key != "config"}), parser.dump(config)


def show(recipe: Recipe, folder: Path, run: Path) -> None:
    """Scores on unseen scenes into report.json; and unseen scenes, decoded, and drawn from their captions into preview.png."""
    scenes, pictures = min(128, recipe.scenes), min(8, recipe.scenes)
    unseen = draw(recipe.levels, scenes, image_size=recipe.sizes.image_size, split="test")
    found = caption_gain(folder, unseen)
    replace_text(run / "report.json", json.dumps(found, indent=1) + "\n")
    for name, error in found.items():
        print(f"mean squared error on {scenes} unseen scenes, {name}: {error:.4f}")
    (images,) = unseen.pick(range(pictures))
    rows = [images, reconstructed(folder, images), draw_captions(folder, list(unseen.captions[:pictures]))]
    write_png(run / "preview.png", picture_grid([[to_picture(image) for image in row] for row in rows]))
    print(f"{run / 'preview.png'}: unseen scenes, through the autoencoder, and drawn from their captions")


def claim(run: Path, text: str) -> None:
    """Write the resolved recipe into a new run, or see that it is the one the run was started with."""
    path = run / CONFIG
    # read again where it differs: this version may know more options than the one that wrote it
    if path.exists() and path.read_text() != text and read_recipe(["--config", str(path)])[1] != text:
        raise CheckpointError(f"{run} was started with another recipe ({path}); go on with that one, or choose another folder.")
    run.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
