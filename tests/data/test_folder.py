"""Image folders, and what every dataset of files does with a broken one."""

import warnings

import numpy as np
import pytest
from PIL import Image

from ocl.data.folder import ImageFolder
from ocl.errors import ConfigError, DataError


def draw(path, value, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def noisy_jpeg(path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def test_images_come_in_natural_order_from_all_sub_folders(tmp_path):
    for name in ("10.png", "2.png", "b/1.PNG", "a/x10.jpg", "a/x9.jpeg", ".hidden.png", ".cache/z.png"):
        draw(tmp_path / name, 0)
    (tmp_path / "notes.txt").write_text("not an image")
    folder = ImageFolder(tmp_path)
    assert [sample.key for sample in folder] == ["2.png", "10.png", "a/x9.jpeg", "a/x10.jpg", "b/1.PNG"]


def test_samples_have_no_ground_truth_and_the_size_asked_for(tmp_path):
    draw(tmp_path / "1.png", 5)
    assert ImageFolder(tmp_path)[0].image.shape == (3, 9, 12)
    sample = ImageFolder(tmp_path, 8)[0]
    assert sample.image.shape == (3, 8, 8) and sample.instances is None and sample.classes is None


def test_an_empty_folder_is_named_with_the_suffixes_it_may_hold(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path} holds no image.*\*\.jpg.*\*\.png"):
        ImageFolder(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        ImageFolder(tmp_path / "nowhere")


def test_unknown_on_error_is_refused(tmp_path):
    draw(tmp_path / "1.png", 0)
    with pytest.raises(ConfigError, match="on_error"):
        ImageFolder(tmp_path, on_error="ignore")


def break_file(kind, path):
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "truncated":
        noisy_jpeg(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "text":
        path.write_text("this is no picture")
    else:
        path.unlink()


BROKEN = [("zero bytes", "empty"), ("truncated", "truncated"), ("text", "cannot be read"), ("deleted", "missing")]


@pytest.mark.parametrize("kind, word", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, kind, word):
    draw(tmp_path / "1.jpg", 0)
    folder = ImageFolder(tmp_path)
    break_file(kind, tmp_path / "1.jpg")
    with pytest.raises(DataError, match=rf"1\.jpg.*{word}.*skip"):
        folder[0]


@pytest.mark.parametrize("kind, word", BROKEN)
def test_a_skipped_file_is_replaced_by_the_next_good_one_and_counted(tmp_path, kind, word):
    for number in range(4):
        draw(tmp_path / f"{number}.jpg", 0)
    folder = ImageFolder(tmp_path, on_error="skip")
    for name in ("1.jpg", "3.jpg"):
        break_file(kind, tmp_path / name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keys = [folder[index].key for index in (0, 1, 2, 3, 1, 3)]
    assert keys == ["0.jpg", "2.jpg", "2.jpg", "0.jpg", "2.jpg", "0.jpg"]
    assert len(caught) == 2 and "skipped 1.jpg (1 so far)" in str(caught[0].message)
    assert set(folder.skipped) == {"1.jpg", "3.jpg"} and word in folder.skipped["1.jpg"]


def test_a_good_folder_skips_nothing_and_warns_of_nothing(tmp_path):
    draw(tmp_path / "1.png", 0)
    folder = ImageFolder(tmp_path, on_error="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "skipped" not in folder[0].properties
    assert folder.skipped == {}


def test_a_folder_of_broken_files_cannot_be_skipped(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 3 samples.*1\.png is empty"):
        ImageFolder(tmp_path, on_error="skip")[1]


def test_indices_outside_the_folder_are_index_errors(tmp_path):
    draw(tmp_path / "1.png", 0)
    folder = ImageFolder(tmp_path)
    assert folder[-1].key == "1.png"
    with pytest.raises(IndexError):
        folder[1]
