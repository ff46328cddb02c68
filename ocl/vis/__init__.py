"""Pictures of what a model found: colours, masks over images, and panels."""

from ocl.vis.colours import colour_labels, slot_colours
from ocl.vis.masks import cut_out, fade, hard_labels, overlay, paint, upsample
from ocl.vis.panels import Example, examples, panel
from ocl.vis.png import read_index_png, to_picture, write_index_png, write_png

__all__ = [
    "Example",
    "colour_labels",
    "cut_out",
    "examples",
    "fade",
    "hard_labels",
    "overlay",
    "paint",
    "panel",
    "read_index_png",
    "slot_colours",
    "to_picture",
    "upsample",
    "write_index_png",
    "write_png",
]
