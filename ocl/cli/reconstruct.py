"""`ocl reconstruct RUN photos/`: every image drawn again from its slots, and, with --alone, from each slot by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ocl.cli.drawing import drawing, drawing_options
from ocl.generate import keep_only
from ocl.vis.grid import picture_grid
from ocl.vis.png import to_picture, write_png

GRID_ROWS = 16


def main(argv: Sequence[str]) -> int:
    options = drawing_options("reconstruct", "Draw every image of a folder again from its slots.")
    options.add_argument("--alone", action="store_true", help="also draw each slot by itself")
    rows: list[list[np.ndarray]] = []
    with drawing(options, argv) as work:
        outputs = work.outputs()
        for batch in work.batches(work.options.batch_size):
            drawn = [work.draw(batch.slots, batch.names)]
            if work.options.alone:
                count = batch.slots.vectors.shape[1]
                drawn += [work.draw(keep_only(batch.slots, slot), batch.names) for slot in range(count)]
            for index, name in enumerate(batch.names):
                pictures = [each[index] for each in drawn]
                write_png(work.out / "images" / f"{outputs[name]}.png", pictures[0])
                for slot, picture in enumerate(pictures[1:]):
                    write_png(work.out / "alone" / outputs[name] / f"slot_{slot:02d}.png", picture)
                if len(rows) < GRID_ROWS:
                    rows.append([to_picture(batch.image[index]), *pictures])
        write_png(work.out / "grid.png", picture_grid(rows))
        shown = "image, reconstruction" + (", each slot alone" if work.options.alone else "")
        print(f"{len(work.images)} images drawn: {work.out / 'grid.png'} ({shown})")
    return 0
