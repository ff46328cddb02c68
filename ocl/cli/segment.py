"""`ocl segment RUN photos/`: overlays, cut-outs and index-PNG masks for a folder of any images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.progress import Progress

from ocl.cli.options import add_device, command, device, no_overrides, results
from ocl.cli.trained import source
from ocl.errors import ConfigError
from ocl.evaluate.segment import segment


def main(argv: Sequence[str]) -> int:
    options = command("segment", "Split every image of a folder into slots.")
    options.add_argument("run", type=Path, help="run folder or checkpoint that `ocl train` wrote, or a folder in the hub's layout")
    options.add_argument("images", type=Path, help="folder of images of any size and format, searched recursively")
    options.add_argument("--out", type=Path, help="folder to write; default RUN/segment/NAME of the image folder")
    options.add_argument("--image_size", type=int, help="side of the square the model sees; default as trained")
    options.add_argument("--resize", choices=["stretch", "pad"], default="stretch", help="how an image becomes square")
    options.add_argument("--masks", choices=["slots", "decoder"], help="whose masks; default the decoder's where it draws any")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--skip_broken", action="store_true", help="leave out files that cannot be read, and list them")
    options.add_argument("--overwrite", action="store_true", help="replace the output folder")
    add_device(options)
    known, words = options.parse_known_args(argv)
    no_overrides("ocl segment", words)
    origin = source(known.run, prog="ocl segment", packages=known.packages)
    model, _ = origin.load()
    place = device(known.device)
    with Progress(transient=True) as bar:
        task = bar.add_task("segmenting", total=None)
        result = segment(
            model,
            known.images,
            known.out or results(known.run, "segment") / known.images.resolve().name,
            image_size=known.image_size or trained_size(origin.text),
            resize=known.resize,
            masks=known.masks,
            seed=known.seed,
            device=str(place),
            skip_broken=known.skip_broken,
            overwrite=known.overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for name, reason in result.skipped.items():
        print(f"skipped {name}: {reason}")
    print(f"{len(result.images)} images segmented, {len(result.skipped)} skipped: {result.out / 'index.html'}")
    return 0


def trained_size(text: str) -> int:
    """The image size that a config trains at. Raises ConfigError where it names none."""
    sizes = list(_values(yaml.safe_load(text).get("data"), "image_size"))
    if not sizes or sizes[0] is None:
        raise ConfigError("the model's config names no image_size of data that it was trained on; pass --image_size.")
    return int(sizes[0])


def _values(tree: Any, name: str) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from [value] if key == name else _values(value, name)
