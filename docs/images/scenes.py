"""The picture of docs/images/scenes.png: eight scenes of each level, and of the out-of-distribution split, above their masks.

    python docs/images/scenes.py
"""

from pathlib import Path

import numpy as np

from ocl.data import Scenes
from ocl.vis.png import write_png
from ocl.vis.sheet import contact_sheet

SHOWN = [
    Scenes("plain", "test", 128),
    Scenes("textured", "test", 128),
    Scenes("cluttered", "test", 128),
    Scenes("textured", "ood", 128),
]

if __name__ == "__main__":
    write_png(Path(__file__).with_name("scenes.png"), np.concatenate([contact_sheet(scenes, limit=8) for scenes in SHOWN]))
