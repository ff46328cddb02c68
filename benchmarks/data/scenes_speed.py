"""Scenes drawn per second on one core, per level and size; and the same scenes drawn without bounding boxes.

    python benchmarks/data/scenes_speed.py [--quick] [--out FILE]

The slow side draws every object over the whole frame, which is how one would write it down first. Both sides draw the same
scenes, must agree before any speed is reported (same masks; but for the faintest end of a shadow, which a box may cut off,
the same picture to one grey level), and take turns in one process. A scene is a whole sample:
picture, masks, properties and caption. A second is one of processor time, summed over threads, so that neither other
programs nor more cores change what "one core" means.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from ocl.data import Scenes, drawing
from ocl.data.scenes import Level

LEVELS: tuple[Level, ...] = ("plain", "textured", "cluttered")
SIZES = (64, 128, 256, 512)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="64 and 128 px only, fewer scenes")
    options.add_argument("--out", type=Path)
    known = options.parse_args()
    torch.set_num_threads(1)
    sizes, rounds = (SIZES[:2], 3) if known.quick else (SIZES, 9)
    rows = [measure(level, size, rounds=rounds) for size in sizes for level in LEVELS]
    for row in rows:
        print("{level:>9} {size} px: {scenes:5.0f} scenes/s, over whole frames {whole:5.0f}, ratio {ratio:.1f}".format(**row))
    if known.out:
        result = {"benchmark": "scenes_speed", "threads": 1, "numpy": np.__version__, "rows": rows}
        known.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(level: Level, size: int, *, rounds: int) -> dict[str, Any]:
    """Medians over rounds; a round draws other scenes, first in boxes, then the same ones over whole frames."""
    scenes = Scenes(level, image_size=size)
    per_round = max(4, 4096 // size)
    _check(scenes)
    seconds: dict[str, list[float]] = {"scenes": [], "whole": []}
    for number in range(rounds):
        numbers = range(number * per_round, (number + 1) * per_round)
        seconds["scenes"].append(_time(scenes, numbers))
        with mock.patch.object(drawing, "_window", _whole_frame):
            seconds["whole"].append(_time(scenes, numbers))
    speed = {side: per_round / statistics.median(spent) for side, spent in seconds.items()}
    return {"level": level, "size": size, **speed, "ratio": speed["scenes"] / speed["whole"]}


def _time(scenes: Scenes, numbers: range) -> float:
    before = time.process_time()
    for number in numbers:
        scenes[number]
    return time.process_time() - before


def _whole_frame(size: int, solid: drawing.Solid) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    across, down = drawing.centres(size)
    dx, dy = (across - solid.x) / solid.radius, (down - solid.y) / solid.radius
    cos, sin = np.float32(np.cos(solid.angle)), np.float32(np.sin(solid.angle))
    return slice(0, size), slice(0, size), dx * cos + dy * sin, dy * cos - dx * sin


def _check(scenes: Scenes) -> None:
    for number in range(3):
        boxed = scenes[number]
        with mock.patch.object(drawing, "_window", _whole_frame):
            whole = scenes[number]
        differing = float(((boxed.image.int() - whole.image.int()).abs() > 1).float().mean())
        assert boxed.instances is not None and whole.instances is not None
        if differing > 1e-3 or not torch.equal(boxed.instances, whole.instances):
            raise SystemExit(f"the two ways differ in {differing:.2%} of {boxed.key}; no speed is reported")


if __name__ == "__main__":
    sys.exit(main())
