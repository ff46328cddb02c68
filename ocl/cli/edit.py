"""`ocl edit RUN photos/ drop --image street.jpg --slot 2`: one object removed, replaced, added or moved by its slot."""

from __future__ import annotations

from collections.abc import Sequence

from ocl.cli.drawing import Drawing, Images, drawing, drawing_options
from ocl.errors import ConfigError
from ocl.generate import drop, insert, keep_only, move, swap
from ocl.types import Slots
from ocl.vis.grid import picture_grid
from ocl.vis.masks import hard_labels, overlay, paint
from ocl.vis.png import to_picture, write_png


def main(argv: Sequence[str]) -> int:
    options = drawing_options("edit", "Change one object of an image by its slot, and draw the image before and after.")
    options.add_argument("edit", choices=["drop", "only", "swap", "insert", "move"])
    options.add_argument("--image", required=True, help="name of the image below the folder")
    options.add_argument("--slot", type=int, default=0, help="the slot to change; the picture `slots` shows their places")
    options.add_argument("--other", help="swap and insert: the image that gives a slot")
    options.add_argument("--other_slot", type=int, default=0)
    options.add_argument("--offset", type=int, nargs=2, default=(0, 0), metavar=("DOWN", "RIGHT"), help="move: in pixels")
    with drawing(options, argv) as work:
        given = work.options
        own = work.read([work.number(given.image)])
        after = _edited(work, own)
        places = hard_labels(own.slots.maps().cpu(), (given.image_size, given.image_size))[0].numpy()
        picture = to_picture(own.image[0])
        row = [picture, overlay(picture, paint(places)), *work.draw(own.slots, own.names), *work.draw(after, own.names)]
        path = work.out / f"{_name(work)}.png"
        write_png(path, picture_grid([row]))
        print(f"{path} (image, its slots, drawn as it is, drawn after the edit)")
    return 0


def _name(work: Drawing) -> str:
    """Below the folder to write: image, edit and slot, and for some edits the other image with its slot, or the offset."""
    given, outputs = work.options, work.outputs()
    words = [outputs[given.image], given.edit]
    if given.edit != "insert":
        words.append(str(given.slot))
    if given.edit in ("swap", "insert"):
        words += [outputs[given.other], str(given.other_slot)]
    if given.edit == "move":
        words += map(str, given.offset)
    return "_".join(words)


def _edited(work: Drawing, own: Images) -> Slots:
    given = work.options
    if given.edit in ("swap", "insert"):
        if given.other is None:
            raise ConfigError(f"ocl edit {given.edit} needs --other NAME, the image that gives a slot.")
        other = work.read([work.number(given.other)]).slots
        if given.edit == "insert":
            return insert(own.slots, other, given.other_slot)
        return swap(own.slots, given.slot, other, given.other_slot)
    if given.edit == "move":
        return move(work.model, own.image, given.slot, tuple(given.offset), noise=own.noise)
    return (drop if given.edit == "drop" else keep_only)(own.slots, given.slot)
