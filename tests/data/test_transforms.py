"""Decoding files, squares out of any size, mirror images, contiguous ids."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ocl.data.decode import read_image, read_labels
from ocl.data.sample import Sample
from ocl.data.transforms import fit, flip, is_flipped, reindex
from ocl.errors import ConfigError, DataError


def sample_of(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 5, (2, height, width), generator=generator, dtype=torch.int32)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return Sample(image, labels[0], labels[1], key="k")


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 33), st.sampled_from(["crop", "pad", "stretch"]))
def test_every_size_becomes_the_square_and_no_label_is_new(height, width, image_size, resize):
    sample = sample_of(height, width)
    square = fit(sample, image_size=image_size, resize=resize)
    assert square.image.shape == (3, image_size, image_size) and square.image.dtype == torch.uint8
    for before, after in ((sample.instances, square.instances), (sample.classes, square.classes)):
        assert after.shape == (image_size, image_size) and after.dtype == torch.int32
        assert set(after.unique().tolist()) <= set(before.unique().tolist()) | {-1}


def test_crop_keeps_the_centre_of_the_long_side():
    sample = sample_of(6, 10)
    square = fit(sample, image_size=6)
    assert torch.equal(square.image, sample.image[:, :, 2:8])
    assert torch.equal(square.instances, sample.instances[:, 2:8])


def test_pad_keeps_everything_and_ignores_the_rest():
    sample = sample_of(6, 10)
    square = fit(sample, image_size=10, resize="pad")
    assert torch.equal(square.image[:, 2:8], sample.image) and torch.equal(square.classes[2:8], sample.classes)
    assert (square.classes[:2] == -1).all() and (square.instances[8:] == -1).all() and (square.image[:, :2] == 0).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 8), st.integers(0, 99))
def test_bytes_are_resized_like_floats(height, width, image_size, seed):
    image = sample_of(height, width, seed).image
    ours = fit(Sample(image), image_size=image_size, resize="stretch").image
    exact = F.interpolate(image[None].double(), (image_size, image_size), mode="bilinear", antialias=True)[0]
    assert (ours - exact).abs().max() <= 1.01


def test_image_resize_agrees_with_pillow():
    smooth = np.add.outer(np.arange(90), np.arange(60)).astype(np.uint8)
    image = torch.from_numpy(np.stack([smooth] * 3))
    ours = fit(Sample(image), image_size=40, resize="stretch").image[0]
    theirs = np.array(Image.fromarray(smooth).resize((40, 40), Image.Resampling.BILINEAR))
    assert (ours.int() - torch.from_numpy(theirs).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [7, 20, 33])
def test_label_resize_agrees_with_pillow_nearest(size):
    labels = sample_of(20, 31).instances
    ours = fit(Sample(torch.zeros(3, 20, 31, dtype=torch.uint8), labels), image_size=size, resize="stretch").instances
    theirs = Image.fromarray((labels + 1).numpy().astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    assert torch.equal(ours, torch.from_numpy(np.array(theirs).astype(np.int32)) - 1)


def test_a_sample_without_ground_truth_stays_without():
    square = fit(Sample(torch.zeros(3, 5, 9, dtype=torch.uint8)), image_size=4)
    assert square.instances is None and square.classes is None


def test_unknown_resize_mode_is_named():
    with pytest.raises(ConfigError, match="squash"):
        fit(sample_of(4, 4), image_size=4, resize="squash")


def test_flip_twice_is_the_same_sample_and_once_mirrors_labels_with_pixels():
    sample = sample_of(5, 8)
    once = flip(sample)
    assert torch.equal(once.image[:, :, 0], sample.image[:, :, -1])
    assert torch.equal(once.instances[:, 0], sample.instances[:, -1])
    twice = flip(once)
    assert torch.equal(twice.image, sample.image) and torch.equal(twice.classes, sample.classes)


def test_flip_is_decided_by_seed_and_number_alone():
    decisions = [is_flipped(0.5, seed=3, number=number) for number in range(400)]
    assert decisions == [is_flipped(0.5, seed=3, number=number) for number in range(400)]
    assert decisions != [is_flipped(0.5, seed=4, number=number) for number in range(400)]
    assert 150 < sum(decisions) < 250
    assert not any(is_flipped(0.0, seed=3, number=number) for number in range(50))
    assert all(is_flipped(1.0, seed=3, number=number) for number in range(50))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-1, 400), min_size=1, max_size=60))
def test_reindex_keeps_every_object_and_its_pixels(labels):
    old = torch.tensor(labels, dtype=torch.int32)[None]
    new, ids = reindex(old)
    assert ids == tuple(sorted({label for label in labels if label > 0}))
    for number, label in enumerate(ids, start=1):
        assert torch.equal(new == number, old == label)
    assert torch.equal(new <= 0, old <= 0) and torch.equal(new[new <= 0], old[old <= 0])


def test_palette_masks_give_indices_and_never_colours(tmp_path):
    indices = np.array([[0, 1, 7], [255, 15, 254]], np.uint8)
    mask = Image.fromarray(indices)
    mask.putpalette([level for entry in range(256) for level in (9, entry % 3, 9)])  # most colours are shared
    mask.save(tmp_path / "mask.png")
    assert read_labels(tmp_path / "mask.png").tolist() == indices.tolist()


def test_sixteen_bit_masks_keep_ids_above_255(tmp_path):
    ids = np.array([[0, 300], [65535, 1]], np.uint16)
    Image.fromarray(ids).save(tmp_path / "mask.png")
    assert read_labels(tmp_path / "mask.png").tolist() == ids.tolist()


def test_a_colour_mask_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png must be an index mask.*RGB"):
        read_labels(tmp_path / "mask.png")


@pytest.mark.parametrize("mode, colour, expected", [
    ("RGB", (10, 20, 30), [10, 20, 30]),
    ("L", 77, [77, 77, 77]),
    ("1", 1, [255, 255, 255]),
    ("P", 0, [1, 2, 3]),
    ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
    ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
    ("LA", (50, 255), [50, 50, 50]),
    ("I;16", 0x4D00, [77, 77, 77]),
])
def test_every_pixel_format_becomes_8_bit_rgb(tmp_path, mode, colour, expected):
    picture = Image.new(mode, (3, 2), colour)
    if mode == "P":
        picture.putpalette([1, 2, 3])
    picture.save(tmp_path / "picture.png")
    image = read_image(tmp_path / "picture.png")
    assert image.dtype == torch.uint8 and image.shape == (3, 2, 3)
    assert image[:, 0, 0].tolist() == expected


def test_exif_orientation_turns_the_picture_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn to the left
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).save(tmp_path / "turned.png", exif=exif)
    plain = torch.arange(24, dtype=torch.uint8).reshape(4, 6) * 10
    assert torch.equal(read_image(tmp_path / "turned.png")[0], plain.rot90(-1))


def test_floating_point_pictures_are_refused(tmp_path):
    Image.new("F", (3, 3), 0.5).save(tmp_path / "depth.tif")
    with pytest.raises(DataError, match=r"depth\.tif holds floating-point"):
        read_image(tmp_path / "depth.tif")
