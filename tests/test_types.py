"""Values check themselves when they are made, and say how to mend what came."""

import pickle
import subprocess
import sys

import pytest
import torch

from ocl.errors import MissingExtra, OCLError, RangeError, ShapeError
from ocl.types import Batch, Decoding, Features, Slots

IMAGE = torch.rand(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("image", "error", "way_out"),
    [
        (torch.rand(3, 4, 4), ShapeError, "one image"),
        (torch.rand(2, 1, 4, 4), ShapeError, r"\[B, 3, H, W\]"),
        (torch.randint(0, 255, (2, 3, 4, 4), dtype=torch.uint8), RangeError, "image / 255"),
        (IMAGE * 255, RangeError, "image / 255"),
        (IMAGE * 2 - 1, RangeError, r"\(image \+ 1\) / 2"),
        (IMAGE.clone().index_fill_(0, torch.tensor(0), float("nan")), RangeError, "NaN"),
        (IMAGE.clone().index_fill_(0, torch.tensor(1), float("inf")), RangeError, "infinite"),
    ],
)
def test_bad_images_are_refused_with_a_way_out(image, error, way_out):
    with pytest.raises(error, match=way_out):
        Batch(image)


@pytest.mark.parametrize(
    ("labels", "way_out"),
    [(torch.zeros(2, 4, 5, dtype=torch.long), "nearest"), (torch.zeros(2, 4, 4), "long"), (torch.zeros(2, 4, 4).bool(), "long")],
)
def test_bad_labels_are_refused_with_a_way_out(labels, way_out):
    with pytest.raises(ShapeError, match=way_out):
        Batch(IMAGE, instances=labels)


def test_keys_must_name_every_image():
    with pytest.raises(ShapeError, match="name each of 2"):
        Batch(IMAGE, keys=("only one",))


def test_a_grid_that_does_not_hold_the_tokens_is_refused():
    with pytest.raises(ShapeError, match="3 x 3"):
        Features(torch.zeros(2, 8, 5), (3, 3))
    with pytest.raises(ShapeError, match="2 x 2"):
        Slots(torch.zeros(2, 3, 5), torch.zeros(2, 3, 8), (2, 2))


def test_decoding_refuses_a_prediction_of_another_shape_than_its_target():
    with pytest.raises(ShapeError, match="one shape"):
        Decoding(torch.zeros(2, 3), torch.zeros(2, 4))


def test_user_errors_are_value_errors():
    assert issubclass(OCLError, ValueError)


def test_empty_batch_is_a_batch():
    assert len(Batch(torch.zeros(0, 3, 4, 4))) == 0


def test_missing_extra_says_how_to_install_it_and_survives_a_data_worker():
    error = pickle.loads(pickle.dumps(MissingExtra("Stable Diffusion parts", "diffusers", "diffusion")))
    assert str(error) == 'Stable Diffusion parts need diffusers; run: pip install "ocl[diffusion]"'


def test_packages_are_there_without_importing_them_one_by_one():
    done = subprocess.run(
        [sys.executable, "-c", "import ocl; print(ocl.ops.active_backend(), ocl.types.Batch.__name__); ocl.nothing"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["auto", "Batch"]
    assert "no attribute 'nothing'" in done.stderr
