"""`ocl compose RUN photos/`: new scenes from the slots of several images, as many as there are images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ocl.cli.drawing import drawing, drawing_options
from ocl.errors import ConfigError
from ocl.generate import compose
from ocl.vis.grid import picture_grid
from ocl.vis.png import to_picture, write_png

GRID_ROWS = 8


def main(argv: Sequence[str]) -> int:
    options = drawing_options("compose", "Draw scenes whose slots come from several images of a folder.")
    options.add_argument("--recipe", choices=["columns", "random"], default="columns",
                         help="columns: slot k of the image k further on (published); random: each slot from any image")
    options.add_argument("--mix", type=int, default=32, help="images whose slots are mixed with one another, 2 or more")
    rows: list[list[np.ndarray]] = []
    count = 0
    with drawing(options, argv) as work:
        for part in _parts(len(work.images), work.options.mix):
            batch = work.read(part)
            generator = torch.Generator(work.place).manual_seed(work.options.seed + count)
            mixed = compose(batch.slots, work.options.recipe, generator=generator)
            for start in range(0, len(batch.names), work.options.batch_size):
                some = slice(start, start + work.options.batch_size)
                names = [f"composition {count + number}" for number in range(len(batch.names[some]))]
                pictures = work.draw(mixed.part(some), names)
                for number, picture in enumerate(pictures):
                    write_png(work.out / "images" / f"{count + number:06d}.png", picture)
                if len(rows) < 2 * GRID_ROWS:
                    rows += [[to_picture(image) for image in batch.image[some]], pictures]
                count += len(pictures)
        write_png(work.out / "grid.png", picture_grid(rows))
        print(f"{count} scenes composed: {work.out / 'grid.png'} (rows of images above rows of compositions)")
    return 0


def _parts(count: int, mix: int) -> list[range]:
    """Numbers of the images that are mixed with one another: `mix` at a time, a last one that is left over with those before it."""
    if min(count, mix) < 2:
        raise ConfigError(f"a composition needs slots of 2 images or more, got --mix {mix} and {count} in the folder; pass more.")
    starts = [start for start in range(0, count, mix) if count - start > 1]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]
