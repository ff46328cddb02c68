"""Colours of slots and of ground truth."""

import numpy as np

from ocl.vis.colours import BACKGROUND, IGNORED, colour_labels, slot_colours

# Machado et al. 2009, severity 1: what a person with deuteranopia or protanopia sees, in linear RGB.
DEUTERANOPIA = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])
PROTANOPIA = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]])


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    xyz = np.clip(linear, 0, 1) @ to_xyz.T / [0.95047, 1.0, 1.08883]
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=1)


def _smallest_distance(colours: np.ndarray, vision: np.ndarray) -> float:
    scaled = colours / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    lab = _lab(linear @ vision.T)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return float(distance[~np.eye(len(lab), dtype=bool)].min())


def test_the_first_slots_are_far_apart_for_colour_blind_readers():
    # 2.3 is one just noticeable difference in CIE Lab.
    for vision in (np.eye(3), DEUTERANOPIA, PROTANOPIA):
        assert _smallest_distance(slot_colours(8), vision) > 10
        assert _smallest_distance(slot_colours(32), vision) > 2.3


def test_the_colour_of_a_slot_does_not_depend_on_how_many_there_are():
    assert np.array_equal(slot_colours(256)[:7], slot_colours(7))
    assert len(np.unique(slot_colours(64), axis=0)) == 64
    assert slot_colours(0).shape == (0, 3)


def test_ground_truth_shows_background_void_and_objects_apart():
    labels = np.array([[0, -1, 7], [300, 7, 0]])
    picture = colour_labels(labels)
    assert picture.dtype == np.uint8 and picture.shape == (2, 3, 3)
    assert tuple(picture[0, 0]) == BACKGROUND and tuple(picture[0, 1]) == IGNORED
    assert np.array_equal(picture[0, 2], slot_colours(1)[0]) and np.array_equal(picture[1, 0], slot_colours(2)[1])
