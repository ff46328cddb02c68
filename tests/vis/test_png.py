"""PNG files of pictures and labels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from ocl.errors import OCLError, RangeError, ShapeError
from ocl.vis.colours import slot_colours
from ocl.vis.png import index_png_bytes, png_bytes, read_index_png, to_picture, write_index_png, write_png, write_whole

SIZES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=20)


@settings(deadline=None, max_examples=40)
@given(labels=arrays.arrays(np.int64, SIZES, elements=st.integers(0, 255)))
def test_index_png_gives_back_up_to_256_labels(labels, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "mask.png"
    write_index_png(path, labels)
    assert np.array_equal(read_index_png(path), labels)
    assert Image.open(path).mode == "P"


@settings(deadline=None, max_examples=40)
@given(labels=arrays.arrays(np.int32, SIZES, elements=st.integers(0, 65535)))
def test_index_png_gives_back_more_labels_in_16_bits(labels, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "mask.png"
    write_index_png(path, labels)
    assert np.array_equal(read_index_png(path), labels)


def test_index_png_shows_slot_colours(tmp_path):
    write_index_png(tmp_path / "mask.png", np.arange(6).reshape(2, 3))
    shown = np.array(Image.open(tmp_path / "mask.png").convert("RGB")).reshape(-1, 3)
    assert np.array_equal(shown, slot_colours(6))


@pytest.mark.parametrize("bad", [np.array([[-1]]), np.array([[65536]])])
def test_labels_out_of_range_are_refused(bad):
    with pytest.raises(RangeError, match="0 to 65535"):
        index_png_bytes(bad)


def test_floats_are_refused_as_pictures_and_as_labels():
    with pytest.raises(ShapeError, match="float64"):
        png_bytes(np.zeros((2, 2, 3)))
    with pytest.raises(ShapeError, match="float64"):
        index_png_bytes(np.zeros((2, 2)))


def test_a_picture_is_the_image_in_bytes():
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    assert np.array_equal(to_picture(image.float() / 255), image.permute(1, 2, 0).numpy())
    assert np.array_equal(to_picture(image), image.permute(1, 2, 0).numpy())
    assert to_picture(torch.full((3, 2, 2), 1.5)).max() == 255


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "picture.png"
    write_png(path, np.zeros((2, 2, 3), dtype=np.uint8))
    before = path.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OCLError, match=r"picture.png could not be written.*No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
