"""Colours of slots. The first seven are Okabe & Ito's (2008); the rest were chosen greedily, each the candidate farthest in
OKLab from all before it under normal vision, deuteranopia and protanopia (Machado et al. 2009)."""

from __future__ import annotations

import numpy as np

BACKGROUND = (140, 140, 140)  # ground truth 0
IGNORED = (255, 255, 255)  # ground truth -1

_SLOTS = (
    "0072B2 E69F00 009E73 CC79A7 56B4E9 D55E00 F0E442 812254 50FBEE 2817D7 9F55FB 71520B 8CCA86 BB1F8A 6D06A3 9C5856 "
    "7E88E5 F5ACC2 9BF993 EE556C 1655D9 2FD9FF B5D422 189415 76382E 5F3D6F 7367D5 58C752 17A3C0 AFE1AA 5D4FBA 33E875"
)
_TABLE = np.array([list(bytes.fromhex(name)) for name in _SLOTS.split()], dtype=np.uint8)


def slot_colours(count: int) -> np.ndarray:
    """RGB of slots 0 .. count - 1, uint8 [count, 3]. 32 are distinct; later rounds repeat them, each a quarter darker."""
    number = np.arange(count)
    shade = 0.75 ** (number // len(_TABLE))
    return np.rint(_TABLE[number % len(_TABLE)] * shade[:, None]).astype(np.uint8)


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """Ground truth, integers [H, W], as a picture, uint8 [H, W, 3]: 0 grey, -1 white, objects in the colours of slots.

    Objects are numbered by rank, so gaps between their ids use up no colours.
    """
    values, rank = np.unique(labels, return_inverse=True)
    objects = values > 0
    table = np.empty((len(values), 3), dtype=np.uint8)
    table[values < 0] = IGNORED
    table[values == 0] = BACKGROUND
    table[objects] = slot_colours(int(objects.sum()))
    return table[rank.reshape(labels.shape)]
