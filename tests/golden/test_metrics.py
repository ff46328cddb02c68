"""Segmentation scores agree with those recorded from the projects' own functions, for every image of every recording."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ocl.metrics import relabel, segmentation_scores

DEFAULT = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
GOLDEN = Path(os.environ.get("OCL_GOLDEN", DEFAULT))
RECORDINGS = sorted(path.stem.removeprefix("metrics_") for path in GOLDEN.glob("metrics_*.npz"))
KEYS = {"ari": "ari", "fgari": "fg_ari", "fg_ari": "fg_ari", "mbo": "mbo", "miou": "miou", "fmiou": "fg_miou", "fg_miou": "fg_miou"}
OURS = {"genera1z_v4": "genera1z"}
NOT_OURS = {"corloc"}  # correct localisation is recorded beside the scores that the protocols define

pytestmark = pytest.mark.skipif(not RECORDINGS, reason=f"no metrics_*.npz in {GOLDEN}; set OCL_GOLDEN to the recorded outputs")


def maps(name):
    arrays = np.load(GOLDEN / f"metrics_{name}.npz")
    return [torch.from_numpy(arrays[key].astype(np.int64)) for key in ("pred", "true", "overlap")]


def recorded(kind, name):
    path = GOLDEN / f"{kind}_{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is missing; set OCL_GOLDEN to a folder that has it")
    return json.loads(path.read_text())


def assert_recorded(ours, images, case):
    """Every number of every image in `images` (a list of {name: value}), NaN included, to 1e-6."""
    assert len(images) == len(ours["ari"])
    for index, image in enumerate(images):
        for key, expected in image.items():
            if key in NOT_OURS:
                continue
            got = ours[KEYS[key]][index].item()
            same = math.isnan(got) if math.isnan(expected) else abs(got - expected) <= 1e-6
            assert same, f"image {index}, {case} {key}: {got}, recorded {expected}"


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("case", ["plain", "overlap"])
def test_coda_on_raw_labels(name, case):
    pred, true, overlap = maps(name)
    ours = segmentation_scores(pred, true, overlap.bool() if case == "overlap" else None, protocol="coda")
    assert_recorded(ours, [image[case] for image in recorded("metrics", name)], case)


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_recorded_protocol_on_contiguous_labels(name):
    pred, true, overlap = maps(name)
    images = recorded("protocols", name)
    for theirs in images[0]:
        ours = segmentation_scores(pred, relabel(true), overlap.bool(), protocol=OURS.get(theirs, theirs))
        assert_recorded(ours, [image[theirs] for image in images], theirs)


@pytest.mark.parametrize("name", RECORDINGS)
def test_slotdiffusion_scores_as_coda(name):
    pred, true, overlap = maps(name)
    images = [image["coda"] for image in recorded("protocols", name)]
    assert_recorded(segmentation_scores(pred, relabel(true), overlap.bool(), protocol="slotdiffusion"), images, "slotdiffusion")
